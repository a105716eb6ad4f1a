"""The doctor finds what is there, names what is missing with a remedy, and never dies of it."""

import re
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from pipelines.commands import doctor
from pipelines.commands.main import main
from pipelines.settings.params_file import from_preset, write
from pipelines.settings.runtime import RuntimeConfig

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A whole project: presets, settings, a git commit, DVC's folder and an empty pipeline; entered."""
    root = tmp_path / "project"
    root.mkdir()
    shutil.copytree(REPOSITORY / "conf", root / "conf")
    write(root, from_preset(root, "smoke"), "smoke")
    (root / ".dvc").mkdir()
    (root / "dvc.yaml").write_text("stages: {}\n")
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for words in (["init", "-q"], ["add", "."], [*who, "commit", "-q", "-m", "first"]):
        subprocess.run(["git", *words], cwd=root, check=True, capture_output=True)
    monkeypatch.chdir(root)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    return root


@pytest.fixture
def quick_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares tests of other rows the seconds in which MLflow creates a store."""
    monkeypatch.setattr(doctor, "store_state", lambda root, runtime: doctor.Check("mlflow store", "ok", "-"))


def row(name: str) -> doctor.Check:
    (found,) = [check for check in doctor.examine() if check.name == name]
    return found


def test_a_whole_project_lacks_nothing(project: Path) -> None:
    checks = doctor.examine()
    assert [check for check in checks if check.state == "missing"] == []
    names = {check.name for check in checks}
    assert {"python", "torch", "devices", "cores", "memory", "disk", "git", "dvc", "params.yaml"} <= names


@pytest.mark.usefixtures("quick_store")
def test_the_command_prints_the_table_and_succeeds(project: Path) -> None:
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 0, result.output
    assert "params.yaml" in result.stdout
    assert "preset smoke" in result.stdout


@pytest.mark.usefixtures("quick_store")
def test_the_command_fails_where_something_required_is_missing(project: Path) -> None:
    shutil.rmtree(project / ".dvc")
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 1
    assert "dvc init" in result.stdout


@pytest.mark.usefixtures("quick_store")
def test_wrong_settings_are_named(project: Path) -> None:
    path = project / "params.yaml"
    path.write_text(re.sub(r"p_std: [0-9.]+", "p_std: 0.0", path.read_text()))
    found = row("params.yaml")
    assert found.state == "missing"
    assert "distill.time_law.p_std = 0.0" in found.found


@pytest.mark.usefixtures("quick_store")
def test_a_wrong_runtime_is_named_and_the_rest_still_examined(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AYF_RUNTIME", "nowhere")
    assert row("runtime").state == "missing"
    assert row("git").state == "ok"


def test_a_gpu_that_is_asked_for_and_not_there_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert doctor.devices(RuntimeConfig(device="cuda")).state == "missing"
    assert doctor.devices(RuntimeConfig(device="auto")).state == "ok"


def test_more_threads_than_cores_is_a_note() -> None:
    assert doctor.cores(RuntimeConfig(workers=4096)).state == "note"


def test_ray_is_required_only_by_the_runtime_that_uses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_version", lambda name: None)
    assert doctor.ray_installed(RuntimeConfig(mode="ray")).state == "missing"
    assert doctor.ray_installed(RuntimeConfig(mode="inline")).state == "note"
    assert doctor.packages().state == "missing"
    assert "pip install" in doctor.packages().remedy
    assert doctor.optional_packages().state == "note"


def test_a_full_disk_is_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=10)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert doctor.disk(tmp_path).state == "missing"


def test_a_folder_without_commits_is_missing_git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert doctor.git_state(tmp_path).state == "missing"


def test_git_counts_what_differs_from_the_commit(project: Path) -> None:
    (project / "new.txt").write_text("x")
    assert "1 changed or new paths" in doctor.git_state(project).found


def test_an_mlflow_server_that_is_not_there_is_missing(project: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    with pytest.raises(doctor.AyfError, match="does not answer"):
        doctor.store_state(project, RuntimeConfig(tracking_uri=address))


def test_a_file_that_is_no_store_is_named_with_a_remedy(tmp_path: Path) -> None:
    path = tmp_path / "store.db"
    path.write_bytes(b"not a database " * 100)
    with pytest.raises(doctor.AyfError, match=r"not a database.*; put a copy back, or move it away"):
        doctor.store_state(tmp_path, RuntimeConfig(tracking_uri=f"sqlite:///{path}"))


def test_outside_a_project_the_machine_is_still_examined(tmp_path: Path) -> None:
    checks = doctor.examine(tmp_path)
    assert checks[0].name == "python"
    assert checks[-1].name == "project"
    assert doctor.something_required_is_missing(checks)


@pytest.mark.usefixtures("quick_store")
def test_a_check_that_breaks_is_a_row_and_not_a_crash(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> doctor.Check:
        raise RuntimeError("no such thing\nsecond line")

    monkeypatch.setattr(doctor, "memory", broken)
    assert row("memory").found == "RuntimeError: no such thing"

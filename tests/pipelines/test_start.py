"""How a stage's process starts: with a Python that has what it needs, and with one line where Ctrl-C comes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipelines import environment

REPOSITORY = Path(__file__).resolve().parents[2]
BARE = Path(getattr(sys, "_base_executable", sys.executable))


def bare_lacks_packages() -> bool:
    found = subprocess.run([str(BARE), "-c", "import torch"], capture_output=True, check=False)
    return found.returncode != 0


@pytest.mark.skipif(not bare_lacks_packages(), reason="the Python outside of the environment has torch as well")
def test_dvc_of_an_environment_that_is_not_active_runs_the_stages_in_it(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text("stages: {code: {cmd: python3 -m pipelines code, outs: [.code]}}\n")
    shell = tmp_path / "bin"
    shell.mkdir()
    (shell / "python3").symlink_to(BARE)
    kept = {name: value for name, value in os.environ.items() if name not in ("VIRTUAL_ENV", "AYF_PYTHON")}
    variables = {**kept, "PATH": f"{shell}:/usr/bin:/bin", "PYTHONPATH": str(REPOSITORY)}
    for words in (["init", "--no-scm", "-q"], ["repro"]):
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *words], cwd=tmp_path, env=variables, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert (tmp_path / ".code").is_dir()


def test_without_a_python_that_has_what_is_needed_one_line_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(environment, "_NEEDED", ("nosuchpackage",))
    monkeypatch.setattr(environment, "_pythons_above", lambda: iter([str(tmp_path / "gone")]))
    with pytest.raises(SystemExit) as ended:
        environment.use_environment()
    error = capsys.readouterr().err
    assert ended.value.code == 1
    assert error.count("\n") == 1
    assert "has no nosuchpackage: activate the environment" in error


@pytest.mark.parametrize("loaded", ["libtorch", "libtorch_python"])
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_ctrl_c_while_packages_are_imported_is_one_line(tmp_path: Path, loaded: str) -> None:
    (tmp_path / "dvc.yaml").write_text("stages: {fly: {cmd: python3 -m pipelines fly}}\n")
    process = subprocess.Popen(
        [sys.executable, "-m", "pipelines", "fly"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 100
    while loaded not in Path(f"/proc/{process.pid}/maps").read_text() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=100)[1]
    assert (process.returncode, error.strip()) == (130, "interrupted: run fly again"), error


@pytest.mark.parametrize(
    ("said", "expected"),
    [({}, "1000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_sleep_soon_unless_the_person_said_how_they_wait(said: dict[str, str], expected: str | None) -> None:
    kept = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    asks = "import os, sys, pipelines; print(os.environ.get('GOMP_SPINCOUNT'), 'torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", asks], env={**kept, **said}, cwd=REPOSITORY, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [str(expected), "False"]

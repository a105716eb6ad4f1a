"""The ayf command: what it prints, what it writes, and that a mistake is one line and exit status 1."""

import importlib
import inspect
import json
import os
import shutil
import socket
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pipelines import machine as ports
from pipelines.commands.main import main
from pipelines.settings.reading import load_config
from pipelines.settings.runtime import RuntimeConfig
from pipelines.tracking import ui

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project of its own: the presets and the runtimes, params.yaml from `smoke`, entered."""
    shutil.copytree(REPOSITORY / "conf", tmp_path / "conf")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AYF_DEBUG", raising=False)
    assert ayf("params", "use", "preset=smoke").exit_code == 0
    return tmp_path


@pytest.fixture
def busy_port() -> Iterator[int]:
    """A port of this machine that something listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def ayf(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def test_help_names_every_command_and_loads_nothing_heavy() -> None:
    script = (
        "import sys, json\n"
        "from pipelines.commands.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "print(json.dumps(sorted({'torch', 'ray', 'mlflow', 'hydra', 'diffusers'} & set(sys.modules))))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=REPOSITORY)
    for word in ("doctor", "params", "sample", "ui", "dvc repro", "AYF_RUNTIME"):
        assert word in done.stdout
    assert json.loads(done.stdout.splitlines()[-1]) == []


def test_use_prints_what_changed_in_the_file(project: Path) -> None:
    result = ayf("params", "use", "preset=smoke", "seed=3")
    assert result.exit_code == 0
    assert "1 setting changed" in result.stdout
    assert "seed  0 -> 3" in result.stdout
    assert load_config(project).seed == 3


def test_use_says_where_the_steps_are_too_few_to_learn_anything(project: Path) -> None:
    assert "note: the teacher trains 8 steps, too few" in ayf("params", "use", "preset=smoke").stdout
    assert "note:" not in ayf("params", "use", "preset=smoke", "teacher.training.steps=100").stdout


def test_use_without_a_preset_lists_them(project: Path) -> None:
    result = ayf("params", "use", "seed=3")
    assert result.exit_code == 1
    assert "preset=NAME, one of checkerboard, digits, smoke" in result.stderr


def test_use_writes_a_file_where_there_is_none(project: Path) -> None:
    (project / "params.yaml").unlink()
    result = ayf("params", "use", "preset=checkerboard")
    assert result.exit_code == 0
    assert load_config(project).data.kind == "checkerboard"


def test_use_replaces_a_broken_file(project: Path) -> None:
    (project / "params.yaml").write_text("seed: [")
    assert ayf("params", "use", "preset=smoke").exit_code == 0
    assert load_config(project).seed == 0


def test_set_then_diff_shows_the_change_and_setting_back_removes_it(project: Path) -> None:
    before = (project / "params.yaml").read_bytes()
    assert ayf("params", "set", "teacher.training.steps=50").exit_code == 0
    diff = ayf("params", "diff")
    assert "params.yaml changes 1 setting of preset smoke" in diff.stdout
    assert "teacher.training.steps  8 -> 50" in diff.stdout
    assert ayf("params", "set", "teacher.training.steps=8").exit_code == 0
    assert (project / "params.yaml").read_bytes() == before
    assert "has the settings of preset smoke" in ayf("params", "diff").stdout


def test_diff_compares_with_any_preset(project: Path) -> None:
    assert "codec.training.steps" in ayf("params", "diff", "digits").stdout


def test_check_accepts_what_use_wrote(project: Path) -> None:
    result = ayf("params", "check")
    assert result.exit_code == 0
    assert result.stdout == "params.yaml is valid: preset smoke\n"


def test_check_names_every_problem(project: Path) -> None:
    path = project / "params.yaml"
    path.write_text(path.read_text().replace("p_std:", "pstd:").replace("r1:", "r_one:"))
    result = ayf("params", "check")
    assert result.exit_code == 1
    for name in (
        "unknown setting distill.time_law.pstd: did you mean distill.time_law.p_std?",
        "adversarial.r1 is",
    ):
        assert name in result.stderr


def test_check_names_settings_that_no_stage_declares(project: Path) -> None:
    everything = "[seed, data, codec, features, teacher, weak_teacher, adversarial, evaluation]"
    stages = "stages:\n  distill:\n    matrix: {objective: [emd, lmd]}\n    cmd: x\n    params: ["
    rest = f"]\n  other:\n    cmd: x\n    params: {everything}\n"
    declared = "'distill.${item.objective}', distill.guidance, distill.time_law, distill.tangent"
    (project / "dvc.yaml").write_text(stages + declared + rest)
    result = ayf("params", "check")
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "error: dvc.yaml: no stage declares distill.weighting: add it to the params of the stage it changes"
    ]
    (project / "dvc.yaml").write_text(stages + declared + ", distill.weighting, distill.tangnt" + rest)
    assert ayf("params", "check").stderr.splitlines() == [
        "error: dvc.yaml: stage distill: unknown setting distill.tangnt: did you mean distill.tangent?"
    ]
    (project / "dvc.yaml").write_text(stages + declared + ", distill.weighting" + rest)
    assert ayf("params", "check").exit_code == 0


def test_a_mistake_is_one_line_without_a_traceback_and_changes_nothing(project: Path) -> None:
    before = (project / "params.yaml").read_bytes()
    result = ayf("params", "set", "teacher.training.stps=50")
    assert result.exit_code == 1
    assert result.stderr == ("error: unknown setting teacher.training.stps: did you mean teacher.training.steps?\n")
    assert (project / "params.yaml").read_bytes() == before


def test_debug_shows_the_traceback(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AYF_DEBUG", "1")
    assert type(ayf("params", "set", "sed=1").exception).__name__ == "AyfError"


def test_outside_a_project_the_remedy_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = ayf("params", "check")
    assert result.exit_code == 1
    assert "change into the project's folder" in result.stderr


# --- ui -----------------------------------------------------------------------------------------------


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    """What `ayf ui` would have become; nothing is started."""
    commands: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(ui, "replace_process", lambda command, environment: commands.append((command, environment)))
    return commands


def test_ui_on_a_busy_port_names_the_next_free_one(project: Path, busy_port: int, started: list) -> None:
    result = ayf("ui", "--port", str(busy_port))
    assert result.exit_code == 1
    free = int(result.stderr.split("--port ")[1].split("`")[0])
    assert f"port {busy_port} on 127.0.0.1 is in use" in result.stderr
    assert free > busy_port
    assert ports.port_is_free("127.0.0.1", free)
    assert not started


def test_ui_serves_the_projects_store_the_light_way(
    project: Path, started: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    port = str(ports.next_free_port("127.0.0.1", 40000))
    result = ayf("ui", "--port", port)
    assert result.exit_code == 0, result.stderr
    assert f"http://127.0.0.1:{port}" in result.stdout
    ((command, environment),) = started
    store = Path(command[command.index("--backend-store-uri") + 1].removeprefix("sqlite:///"))
    assert store.is_absolute()
    assert store.is_relative_to(project)
    assert store.stat().st_size > 0, "the schema exists before the server starts"
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert command[command.index("--workers") + 1] == "1"
    assert environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert environment["PATH"] == os.environ["PATH"]


def test_ui_points_to_a_server_that_already_has_the_runs(project: Path, started: list) -> None:
    (project / "conf" / "runtime" / "local.yaml").write_text("tracking_uri: http://tracking.example:5000\n")
    result = ayf("ui", "--port", str(ports.next_free_port("127.0.0.1", 40000)))
    assert result.exit_code == 1
    assert "http://tracking.example:5000: open that address" in result.stderr
    assert not started


def test_ui_is_the_server_that_the_runtime_names(tmp_path: Path) -> None:
    runtime = RuntimeConfig(tracking_uri="http://127.0.0.1:5123")
    assert ui.store_to_serve(tmp_path, runtime, "127.0.0.1", 5123).startswith(f"sqlite:///{tmp_path}")


def test_ui_on_an_address_of_another_machine_is_refused(project: Path, started: list) -> None:
    result = ayf("ui", "--host", "192.0.2.1")
    assert result.exit_code == 1
    assert "choose another --port or --host" in result.stderr


# --- sample -------------------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[dict]:
    """What `ayf sample` asks of pipelines.stages.sampling; nothing is sampled."""
    calls: list[dict] = []
    module = types.ModuleType("pipelines.stages.sampling")
    module.sample_grid = lambda model, root, **options: calls.append({"model": model, "root": root, **options})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pipelines.stages.sampling", module)
    return calls


def test_sample_passes_on_what_was_asked(asked: list[dict], project: Path) -> None:
    out = project / "grid.png"
    words = ["--steps", "2", "--labels", "3,7", "--guidance-scale", "1.5", "--seed", "4", "--gamma", "0.5"]
    words += ["--grid", "shifted:2", "--untuned"]
    result = ayf("sample", "models/x", *words, "--count", "6", "--ema-std", "0.1", "--out", str(out))
    assert result.exit_code == 0, result.output
    (passed,) = asked
    assert passed.pop("root") == project
    numbers = {"steps": 2, "guidance_scale": 1.5, "seed": 4, "gamma": 0.5, "count": 6, "ema_std": 0.1}
    assert passed.pop("time_grid") == "shifted:2"
    assert passed.pop("untuned") is True
    assert passed == {"model": "models/x", "labels": [3, 7], "out": out, **numbers}
    assert f"wrote {out}" in result.stdout


def test_sample_needs_no_project_around_a_model(
    asked: list[dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert ayf("sample", "a/model").exit_code == 0
    assert asked[0]["root"] == tmp_path


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--steps", "0"),
        ("--labels", "three"),
        ("--labels", "-1"),
        ("--labels", ""),
        ("--gamma", "2"),
        ("--seed", "-1"),
    ],
)
def test_sample_refuses_what_cannot_be_meant(asked: list[dict], option: str, value: str) -> None:
    result = ayf("sample", "models/x", option, value)
    assert result.exit_code == 2
    assert option in result.stderr
    assert not asked


def test_the_sampler_takes_what_the_command_passes(asked: list[dict], monkeypatch: pytest.MonkeyPatch) -> None:
    assert ayf("sample", "models/x").exit_code == 0
    (passed,) = asked
    monkeypatch.undo()
    sampler = importlib.import_module("pipelines.stages.sampling").sample_grid
    inspect.signature(sampler).bind(passed.pop("model"), passed.pop("root"), **passed)

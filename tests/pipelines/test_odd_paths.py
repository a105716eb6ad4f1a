"""Projects in folders with spaces, brackets, accents and the like: they work, or one line says what cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from ayf_core.errors import AyfError
from dashboards import store
from pipelines import paths
from pipelines.execution import own_ray
from pipelines.execution.worker_start import SILENT_DEATHS, WorkerStart, cause_of_deaths
from pipelines.settings.runtime import RuntimeConfig
from pipelines.tracking.registry import resolve_model
from pipelines.tracking.runs import open_run
from pipelines.tracking.store import tracking_uri

WORKS = """a b [x] {y} (z) é #1 50% 'q' "r" & ; $HOME = + , : @ ~ | * !"""
FAKE_DEATH = (
    "[2026-11-27 05:54:57,781 E 8484 8484] (raylet) worker_pool.cc:660: Some workers of the worker process(8598) "
)
FAKE_DEATH += "have not registered within the timeout. The process is dead, probably it crashed during start.\n"


@pytest.fixture(autouse=True)
def _stores_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_the_store_of_a_project_in_an_odd_folder_is_written_and_read(tmp_path: Path) -> None:
    root = tmp_path / WORKS
    model = root / "model"
    model.mkdir(parents=True)
    (model / "model.json").write_text("{}")
    runtime = RuntimeConfig(mode="inline")
    run = open_run("s", run_name="n", root=root, scratch=root / "runs", params={}, tags={}, runtime=runtime)
    run.log_text("folder/said.txt", "hello")
    run.register_model(model, "made", "best")
    run.finish()
    uri = tracking_uri(root)
    assert store.artefact(uri, run.id, "folder/said.txt") == b"hello"
    assert (resolve_model("models:/made@best", root) / "model.json").read_text() == "{}"
    assert [path.name for path in tmp_path.iterdir()] == [WORKS]


@pytest.mark.parametrize("name", ["a?b", "a%20b"])
def test_a_folder_that_mlflow_cannot_take_is_refused_before_anything_is_written(name: str, tmp_path: Path) -> None:
    root = tmp_path / name
    root.mkdir()
    with pytest.raises(AyfError, match=r"the path .* in it, which MLflow cannot take: move the project"):
        tracking_uri(root)
    assert list(root.iterdir()) == []


@pytest.mark.parametrize("name", ["50%", "it's", "a\\b"])
def test_a_folder_that_slurm_cannot_take_is_refused(name: str) -> None:
    with pytest.raises(AyfError, match=r"which Slurm cannot take: move the project"):
        paths.require_path_for_slurm(Path("/home") / name)
    paths.require_path_for_slurm(Path("/home/a b [é] #1 & (x)"))


@pytest.mark.parametrize(
    ("place", "fits"), [("a b", True), ("[é] #%&?*", True), ("o' b", True), ("o'b", False), ("a\\ b", False)]
)
def test_an_environment_that_ray_cannot_start_is_refused(
    place: str, fits: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", f"/opt/{place}/.venv/bin/python")
    if fits:
        paths.require_path_for_ray()
    else:
        with pytest.raises(AyfError, match=r"which Ray cannot take: move the environment"):
            own_ray.OwnRay(1)


def test_only_a_path_that_needs_quotes_is_handed_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/opt/me/.venv/bin/python")
    assert own_ray.interpreter_of_workers() == {}
    monkeypatch.setattr(sys, "executable", "/opt/my project/bin/python")
    assert own_ray.interpreter_of_workers() == {"py_executable": "'/opt/my project/bin/python'"}


# ------------------------------------------------------------------------------------- workers that do not come


def test_what_a_worker_said_as_it_died_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipelines.execution.worker_start._LOOK_SECONDS", 0.0)
    watch = WorkerStart(lambda: False, pytest.fail, tmp_path)
    watch()
    (tmp_path / "raylet.err").write_text("bash: line 1: /tmp/my: No such file or directory\n")
    watch()  # another may come
    with (tmp_path / "raylet.err").open("a") as file:
        file.write(FAKE_DEATH)
    with pytest.raises(
        AyfError, match=r"workers end as they start \(bash: line 1: /tmp/my: No such file or directory\)"
    ):
        watch()


def test_a_worker_that_was_killed_silently_is_given_other_chances(tmp_path: Path) -> None:
    log = tmp_path / "raylet.err"
    assert cause_of_deaths(log) is None
    log.write_text(FAKE_DEATH * (SILENT_DEATHS - 1))
    assert cause_of_deaths(log) is None
    log.write_text(FAKE_DEATH * SILENT_DEATHS)
    assert cause_of_deaths(log) == f"{SILENT_DEATHS} of them without a word"


def test_a_slow_start_is_remarked_once_and_forgotten_when_workers_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipelines.execution.worker_start._LOOK_SECONDS", 0.0)
    monkeypatch.setattr("pipelines.execution.worker_start.SLOW_SECONDS", 0.0)
    said: list[str] = []
    come = False
    watch = WorkerStart(lambda: come, said.append, tmp_path)
    watch()
    watch()
    assert len(said) == 1
    assert str(tmp_path) in said[0]
    come = True
    watch()
    (tmp_path / "raylet.err").write_text(FAKE_DEATH * SILENT_DEATHS)  # of a later worker: Ray Train replaces it
    watch()


# ------------------------------------------------------------------------------------------------ the real thing

TRAIN = """
import sys
from pathlib import Path
from pipelines.execution.ray_train import run_training
from pipelines.settings.runtime import RuntimeConfig

def train(config, context):
    context.log(1, 1, {"loss": 1.0})
    return {"python": sys.executable}

if __name__ == "__main__":
    runtime = RuntimeConfig(mode="ray", threads_per_worker=1, device="cpu")
    told = run_training(train, {}, folder=Path("runs"), name="x", runtime=runtime, on_log=lambda records: None)
    print(told["python"])
"""


@pytest.mark.ray
@pytest.mark.slow
def test_workers_of_ray_start_from_an_environment_in_an_odd_folder(tmp_path: Path) -> None:
    root = tmp_path / "a b [x] é #1 % & (z) ? $HOME ;"
    root.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", root / ".venv"], check=True)
    packages = next((root / ".venv" / "lib").glob("python*/site-packages"))
    packages.rmdir()
    packages.symlink_to(next(Path(path) for path in sys.path if path.endswith("site-packages")))
    (root / "train.py").write_text(TRAIN)
    here = str(Path(__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([here, str(root)])}
    python = root / ".venv" / "bin" / "python"
    done = subprocess.run([python, "train.py"], cwd=root, env=environment, capture_output=True, text=True, timeout=240)
    assert done.stdout.splitlines()[-1] == str(python), done.stdout + done.stderr

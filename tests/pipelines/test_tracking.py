"""MLflow runs: a store created once, a run that is continued without doubled points, lineage, models."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

from ayf_core.errors import AyfError
from pipelines.settings.runtime import RuntimeConfig
from pipelines.tracking.lineage import find_run_by_output, git_tags
from pipelines.tracking.registry import resolve_model
from pipelines.tracking.runs import open_run
from pipelines.tracking.store import ensure_store, tracking_uri
from pipelines.tracking.tags import EXPERIMENT, KEY_TAG, OUTPUT_TAG

REPOSITORY = Path(__file__).parents[2]
RUNTIME = RuntimeConfig(mode="inline", system_metrics=False)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A project whose store exists: creating the schema takes a second or more."""
    folder = tmp_path_factory.mktemp("project")
    ensure_store(folder)
    return folder


@pytest.fixture(autouse=True)
def _no_server(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def opened(root, scratch, runtime=RUNTIME, **tags):
    params = {"distill": {"steps": 20, "guidance": {"scale": 1.5}}}
    names = {"run_name": "distill emd", "root": root, "scratch": scratch}
    return open_run("distill@emd", **names, params=params, tags=tags, runtime=runtime)


def client(root):
    return MlflowClient(ensure_store(root))


def records(*steps):
    return [{"step": step, "total": 9, "time": 1000.0 + step, "metrics": {"loss": 1 / step}} for step in steps]


@pytest.mark.slow
def test_two_processes_may_meet_a_fresh_store(tmp_path):
    code = "import sys, pathlib; from pipelines.tracking.store import ensure_store as e; e(pathlib.Path(sys.argv[1]))"
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    both = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], env=env) for _ in range(2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    assert client(tmp_path).get_experiment_by_name(EXPERIMENT) is not None


MAKE_AND_DIE = """
import os, pathlib, signal, sys
from sqlalchemy import Engine, event
from pipelines.tracking.store import ensure_store

root, left = pathlib.Path(sys.argv[1]), int(sys.argv[2])

@event.listens_for(Engine, "after_cursor_execute")
def count(connection, cursor, statement, *_):
    global left
    left -= "CREATE TABLE" in statement
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)

ensure_store(root)
"""


@pytest.mark.slow
@pytest.mark.parametrize("tables", [1, 20])
def test_a_store_whose_making_was_killed_is_made_again(tmp_path, tables):
    unfinished = tmp_path / "mlruns/.mlflow.db.new"
    command = [sys.executable, "-c", MAKE_AND_DIE, str(tmp_path), str(tables)]
    died = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, check=False)
    assert died.returncode == -signal.SIGKILL
    assert unfinished.exists()
    assert not (tmp_path / "mlruns/mlflow.db").exists()
    assert client(tmp_path).get_experiment_by_name(EXPERIMENT) is not None
    assert not unfinished.exists()


def test_a_damaged_store_is_named_in_one_line(tmp_path):
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns/mlflow.db").write_bytes(b"not a database" * 100)
    with pytest.raises(AyfError, match=r"the MLflow store .*mlflow\.db cannot be opened .*; put a copy back") as raised:
        ensure_store(tmp_path)
    assert "\n" not in str(raised.value)


def test_store_is_in_the_project_whatever_the_working_directory(root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert ensure_store(root) == f"sqlite:///{root}/mlruns/mlflow.db"
    location = client(root).get_experiment_by_name(EXPERIMENT).artifact_location
    assert location == f"file://{root}/mlruns/artifacts"
    assert list(tmp_path.iterdir()) == []


def test_server_that_is_not_there_is_named_before_any_work(root):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(AyfError, match=f"{uri} does not answer; start it .ayf ui. or unset tracking_uri"):
            tracking_uri(root, RuntimeConfig(tracking_uri=uri))


def test_runtime_names_the_store_before_the_environment(root, monkeypatch, tmp_path):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    with pytest.raises(AyfError, match="unset MLFLOW_TRACKING_URI"):
        tracking_uri(root, RUNTIME)
    own = f"sqlite:///{root}/mlruns/mlflow.db"
    assert tracking_uri(root, RuntimeConfig(tracking_uri=own)) == own


def test_folder_store_is_refused(root):
    with pytest.raises(AyfError, match="keeps no runs in folders"):
        tracking_uri(root, RuntimeConfig(tracking_uri="./mlruns"))


def test_continued_run_keeps_its_id_and_its_params_and_doubles_no_point(root, tmp_path):
    first = opened(root, tmp_path)
    first.log_metrics(records(1, 2, 3))
    second = opened(root, tmp_path)  # the first process was killed: its run is still open
    second.log_metrics(records(1, 2, 3, 4, 5))
    second.log_metrics(records(4, 5, 6))
    second.finish()
    run = client(root).get_run(first.id)
    assert second.id == first.id
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "distill emd"
    assert run.data.params == {"distill.steps": "20", "distill.guidance.scale": "1.5"}
    history = client(root).get_metric_history(first.id, "loss")
    assert [(p.step, p.value) for p in history] == [(s, 1 / s) for s in (1, 2, 3, 4, 5, 6)]


def test_more_records_than_one_batch_holds_arrive(root, tmp_path):
    run = opened(root, tmp_path)
    run.log_metrics(records(*range(1, 2502)))
    run.finish()
    assert len(client(root).get_metric_history(run.id, "loss")) == 2501


def test_run_of_a_process_killed_before_it_noted_the_id_is_found_again(root, tmp_path):
    first = opened(root, tmp_path)
    (tmp_path / "mlflow_run_id").unlink()
    assert opened(root, tmp_path).id == first.id


def test_the_very_same_stage_of_somebody_else_is_another_run(root, tmp_path):
    """Two people, or two nodes, share a store and run the same stage at the same time."""
    mine = opened(root, tmp_path / "mine", **{KEY_TAG: "0123"})
    assert opened(root, tmp_path / "theirs", **{KEY_TAG: "0123"}).id != mine.id


def test_finished_run_of_the_same_key_is_left_alone(root, tmp_path):
    first = opened(root, tmp_path / "a", **{KEY_TAG: "89ab"})
    first.finish()
    assert opened(root, tmp_path / "b", **{KEY_TAG: "89ab"}).id != first.id


def test_run_id_of_a_deleted_store_starts_a_new_run(root, tmp_path):
    (tmp_path / "mlflow_run_id").write_text("0" * 32)
    assert opened(root, tmp_path).id != "0" * 32


def test_upstream_run_is_found_by_what_it_published(root, tmp_path):
    run = opened(root, tmp_path)
    run.set_tags({f"{OUTPUT_TAG}models/teacher": "abc"})
    assert find_run_by_output("models/teacher", "abc", run.uri) == run.id
    assert find_run_by_output("models/teacher", "abd", run.uri) is None


def test_data_set_is_an_input_with_the_digest_of_dvc(root, tmp_path):
    run = opened(root, tmp_path)
    digest = "0123456789abcdef0123456789abcdef.dir"
    for _ in range(2):  # a resumed stage says it again
        run.log_dataset_input("data/latents", digest)
    (found,) = client(root).get_run(run.id).inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest, found.dataset.source_type) == (
        "data/latents",
        digest,
        "dvc",
    )


def test_pictures_and_values_are_kept_with_the_run(root, tmp_path):
    run = opened(root, tmp_path)
    run.log_image("samples/nfe_4.png", Image.new("L", (4, 4)))
    run.log_values({"fd/nfe_4": 2.5})
    assert [file.path for file in client(root).list_artifacts(run.id, "samples")] == ["samples/nfe_4.png"]
    assert client(root).get_run(run.id).data.metrics == {"fd/nfe_4": 2.5}


def test_model_is_registered_once_and_resolved_by_alias_version_and_path(root, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights.txt").write_text("1")
    run = opened(root, tmp_path)
    assert [run.register_model(model, "student", "best") for _ in range(2)] == ["1", "1"]
    for uri in ("models:/student@best", "models:/student/1", f"runs:/{run.id}/models/student", str(model)):
        assert (resolve_model(uri, root, RUNTIME) / "weights.txt").read_text() == "1"
    newer = opened(root, tmp_path / "newer")
    assert newer.register_model(model, "student", "best") == "2"


@pytest.mark.parametrize("uri", ["models:/nobody@best", "models:/student/99", "runs:/0123/model", "no/such/folder"])
def test_model_that_is_not_there_is_named(root, uri):
    with pytest.raises(AyfError, match=uri):
        resolve_model(uri, root, RUNTIME)


def test_system_metrics_are_logged_where_they_are_wanted(root, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.1")
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLES_BEFORE_LOGGING", "1")
    run = opened(root, tmp_path, RuntimeConfig(mode="inline", system_metrics=True))
    until = time.monotonic() + 60
    while "system/cpu_utilization_percentage" not in client(root).get_run(run.id).data.metrics:
        assert time.monotonic() < until
        time.sleep(0.1)
    run.finish()


def test_git_commit_and_changes_are_tags(tmp_path):
    def git(*arguments):
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True, capture_output=True)

    assert git_tags(tmp_path / "nowhere") == {}
    git("init")
    for name in ("code.py", "dvc.lock"):
        (tmp_path / name).write_text("1")
    git("add", ".")
    git("commit", "-m", "first")
    assert git_tags(tmp_path)["ayf.git_dirty"] == "false"
    (tmp_path / "dvc.lock").write_text("2")
    assert git_tags(tmp_path)["ayf.git_dirty"] == "false"
    (tmp_path / "code.py").write_text("2")
    assert git_tags(tmp_path)["ayf.git_dirty"] == "true"
    assert len(git_tags(tmp_path)["mlflow.source.git.commit"]) == 40

"""A stage by its declaration: keys, one writer, resumption after a kill, outputs whole or not there."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
from mlflow.tracking import MlflowClient

from ayf_core.errors import AyfError
from pipelines.execution.locks import only_writer
from pipelines.execution.process import main
from pipelines.execution.run import _asked_again, run_stage
from pipelines.execution.stage import Stage
from pipelines.project.declarations import fingerprint, read_declarations
from pipelines.tracking.store import ensure_store

HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("toy_project", HERE / "toy_project.py")
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)

FINAL = [float(sum(range(1, 61)))] * 3


@pytest.fixture(scope="module")
def fresh_store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    ensure_store(folder)
    return folder / "mlruns"


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A project with its first stage's output in place."""
    for variable in ("MLFLOW_TRACKING_URI", "DVC_ROOT", "DVC_STAGE"):
        monkeypatch.delenv(variable, raising=False)
    project = toy.write_project(tmp_path / "project", "make: {size: 3}\nwalk: {steps: 60}\n")
    made = project / "data/made"
    made.mkdir(parents=True)
    (made / "numbers.txt").write_text("1 2 3\n")
    return project


def stage_of(root, name="walk@up"):
    return Stage(root, read_declarations(root)[name], toy.runtime())


def run(root, body=toy.walk, name="walk@up"):
    return run_stage(root, name, config=object(), runtime=toy.runtime(), body=body)


def start(root, *arguments):
    command = [sys.executable, str(HERE / "toy_project.py"), str(root), *(arguments or ("walk@up", "inline"))]
    env = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for(condition, what, seconds=180):
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return
        time.sleep(0.02)
    pytest.fail(f"waited {seconds} s for {what}")


def points(root, stage):
    client = MlflowClient(ensure_store(root))
    return [point.step for point in client.get_metric_history(stage.run.id, "loss")]


def status(root, stage_name="walk@up"):
    run_id = next(root.glob(f"runs/{stage_name}/*/mlflow_run_id")).read_text().strip()
    return MlflowClient(ensure_store(root)).get_run(run_id).info.status


def test_matrix_entries_are_stages_with_their_values_filled_in(root):
    declared = read_declarations(root)
    assert list(declared) == ["make", "walk@up", "walk@down"]
    down = declared["walk@down"]
    assert (down.base, down.item) == ("walk", {"way": "down"})
    assert down.outputs == ("models/down", "reports/down.json")
    assert (down.deps, down.params) == (("data/made",), ("walk",))


def test_key_follows_params_and_contents_of_inputs(root):
    key = stage_of(root).key
    assert stage_of(root).key == key
    assert stage_of(root, "walk@down").key != key
    (root / "data/made/numbers.txt").write_text("1 2 4\n")
    changed = stage_of(root).key
    assert changed != key
    (root / "params.yaml").write_text("make: {size: 4}\nwalk: {steps: 60}\n")
    assert stage_of(root).key == changed  # a setting the stage does not declare
    (root / "params.yaml").write_text("make: {size: 3}\nwalk: {steps: 61}\n")
    assert stage_of(root).key != changed


def test_fingerprint_of_code_ignores_byte_code_but_not_names(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n")
    before = fingerprint(tmp_path)
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__/a.cpython-311.pyc").write_bytes(b"0")
    assert fingerprint(tmp_path) == before
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert fingerprint(tmp_path) != before


def test_folder_with_checksums_in_its_manifest_is_known_by_the_manifest(tmp_path):
    (tmp_path / "shard").write_text("1")
    plain = fingerprint(tmp_path)
    (tmp_path / "manifest.json").write_text('{"shards": [{"file": "shard", "sha256": "12"}]}')
    known = fingerprint(tmp_path)
    assert known not in (plain, None)
    (tmp_path / "shard").write_text("2")  # the reader notices this by the checksum
    assert fingerprint(tmp_path) == known
    (tmp_path / "manifest.json").write_text('{"shards": [{"file": "shard", "sha256": "34"}]}')
    assert fingerprint(tmp_path) != known


def test_missing_dep_names_the_stage_that_makes_it(root):
    shutil.rmtree(root / "data")
    with pytest.raises(AyfError, match="reads data/made, which is missing; run `dvc repro make`"):
        run(root)
    (root / "src.txt").unlink()
    with pytest.raises(AyfError, match=r"make reads src.txt, which is missing; no stage makes it"):
        run(root, name="make")


def test_param_that_is_declared_but_missing_is_named(root):
    (root / "params.yaml").write_text("make: {size: 3}\n")
    with pytest.raises(AyfError, match=r"params.yaml has no walk, which walk@up declares"):
        run(root)


def test_unknown_stage_and_stage_without_code_are_named(root):
    with pytest.raises(AyfError, match="no stage fly; it has make, walk@up, walk@down"):
        run(root, name="fly")
    with pytest.raises(AyfError, match=r"there is no pipelines.stages.walk"):
        run(root, body=None)


def test_undeclared_paths_are_refused(root):
    stage = stage_of(root)
    with pytest.raises(AyfError, match="does not list among its outs"):
        stage.output("models/other")
    with pytest.raises(AyfError, match="does not list among its deps"):
        stage.input("data/other")


def test_digest_is_the_one_of_dvc_where_it_has_one(root):
    assert stage_of(root).digest("data/made") == fingerprint(root / "data/made")[:32]
    lock = "stages: {make: {cmd: x, outs: [{path: data/made, md5: 12ab.dir}]}}\n"
    (root / "dvc.lock").write_text(lock)
    assert stage_of(root).digest("data/made") == "12ab.dir"


def test_finished_stage_publishes_its_outputs_and_knows_its_upstream_run(root, fresh_store):
    shutil.copytree(fresh_store, root / "mlruns")
    shutil.rmtree(root / "data")
    made = run(root, toy.make, "make")
    walked = run(root)
    assert json.loads((root / "models/up/model.json").read_text()) == FINAL
    assert json.loads((root / "reports/up.json").read_text()) == {"distance": FINAL[0]}
    assert points(root, walked) == list(range(1, 61))
    mlflow_run = MlflowClient(ensure_store(root)).get_run(walked.run.id)
    assert mlflow_run.data.tags["ayf.upstream.data/made"] == made.run.id
    assert mlflow_run.data.tags["dvc.stage"] == "walk@up"
    assert mlflow_run.data.params == {"walk.steps": "60"}
    assert not list(walked.scratch.rglob("checkpoints"))


def test_finished_work_is_published_again_without_being_done_again(root, fresh_store):
    shutil.copytree(fresh_store, root / "mlruns")
    first = run(root)
    shutil.rmtree(root / "models")
    second = run(root, body=lambda config, stage: pytest.fail("done again"))
    assert second.run.id == first.run.id
    assert json.loads((root / "models/up/model.json").read_text()) == FINAL
    assert points(root, second) == list(range(1, 61))


def test_damaged_outputs_in_scratch_are_made_again(root, fresh_store):
    shutil.copytree(fresh_store, root / "mlruns")
    first = run(root)
    (first.scratch / "outputs/models/up/model.json").write_text("[0]")
    run(root)
    assert json.loads((root / "models/up/model.json").read_text()) == FINAL


def test_published_outputs_share_nothing_with_scratch(root, fresh_store):
    shutil.copytree(fresh_store, root / "mlruns")
    stage = run(root)
    (root / "models/up/model.json").write_text("edited")
    assert json.loads((stage.scratch / "outputs/models/up/model.json").read_text()) == FINAL


def test_failing_stage_publishes_nothing_and_its_run_says_failed(root, fresh_store):
    shutil.copytree(fresh_store, root / "mlruns")

    def body(config, stage):
        stage.output("models/up").mkdir()
        raise AyfError("no luck")

    (root / "models/up").mkdir(parents=True)
    (root / "models/up/model.json").write_text("before")
    with pytest.raises(AyfError, match="no luck"):
        run(root, body)
    assert (root / "models/up/model.json").read_text() == "before"
    assert status(root) == "FAILED"


def test_output_that_was_not_written_is_named(root, fresh_store):
    shutil.copytree(fresh_store, root / "mlruns")
    with pytest.raises(AyfError, match="finished without writing models/up"):
        run(root, body=lambda config, stage: None)


def test_finished_scratch_of_other_settings_goes_and_interrupted_scratch_stays(root, fresh_store):
    shutil.copytree(fresh_store, root / "mlruns")
    finished = run(root).scratch
    (root / "params.yaml").write_text("make: {size: 3}\nwalk: {steps: 60, fail_at: 35}\n")
    with pytest.raises(AyfError):
        run(root)
    interrupted = stage_of(root).scratch
    (root / "params.yaml").write_text("make: {size: 3}\nwalk: {steps: 30}\n")
    run(root)
    assert not finished.exists()
    assert interrupted.exists()


def test_second_writer_is_refused_and_the_first_one_goes_on(root, fresh_store):
    shutil.copytree(fresh_store, root / "mlruns")

    def body(config, stage):
        with pytest.raises(AyfError, match=rf"walk@up is being run already \(process {os.getpid()}\)"):
            run(root)
        toy.walk(config, stage)

    run(root, body)


def test_a_stage_waits_for_the_one_before_it_that_was_asked_to_stop(root):
    folder = root / "runs/walk@up"
    training = folder / "0123/training"
    training.mkdir(parents=True)
    (training / "stop").touch()
    before = only_writer(folder, "walk@up")
    before.__enter__()
    threading.Timer(0.5, before.__exit__, (None, None, None)).start()
    with only_writer(folder, "walk@up") as lock:
        assert lock.name == str(folder / "lock")


def test_a_result_that_dvc_committed_is_asked_for_again_whatever_the_clock_says(root, fresh_store):
    shutil.copytree(fresh_store, root / "mlruns")
    run(root)
    stage, lock = stage_of(root), root / "dvc.lock"
    assert not _asked_again(stage)
    lock.write_text("stages: {walk@up: {}}\n")
    os.utime(lock, (1e9, 1e9))  # long before it was published
    assert _asked_again(stage)
    run(root)
    os.utime(stage.scratch / "published", (1e9, 1e9))  # and now the lock looks as if it was written after
    assert not _asked_again(stage)


@pytest.mark.slow
def test_killed_twice_and_run_again_gives_the_same_bytes_and_no_doubled_points(root, fresh_store, tmp_path):
    shutil.copytree(fresh_store, root / "mlruns")
    (root / "params.yaml").write_text("make: {size: 3}\nwalk: {steps: 60, sleep: 0.1}\n")
    other = tmp_path / "never killed"
    shutil.copytree(root, other, ignore=shutil.ignore_patterns("mlruns"))
    shutil.copytree(fresh_store, other / "mlruns")
    for step in (10, 30):
        process = start(root)
        pattern = f"runs/*/*/training/checkpoints/step_{step:08d}"
        wait_for(lambda: list(root.glob(pattern)) or process.poll() is not None, f"step {step}")  # noqa: B023
        time.sleep(0.3)  # into the steps that are to be trained again, some of them logged already
        process.kill()
        output = process.communicate()[0]
        assert process.returncode == -signal.SIGKILL, output
    resumed = run(root)
    untouched = run(other)
    assert resumed.key == untouched.key
    assert fingerprint(root / "models") == fingerprint(other / "models")
    assert points(root, resumed) == points(other, untouched) == list(range(1, 61))
    assert status(root) == "FINISHED"


@pytest.mark.slow
def test_stage_ends_with_the_process_that_started_it(root, fresh_store):
    shutil.copytree(fresh_store, root / "mlruns")
    (root / "params.yaml").write_text("make: {size: 3}\nwalk: {steps: 100000, sleep: 0.05}\n")
    # The parent plays dvc: it starts the stage, notes its process and waits.
    stage_code = (
        f"import sys; sys.argv = ['toy', {str(root)!r}, 'walk@up', 'inline']; "
        "import pathlib; from pipelines.execution.process import _end_with_parent; "
        f"_end_with_parent(pathlib.Path({str(root)!r})); "
        f"import runpy; runpy.run_path({str(HERE / 'toy_project.py')!r}, run_name='__main__')"
    )
    code = (
        "import subprocess, sys; "
        f"p = subprocess.Popen([sys.executable, '-c', {stage_code!r}]); print(p.pid, flush=True); p.wait()"
    )
    env = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "OMP_NUM_THREADS": "1"}
    parent = subprocess.Popen([sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True)
    child = int(parent.stdout.readline())
    wait_for(lambda: list(root.glob("runs/*/*/training/checkpoints/step_*")), "training to start")
    parent.kill()
    parent.communicate()
    wait_for(lambda: _ended(child), "the stage to end")
    assert status(root) == "KILLED"


def _ended(pid):
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE  # nobody may be there to take note of its end
    except psutil.NoSuchProcess:
        return True


def test_command_ends_with_one_line_and_a_code(root, monkeypatch, capsys):
    monkeypatch.chdir(root)
    monkeypatch.setattr("pipelines.execution.process._end_with_parent", lambda root: None)
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        (root / "params.yaml").write_text("seed: one\n")
        assert main(["walk@up"]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ")
        assert error.count("\n") == 1
        assert main([]) == 2
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

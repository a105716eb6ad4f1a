"""Checkpoints and the log of a training loop: complete or absent, sound or moved aside, cut where a run goes on."""

import errno
import json
import os
import threading

import pytest
import torch

from ayf_core.errors import AyfError, Preempted
from ayf_core.training import checkpoint_folder
from ayf_core.training.checkpoint_folder import checkpoint_step
from ayf_core.training.checkpoints import load_state
from ayf_core.training.context import STOP_FILE, LocalContext, read_metrics, read_notes


def save(context, step, value=0.0):
    context.save_checkpoint(step, {"step": step, "weights": torch.full((3,), value)})
    context.wait()


def weights(checkpoint):
    return load_state(checkpoint)["weights"].tolist()


def names(folder):
    return sorted(os.listdir(folder / "checkpoints"))


def spoil(checkpoint):
    """Flip one bit of the last tensor."""
    path = checkpoint / "state.safetensors"
    payload = bytearray(path.read_bytes())
    payload[-1] ^= 1
    path.write_bytes(payload)


def truncate(checkpoint):
    path = checkpoint / "state.safetensors"
    path.write_bytes(path.read_bytes()[:-5])


def test_fresh_folder_has_no_checkpoint(tmp_path):
    assert LocalContext(tmp_path).latest_checkpoint() is None


def test_newest_checkpoint_is_found_again_and_two_are_kept(tmp_path):
    context = LocalContext(tmp_path)
    for step in (10, 20, 100):
        save(context, step, step)
    newest = LocalContext(tmp_path).latest_checkpoint()
    assert newest.name == "step_00000100"
    assert weights(newest) == [100.0] * 3
    assert names(tmp_path) == ["step_00000020", "step_00000100"]


def test_all_are_kept_where_somebody_else_may_want_one(tmp_path):
    context = LocalContext(tmp_path, keep=None)
    for step in (10, 20, 100):
        save(context, step)
    assert len(names(tmp_path)) == 3


def test_a_checkpoint_holds_the_moment_it_was_asked_for(tmp_path):
    context, value = LocalContext(tmp_path), torch.zeros(1000, 1000)
    context.save_checkpoint(10, {"weights": value})
    value += 1
    assert not load_state(context.latest_checkpoint())["weights"].any()


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path, monkeypatch):
    free, write = threading.Event(), checkpoint_folder.write_state
    monkeypatch.setattr(checkpoint_folder, "write_state", lambda *given: free.wait(30) and write(*given))
    context = LocalContext(tmp_path)
    context.save_checkpoint(10, {"weights": torch.ones(3)})  # returns though nothing can be written yet
    assert not list(tmp_path.glob("checkpoints/step_*"))
    free.set()
    assert context.latest_checkpoint().name == "step_00000010"


def fail(error):
    def write_state(folder, copy):
        (folder / "state.safetensors").write_text("half")
        raise error

    return write_state


def test_write_that_fails_leaves_the_checkpoint_before_it_and_is_told_at_the_next(tmp_path, monkeypatch):
    context = LocalContext(tmp_path)
    save(context, 10)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_folder, "write_state", fail(RuntimeError("stop")))
        context.save_checkpoint(20, {})
        with pytest.raises(RuntimeError, match="stop"):
            context.save_checkpoint(30, {})
    assert names(tmp_path) == ["step_00000010"]
    save(context, 30)
    assert names(tmp_path) == ["step_00000010", "step_00000030"]


def test_what_a_killed_writer_left_is_not_a_checkpoint_and_is_swept(tmp_path):
    context = LocalContext(tmp_path)
    save(context, 10)
    (tmp_path / "checkpoints" / ".step_00000020.1234abcd.partial").mkdir()
    assert LocalContext(tmp_path).latest_checkpoint().name == "step_00000010"
    save(context, 20)
    assert names(tmp_path) == ["step_00000010", "step_00000020"]


def test_a_step_saved_again_replaces_the_older_one(tmp_path):
    context = LocalContext(tmp_path)
    save(context, 10, 1.0)
    save(context, 10, 2.0)
    assert weights(context.latest_checkpoint()) == [2.0] * 3


@pytest.mark.parametrize("damage", [spoil, truncate])
def test_damaged_checkpoint_is_moved_aside_and_the_one_before_goes_on(tmp_path, damage):
    context, said = LocalContext(tmp_path), []
    for step in (10, 20):
        save(context, step, step)
    context.log(15, 40, {"loss": 1.0})
    damage(tmp_path / "checkpoints/step_00000020")
    resumed = LocalContext(tmp_path, tell=said.append)
    assert weights(resumed.latest_checkpoint()) == [10.0] * 3
    assert names(tmp_path) == ["step_00000010", "step_00000020.damaged"]
    line = "damaged checkpoint: step_00000020 (kept as step_00000020.damaged); going on from step 10"
    assert said == read_notes(tmp_path / "metrics.jsonl") == [line]
    save(resumed, 20, 20.0)
    assert LocalContext(tmp_path, tell=said.append).latest_checkpoint().name == "step_00000020"
    assert len(said) == 1


def test_without_any_sound_checkpoint_training_starts_from_the_beginning_and_says_so(tmp_path, capsys):
    context = LocalContext(tmp_path)
    for step in (10, 20):
        save(context, step)
    for checkpoint in (tmp_path / "checkpoints").iterdir():
        spoil(checkpoint)
    assert LocalContext(tmp_path).latest_checkpoint() is None
    assert capsys.readouterr().err.endswith("going on from the beginning: there is no sound one\n")
    assert names(tmp_path) == ["step_00000010.damaged", "step_00000020.damaged"]


def test_what_was_damaged_twice_is_kept_twice(tmp_path):
    for _ in range(2):
        context = LocalContext(tmp_path)
        save(context, 10)
        spoil(tmp_path / "checkpoints/step_00000010")
    LocalContext(tmp_path)
    assert names(tmp_path) == ["step_00000010.damaged", "step_00000010.damaged.2"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        RuntimeError("Error while serializing: IoError(No space left on device (os error 28))"),
    ],
)
def test_full_disk_names_the_folder(tmp_path, monkeypatch, error):
    monkeypatch.setattr(checkpoint_folder, "write_state", fail(error))
    context = LocalContext(tmp_path)
    context.save_checkpoint(10, {})
    with pytest.raises(AyfError, match=f"no space left.*{tmp_path}"):
        context.wait()


def test_a_stop_is_asked_for_by_a_file(tmp_path, monkeypatch):
    monkeypatch.setenv(STOP_FILE, str(tmp_path / "elsewhere"))
    monkeypatch.setattr("ayf_core.training.context._LOOK_SECONDS", 0.0)
    context = LocalContext(tmp_path, stop_files=[tmp_path / "stop"])
    assert not context.stop_asked()
    (tmp_path / "elsewhere").touch()
    assert context.stop_asked()
    monkeypatch.delenv(STOP_FILE)
    context = LocalContext(tmp_path, stop_files=[tmp_path / "stop"])
    assert not context.stop_asked()
    (tmp_path / "stop").touch()
    assert context.stop_asked()


def test_a_stop_travels_between_processes_with_its_step():
    import pickle

    stop = pickle.loads(pickle.dumps(Preempted(12)))
    assert stop.step == 12
    assert str(stop) == "stopped at step 12 with a checkpoint: the same command goes on from it"


def test_name_that_is_no_checkpoint_is_refused(tmp_path):
    with pytest.raises(AyfError, match="not a checkpoint"):
        checkpoint_step(tmp_path / "best")


def test_log_is_one_json_line_a_record(tmp_path):
    LocalContext(tmp_path).log(3, 10, {"loss": 0.5})
    record = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert (record["step"], record["total"], record["metrics"]) == (3, 10, {"loss": 0.5})
    assert record["time"] > 0


def test_resumed_run_cuts_the_steps_it_trains_again_and_a_torn_line(tmp_path):
    context = LocalContext(tmp_path)
    for step in range(1, 9):
        context.log(step, 10, {"loss": 1.0})
        if step == 5:
            save(context, step)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9, "tot')
    LocalContext(tmp_path)
    assert [record["step"] for _, record in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5]

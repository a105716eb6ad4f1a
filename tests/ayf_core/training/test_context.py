"""Checkpoints and the log of a training loop: complete or absent, cut where a resumed run goes on."""

import errno
import json
import os

import pytest

from ayf_core.errors import AyfError
from ayf_core.training.context import LocalContext, checkpoint_step, read_metrics


def save(context, step, text="weights"):
    context.save_checkpoint(step, lambda folder: (folder / "weights").write_text(text))


def test_fresh_folder_has_no_checkpoint(tmp_path):
    assert LocalContext(tmp_path).latest_checkpoint() is None


def test_newest_checkpoint_is_found_again_and_two_are_kept(tmp_path):
    context = LocalContext(tmp_path)
    for step in (10, 20, 100):
        save(context, step, str(step))
    newest = LocalContext(tmp_path).latest_checkpoint()
    assert newest.name == "step_00000100"
    assert (newest / "weights").read_text() == "100"
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step_00000020", "step_00000100"]


def test_write_that_fails_leaves_the_checkpoint_before_it(tmp_path):
    context = LocalContext(tmp_path)
    save(context, 10)

    def write(folder):
        (folder / "weights").write_text("half")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        context.save_checkpoint(20, write)
    assert os.listdir(tmp_path / "checkpoints") == ["step_00000010"]


def test_what_a_killed_writer_left_is_not_a_checkpoint_and_is_swept(tmp_path):
    context = LocalContext(tmp_path)
    save(context, 10)
    (tmp_path / "checkpoints" / ".step_00000020.partial").mkdir()
    assert LocalContext(tmp_path).latest_checkpoint().name == "step_00000010"
    save(context, 20)
    assert sorted(os.listdir(tmp_path / "checkpoints")) == ["step_00000010", "step_00000020"]


def test_a_step_saved_again_replaces_the_older_one(tmp_path):
    context = LocalContext(tmp_path)
    save(context, 10, "old")
    save(context, 10, "new")
    assert (context.latest_checkpoint() / "weights").read_text() == "new"


def test_full_disk_names_the_folder(tmp_path):
    def write(folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(AyfError, match=f"no space left.*{tmp_path}"):
        LocalContext(tmp_path).save_checkpoint(10, write)


def test_full_disk_is_known_in_the_dress_of_a_library(tmp_path):
    def write(folder):
        raise RuntimeError("Error while serializing: IoError(No space left on device (os error 28))")

    with pytest.raises(AyfError, match="no space left"):
        LocalContext(tmp_path).save_checkpoint(10, write)


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

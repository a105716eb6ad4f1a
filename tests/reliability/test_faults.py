"""Faults on one machine: each costs the steps since the last checkpoint, and nothing else.

The disturbed run is held against an undisturbed one byte for byte. What was lost and how long it took to go on is
reported for the table of docs/reliability.md.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from pipelines.project.declarations import fingerprint
from tests.reliability.lab import CHECKPOINT_EVERY, DISTURBED_AT, STAGE, Lab

pytestmark = pytest.mark.slow


@pytest.fixture
def lab(prepared: Path, tmp_path: Path) -> Iterator[Lab]:
    with closing(Lab.copy(prepared, tmp_path / "project")) as made:
        yield made


@pytest.fixture
def on_ray(prepared: Path, tmp_path: Path) -> Iterator[Lab]:
    with closing(Lab.copy(prepared, tmp_path / "project", mode="ray")) as made:
        yield made


@pytest.fixture
def pair(prepared: Path, tmp_path: Path) -> Iterator[Lab]:
    with closing(Lab.copy(prepared, tmp_path / "project", mode="ray", workers=2)) as made:
        yield made


def killed(lab: Lab, *command: str, **environment: str) -> tuple[int, float]:
    """Run, SIGKILL the started process alone, run again to the end: steps lost, seconds until it went on."""
    process = lab.start(*command, **environment)
    reached = lab.wait_for_step(DISTURBED_AT, process)
    began = time.monotonic()
    process.kill()
    process.wait()
    lab.struck()
    return going_on(lab, reached, began, *command, **environment)


def going_on(lab: Lab, reached: int, began: float, *command: str, **environment: str) -> tuple[int, float]:
    """Run again to the end: steps lost, seconds until it went on. It says nothing of its inside."""
    resumed = lab.newest_step()
    again = lab.start(*command, **environment)
    lab.goes_on(again, resumed)
    seconds = time.monotonic() - began
    said = lab.finish(again)
    assert "Traceback" not in said
    assert "INFO" not in said
    return max(reached - resumed, 0), seconds  # where it could still take a checkpoint, it got further


def test_the_stage_is_killed(lab: Lab, undisturbed: str, told: Callable[..., None]) -> None:
    lost, seconds = killed(lab, "stage", STAGE)
    assert 0 <= lost <= 2 * CHECKPOINT_EVERY
    assert lab.model() == undisturbed
    told("SIGKILL of the stage", lost=lost, seconds=seconds, same=True, then="the same command")


def test_dvc_alone_is_killed_and_takes_its_stage_along(lab: Lab, undisturbed: str, told: Callable[..., None]) -> None:
    lost, seconds = killed(lab, "dvc", "repro", STAGE)
    assert 0 <= lost <= 2 * CHECKPOINT_EVERY
    assert lab.model() == undisturbed
    told("SIGKILL of `dvc` alone", lost=lost, seconds=seconds, same=True, then="`dvc repro` again")


def test_a_stage_whose_dvc_is_killed_while_it_starts_begins_nothing(lab: Lab) -> None:
    process = lab.start("dvc", "repro", STAGE)
    lab.wait(lambda: lab.processes("-m pipelines", process), "a stage", process)
    (stage, *_) = lab.processes("-m pipelines", process)
    process.kill()
    process.wait()
    gone = time.monotonic() + 120
    while stage.is_running() and time.monotonic() < gone:
        time.sleep(0.05)
    assert not stage.is_running()
    assert f"error: the dvc that started {STAGE} is gone" in lab.said(process)
    assert not lab.checkpoints()


@pytest.mark.ray
def test_the_driver_of_ray_is_killed_and_somebodys_dead_ray_does_not_matter(
    on_ray: Lab, undisturbed: str, told: Callable[..., None]
) -> None:
    lost, seconds = killed(on_ray, "stage", STAGE, RAY_ADDRESS="127.0.0.1:9")
    assert 0 <= lost <= 2 * CHECKPOINT_EVERY
    assert on_ray.model() == undisturbed
    told("SIGKILL of the stage, training on Ray", lost=lost, seconds=seconds, same=True, then="the same command")


@pytest.mark.ray
def test_a_worker_of_ray_is_killed_and_then_all_are_asked_to_stop(
    pair: Lab, undisturbed_pair: str, told: Callable[..., None]
) -> None:
    process = pair.start("stage", STAGE)
    reached = pair.wait_for_step(DISTURBED_AT, process)
    pair.struck()
    began = time.monotonic()
    pair.processes("RayTrainWorker", process)[-1].kill()
    resumed = pair.newest_step()
    pair.goes_on(process, resumed)
    seconds = time.monotonic() - began
    assert 0 <= reached - resumed <= 2 * CHECKPOINT_EVERY
    told("SIGKILL of a trainer worker", lost=reached - resumed, seconds=seconds, same=True, then="by itself")

    lost, seconds = stopped(pair, process, undisturbed_pair)
    told("SIGTERM to the stage, two workers of Ray", lost=lost, seconds=seconds, same=True, then="the same command")


@pytest.mark.ray
def test_a_worker_of_ray_is_killed_while_it_encodes(tmp_path: Path, told: Callable[..., None]) -> None:
    many = ["data.size=2000000"]  # 245 shards
    fresh = Lab.prepare(tmp_path / "fresh", *many, preset="checkerboard", until="train_codec")
    with closing(Lab.copy(fresh, tmp_path / "quiet")) as quiet:
        quiet.finish(quiet.start("stage", "encode_latents"))
        undisturbed = fingerprint(quiet.root / "data/latents")

    def written(lab: Lab) -> dict[Path, int]:
        notes = lab.root.glob("runs/encode_latents/*/training/notes/*/*.json")
        return {note: note.stat().st_mtime_ns for note in notes}

    with closing(Lab.copy(fresh, tmp_path / "struck", mode="ray", workers=2)) as lab:
        process = lab.start("stage", "encode_latents")
        lab.wait(lambda: len(written(lab)) > 20, "shards", process)
        struck = lab.processes("RayTrainWorker", process)
        struck[-1].kill()
        began, before = time.monotonic(), written(lab)
        lab.wait(lambda: not any(worker.is_running() for worker in struck), "the end of both workers", process)
        left = len(written(lab))
        lab.wait(lambda: len(written(lab)) > left, "going on", process)
        seconds = time.monotonic() - began
        lab.finish(process)
        again = sum(written(lab)[note] != stamp for note, stamp in before.items())
        assert again == 0
        assert len(before) < len(written(lab)) == 245
        assert fingerprint(lab.root / "data/latents") == undisturbed
    told("SIGKILL of a worker that encodes latents", lost=again, seconds=seconds, same=True, then="by itself")


def stopped(lab: Lab, process: subprocess.Popen[bytes], expected: str) -> tuple[int, float]:
    """Ask a running stage to stop, run it again to the end: steps lost, seconds until it went on."""
    lab.wait_for_step(DISTURBED_AT + CHECKPOINT_EVERY, process)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) == 75, lab.said(process)
    reached = lab.newest_step()
    assert f"{STAGE}: stopped at step {reached} with a checkpoint: the same command goes on from it" in lab.said(
        process
    )
    lab.struck()
    lost, seconds = going_on(lab, reached, began, "stage", STAGE)
    assert lost == 0
    assert lab.model() == expected
    return lost, seconds


def test_a_stage_asked_to_stop_does_so_with_a_checkpoint(lab: Lab, undisturbed: str, told: Callable[..., None]) -> None:
    lost, seconds = stopped(lab, lab.start("stage", STAGE), undisturbed)
    told("SIGTERM to the stage", lost=lost, seconds=seconds, same=True, then="the same command")


def test_a_stage_asked_twice_ends_at_once(lab: Lab) -> None:
    process = lab.start("stage", STAGE)
    lab.wait_for_step(DISTURBED_AT, process)
    process.send_signal(signal.SIGSTOP)  # it cannot act on the first
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGCONT)
    assert process.wait(timeout=120) in (75, 143)


@pytest.mark.parametrize("damage", ["truncated", "with a bit flipped"])
def test_the_newest_checkpoint_is_damaged(lab: Lab, undisturbed: str, told: Callable[..., None], damage: str) -> None:
    process = lab.start("stage", STAGE)
    reached = lab.wait_for_step(DISTURBED_AT, process)
    began = time.monotonic()
    process.kill()
    process.wait()
    lab.struck()
    newest = lab.checkpoints()[-1]
    payload = bytearray((newest / "state.safetensors").read_bytes())
    payload[len(payload) // 2] ^= 1
    (newest / "state.safetensors").write_bytes(payload if "bit" in damage else payload[: len(payload) // 2])
    again = lab.start("stage", STAGE)
    before = lab.newest_step() - CHECKPOINT_EVERY
    lab.goes_on(again, before)
    seconds = time.monotonic() - began
    output = lab.finish(again)
    start = f"step {before}" if before else "the beginning"  # where the first one was the newest
    line = f"damaged checkpoint: {newest.name} (kept as {newest.name}.damaged); going on from {start}"
    assert line in output
    assert lab.model() == undisturbed
    told(f"checkpoint {damage}", lost=reached - before, seconds=seconds, same=True, then="from the one before, said so")


@pytest.fixture
def small_disk(lab: Lab) -> Iterator[Path]:
    """`runs/` on a disk of its own that can be filled up."""
    place = lab.root / "runs"
    shutil.rmtree(place)
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", place], capture_output=True, check=False)
    if made.returncode:
        pytest.skip("no small disk can be mounted here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def test_the_disk_is_full_while_a_checkpoint_is_written(
    lab: Lab, undisturbed: str, small_disk: Path, told: Callable[..., None]
) -> None:
    process = lab.start("stage", STAGE)
    reached = lab.wait_for_step(DISTURBED_AT, process)
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while file.write(b"\0" * 4096):
            pass
    assert process.wait(timeout=180) == 1
    output = lab.said(process)
    assert "error: no space left on the disk of" in output
    assert "Traceback" not in output
    began = time.monotonic()
    filler.unlink()
    lab.struck()
    reached = max(reached, *lab.steps())
    lost, seconds = going_on(lab, reached, began, "stage", STAGE)
    assert 0 <= lost <= 2 * CHECKPOINT_EVERY
    assert lab.model() == undisturbed
    told("disk full while a checkpoint is written", lost=lost, seconds=seconds, same=True, then="space, same command")


def test_two_dvc_repro_at_once(lab: Lab, undisturbed: str, told: Callable[..., None]) -> None:
    first = lab.start("dvc", "repro", STAGE)
    lab.wait_for_step(DISTURBED_AT, first)
    os.killpg(first.pid, signal.SIGSTOP)  # it waits, so that the others surely come while it trains
    second = lab.start("dvc", "repro", STAGE)
    assert second.wait(timeout=180) != 0
    refused = lab.said(second)
    assert "busy" in refused or "lock" in refused, refused
    third = lab.start("stage", STAGE)
    assert third.wait(timeout=180) == 1
    refused = lab.said(third)
    assert f"error: {STAGE} is being run already" in refused
    os.killpg(first.pid, signal.SIGCONT)
    lab.finish(first)
    assert lab.model() == undisturbed
    told("two `dvc repro` at once", lost=0, seconds=0, same=True, then="the second is refused")


CLOCK = """
import time

_real, _started, _ns = time.time, time.monotonic(), time.time_ns


def _hours():
    # Forward and back by hours, every few seconds, as a broken clock would.
    return (int(time.monotonic() - _started) // 2 % 5 - 2) * 3600


time.time = lambda: _real() + _hours()
time.time_ns = lambda: _ns() + _hours() * 10**9
"""


def test_the_clock_jumps_by_hours(lab: Lab, undisturbed: str, tmp_path: Path, told: Callable[..., None]) -> None:
    broken = tmp_path / "clock"
    broken.mkdir()
    (broken / "sitecustomize.py").write_text(CLOCK)
    path = f"{broken}{os.pathsep}{lab.root}"
    process = lab.start("dvc", "repro", STAGE, PYTHONPATH=path)
    reached = lab.wait_for_step(DISTURBED_AT, process)
    began = time.monotonic()
    process.kill()
    process.wait()
    lab.struck()
    for checkpoint, stamp in zip(lab.checkpoints(), (4e9, 1e9), strict=False):  # the newest looks oldest
        os.utime(checkpoint, (stamp, stamp))
    resumed = lab.newest_step()
    again = lab.start("dvc", "repro", STAGE, PYTHONPATH=path)
    lab.goes_on(again, resumed)
    seconds = time.monotonic() - began
    lab.finish(again)
    assert lab.model() == undisturbed
    told("clock jumps by hours, SIGKILL", lost=reached - resumed, seconds=seconds, same=True, then="`dvc repro` again")

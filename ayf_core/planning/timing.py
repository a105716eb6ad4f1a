"""How long a step takes: measured on this machine by taking it, or from a card's data sheet."""

import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch

from ayf_core.planning.hardware import LAUNCH_SECONDS, Hardware
from ayf_core.planning.step import Planned, StepCost, StepRunner
from ayf_core.randomness import StepRandom
from ayf_core.training.context import LocalContext

_FIRST_ROWS = 4
"""Multiples of the neighbours that a discriminator compares."""
_REPEATS, _MOST_REPEATS = 4, 100


class Timing(NamedTuple):
    """Seconds of a step of one worker, and the rows that the timed step had."""

    seconds: float
    rows: int


def measured_step(planned: Planned, rows: int, device: torch.device | str = "cpu", seconds: float = 1.5) -> Timing:
    """A step of `rows` samples in one pass: the quickest of those that fit into about so many seconds here.

    Where a few such steps take longer, steps of fewer samples are timed, and the time is scaled by their number. The
    quickest, because other work on the machine makes a step slower and never quicker.
    """
    with TemporaryDirectory() as folder, torch.random.fork_rng():
        context = LocalContext(Path(folder), device)
        runner = StepRunner(planned, planned.build(), context, partial(StepRandom, 0, 0, device=device))
        few = min(_FIRST_ROWS, rows)
        _timed(planned, runner, few, context.device)  # warms up
        first = _timed(planned, runner, few, context.device)
        affordable = int(few * seconds / first / _REPEATS) // _FIRST_ROWS * _FIRST_ROWS
        some = min(rows, max(few, affordable))
        taken = [first] if some == few else []
        if not taken:
            _timed(planned, runner, some, context.device)
        while not taken or (len(taken) < _MOST_REPEATS and sum(taken) < seconds):
            taken.append(_timed(planned, runner, some, context.device))
    return Timing(min(taken) * rows / some, some)


def _timed(planned: Planned, runner: StepRunner, rows: int, device: torch.device) -> float:
    batch = planned.batch(rows, device)
    began = _now(device)
    runner(batch)
    return _now(device) - began


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def expected_step(cost: StepCost, hardware: Hardware, compiled: bool = False) -> float:
    """Seconds of a step on a card, from its data sheet and the fractions assumed beside it.

    Operation by operation, the longer of arithmetic and memory; and no less than the host needs to give them out, which
    a compiled step does not wait for.
    """
    tf32 = torch.get_float32_matmul_precision() != "highest"
    on_device = sum(hardware.seconds(flops, moved, kind, tf32) for flops, moved, kind in cost.operations)
    return cost.scale * max(on_device, 0.0 if compiled else LAUNCH_SECONDS * len(cost.operations))

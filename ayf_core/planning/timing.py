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

    Where a few such steps take longer, steps of fewer samples are timed, of two sizes, and the line through them is
    followed. The quickest, because other work on the machine makes a step slower and never quicker.
    """
    with TemporaryDirectory() as folder, torch.random.fork_rng():
        context = LocalContext(Path(folder), device)
        runner = StepRunner(planned, planned.build(), context, partial(StepRandom, 0, 0, device=device))

        def quickest(some: int, budget: float, most: int) -> float:
            batch = planned.batch(some, device)
            runner(batch)  # warms up
            taken: list[float] = []
            while not taken or (len(taken) < most and sum(taken) < budget):
                began = now(context.device)
                runner(batch)
                taken.append(now(context.device) - began)
            return min(taken)

        few = min(_FIRST_ROWS, rows)
        first = quickest(few, seconds / 4, _REPEATS)
        affordable = int(few * seconds / first / _REPEATS) // _FIRST_ROWS * _FIRST_ROWS
        some = min(rows, max(few, affordable))
        last = first if some == few else quickest(some, seconds, _MOST_REPEATS)
    if some == few:
        return Timing(last * rows / some, some)
    each = min(max((last - first) / (some - few), 0.0), last / some)
    return Timing(last + each * (rows - some), some)


def now(device: torch.device) -> float:
    """Seconds of a clock that says how long work takes, once all that was given to the device is done.

    On a CPU with one thread it is the process's own time, in which other work on the machine hardly shows.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif torch.get_num_threads() == 1:
        return time.process_time()
    return time.perf_counter()


def expected_step(cost: StepCost, hardware: Hardware, *, tf32: bool = False, compiled: bool = False) -> float:
    """Seconds of a step on a card, from its data sheet and the fractions assumed beside it.

    Operation by operation, the longer of arithmetic and memory; and no less than the host needs to give them out, which
    a compiled step does not wait for.
    """
    on_device = sum(hardware.seconds(flops, moved, kind, tf32) for flops, moved, kind in cost.operations)
    return cost.scale * max(on_device, 0.0 if compiled else LAUNCH_SECONDS * len(cost.operations))

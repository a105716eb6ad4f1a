"""Whether a training may need more memory than there is: a rough bound from above, in a fraction of a second.

`step_cost` is exact, and a second or more of work; most trainings are far from the limit, and this says so.
"""

from __future__ import annotations

import torch
from torch import nn

from ayf_core.planning.meter import StepMeter
from ayf_core.planning.step import Planned
from ayf_core.randomness import StepRandom

_ROWS = 4
_BACKWARD = 2.0
"""Assumed: a backward pass makes at most as much as the forward pass keeps and makes."""


def rough_peak(planned: Planned, rows: int) -> float:
    """Bytes of a step of `rows` samples, rather too many: from the objectives' forward passes on tensors without contents.

    Raises:
        Exception: whatever a network raises that does not run on torch's device `meta`.
    """
    meter = StepMeter()
    with torch.device("meta"), meter:
        trained = planned.build()
        held = sum(_bytes(network) for network in trained.frozen)
        copies = 4 + len(planned.settings.ema_stds)  # weights, gradients, two moments, averages
        held += copies * sum(_bytes(phase.network) for phase in trained.phases)
        random = StepRandom(0, 0, _ROWS, "meta")
        batch = planned.batch(_ROWS, "meta")
        passes = 0.0
        for phase in trained.phases:
            meter.begin()
            before = sum(meter.peak.values())
            phase.objective(phase.network.train(), batch, random, 0)
            passes = max(passes, sum(meter.peak.values()) - before)
    return held + _BACKWARD * passes * rows / _ROWS


def _bytes(network: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in (*network.parameters(), *network.buffers()))

"""Followers of a training that own their state."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from ayf_core.training.context import TrainingContext
from ayf_core.training.ema import PowerFunctionEMA


class FollowAverages:
    """Power-function EMA of a network at several widths, with snapshots for post-hoc reconstruction.

    Args:
        network: the module itself, not what a trainer wraps around it.
        stds: relative widths.
        context: whose rank 0 writes the snapshots, to `context.folder / "ema"`.
        total: steps of the training.
        snapshots: how many, evenly spaced, the last one at the end.
    """

    name = "ema"

    def __init__(
        self,
        network: nn.Module,
        stds: Sequence[float],
        context: TrainingContext,
        total: int,
        snapshots: int = 4,
    ):
        self.network = network
        self.stds = stds
        self.folder: Path = context.folder / "ema"
        self.writes = context.rank == 0
        self.snapshot_steps = {round(total * (i + 1) / snapshots) for i in range(snapshots)} - {0}

    @cached_property
    def ema(self) -> PowerFunctionEMA:
        """Made when first asked for: by then the trainer has put the network on its device, whole or sharded."""
        return PowerFunctionEMA(self.network, self.stds)

    def after_step(self, step: int) -> None:
        self.ema.update(step)
        if step in self.snapshot_steps:
            self.ema.save_snapshot(self.folder, step, self.writes)

    def state_dict(self) -> dict[str, Any]:
        return self.ema.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ema.load_state_dict(state)

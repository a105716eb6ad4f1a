"""Followers of a training that own their state."""

from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ayf_core.errors import AyfError
from ayf_core.training.context import TrainingContext
from ayf_core.training.ema import PowerFunctionEMA
from ayf_core.training.sharding import gathered
from ayf_core.training_settings import TrainingSettings

SNAPSHOTS = 4
"""Of each width, evenly spaced over a training."""


class FollowAverages:
    """Power-function EMA of a network at several widths, with snapshots for post-hoc reconstruction.

    Args:
        network: the module itself, not what a trainer wraps around it.
        settings: name the widths, the one that is published, and the length of the training.
        context: whose rank 0 writes the snapshots, to `context.folder / "ema"`.
        snapshots: how many, evenly spaced, the last one at the end.

    Raises:
        AyfError: the width to be published is none of those that are kept.
    """

    name = "ema"

    def __init__(
        self, network: nn.Module, settings: TrainingSettings, context: TrainingContext, snapshots: int = SNAPSHOTS
    ):
        if settings.ema_std not in settings.ema_stds:
            raise AyfError(f"ema_std = {settings.ema_std} is none of ema_stds = {settings.ema_stds}: add it there")
        self.network = network
        self.settings = settings
        self.folder: Path = context.folder / "ema"
        self.writes = context.rank == 0
        self.snapshot_steps = {round(settings.steps * (i + 1) / snapshots) for i in range(snapshots)} - {0}

    @cached_property
    def ema(self) -> PowerFunctionEMA:
        """Made when first asked for: by then the trainer has put the network on its device, whole or sharded."""
        return PowerFunctionEMA(self.network, self.settings.ema_stds)

    def after_step(self, step: int) -> None:
        self.ema.update(step)
        if step in self.snapshot_steps:
            self.ema.save_snapshot(self.folder, step, self.writes)

    def published(self) -> dict[str, Tensor]:
        """A state dict of the average that is published. Every worker calls it; of a sharded network rank 0 alone
        gets the weights, put together."""
        return gathered(self.ema.weights(self.settings.ema_std), keep=self.writes)

    def state_dict(self) -> dict[str, Any]:
        return self.ema.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.ema.load_state_dict(state)

"""Flow matching: regress the velocity x_1 - x_0 of the linear path (Lipman et al., arXiv 2210.02747)."""

from dataclasses import dataclass

from torch import nn

from ayf_core.conditions import ConditionSpec
from ayf_core.interpolants import LinearInterpolant
from ayf_core.objectives.base import Batch, Loss
from ayf_core.objectives.diagnostics import mean_by_bins
from ayf_core.randomness import StepRandom
from ayf_core.times import LogitNormalTime


@dataclass(frozen=True, kw_only=True)
class FlowMatching:
    """E ‖v_θ(x_t, t | c) - (x_1 - x_0)‖² / D.

    Args:
        time_law: law of t.
        conditions: what the network is conditioned on; their nulls replace a share of the samples' conditions.
        label_dropout: that share.
    """

    time_law: LogitNormalTime
    conditions: ConditionSpec
    label_dropout: float

    def __call__(self, network: nn.Module, batch: Batch, random: StepRandom, step: int, monitor: bool = False) -> Loss:
        noise = random.normal("noise", batch.x.shape[1:], batch.x.dtype)
        t = self.time_law.sample(random)
        dropped = random.uniform("label dropout") < self.label_dropout
        x = LinearInterpolant.interpolate(batch.x, noise, t)
        condition = batch.condition.dropped(dropped, self.conditions)
        residual = network(x, t, t, condition) - LinearInterpolant.velocity(batch.x, noise)
        error = residual.flatten(1).square().mean(dim=1)
        loss = Loss(error.mean(), {"loss": error.detach().mean()})
        if monitor:
            loss.metrics |= mean_by_bins("velocity_error", "t", error.detach(), t)
        return loss

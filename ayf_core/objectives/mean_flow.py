"""MeanFlow: a flow map learnt from data alone, without a teacher (Geng et al., arXiv 2505.13447)."""

from dataclasses import dataclass

from torch import nn

from ayf_core.objectives.base import Batch, Loss
from ayf_core.objectives.flow_map import FlowMapObjective
from ayf_core.randomness import StepRandom
from ayf_core.registry import register


@register("objective", "mean_flow", title="Flow map, MeanFlow", colour="#56B4E9", needs_teacher=False)
@dataclass(frozen=True, kw_only=True)
class MeanFlow(FlowMapObjective):
    """The Eulerian tangent with the conditional velocity x_1 - x_0 in place of a teacher's (MeanFlow eq. 10 and 11).

    The raw tangent is linear in the velocity, so its mean over the pairs (x_0, x_1) that meet at x_t is the tangent
    with the marginal velocity E[x_1 - x_0 | x_t], and so is the expected gradient. Normalising the tangent, which is
    not linear, gives that up for a steadier training. At s = t it is flow matching. The student is not told a
    guidance scale: it learns the law of the data.
    """

    def __call__(self, network: nn.Module, batch: Batch, random: StepRandom, step: int, monitor: bool = False) -> Loss:
        drawn = self.draw(batch, random)
        velocity = drawn.conditional_velocity
        loss = self.eulerian_loss(network, drawn, velocity, step, monitor)
        if monitor:
            loss.metrics |= self.on_the_diagonal("velocity_error", network, drawn.point, velocity)
        return loss

    def self_check(self, network: nn.Module, batch: Batch, random: StepRandom, compiled: bool = False) -> float:
        point, velocity, _ = self.draw(batch, random)
        return self.check_derivative(network, point.rows(slice(0, 2)), velocity[:2], compiled)

"""AYF-LMD: Lagrangian map distillation (AYF, arXiv 2506.14603, theorem on the Lagrangian objective)."""

from dataclasses import dataclass

from torch import nn

from ayf_core.interpolants import expand
from ayf_core.objectives.base import Batch, Loss
from ayf_core.objectives.distillation import Distillation
from ayf_core.randomness import StepRandom
from ayf_core.registry import register
from ayf_core.tangents.engines import value_and_derivative
from ayf_core.tangents.points import lagrangian_direction


@register("objective", "lmd", title="Student, AYF-LMD", colour="#E69F00", needs_teacher=True)
@dataclass(frozen=True, kw_only=True)
class LagrangianDistillation(Distillation):
    """The end of a jump must move with the teacher's velocity there when its target time moves.

    d f / ds = F + (s - t) dF/ds = v(f, s), with dF/ds along (0, 0, 1) and the teacher asked at the predicted
    point. In F form, for s < t, F moves towards v(f, s) + r (t - s) dF/ds: the raw tangent is
    g = (F - v(f, s)) - r (t - s) dF/ds.
    """

    def __call__(self, network: nn.Module, batch: Batch, random: StepRandom, step: int, monitor: bool = False) -> Loss:
        point, _, diagonal = self.draw(batch, random)
        direction, backend = lagrangian_direction(point), self.tangent.backend
        value, derivative = value_and_derivative(network, point, direction, backend, diagonal)
        interval = expand(point.t - point.s, derivative)
        predicted = point.x - interval * value.detach()
        velocity = self.velocity(predicted, point.s, point)
        tangent = (value.detach() - velocity) - self.tangent.warmup(step, self.steps) * interval * derivative
        loss = self.loss(point, value, tangent)
        if monitor:
            loss.metrics |= self.diagnostics(point, tangent, derivative, step)
            here = self.velocity(point.x, point.t, point)
            loss.metrics |= self.on_the_diagonal("velocity_residual", network, point, here)
        return loss

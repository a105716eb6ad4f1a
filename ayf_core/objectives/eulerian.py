"""AYF-EMD: Eulerian map distillation (AYF, arXiv 2506.14603, theorem on the Eulerian objective)."""

from torch import nn

from ayf_core.interpolants import expand
from ayf_core.objectives.base import Batch, Loss
from ayf_core.objectives.distillation import Distillation, tangent_loss
from ayf_core.randomness import StepRandom
from ayf_core.tangents import eulerian_direction, value_and_derivative


class EulerianDistillation(Distillation):
    """The end of a jump must not move when its start moves along the teacher's trajectory.

    d f / dt = (v - F) + (s - t) dF/dt = 0, with dF/dt along (v, 1, 0). In F form, for s < t, F moves towards
    v - r (t - s) dF/dt: the raw tangent is g = (F - v) + r (t - s) dF/dt.
    """

    def __call__(self, network: nn.Module, batch: Batch, random: StepRandom, step: int, monitor: bool = False) -> Loss:
        point = self.draw(batch, random)
        velocity = self.velocity(point.x, point.t, point)
        value, derivative = value_and_derivative(
            network, point, eulerian_direction(point, velocity), self.tangent.backend
        )
        interval = expand(point.t - point.s, velocity)
        tangent = (value.detach() - velocity) + self.tangent.warmup(step) * interval * derivative
        loss, finite = tangent_loss(value, tangent, self.weight(point), self.tangent)
        return Loss(loss, self.report(network, point, tangent, derivative, finite, monitor, step))

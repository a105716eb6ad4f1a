"""AYF-EMD: Eulerian map distillation (AYF, arXiv 2506.14603, theorem on the Eulerian objective)."""

from dataclasses import dataclass

from torch import nn

from ayf_core.objectives.base import Batch, Loss
from ayf_core.objectives.distillation import Distillation
from ayf_core.randomness import StepRandom
from ayf_core.registry import register


@register("objective", "emd", title="Student, AYF-EMD", colour="#0072B2", needs_teacher=True)
@dataclass(frozen=True, kw_only=True)
class EulerianDistillation(Distillation):
    """The end of a jump must not move when its start moves along the teacher's trajectory."""

    def __call__(self, network: nn.Module, batch: Batch, random: StepRandom, step: int, monitor: bool = False) -> Loss:
        drawn = self.draw(batch, random)
        point = drawn.point
        velocity = self.velocity(point.x, point.t, point)
        loss = self.eulerian_loss(network, drawn, velocity, step, monitor)
        if monitor:
            loss.metrics |= self.on_the_diagonal("velocity_residual", network, point, velocity)
        return loss

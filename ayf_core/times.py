"""Laws of the time pair (t, s), 0 <= s <= t <= 1, that a flow map is trained on."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from ayf_core.randomness import StepRandom


@dataclass(frozen=True, kw_only=True)
class IntervalLaw:
    """|t - s| = sigmoid(N(p_mean, p_std²)), then s uniform in the room left (AYF section 3 and appendix).

    Published settings: (-0.8, 1.0), under which full jumps are hardly ever drawn, and (-0.6, 1.6), under which
    4 % of intervals are longer than 0.9. `full_jump_fraction` of the samples is (t, s) = (1, 0) instead, and
    `diagonal_fraction` has s = t (plain flow matching); both are ours, 0 is the paper's law.
    """

    p_mean: float = -0.8
    p_std: float = 1.0
    full_jump_fraction: float = 0.0
    diagonal_fraction: float = 0.0

    def sample(self, random: StepRandom) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """(t, s), each [B] float64."""
        interval = torch.sigmoid(self.p_mean + self.p_std * random.normal("interval", dtype=torch.float64))
        bucket = random.uniform("time bucket")
        interval = torch.where(bucket < self.diagonal_fraction, 0.0, interval)
        interval = torch.where(bucket >= 1 - self.full_jump_fraction, 1.0, interval)
        s = (1 - interval) * random.uniform("end time")
        return s + interval, s


@dataclass(frozen=True, kw_only=True)
class LogitNormalTime:
    """t = sigmoid(N(mean, std²)): the law of flow-matching training (Esser et al., arXiv 2403.03206)."""

    mean: float = 0.0
    std: float = 1.0

    def sample(self, random: StepRandom) -> Float[Tensor, " batch"]:
        """t [B] float64."""
        return torch.sigmoid(self.mean + self.std * random.normal("time", dtype=torch.float64))

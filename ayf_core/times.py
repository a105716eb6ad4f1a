"""Laws of the time pair (t, s), 0 <= s <= t <= 1, that a flow map is trained on, and of the time t of a velocity."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from ayf_core.randomness import StepRandom
from ayf_core.registry import register
from ayf_core.settings import setting

_BUCKET = "time bucket"


class PairLaw(ABC):
    """A law of the pairs (t, s) that a flow map is trained on."""

    @abstractmethod
    def sample(self, random: StepRandom) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        """(t, s), each [B] float64, 0 <= s <= t <= 1."""

    def diagonal(self, random: StepRandom) -> Bool[Tensor, " batch"] | None:
        """Which pairs of `sample` have s = t, told without waiting for the device: on the host.

        Their derivative is then left out. None where there are none, or where it cannot be told.
        """
        return None


@register("pair law", "interval", title="Logit-normal interval")
@dataclass(frozen=True, kw_only=True)
class IntervalLaw(PairLaw):
    """|t - s| = sigmoid(N(p_mean, p_std²)), then s uniform in the room left (AYF section 3 and appendix).

    Published settings: (-0.8, 1.0), under which full jumps are hardly ever drawn, and (-0.6, 1.6), under which
    4 % of intervals are longer than 0.9. `full_jump_fraction` of the samples is (t, s) = (1, 0) instead, and
    `diagonal_fraction` has s = t (plain flow matching); both are ours, 0 is the paper's law.
    """

    p_mean: float = setting("|t - s| = sigmoid(N(p_mean, p_std)); paper: -0.8 or -0.6")
    p_std: float = setting("paper: 1.0 or 1.6", above=0.0)
    full_jump_fraction: float = setting("share of pairs t = 1, s = 0", at_least=0.0, at_most=1.0)
    diagonal_fraction: float = setting("share of pairs t = s", at_least=0.0, at_most=1.0)

    def problems(self) -> Iterator[str]:
        """A line for what is in range by itself and still cannot be."""
        if self.full_jump_fraction + self.diagonal_fraction > 1:
            yield (
                f"full_jump_fraction = {self.full_jump_fraction:g}: together with diagonal_fraction = "
                f"{self.diagonal_fraction:g} above 1; lower either"
            )

    def sample(self, random: StepRandom) -> tuple[Float[Tensor, " batch"], Float[Tensor, " batch"]]:
        interval = torch.sigmoid(self.p_mean + self.p_std * random.normal("interval", dtype=torch.float64))
        bucket = random.uniform(_BUCKET)
        interval = torch.where(bucket < self.diagonal_fraction, 0.0, interval)
        interval = torch.where(bucket >= 1 - self.full_jump_fraction, 1.0, interval)
        s = (1 - interval) * random.uniform("end time")
        return s + interval, s

    def diagonal(self, random: StepRandom) -> Bool[Tensor, " batch"] | None:
        if not self.diagonal_fraction:
            return None
        return random.on("cpu").uniform(_BUCKET) < self.diagonal_fraction


@register("time law", "logit_normal", title="Logit-normal time")
@dataclass(frozen=True, kw_only=True)
class LogitNormalTime:
    """t = sigmoid(N(mean, std²)): the law of flow-matching training (Esser et al., arXiv 2403.03206)."""

    mean: float = setting("t = sigmoid(N(mean, std))")
    std: float = setting("wider: more of the ends", above=0.0)

    def sample(self, random: StepRandom) -> Float[Tensor, " batch"]:
        """t [B] float64."""
        return torch.sigmoid(self.mean + self.std * random.normal("time", dtype=torch.float64))

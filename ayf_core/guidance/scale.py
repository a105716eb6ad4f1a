"""The guidance scale λ: the one place for its neutral value, its default, and what a model may be asked for."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ayf_core.errors import AyfError
from ayf_core.randomness import StepRandom
from ayf_core.settings import setting

UNGUIDED = 1.0
"""The λ that leaves a teacher as it is, and so asks for the law of the data."""


@dataclass(frozen=True)
class GuidanceRange:
    """The guidance scales that a student learnt, from the least to the largest."""

    minimum: float
    maximum: float

    @property
    def default(self) -> float:
        """Where none is asked for: the least that was learnt."""
        return self.minimum

    def clamp(self, scale: float) -> float:
        """The scale within the range that is nearest."""
        return min(max(scale, self.minimum), self.maximum)

    def __contains__(self, scale: float) -> bool:
        return self.minimum <= scale <= self.maximum

    def check(self, scale: float | None) -> float:
        """The scale itself, or the default for None.

        Raises:
            AyfError: it is outside the range.
        """
        if scale is None:
            return self.default
        if scale not in self:
            raise AyfError(f"guidance scale {scale:g} is outside what this student learnt, {self}")
        return scale

    def __str__(self) -> str:
        return f"{self.minimum:g} to {self.maximum:g}"

    def to_list(self) -> list[float]:
        """As `model.json` holds it."""
        return [self.minimum, self.maximum]

    @classmethod
    def from_list(cls, limits: Any) -> "GuidanceRange | None":
        """What `model.json` holds; None of a model that takes no guidance scale.

        Raises:
            AyfError: it is no pair of numbers in order.
        """
        if limits is None:
            return None
        numbers = isinstance(limits, list | tuple) and all(type(limit) in (int, float) for limit in limits)
        if not numbers or len(limits) != 2 or not limits[0] <= limits[1]:
            raise AyfError(f"its guidance_range {limits!r} is not [least, largest]: train the model again")
        return cls(float(limits[0]), float(limits[1]))


@dataclass(frozen=True, kw_only=True)
class GuidanceLaw:
    """λ ~ U[scale_min, scale_max] for each sample (AYF section 3.4: U[1, 3]); the student is told λ."""

    scale_min: float = setting("smallest guidance scale λ drawn; 1 = unguided", at_least=0.0)
    scale_max: float = setting("largest guidance scale λ drawn; the student takes λ as an input", at_least=0.0)

    def problems(self) -> Iterator[str]:
        """A line for what is in range by itself and still cannot be."""
        if self.scale_min > self.scale_max:
            yield (
                f"scale_min = {self.scale_min:g}: must be at most scale_max = {self.scale_max:g}; "
                "lower it or raise the other"
            )

    @property
    def range(self) -> GuidanceRange | None:
        """What a student of this law learns; None of one that is not told λ."""
        return GuidanceRange(self.scale_min, self.scale_max)

    def sample(self, random: StepRandom) -> Float[Tensor, " batch"] | None:
        """λ [B]; None for a student that is not told λ."""
        return self.scale_min + (self.scale_max - self.scale_min) * random.uniform("guidance scale")

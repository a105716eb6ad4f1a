"""How a flow map is sampled, apart from the number of steps."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ayf_core.errors import AyfError
from ayf_core.registry import Component, components, find
from ayf_core.sampling.grids import Grid

PLAIN_GRID = "uniform"


@dataclass(frozen=True)
class SamplingSettings:
    """How a flow map is sampled, apart from the number of steps; as it stands, the uniform deterministic chain.

    Attributes:
        grid: where the steps lie: a name of the room `grid`.
        grid_parameter: of that grid, such as its shift or rho, above 0; 1 of one that takes none.
        gamma: of γ-sampling, in [0, 1]; 0 is deterministic.
        guidance_scale: λ; None where the model takes none, or for the least it learnt.

    Raises:
        AyfError: an unknown grid or a value out of range.
    """

    grid: str = PLAIN_GRID
    grid_parameter: float = 1.0
    gamma: float = 0.0
    guidance_scale: float | None = None

    def __post_init__(self) -> None:
        grid = find("grid", self.grid)
        if not (_is_number(self.grid_parameter) and self.grid_parameter > 0):
            raise AyfError(f"the {self.grid} grid's parameter must be above 0, got {self.grid_parameter}")
        if not _takes_parameter(grid) and self.grid_parameter != 1:
            raise AyfError(f"the {self.grid} grid takes no parameter, got {self.grid_parameter}: choose another grid")
        if not (_is_number(self.gamma) and 0 <= self.gamma <= 1):
            raise AyfError(f"gamma must lie in [0, 1], got {self.gamma}; 0 is the deterministic chain")
        if self.guidance_scale is not None and not (_is_number(self.guidance_scale) and self.guidance_scale >= 0):
            raise AyfError(f"the guidance scale must be 0 or more, got {self.guidance_scale}")

    def times(self, steps: int) -> Grid:
        """The falling times of so many steps, from 1 to 0: float64 [steps + 1]."""
        grid = find("grid", self.grid)
        return grid.load()(steps, self.grid_parameter) if _takes_parameter(grid) else grid.load()(steps)

    def arguments(self, steps: int) -> dict[str, Any]:
        """What `Generator.sample` is to be called with, besides noise, steps and condition."""
        return {"times": self.times(steps), "gamma": self.gamma, "guidance_scale": self.guidance_scale}

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "SamplingSettings":
        """Settings from their names and values; other names are passed over.

        Raises:
            AyfError: a name is missing, or a value is not allowed.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        missing = [name for name in names if name not in values]
        if missing:
            raise AyfError(f"sampling settings lack {', '.join(missing)}")
        return cls(**{name: values[name] for name in names})

    def __str__(self) -> str:
        grid = f"{self.grid}:{self.grid_parameter:.3g}" if _takes_parameter(find("grid", self.grid)) else self.grid
        scale = "" if self.guidance_scale is None else f", λ {self.guidance_scale:.4g}"
        return f"{grid} grid, γ {self.gamma:.3g}{scale}"


def read_grid(text: str) -> tuple[str, float]:
    """Name and parameter of a grid written as `uniform`, `shifted:2.0` or `polynomial:0.7`.

    Raises:
        AyfError: it is none of these.
    """
    name, colon, parameter = text.partition(":")
    try:
        number = float(parameter) if colon else 1.0
    except ValueError:
        number = math.nan
    grid = components("grid").get(name)
    if grid is None or math.isnan(number) or bool(colon) != _takes_parameter(grid):
        raise AyfError(f"{text!r} is no time grid: write {grid_examples()}")
    return name, SamplingSettings(name, number).grid_parameter


def grid_examples() -> str:
    """How each grid is written: `polynomial:0.7, shifted:2.0 or uniform`."""
    written = [
        f"{name}:{grid.facts['example']}" if _takes_parameter(grid) else name
        for name, grid in components("grid").items()
    ]
    return ", ".join(written[:-1]) + f" or {written[-1]}"


def _takes_parameter(grid: Component) -> bool:
    return grid.facts.get("example") is not None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

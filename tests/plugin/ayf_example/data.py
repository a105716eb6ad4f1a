"""Pictures of rings: as many as are asked for, in three classes of radius."""

from dataclasses import dataclass

import torch

from ayf_core.data.sets.base import DataSource, Examples
from ayf_core.registry import register
from ayf_core.settings import setting

RADII = (1.5, 2.5, 3.5)


@register("data set", "rings", title="Rings", gives=["features"])
@dataclass(frozen=True, kw_only=True)
class Rings(DataSource):
    """Grey images [1, side, side]."""

    count: int = setting("how many pictures", at_least=12)
    pixels: int = setting("their side", at_least=8)

    @property
    def side(self) -> int:
        return self.pixels

    def examples(self, generator: torch.Generator) -> Examples:
        labels = torch.arange(self.count) % len(RADII)
        centre = self.pixels / 2 + torch.rand(self.count, 2, generator=generator) - 0.5
        rows, columns = torch.meshgrid(*[torch.arange(self.pixels) + 0.5] * 2, indexing="ij")
        distance = torch.hypot(rows - centre[:, :1, None], columns - centre[:, 1:, None])
        radius = torch.tensor(RADII)[labels][:, None, None] * self.pixels / 8
        brightness = torch.exp(-((distance - radius) ** 2))
        return Examples((2 * brightness - 1)[:, None].float(), labels, len(RADII))

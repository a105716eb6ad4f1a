"""A plain convolutional network."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ayf_core.conditions import ClassLabels, Condition
from ayf_core.errors import AyfError
from ayf_core.networks.base import MeanVelocityNetwork
from ayf_core.networks.embeddings import ScalarEmbedding
from ayf_core.networks.spec import NetworkSpec
from ayf_core.registry import register
from ayf_core.settings import setting


@register("network", "convolutions", title="Convolutions")
@dataclass(frozen=True, kw_only=True)
class ConvolutionSettings:
    """Of a convolutional network for samples [C, H, W]."""

    width: int = setting("channels", at_least=1)
    layers: int = setting("hidden layers", at_least=1)

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise AyfError where samples of this shape do not fit."""
        if len(shape) != 3:
            raise AyfError(f"convolutions take samples of shape [C, H, W], got {list(shape)}")

    def build(self, spec: NetworkSpec) -> "Convolutions":
        """A freshly initialised network."""
        return Convolutions(spec, self)


class Convolutions(MeanVelocityNetwork):
    """F(x, t, s | condition, λ): each layer is shifted by the embedded condition."""

    EMBEDDERS: ClassVar[Mapping[type, Callable[[Any, int], nn.Module]]] = {
        ClassLabels: lambda kind, width: nn.Embedding(kind.num_classes + 1, width)
    }

    def __init__(self, spec: NetworkSpec, settings: ConvolutionSettings):
        super().__init__(spec)
        channels, width = spec.shape[0], settings.width
        self.input = nn.Conv2d(channels, width, 3, padding=1)
        self.time = ScalarEmbedding(width)
        self.add_embedders(width)
        self.interval = ScalarEmbedding(width, zero_init=True) if spec.interval else None
        self.guidance = ScalarEmbedding(width, zero_init=True) if spec.guidance else None
        self.hidden = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(settings.layers))
        self.output = nn.Conv2d(width, channels, 3, padding=1)

    @property
    def last_layer(self) -> Tensor:
        return self.output.weight

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        s: Tensor | None = None,
        condition: Condition | None = None,
        guidance_scale: Tensor | None = None,
    ) -> Tensor:
        shift = self.embedded(self.time(t), condition)
        if self.interval is not None and s is not None:
            shift = shift + self.interval(t - s)
        if self.guidance is not None and guidance_scale is not None:
            shift = shift + self.guidance(guidance_scale - 1)
        h = self.input(x)
        for layer in self.hidden:
            h = h + layer(torch.tanh(h + shift[:, :, None, None]))
        return self.output(torch.tanh(h))

"""A plain multi-layer perceptron for low-dimensional data."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ayf_core.conditions import ClassLabels, Condition
from ayf_core.errors import AyfError
from ayf_core.networks.base import MeanVelocityNetwork
from ayf_core.networks.spec import NetworkSpec
from ayf_core.registry import register
from ayf_core.settings import setting

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU, "gelu": nn.GELU}


@register("network", "mlp", title="Perceptron")
@dataclass(frozen=True, kw_only=True)
class MLPSettings:
    """Of a perceptron for samples [D]."""

    width: int = setting("hidden width", at_least=2)
    depth: int = setting("number of layers", at_least=1)
    activation: str = setting("non-linearity", choices=("silu", "relu", "gelu"))

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise AyfError where samples of this shape do not fit."""
        if len(shape) != 1:
            raise AyfError(f"an 'mlp' takes samples of shape [D], got {list(shape)}: use network kind 'dit'")

    def build(self, spec: NetworkSpec) -> "MLP":
        """A freshly initialised network."""
        return MLP(spec, self)


class MLP(MeanVelocityNetwork):
    """Mean velocity of points: F(x, t, s | condition, λ) for x [B, D].

    Time, interval length t - s and guidance scale λ - 1 are input columns beside x; the embedding of a condition is
    added to the first layer. The columns of the interval and of λ start at zero, so a student that copies a teacher's
    weights starts as the teacher's velocity at every s and λ.
    """

    EMBEDDERS: ClassVar[Mapping[type, Callable[[Any, int], nn.Module]]] = {
        ClassLabels: lambda kind, width: nn.Embedding(kind.num_classes + 1, width)
    }

    def __init__(self, spec: NetworkSpec, settings: MLPSettings):
        super().__init__(spec)
        (dimension,), width = spec.shape, settings.width
        activation = ACTIVATIONS[settings.activation]
        self.input = nn.Linear(dimension + 1, width)
        self.add_embedders(width)
        self.interval = nn.Linear(1, width, bias=False) if spec.interval else None
        self.guidance = nn.Linear(1, width, bias=False) if spec.guidance else None
        for column in (self.interval, self.guidance):
            if column is not None:
                nn.init.zeros_(column.weight)
        hidden: list[nn.Module] = [activation()]
        for _ in range(settings.depth - 1):
            hidden += [nn.Linear(width, width), activation()]
        self.hidden = nn.Sequential(*hidden)
        self.output = nn.Linear(width, dimension)

    @property
    def last_layer(self) -> Tensor:
        return self.output.weight

    @property
    def sharded_blocks(self) -> list[nn.Module]:
        return [layer for layer in self.hidden if isinstance(layer, nn.Linear)]

    def forward(
        self,
        x: Float[Tensor, "batch dim"],
        t: Float[Tensor, " batch"],
        s: Float[Tensor, " batch"] | None = None,
        condition: Condition | None = None,
        guidance_scale: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch dim"]:
        h = self.embedded(self.input(torch.cat([x, t[:, None].to(x.dtype)], dim=1)), condition)
        if self.interval is not None and s is not None:
            h = h + self.interval((t - s)[:, None].to(x.dtype))
        if self.guidance is not None and guidance_scale is not None:
            h = h + self.guidance((guidance_scale - 1)[:, None].to(x.dtype))
        return self.output(self.hidden(h))

"""The one signature of every network here, and how it comes by an embedder for each of its conditions."""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

from jaxtyping import Float
from torch import Tensor, nn

from ayf_core.conditions import Condition
from ayf_core.errors import AyfError
from ayf_core.networks.spec import NetworkSpec
from ayf_core.precision import InPrecision


class MeanVelocityNetwork(InPrecision):
    """A network F(x, t, s | condition, λ); without s, or told no interval, it is a velocity v(x, t).

    Attributes:
        EMBEDDERS: what embeds a kind of condition as [B, width], by the kind's class; called with the kind and the
            width.
    """

    EMBEDDERS: ClassVar[Mapping[type, Callable[[Any, int], nn.Module]]] = {}

    def __init__(self, spec: NetworkSpec):
        super().__init__()
        self.spec = spec

    @property
    @abstractmethod
    def last_layer(self) -> Tensor:
        """The weight of the output layer, on which gradients of two losses are compared."""

    @property
    def sharded_blocks(self) -> list[nn.Module]:
        """The parts that sharded training gathers one at a time; what is in none of them stays gathered together."""
        return []

    def add_embedders(self, width: int) -> None:
        """Build an embedder for each condition of the spec, as a part of the network of the condition's name.

        Raises:
            AyfError: this kind of network cannot be told such a condition, or a part is called the same.
        """
        for name, kind in self.spec.conditions.items():
            if type(kind) not in self.EMBEDDERS:
                raise AyfError(f"a network of kind '{self.spec.kind}' has no embedder for {kind.name} ({name})")
            if hasattr(self, part_of(name)):
                raise AyfError(f"a condition cannot be called {name!r}: the network has a part of that name")
            self.add_module(part_of(name), self.EMBEDDERS[type(kind)](kind, width))

    def embedded(self, h: Tensor, condition: Condition | None) -> Tensor:
        """h [B, width] and, added to it, the embedding of each condition; of what is not given, that of its null."""
        for name, kind in self.spec.conditions.items():
            given = condition.get(name) if condition is not None else None
            value = kind.null(len(h), h.device) if given is None else given
            h = h + getattr(self, part_of(name))(value)
        return h

    @abstractmethod
    def forward(
        self,
        x: Float[Tensor, "batch *dims"],
        t: Float[Tensor, " batch"],
        s: Float[Tensor, " batch"] | None = None,
        condition: Condition | None = None,
        guidance_scale: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch *dims"]: ...


def part_of(name: str) -> str:
    """What the embedder of a condition is called among the network's parts, and in its weights: `label` of `labels`."""
    return name.removesuffix("s")

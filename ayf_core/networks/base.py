"""The one signature of every network here."""

from abc import abstractmethod

from jaxtyping import Float, Int
from torch import Tensor, nn

from ayf_core.networks.spec import NetworkSpec


class MeanVelocityNetwork(nn.Module):
    """A network F(x, t, s | label, λ); without s, or told no interval, it is a velocity v(x, t)."""

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

    @abstractmethod
    def forward(
        self,
        x: Float[Tensor, "batch *dims"],
        t: Float[Tensor, " batch"],
        s: Float[Tensor, " batch"] | None = None,
        labels: Int[Tensor, " batch"] | None = None,
        guidance_scale: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch *dims"]: ...

"""What a network is made of, as plain data: it is stored beside the weights and rebuilds the network."""

from dataclasses import asdict, dataclass
from typing import Any

from ayf_core.errors import AyfError


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """Architecture of a mean-velocity network.

    Args:
        kind: 'dit' for [C, H, W] data, 'mlp' for [D] data.
        shape: shape of one sample, without the batch.
        num_classes: 0 or 1 for unconditional data.
        width, depth: channels and number of blocks (layers for 'mlp').
        heads, patch_size: of a 'dit'.
        activation: of an 'mlp': relu, silu or gelu.
        interval: whether the network is told t - s (a flow map) or not (a velocity).
        guidance: whether the network is told the guidance scale λ.
    """

    kind: str
    shape: tuple[int, ...]
    num_classes: int
    width: int
    depth: int
    heads: int = 4
    patch_size: int = 1
    activation: str = "silu"
    interval: bool = False
    guidance: bool = False

    def __post_init__(self) -> None:
        if self.kind == "dit":
            if len(self.shape) != 3:
                raise AyfError(f"a 'dit' takes samples of shape [C, H, W], got {self.shape}: use network kind 'mlp'")
            if self.width % self.heads:
                raise AyfError(f"width {self.width} is not a multiple of heads {self.heads}")
            if any(side % self.patch_size for side in self.shape[1:]):
                raise AyfError(f"patch_size {self.patch_size} does not divide the sample's sides {self.shape[1:]}")
        elif self.kind == "mlp":
            if len(self.shape) != 1:
                raise AyfError(f"an 'mlp' takes samples of shape [D], got {self.shape}: use network kind 'dit'")
        else:
            raise AyfError(f"unknown network kind '{self.kind}': choose 'dit' or 'mlp'")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"shape": list(self.shape)}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "NetworkSpec":
        return cls(**fields | {"shape": tuple(fields["shape"])})

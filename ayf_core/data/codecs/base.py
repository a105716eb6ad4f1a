"""What a codec is, and how one comes about."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


@runtime_checkable
class Codec(Protocol):
    """What turns examples [B, *D] into latents [B, C, *L] and back.

    For each example it gives a Gaussian over latents. One that is a torch module moves between devices.
    """

    @property
    def fingerprint(self) -> str:
        """A hash of everything that decides what the codec computes."""
        ...

    def encode(self, x: Float[Tensor, " B *D"]) -> tuple[Float[Tensor, "B C *L"], Float[Tensor, "B C *L"]]:
        """Mean and standard deviation of the latents of x."""
        ...

    def decode(self, latents: Float[Tensor, "B C *L"]) -> Float[Tensor, " B *D"]:
        """Data for (denormalised) latents."""
        ...

    def latent_shape(self, x_shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of one latent, for the shape of one example (no batch dimension in either)."""
        ...

    def save(self, folder: str | Path) -> None:
        """Write what `load_codec` reads."""
        ...


class CodecChoice(ABC):
    """A codec as a person chooses it: the base of every codec's settings.

    Its registered name is also the `kind` in `codec.json`, by which `load_codec` finds `read`.

    Attributes:
        needs_training: whether what `make` gives is to be trained. It is then a torch module, called with examples
            [B, *D] and standard normal noise in the shape of their latents; it returns the loss and metrics.
    """

    needs_training: ClassVar[bool] = False

    @abstractmethod
    def make(self, example_shape: Sequence[int]) -> Codec:
        """A codec for examples of this shape; weights are drawn from torch's global generator: seed it first.

        Raises:
            AyfError: the settings do not fit each other or the examples.
        """

    @staticmethod
    @abstractmethod
    def read(folder: Path, content: Mapping[str, Any]) -> Codec:
        """The codec that was saved in a folder, frozen.

        Args:
            content: of the folder's codec.json.

        Raises:
            AyfError: naming the file that is missing, foreign, truncated, or not what it was when it was saved.
        """

    def problems(self) -> Iterator[str]:
        """A line for each value that its own range does not refuse and that still cannot be used."""
        return iter(())

    def halvings(self) -> int | None:
        """How often the side of an image is halved; None where only the finished codec knows."""
        return None

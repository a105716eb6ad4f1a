"""No codec: latents are the data themselves, pixels or points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ayf_core.data.codecs.base import CodecChoice
from ayf_core.data.codecs.files import write_codec_file
from ayf_core.registry import register


class IdentityCodec:
    """Latents are the data themselves; the standard deviation is zero."""

    @property
    def fingerprint(self) -> str:
        return "identity"

    def encode(self, x: Float[Tensor, " B *D"]) -> tuple[Float[Tensor, " B *D"], Float[Tensor, " B *D"]]:
        return x, torch.zeros_like(x)

    def decode(self, latents: Float[Tensor, " B *D"]) -> Float[Tensor, " B *D"]:
        return latents

    def latent_shape(self, x_shape: Sequence[int]) -> tuple[int, ...]:
        return tuple(x_shape)

    def save(self, folder: str | Path) -> None:
        write_codec_file(Path(folder), {"kind": "identity"})


@register("codec", "identity", title="None: pixels or points as they are")
@dataclass(frozen=True, kw_only=True)
class Identity(CodecChoice):
    """Has no settings."""

    def make(self, example_shape: Sequence[int]) -> IdentityCodec:
        return IdentityCodec()

    @staticmethod
    def read(folder: Path, content: Mapping[str, Any]) -> IdentityCodec:
        return IdentityCodec()

    def halvings(self) -> int:
        return 0

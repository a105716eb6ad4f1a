"""A pretrained AutoencoderKL, taken as it is from a folder or from the Hugging Face hub: nothing is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ayf_core.data.codecs.base import CodecChoice
from ayf_core.errors import AyfError
from ayf_core.registry import register
from ayf_core.settings import setting

if TYPE_CHECKING:
    from ayf_core.data.codecs.diffusers_autoencoder import AutoencoderKLCodec


@register("codec", "pretrained", title="Pretrained autoencoder with a KL term")
@dataclass(frozen=True, kw_only=True)
class PretrainedAutoencoder(CodecChoice):
    """Models name such a codec and check its fingerprint; they hold no copy of it."""

    source: str = setting("local folder in diffusers' format, or hub id (owner/model)")

    def make(self, example_shape: Sequence[int]) -> AutoencoderKLCodec:
        from ayf_core.data.codecs.diffusers_autoencoder import AutoencoderKLCodec

        if len(example_shape) != 3:
            raise AyfError(
                f"a pretrained codec takes images [C, H, W], the data are {list(example_shape)}: use identity"
            )
        codec = AutoencoderKLCodec.from_pretrained(self.source, image_channels=example_shape[0])
        codec.latent_shape(example_shape)
        return codec

    @staticmethod
    def read(folder: Path, content: Mapping[str, Any]) -> AutoencoderKLCodec:
        from ayf_core.data.codecs.diffusers_autoencoder import read_autoencoder

        return read_autoencoder(folder, content)

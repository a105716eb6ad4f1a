"""An autoencoder with a KL term that is trained on the data themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from ayf_core.data.codecs.base import CodecChoice
from ayf_core.errors import AyfError
from ayf_core.registry import register
from ayf_core.settings import group, setting
from ayf_core.training_settings import TrainingSettings

if TYPE_CHECKING:
    from ayf_core.data.codecs.diffusers_autoencoder import AutoencoderKLCodec

NORM_GROUPS = 8
"""Groups of the normalisation layers; they divide every width."""


@register("codec", "autoencoder_kl", title="Autoencoder with a KL term, trained here")
@dataclass(frozen=True, kw_only=True)
class TrainedAutoencoder(CodecChoice):
    """A small AutoencoderKL of diffusers', for images [C, H, W] in [-1, 1]."""

    latent_channels: int = setting("channels of a latent", at_least=1)
    channels: list[int] = setting("width a level; each level after the first halves the side", at_least=1, repeats=True)
    layers_per_block: int = setting("residual layers a level", at_least=1)
    kl_weight: float = setting("weight of the KL term", at_least=0.0)
    training: TrainingSettings = group("how the codec is trained")

    needs_training: ClassVar[bool] = True

    def problems(self) -> Iterator[str]:
        if any(width % NORM_GROUPS for width in self.channels):
            yield f"channels = {list(self.channels)}: each must be a multiple of {NORM_GROUPS}; round them"

    def halvings(self) -> int:
        return len(self.channels) - 1

    def make(self, example_shape: Sequence[int]) -> AutoencoderKLCodec:
        from ayf_core.data.codecs.diffusers_autoencoder import AutoencoderKLCodec

        for problem in self.problems():
            raise AyfError(f"codec {problem}")
        codec = AutoencoderKLCodec.create(
            image_channels=example_shape[0],
            latent_channels=self.latent_channels,
            channels=self.channels,
            layers_per_block=self.layers_per_block,
            norm_num_groups=NORM_GROUPS,
            kl_weight=self.kl_weight,
        )
        codec.latent_shape(example_shape)
        return codec

    @staticmethod
    def read(folder: Path, content: Mapping[str, Any]) -> AutoencoderKLCodec:
        from ayf_core.data.codecs.diffusers_autoencoder import read_autoencoder

        return read_autoencoder(folder, content)

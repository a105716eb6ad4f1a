"""Data sets, codecs (data <-> latents) and latent shards."""

from ayf_core.data.codecs import AutoencoderKLCodec, Codec, IdentityCodec, load_codec
from ayf_core.data.datasets import DataSet, Split, load_dataset, sample_checkerboard
from ayf_core.data.latent_shards import write_latents
from ayf_core.data.latents import LatentDataset, LatentSpace

__all__ = [
    "AutoencoderKLCodec",
    "Codec",
    "DataSet",
    "IdentityCodec",
    "LatentDataset",
    "LatentSpace",
    "Split",
    "load_codec",
    "load_dataset",
    "sample_checkerboard",
    "write_latents",
]

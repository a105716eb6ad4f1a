"""Diffusers' AutoencoderKL as a codec: its loss, its files, and how it is read again.

A folder of one holds `codec.json` and its weights in diffusers' own format (`autoencoder/`), or only the reference to
a pretrained one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ayf_core.data.codecs.files import CODEC_FILE, write_codec_file
from ayf_core.errors import AyfError, require
from ayf_core.files import first_line, read_json
from ayf_core.precision import InPrecision

AUTOENCODER_FOLDER = "autoencoder"
WEIGHTS_FILE = "diffusion_pytorch_model.safetensors"
CONFIG_FILE = "config.json"


class AutoencoderKLCodec(InPrecision):
    """A variational autoencoder (diffusers' AutoencoderKL): a small one to train here, or a pretrained one.

    Images are [B, C, H, W] in [-1, 1]; each level of `channels` but the last halves the side. Latents come as
    the encoder gives them: the model's own scaling factor is not used, since latents are normalised by
    measurement.

    Build one with `create` or `from_pretrained`.
    """

    autoencoder: Any  # a diffusers.AutoencoderKL, which is imported only where one is built

    def __init__(
        self,
        autoencoder: Any,
        *,
        image_channels: int,
        kl_weight: float | None = None,
        reference: Mapping[str, str | None] | None = None,
    ) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.image_channels = image_channels
        self.kl_weight = kl_weight
        self.reference = dict(reference) if reference is not None else None
        network_channels = autoencoder.config["in_channels"]
        if image_channels != network_channels and image_channels != 1:
            raise AyfError(
                f"the codec takes images of {network_channels} channels, the data have {image_channels}: "
                "use another codec"
            )
        self.downsampling: int = 2 ** (len(autoencoder.config["block_out_channels"]) - 1)
        self.latent_channels: int = autoencoder.config["latent_channels"]

    @classmethod
    def create(
        cls,
        *,
        image_channels: int,
        latent_channels: int,
        channels: Sequence[int],
        layers_per_block: int,
        norm_num_groups: int,
        kl_weight: float,
    ) -> AutoencoderKLCodec:
        """A new codec with random weights (from torch's global generator: seed it first).

        Args:
            image_channels: 1 for grey, 3 for RGB.
            latent_channels: channels of a latent.
            channels: width of each level; the side of an image is halved between levels.
            layers_per_block: residual blocks a level.
            norm_num_groups: groups of the group normalisation; must divide each of `channels`.
            kl_weight: weight of the KL term in the training loss.

        Raises:
            AyfError: a setting is out of range, or diffusers is not installed.
        """
        if not channels or any(width < 1 or width % norm_num_groups for width in channels):
            raise AyfError(
                f"codec channels {list(channels)} must be positive multiples of norm_num_groups, "
                f"which is {norm_num_groups}"
            )
        levels = len(channels)
        autoencoder = _autoencoder_class()(
            in_channels=image_channels,
            out_channels=image_channels,
            latent_channels=latent_channels,
            block_out_channels=tuple(channels),
            layers_per_block=layers_per_block,
            norm_num_groups=norm_num_groups,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
        )
        return cls(autoencoder, image_channels=image_channels, kl_weight=kl_weight)

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path,
        *,
        image_channels: int | None = None,
        subfolder: str | None = None,
        revision: str | None = None,
    ) -> AutoencoderKLCodec:
        """A pretrained AutoencoderKL from a folder in diffusers' format or from the Hugging Face hub.

        Args:
            source: a local folder, or a hub id such as `stabilityai/sd-vae-ft-mse`.
            image_channels: channels of the data; None takes what the model was trained on. With 1 channel,
                grey images are repeated on the way in and averaged on the way out.
            subfolder: where the model lies inside `source` (`vae` in a Stable Diffusion repository).
            revision: branch, tag or commit of a hub id.

        Only safetensors weights are read: pickled ones could run code.

        Raises:
            AyfError: nothing is there, it is not an AutoencoderKL, or its weights are truncated or
                incomplete.
        """
        local = Path(source).expanduser()
        is_folder = local.is_dir()
        if not is_folder and (local.is_absolute() or str(source).startswith((".", "~"))):
            raise AyfError(f"no codec folder at {source}: check the path, or name a hub id (owner/model)")
        place = str(local.resolve()) if is_folder else str(source)
        shown = f"{place}/{subfolder}" if subfolder else place
        if is_folder:
            _check_class(local / (subfolder or ""))
        cls_kl = _autoencoder_class()
        try:
            autoencoder, report = cls_kl.from_pretrained(
                place,
                subfolder=subfolder,
                revision=revision,
                use_safetensors=True,
                low_cpu_mem_usage=False,
                output_loading_info=True,
            )
        except Exception as error:  # whatever diffusers makes of foreign files
            raise AyfError(
                f"cannot load a pretrained AutoencoderKL from {shown} ({WEIGHTS_FILE}, {CONFIG_FILE}): "
                f"{first_line(error)}. "
                "Check the name, download it again, or convert its weights to safetensors"
            ) from error
        if report["missing_keys"] or report["mismatched_keys"]:
            raise AyfError(
                f"the weights in {shown}/{WEIGHTS_FILE} do not fill the network of its {CONFIG_FILE} "
                f"({len(report['missing_keys'])} tensors are missing): download the model again"
            )
        return cls(
            autoencoder,
            image_channels=image_channels or autoencoder.config["in_channels"],
            reference={"source": place, "subfolder": subfolder, "revision": revision},
        )

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the network's settings and weights (not over where they came from)."""
        digest = hashlib.sha256(json.dumps(_plain_config(self.autoencoder), sort_keys=True).encode())
        digest.update(str(self.image_channels).encode())
        for name, tensor in sorted(self.autoencoder.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        return digest.hexdigest()

    def latent_shape(self, x_shape: Sequence[int]) -> tuple[int, ...]:
        """(latent_channels, H / downsampling, W / downsampling) for images (C, H, W).

        Raises:
            AyfError: the images have other channels than the codec, or a side it cannot halve often enough.
        """
        if len(x_shape) != 3:
            raise AyfError(f"an AutoencoderKL codec needs images [C, H, W], the data are {list(x_shape)}: use identity")
        image_channels, height, width = x_shape
        if image_channels != self.image_channels:
            raise AyfError(
                f"the codec was built for images of {self.image_channels} channels, the data have "
                f"{image_channels}: name the same image_channels for both"
            )
        if height % self.downsampling or width % self.downsampling:
            raise AyfError(
                f"images of {height}x{width} pixels cannot be divided by the codec's down-sampling of "
                f"{self.downsampling}: choose an image_size that is a multiple of it, or fewer levels"
            )
        return (self.latent_channels, height // self.downsampling, width // self.downsampling)

    @torch.no_grad()
    def encode(self, x: Float[Tensor, "B C H W"]) -> tuple[Float[Tensor, "B L h w"], Float[Tensor, "B L h w"]]:
        """Mean and standard deviation of the latents; raises AyfError as `latent_shape` does."""
        return self._posterior(x)

    @torch.no_grad()
    def decode(self, latents: Float[Tensor, "B L h w"]) -> Float[Tensor, "B C H W"]:
        """Images, about in [-1, 1] (not clipped)."""
        return self._images(latents)

    def forward(
        self, images: Float[Tensor, "B C H W"], noise: Float[Tensor, "B L h w"]
    ) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The training loss, reconstruction + kl_weight * KL, and both as metrics; nothing is drawn here.

        z = mean + std * noise; the reconstruction term is the mean squared error per pixel, and the KL term
        is KL(N(mean, std^2) || N(0, 1)) = (mean^2 + std^2 - 1 - log std^2) / 2, averaged per latent number
        (nats).
        """
        if self.kl_weight is None:
            raise AyfError("a pretrained codec is used as it is: it has no kl_weight to be trained with")
        mean, std = (part.to(images.dtype) for part in self._posterior(images))
        reconstruction = (self._images(mean + std * noise).to(images.dtype) - images).square().mean()
        kl = 0.5 * (mean.square() + std.square() - 1.0 - 2.0 * std.log()).mean()
        loss = reconstruction + self.kl_weight * kl
        return loss, {"reconstruction": reconstruction.detach(), "kl": kl.detach()}

    def save(self, folder: str | Path) -> None:
        """Write the codec: its weights, or only the reference to a pretrained one."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        (place / CODEC_FILE).unlink(missing_ok=True)  # written last: a folder without it is unfinished
        content: dict[str, Any] = {
            "kind": "autoencoder_kl",
            "image_channels": self.image_channels,
            "kl_weight": self.kl_weight,
            "fingerprint": self.fingerprint,
        }
        if self.reference is None:
            self.autoencoder.save_pretrained(place / AUTOENCODER_FOLDER, safe_serialization=True)
        else:
            content["pretrained"] = self.reference
        write_codec_file(place, content)

    def _posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.latent_shape(x.shape[1:])
        network_channels = self.autoencoder.config["in_channels"]
        if x.shape[1] != network_channels:
            x = x.expand(-1, network_channels, -1, -1)
        posterior = self.autoencoder.encode(x).latent_dist
        return posterior.mean, posterior.std

    def _images(self, latents: Tensor) -> Tensor:
        images = self.autoencoder.decode(latents).sample
        return images.mean(dim=1, keepdim=True) if self.image_channels == 1 else images


def read_autoencoder(folder: Path, content: Mapping[str, Any]) -> AutoencoderKLCodec:
    """What `AutoencoderKLCodec.save` wrote, frozen and in evaluation mode.

    Args:
        content: of the folder's codec.json.

    Raises:
        AyfError: as `load_codec` does.
    """
    file = folder / CODEC_FILE
    try:
        image_channels, fingerprint = content["image_channels"], content["fingerprint"]
        kl_weight, pretrained = content["kl_weight"], content.get("pretrained")
    except KeyError as error:
        raise AyfError(f"{file} lacks {error}: `dvc repro --force train_codec` makes it again") from error
    if pretrained is not None:
        if not isinstance(pretrained, dict) or not pretrained.keys() <= {"source", "subfolder", "revision"}:
            raise AyfError(f"{file} names no pretrained codec that can be read: make the codec again")
        codec = AutoencoderKLCodec.from_pretrained(image_channels=image_channels, **pretrained)
        weights = f"{pretrained['source']} (named in {file})"
    else:
        autoencoder = _load_autoencoder(folder / AUTOENCODER_FOLDER)
        if not isinstance(image_channels, int):
            raise AyfError(
                f"{file} says {image_channels!r} for image_channels: `dvc repro --force train_codec` mends it"
            )
        codec = AutoencoderKLCodec(autoencoder, image_channels=image_channels, kl_weight=kl_weight)
        weights = str(folder / AUTOENCODER_FOLDER / WEIGHTS_FILE)
    if codec.fingerprint != fingerprint:
        raise AyfError(f"the codec weights {weights} are not those it was saved with: make the codec again")
    return codec.eval().requires_grad_(False)


def _load_autoencoder(folder: Path) -> Any:
    """An AutoencoderKL that `save` wrote, every tensor accounted for."""
    _check_class(folder)
    cls_kl = _autoencoder_class()
    weights = folder / WEIGHTS_FILE
    remedy = "`dvc repro --force train_codec` makes it again"
    try:
        autoencoder = cls_kl.from_config(cls_kl.load_config(str(folder)))
        autoencoder.load_state_dict(load_file(weights))
    except FileNotFoundError as error:
        raise AyfError(f"codec weights {weights} are missing: {remedy}") from error
    except (OSError, SafetensorError) as error:
        raise AyfError(f"codec weights {weights} are truncated or foreign ({error}): {remedy}") from error
    except Exception as error:  # other names or shapes, or what diffusers makes of foreign settings
        raise AyfError(f"codec weights {weights} do not fit {folder / CONFIG_FILE}: {remedy}") from error
    return autoencoder


def _check_class(folder: Path) -> None:
    """Diffusers would fill a foreign config with its own defaults; say so before."""
    file = folder / CONFIG_FILE
    try:
        config = read_json(file)
    except FileNotFoundError:
        raise AyfError(f"{folder} is not a diffusers model ({CONFIG_FILE} is missing): name its folder") from None
    except (OSError, ValueError) as error:
        raise AyfError(f"cannot read {file} ({error}): restore or download it again") from error
    found = config.get("_class_name") if isinstance(config, dict) else None
    if found != "AutoencoderKL":
        raise AyfError(f"{file} describes {found or 'no diffusers model'}, not an AutoencoderKL: name another folder")


def _plain_config(autoencoder: Any) -> dict[str, Any]:
    """The network's settings, without diffusers' notes on version and place."""
    return {key: value for key, value in autoencoder.config.items() if not key.startswith("_")}


def _autoencoder_class() -> Any:
    diffusers = require("diffusers", extra="platform", needed_for="an AutoencoderKL codec")
    return diffusers.AutoencoderKL

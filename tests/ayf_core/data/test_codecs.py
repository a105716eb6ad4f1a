"""Codecs: shapes, the training loss, what is saved, and what damaged weights say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from ayf_core.data.codecs.base import Codec
from ayf_core.data.codecs.diffusers_autoencoder import AutoencoderKLCodec
from ayf_core.data.codecs.files import load_codec
from ayf_core.data.codecs.identity import IdentityCodec
from ayf_core.errors import AyfError

pytest.importorskip("diffusers")


def make_codec(image_channels: int = 1, channels: tuple[int, ...] = (8, 8), seed: int = 0) -> AutoencoderKLCodec:
    torch.manual_seed(seed)
    return AutoencoderKLCodec.create(
        image_channels=image_channels,
        latent_channels=2,
        channels=channels,
        layers_per_block=1,
        norm_num_groups=4,
        kl_weight=0.01,
    )


def make_images(n: int = 3, channels: int = 1, side: int = 8) -> torch.Tensor:
    return 2 * torch.rand((n, channels, side, side), generator=torch.Generator().manual_seed(1)) - 1


def assert_same_codec(one: AutoencoderKLCodec, other: AutoencoderKLCodec) -> None:
    """The same weights to the bit; what they compute may differ by rounding, with where they lie in memory."""
    weights, others = one.state_dict(), other.state_dict()
    assert weights.keys() == others.keys()
    assert all(torch.equal(tensor, others[name]) for name, tensor in weights.items())
    torch.testing.assert_close(one.encode(make_images())[0], other.encode(make_images())[0])


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    make_codec().save(tmp_path)
    return tmp_path


@pytest.mark.parametrize("shape", [(4, 2), (4, 1, 8, 8)])
def test_identity_codec_returns_the_data_themselves(tmp_path: Path, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    IdentityCodec().save(tmp_path)
    codec = load_codec(tmp_path)
    mean, std = codec.encode(x)
    assert torch.equal(codec.decode(mean), x)
    assert not std.any()
    assert codec.latent_shape(shape[1:]) == shape[1:]


def test_both_codecs_satisfy_the_protocol() -> None:
    assert isinstance(IdentityCodec(), Codec)
    assert isinstance(make_codec(), Codec)


@pytest.mark.parametrize(("channels", "side"), [((8,), 8), ((8, 8), 4), ((8, 8, 8), 2)])
def test_each_level_but_the_last_halves_the_side(channels: tuple[int, ...], side: int) -> None:
    codec, images = make_codec(channels=channels), make_images()
    mean, std = codec.encode(images)
    assert mean.shape == std.shape == (3, *codec.latent_shape((1, 8, 8))) == (3, 2, side, side)
    assert torch.all(std > 0)
    assert codec.decode(mean).shape == images.shape


def test_training_loss_is_reconstruction_plus_weighted_kl_to_the_standard_normal() -> None:
    codec, images = make_codec(), make_images()
    noise = torch.randn((3, 2, 4, 4), generator=torch.Generator().manual_seed(2))
    loss, metrics = codec(images, noise)
    mean, std = codec.encode(images)
    posterior = torch.distributions.Normal(mean, std)
    kl = torch.distributions.kl_divergence(posterior, torch.distributions.Normal(0.0, 1.0)).mean()
    reconstruction = (codec.decode(mean + std * noise) - images).square().mean()
    assert loss.item() == pytest.approx((reconstruction + 0.01 * kl).item(), rel=1e-5)
    assert float(metrics["reconstruction"]) == pytest.approx(reconstruction.item(), rel=1e-5)
    assert float(metrics["kl"]) == pytest.approx(kl.item(), rel=1e-5)
    assert codec(images, noise)[0].item() == loss.item()


def test_training_lowers_the_loss() -> None:
    codec, images = make_codec(), make_images()
    noise = torch.zeros(3, 2, 4, 4)
    optimiser = torch.optim.Adam(codec.parameters(), lr=3e-3)
    losses = []
    for _ in range(20):
        loss, _ = codec(images, noise)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_saved_codec_comes_back_frozen_and_the_same_bytes_are_written_again(saved: Path, tmp_path: Path) -> None:
    codec, images = load_codec(saved), make_images()
    assert isinstance(codec, AutoencoderKLCodec)
    assert_same_codec(codec, make_codec())
    assert not codec.encode(images)[0].requires_grad
    assert not any(parameter.requires_grad for parameter in codec.parameters())
    again = tmp_path / "again"
    codec.save(again)
    for name in ("codec.json", "autoencoder/config.json", "autoencoder/diffusion_pytorch_model.safetensors"):
        assert (again / name).read_bytes() == (saved / name).read_bytes()


def test_fingerprint_follows_the_weights() -> None:
    assert make_codec().fingerprint == make_codec().fingerprint
    assert make_codec().fingerprint != make_codec(seed=1).fingerprint


def test_pretrained_codec_is_saved_as_a_reference(saved: Path, tmp_path: Path) -> None:
    codec = AutoencoderKLCodec.from_pretrained(saved / "autoencoder")
    codec.save(tmp_path / "reference")
    assert [file.name for file in (tmp_path / "reference").iterdir()] == ["codec.json"]
    content = json.loads((tmp_path / "reference" / "codec.json").read_text())
    assert content["pretrained"]["source"] == str((saved / "autoencoder").resolve())
    again = load_codec(tmp_path / "reference")
    assert isinstance(again, AutoencoderKLCodec)
    assert_same_codec(again, codec)


def test_pretrained_codec_whose_weights_changed_is_refused(saved: Path, tmp_path: Path) -> None:
    AutoencoderKLCodec.from_pretrained(saved, subfolder="autoencoder").save(tmp_path / "reference")
    make_codec(seed=1).save(saved)
    with pytest.raises(AyfError, match="not those it was saved with"):
        load_codec(tmp_path / "reference")


def test_grey_images_pass_through_a_colour_codec(tmp_path: Path) -> None:
    make_codec(image_channels=3).save(tmp_path)
    colour = AutoencoderKLCodec.from_pretrained(tmp_path / "autoencoder")
    grey = AutoencoderKLCodec.from_pretrained(tmp_path / "autoencoder", image_channels=1)
    images = make_images()
    mean, _ = grey.encode(images)
    assert torch.equal(mean, colour.encode(images.repeat(1, 3, 1, 1))[0])
    assert torch.allclose(grey.decode(mean), colour.decode(mean).mean(1, keepdim=True))


def test_pretrained_codec_is_not_trained(saved: Path) -> None:
    codec = AutoencoderKLCodec.from_pretrained(saved / "autoencoder")
    with pytest.raises(AyfError, match="kl_weight"):
        codec(make_images(), torch.zeros(3, 2, 4, 4))


def test_side_that_cannot_be_halved_is_refused() -> None:
    with pytest.raises(AyfError, match="down-sampling of 4"):
        make_codec(channels=(8, 8, 8)).encode(make_images(side=10))


def test_images_of_other_channels_are_refused() -> None:
    with pytest.raises(AyfError, match="channels"):
        make_codec().encode(make_images(channels=3))


def test_points_are_refused_by_an_autoencoder() -> None:
    with pytest.raises(AyfError, match="use identity"):
        make_codec().latent_shape((2,))


def test_channels_that_the_groups_do_not_divide_are_refused() -> None:
    with pytest.raises(AyfError, match="norm_num_groups"):
        make_codec(channels=(6, 8))


@pytest.mark.parametrize("kept", [0, 100, -7])
def test_truncated_weights_are_named(saved: Path, kept: int) -> None:
    weights = saved / "autoencoder" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(AyfError, match=r"diffusion_pytorch_model\.safetensors"):
        load_codec(saved)
    with pytest.raises(AyfError, match=r"diffusion_pytorch_model\.safetensors"):
        AutoencoderKLCodec.from_pretrained(saved / "autoencoder")


def test_weights_of_another_network_are_refused(saved: Path, tmp_path: Path) -> None:
    make_codec(channels=(16, 16)).save(tmp_path / "other")
    name = "autoencoder/diffusion_pytorch_model.safetensors"
    (saved / name).write_bytes((tmp_path / "other" / name).read_bytes())
    with pytest.raises(AyfError, match="do not fit"):
        load_codec(saved)
    with pytest.raises(AyfError, match="autoencoder"):
        AutoencoderKLCodec.from_pretrained(saved / "autoencoder")


def test_weights_with_tensors_missing_are_refused_not_filled_in_at_random(saved: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = saved / "autoencoder" / "diffusion_pytorch_model.safetensors"
    tensors = load_file(weights)
    tensors.pop("decoder.conv_out.weight")
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(AyfError, match="download the model again"):
        AutoencoderKLCodec.from_pretrained(saved / "autoencoder")


def test_missing_weights_are_named(saved: Path) -> None:
    (saved / "autoencoder" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(AyfError, match=r"diffusion_pytorch_model\.safetensors"):
        load_codec(saved)


def test_pickled_weights_are_not_read(saved: Path) -> None:
    folder = saved / "autoencoder"
    torch.save(make_codec().autoencoder.state_dict(), folder / "diffusion_pytorch_model.bin")
    (folder / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(AyfError, match="convert its weights to safetensors"):
        AutoencoderKLCodec.from_pretrained(folder)


@pytest.mark.parametrize("text", ["", "{}", '{"format": 1, "kind": "zip"}', '{"format": 9, "kind": "identity"}'])
def test_foreign_codec_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "codec.json").write_text(text)
    with pytest.raises(AyfError, match=r"codec\.json"):
        load_codec(tmp_path)


def test_folder_without_a_codec_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(AyfError, match="dvc repro train_codec"):
        load_codec(tmp_path)


def test_pretrained_folder_of_another_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(AyfError, match="UNet2DModel, not an AutoencoderKL"):
        AutoencoderKLCodec.from_pretrained(tmp_path)


def test_pretrained_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AyfError, match="no codec folder"):
        AutoencoderKLCodec.from_pretrained(tmp_path / "nothing")

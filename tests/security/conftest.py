"""A small model folder of every part that can be read back, made by the library's own writers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from ayf_core.data.codecs.diffusers_autoencoder import AutoencoderKLCodec
from ayf_core.data.latent_shards import write_latents
from ayf_core.data.latents import LatentSpace
from ayf_core.evaluation.features.small_classifier import SmallClassifier
from ayf_core.networks.build import build_network
from ayf_core.training.artefact import save_model
from ayf_core.training.checkpoints import save_state
from ayf_core.training.ema import PowerFunctionEMA
from tests.made import dit


@pytest.fixture(scope="session")
def _made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("diffusers")
    root = tmp_path_factory.mktemp("made")
    torch.manual_seed(0)
    network = build_network(dit((4, 4, 4), classes=2, width=8, interval=True))
    codec = AutoencoderKLCodec.create(
        image_channels=1, latent_channels=4, channels=[8, 8], layers_per_block=1, norm_num_groups=4, kl_weight=0.1
    )
    codec.save(root / "codec")
    ema = PowerFunctionEMA(network, [0.05, 0.1])
    ema.update(1)
    ema.save_snapshot(root / "ema", 1)
    space = LatentSpace(torch.zeros(4), torch.ones(4))
    places = {"codec": root / "codec", "space": space, "snapshots": root / "ema"}
    save_model(root / "model", network, ema.weights(0.05), role="flow_map", **places)
    SmallClassifier(1, 2, 4).save(root / "features")
    latents = (torch.randn(6, 4, 4, 4), torch.ones(6, 4, 4, 4), torch.arange(6) % 2)
    write_latents(root / "latents", [latents], (4, 4, 4), 2, "fingerprint", 6)
    (root / "checkpoint").mkdir()
    save_state(root / "checkpoint", {"step": 3, "weights": torch.ones(3)})
    return root


@pytest.fixture
def made(_made: Path, tmp_path: Path) -> Path:
    """`model` (with `codec` and `ema`), `features`, `latents` and `checkpoint` in a folder of the test's own."""
    return Path(shutil.copytree(_made, tmp_path / "made"))

"""The finished model of a training, as a folder that stands by itself: `Generator.load` reads it."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ayf_core.data.latents import LatentSpace
from ayf_core.guidance.scale import GuidanceRange
from ayf_core.networks.base import MeanVelocityNetwork
from ayf_core.networks.files import save_network


def save_model(
    folder: Path,
    network: MeanVelocityNetwork,
    weights: Mapping[str, Tensor],
    *,
    role: str,
    codec: Path,
    space: LatentSpace,
    snapshots: Path | None = None,
    guidance: GuidanceRange | None = None,
    **details: Any,
) -> None:
    """Write the network, its codec, the latents' statistics and the EMA snapshots.

    Args:
        weights: the average that is published.
        role: 'velocity' or 'flow_map'.
        codec: folder of the codec, copied (a pretrained one is only named in it).
        snapshots: folder of EMA snapshots, copied: any other width is reconstructed from them.
        guidance: the guidance scales that the model learnt.
        details: more for `model.json`.
    """
    shutil.rmtree(folder, ignore_errors=True)
    statistics = {"shift": space.shift.tolist(), "scale": space.scale.tolist()}
    limits = guidance.to_list() if guidance else None
    save_network(folder, network, weights, role=role, latent_space=statistics, guidance_range=limits, **details)
    shutil.copytree(codec, folder / "codec")
    if snapshots is not None:
        shutil.copytree(snapshots, folder / "ema")

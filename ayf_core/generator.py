"""A trained model with all it needs to make data: network, codec, latent statistics, EMA snapshots.

Beside the weights may lie `sampling.json`: for numbers of steps, the sampling settings that were found to be best.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ayf_core.data.codecs.base import Codec
from ayf_core.data.codecs.files import load_codec
from ayf_core.data.latents import LatentSpace
from ayf_core.errors import AyfError
from ayf_core.files import read_json
from ayf_core.flow_map import FlowMap, load_network, read_card
from ayf_core.networks import MeanVelocityNetwork, NetworkSpec
from ayf_core.samplers import Grid, Samples, SamplingSettings, sample_flow_map, solve_ode, uniform_grid
from ayf_core.training.ema import load_snapshots, reconstruct
from ayf_core.velocity import NetworkVelocity, VelocityField

SAMPLING_FILE = "sampling.json"
_FORMAT = "ayf-sampling"
_VERSION = 1


@dataclass(frozen=True)
class Generator:
    """Makes images (or points) from noise.

    Attributes:
        network: of a flow map (`role` 'flow_map') or of a velocity ('velocity').
        codec, space: from normalised latents to data.
        card: what `model.json` says.
        folder: where its published weights lie, and perhaps sampling settings for them; None for other weights.
    """

    network: MeanVelocityNetwork
    role: str
    codec: Codec
    space: LatentSpace
    card: Mapping[str, Any]
    folder: Path | None = None

    @property
    def spec(self) -> NetworkSpec:
        return self.network.spec

    @property
    def makes_points(self) -> bool:
        """Whether samples are points of the plane, not images."""
        return len(self.spec.shape) == 1

    @property
    def guidance_range(self) -> tuple[float, float] | None:
        """The guidance scales a student was distilled for, None where it takes none."""
        limits = self.card.get("guidance_range")
        return None if limits is None else (limits[0], limits[1])

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu", ema_std: float | None = None) -> "Generator":
        """Read a model folder that a training stage wrote.

        Args:
            ema_std: another EMA width than the published one, reconstructed from the folder's snapshots.

        Raises:
            AyfError: if the folder is missing, damaged or not this library's.
        """
        folder = Path(folder)
        network, card = load_network(folder)
        if "latent_space" not in card:
            raise AyfError(
                f"'{folder}' holds a bare network, without codec and latent statistics: name a stage's output"
            )
        if ema_std is not None:
            network.load_state_dict(reconstruct(load_snapshots(folder / "ema"), ema_std))
        try:
            statistics = card["latent_space"]
            space = LatentSpace(torch.tensor(statistics["shift"]), torch.tensor(statistics["scale"]))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise AyfError(f"'{folder}' has no latent statistics that can be read ({error}): train it again") from None
        codec = load_codec(folder / "codec")
        if isinstance(codec, nn.Module):
            codec.to(device)
        return cls(network.to(device), card["role"], codec, space, card, folder if ema_std is None else None)

    def sampling(self, steps: int) -> SamplingSettings:
        """The stored settings for this number of steps, else `untuned`.

        They are read here, not on loading: what samples by settings of its own is not troubled by a damaged file.

        Raises:
            AyfError: the file of stored settings is damaged or another model's.
        """
        stored = read_sampling(self.folder) if self.folder else {}
        return SamplingSettings.from_dict(stored[steps]) if steps in stored else self.untuned

    @property
    def untuned(self) -> SamplingSettings:
        """Uniform deterministic steps at the least guidance scale that was learnt."""
        return SamplingSettings(guidance_scale=self.guidance_range[0] if self.guidance_range else None)

    @torch.no_grad()
    def sample(
        self,
        noise: Tensor,
        evaluations: int,
        labels: Tensor | None = None,
        guidance_scale: float | None = None,
        gamma: float = 0.0,
        velocity: VelocityField | None = None,
        generator: torch.Generator | None = None,
        times: Grid | None = None,
    ) -> Samples:
        """Data from noise [B, *latent shape] by a number of steps (a flow map) or velocity calls (a teacher).

        Settings go in as `sample(noise, steps, labels, **settings.arguments(steps))`; without, the steps are uniform.

        Args:
            guidance_scale: λ; of a student within `guidance_range`, of a velocity only with `velocity`.
            gamma: of γ-sampling, for a flow map.
            velocity: a guided field in place of a velocity network's own.
            times: of a flow map, strictly falling from 1 to 0, [evaluations + 1]; None = uniform.

        Raises:
            AyfError: for a guidance scale or times that the model cannot take.
        """
        scale = None if guidance_scale is None else torch.full((len(noise),), guidance_scale, device=noise.device)
        if self.role == "flow_map":
            limits = self.guidance_range
            if limits is None and guidance_scale not in (None, 1.0):
                raise AyfError("this student was distilled without guidance: leave the guidance scale out")
            if limits is not None:
                chosen = limits[0] if guidance_scale is None else guidance_scale
                if not limits[0] <= chosen <= limits[1]:
                    raise AyfError(
                        f"guidance scale {chosen:g} is outside what this student learnt, {limits[0]:g} to {limits[1]:g}"
                    )
                scale = torch.full((len(noise),), chosen, device=noise.device)
            times = uniform_grid(evaluations) if times is None else times
            if len(times) != evaluations + 1:
                raise AyfError(f"{evaluations} steps need {evaluations + 1} times, got {len(times)}")
            drawn = sample_flow_map(FlowMap(self.network), noise, times, labels, scale, gamma, generator)
        else:
            if times is not None:
                raise AyfError("a velocity network is sampled on the uniform grid: leave the times out")
            if guidance_scale not in (None, 1.0) and velocity is None:
                raise AyfError(
                    "a velocity network has no guidance by itself: name a distilled student, or a guided field"
                )
            field = velocity if velocity is not None else NetworkVelocity(self.network)
            # An odd number of calls is Heun's (its last step is Euler's); an even one can only be Euler's.
            heun = evaluations % 2 == 1
            grid = uniform_grid((evaluations + 1) // 2 if heun else evaluations)
            drawn = solve_ode(field, noise, grid, "heun" if heun else "euler", labels, scale)
        return Samples(self.codec.decode(self.space.denormalise(drawn.x)), drawn.nfe)

    def draw_noise(self, count: int, seed: int) -> Tensor:
        """Noise [count, *latent shape], the same for the same seed on every device."""
        return torch.randn(count, *self.spec.shape, generator=torch.Generator().manual_seed(seed)).to(
            next(self.network.parameters()).device
        )


def read_sampling(folder: Path) -> dict[int, dict[str, Any]]:
    """Stored sampling settings of a model folder by number of steps, with what was measured; empty if there are none.

    Raises:
        AyfError: the file is damaged, newer than this library, or was written for other weights.
    """
    path = folder / SAMPLING_FILE
    if not path.exists():
        return {}
    remedy = "delete it, or run `ayf tune-sampling` on the model again"
    try:
        document = read_json(path)
        if not isinstance(document, dict) or document.get("format") != _FORMAT:
            raise AyfError("it holds no sampling settings of this library")
        if document["version"] != _VERSION:
            raise AyfError(f"it has version {document['version']}, this library reads {_VERSION}")
        if document["model_sha256"] != read_card(folder).get("sha256"):
            raise AyfError("it was written for other weights than this model's")
        stored = {int(steps): dict(entry) for steps, entry in document["steps"].items()}
        for entry in stored.values():
            SamplingSettings.from_dict(entry)
    except AyfError as error:
        raise AyfError(f"'{path}' cannot be used ({error}): {remedy}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AyfError(f"'{path}' is damaged ({error}): {remedy}") from None
    return stored


def write_sampling(folder: Path, stored: Mapping[int, Mapping[str, Any]]) -> Path:
    """Write the sampling settings of a model folder, with what was measured, by number of steps; returns the file."""
    document = {
        "format": _FORMAT,
        "version": _VERSION,
        "model_sha256": read_card(folder)["sha256"],
        "steps": {str(steps): dict(stored[steps]) for steps in sorted(stored)},
    }
    # Beside the folder, not in it: DVC and the keys of stages must not see what a kill may leave behind.
    beside = folder.absolute().with_name(f".{folder.absolute().name}.{SAMPLING_FILE}.partial")
    beside.write_text(json.dumps(document, indent=2) + "\n")
    os.replace(beside, folder / SAMPLING_FILE)
    return folder / SAMPLING_FILE

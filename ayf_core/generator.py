"""A trained model with all it needs to make data: network, codec, latent statistics, EMA snapshots."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ayf_core.data.codecs import Codec, load_codec
from ayf_core.data.latents import LatentSpace
from ayf_core.errors import AyfError
from ayf_core.flow_map import FlowMap, load_network
from ayf_core.networks import MeanVelocityNetwork, NetworkSpec
from ayf_core.samplers import Samples, sample_flow_map, solve_ode, uniform_grid
from ayf_core.training.ema import load_snapshots, reconstruct
from ayf_core.velocity import NetworkVelocity, VelocityField


@dataclass(frozen=True)
class Generator:
    """Makes images (or points) from noise.

    Attributes:
        network: of a flow map (`role` 'flow_map') or of a velocity ('velocity').
        codec, space: from normalised latents to data.
        card: what `model.json` says.
    """

    network: MeanVelocityNetwork
    role: str
    codec: Codec
    space: LatentSpace
    card: Mapping[str, Any]

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
        statistics = card["latent_space"]
        space = LatentSpace(torch.tensor(statistics["shift"]), torch.tensor(statistics["scale"]))
        codec = load_codec(folder / "codec")
        if isinstance(codec, nn.Module):
            codec.to(device)
        return cls(network.to(device), card["role"], codec, space, card)

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
    ) -> Samples:
        """Data from noise [B, *latent shape] by a number of steps (a flow map) or velocity calls (a teacher).

        Args:
            guidance_scale: λ; of a student within `guidance_range`, of a velocity only with `velocity`.
            gamma: of γ-sampling, for a flow map.
            velocity: a guided field in place of a velocity network's own.

        Raises:
            AyfError: for a guidance scale that the model cannot take.
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
            drawn = sample_flow_map(
                FlowMap(self.network), noise, uniform_grid(evaluations), labels, scale, gamma, generator
            )
        else:
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

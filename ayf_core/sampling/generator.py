"""A trained model with all it needs to make data: network, codec, latent statistics, EMA snapshots.

Beside the weights may lie `sampling.json`: for numbers of steps, the sampling settings that were found to be best.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ayf_core.conditions import Condition, as_condition
from ayf_core.data.codecs.base import Codec
from ayf_core.data.codecs.files import load_codec
from ayf_core.data.latents import LatentSpace
from ayf_core.errors import AyfError
from ayf_core.guidance.scale import GuidanceRange
from ayf_core.networks.base import MeanVelocityNetwork
from ayf_core.networks.files import load_network
from ayf_core.networks.spec import NetworkSpec
from ayf_core.sampling.grids import Grid
from ayf_core.sampling.points import NoiseSource, Samples
from ayf_core.sampling.samplers import Sampler, sampler_of
from ayf_core.sampling.settings import SamplingSettings
from ayf_core.sampling.stored import read_sampling
from ayf_core.training.ema import Reconstruction, load_snapshots, rebuilt
from ayf_core.velocity import VelocityField


@dataclass(frozen=True)
class Generator:
    """Makes data from noise.

    Attributes:
        sampler: of the network, by what it is: a flow map or a velocity.
        codec, space: from normalised latents to data.
        card: what `model.json` says.
        folder: where its published weights lie, and perhaps sampling settings for them; None for other weights.
        rebuilt: where the weights are another EMA width's than the published one: how far off they are.
    """

    sampler: Sampler
    codec: Codec
    space: LatentSpace
    card: Mapping[str, Any]
    folder: Path | None = None
    rebuilt: Reconstruction | None = None

    @property
    def network(self) -> MeanVelocityNetwork:
        return self.sampler.network

    @property
    def spec(self) -> NetworkSpec:
        return self.network.spec

    @property
    def makes_points(self) -> bool:
        """Whether samples are points of the plane, not images."""
        return len(self.spec.shape) == 1

    @property
    def guidance_range(self) -> GuidanceRange | None:
        """The guidance scales a student was distilled for, None where it takes none."""
        return self.sampler.guidance

    @classmethod
    def load(cls, folder: str | Path, device: torch.device | str = "cpu", ema_std: float | None = None) -> "Generator":
        """Read a model folder that a training stage wrote.

        Args:
            ema_std: another EMA width than the published one, reconstructed from the folder's snapshots.

        Raises:
            AyfError: if the folder is missing, damaged or not this library's, or its snapshots cannot give the width.
        """
        folder = Path(folder)
        network, card = load_network(folder)
        if "latent_space" not in card:
            raise AyfError(
                f"'{folder}' holds a bare network, without codec and latent statistics: name a stage's output"
            )
        found = None if ema_std is None else rebuilt(load_snapshots(folder / "ema"), ema_std)
        if found is not None:
            network.load_state_dict(found.weights)
        try:
            statistics = card["latent_space"]
            space = LatentSpace(torch.tensor(statistics["shift"]), torch.tensor(statistics["scale"]))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise AyfError(f"'{folder}' has no latent statistics that can be read ({error}): train it again") from None
        codec = load_codec(folder / "codec")
        if isinstance(codec, nn.Module):
            codec.to(device)
        try:
            limits = GuidanceRange.from_list(card.get("guidance_range"))
            sampler = sampler_of(card.get("role", ""), network.to(device), limits)
        except AyfError as error:
            raise AyfError(f"'{folder}' cannot be sampled: {error}") from None
        return cls(sampler, codec, space, card, folder if found is None else None, found)

    def guided_by(self, field: VelocityField) -> "Generator":
        """The same model guided from outside by a field, where it can be (a teacher)."""
        return replace(self, sampler=self.sampler.guided_by(field))

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
        """Uniform deterministic steps at the default guidance scale."""
        return SamplingSettings(guidance_scale=self.guidance_range.default if self.guidance_range else None)

    @torch.no_grad()
    def sample(
        self,
        noise: Tensor,
        evaluations: int,
        condition: Condition | Mapping[str, Any] | None = None,
        *,
        guidance_scale: float | None = None,
        gamma: float = 0.0,
        times: Grid | None = None,
        generator: NoiseSource | None = None,
        **named: Any,
    ) -> Samples:
        """Data from noise [B, *latent shape] by a number of steps (a student) or of velocity calls (a teacher).

        Settings go in as `sample(noise, steps, condition, **settings.arguments(steps))`; without, steps are uniform.

        Args:
            condition: what each sample is conditioned on; entries that are left out are 'nothing given'.
            guidance_scale: λ; of a student within `guidance_range`, of a teacher only where it is guided.
            gamma: of γ-sampling, for a student.
            times: of a student, strictly falling from 1 to 0, [evaluations + 1]; None = uniform.
            generator: source of the fresh noise of γ-sampling.
            named: entries of the condition by name, as tensors or lists: `labels=[3, 7]`.

        Raises:
            AyfError: for noise of another shape, a condition, a guidance scale or times that the model cannot take.

        Example:
            >>> model = Generator.load("models/emd")
            >>> images = model.sample(model.draw_noise(2, seed=0), 4, labels=[3, 7]).x
        """
        shape = self.spec.shape
        if noise.ndim != len(shape) + 1 or tuple(noise.shape[1:]) != tuple(shape):
            wanted = ", ".join(map(str, shape))
            raise AyfError(f"noise must have shape [samples, {wanted}], got {list(noise.shape)}: see draw_noise()")
        if evaluations < 1:
            raise AyfError(f"sampling needs at least 1 evaluation, got {evaluations}")
        given = {**as_condition(condition), **named}
        told = self.spec.conditions.condition(given, len(noise), noise.device)
        drawn = self.sampler.sample(
            noise, evaluations, told, guidance_scale=guidance_scale, gamma=gamma, times=times, generator=generator
        )
        return Samples(self.codec.decode(self.space.denormalise(drawn.x)), drawn.nfe)

    def draw_noise(self, count: int, seed: int) -> Tensor:
        """Noise [count, *latent shape], the same for the same seed on every device."""
        return torch.randn(count, *self.spec.shape, generator=torch.Generator().manual_seed(seed)).to(
            next(self.network.parameters()).device
        )

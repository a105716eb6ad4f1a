"""Where a training loop's samples come from, and in which order."""

from typing import Protocol

import torch
from jaxtyping import Int
from torch import Tensor

from ayf_core.conditions import Condition
from ayf_core.data.latents import LatentDataset
from ayf_core.objectives.base import Batch
from ayf_core.randomness import StepRandom, derive_seed


class TrainingData(Protocol):
    """A finite set of samples, addressed by index."""

    def __len__(self) -> int: ...

    def batch(self, indices: Int[Tensor, " batch"], random: StepRandom) -> Batch: ...


class TensorData:
    """Samples that fit in memory: x [N, *D] and what each is conditioned on."""

    def __init__(self, x: Tensor, condition: Condition):
        self.x = x
        self.condition = condition

    def __len__(self) -> int:
        return len(self.x)

    def batch(self, indices: Tensor, random: StepRandom) -> Batch:
        return Batch(self.x[indices], self.condition.rows(indices))


class LatentData:
    """Normalised latents drawn from the codec's posterior: (mean + std * noise - shift) / scale."""

    def __init__(self, dataset: LatentDataset):
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, indices: Tensor, random: StepRandom) -> Batch:
        mean, std, labels = self.dataset.mean_std_labels(indices)
        noise = random.normal("posterior", mean.shape[1:]).to(mean.device)
        return Batch(self.dataset.space.normalise(mean + std * noise), Condition(labels=labels))


class ShuffledOrder:
    """Which samples a step trains on: each epoch is a permutation drawn from (seed, epoch), cut into batches.

    A function of the step alone: there is no position to save, and batches may straddle two epochs.
    """

    def __init__(self, size: int, global_batch: int, seed: int):
        self.size = size
        self.global_batch = global_batch
        self.seed = seed
        self._epochs: dict[int, Tensor] = {}

    def _permutation(self, epoch: int) -> Tensor:
        if epoch not in self._epochs:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "epoch", epoch))
            recent = {e: p for e, p in self._epochs.items() if e == epoch - 1}
            self._epochs = recent | {epoch: torch.randperm(self.size, generator=generator)}
        return self._epochs[epoch]

    def indices(self, step: int) -> Int[Tensor, " global_batch"]:
        """The global batch of a step, counted from 0."""
        positions = torch.arange(step * self.global_batch, (step + 1) * self.global_batch)
        chosen = torch.empty_like(positions)
        for epoch in torch.unique(positions // self.size).tolist():
            inside = positions // self.size == epoch
            chosen[inside] = self._permutation(epoch)[positions[inside] % self.size]
        return chosen

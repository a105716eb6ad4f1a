"""Where a training loop's samples come from, and in which order."""

from collections.abc import Mapping
from typing import Protocol

import torch
from jaxtyping import Int
from torch import Tensor

from ayf_core.conditions import Condition
from ayf_core.data.latents import LatentDataset
from ayf_core.objectives.base import Batch
from ayf_core.randomness import StepRandom, derive_seed


class TrainingData(Protocol):
    """A finite set of samples, addressed by index: read on the host, made into a batch where they are trained on."""

    def __len__(self) -> int: ...

    def read(self, indices: Int[Tensor, " batch"]) -> dict[str, Tensor]:
        """What there is of the samples, by name, on the host. Called in a thread of its own, ahead of time."""
        ...

    def batch(self, read: Mapping[str, Tensor], random: StepRandom) -> Batch:
        """The samples to train on, from what was read and moved to `random.device`: draws are made there."""
        ...


class TensorData:
    """Samples that fit in memory: x [N, *D] and what each is conditioned on."""

    def __init__(self, x: Tensor, condition: Condition):
        self.x = x
        self.condition = condition

    def __len__(self) -> int:
        return len(self.x)

    def read(self, indices: Tensor) -> dict[str, Tensor]:
        return {"x": self.x[indices], **self.condition.rows(indices)}

    def batch(self, read: Mapping[str, Tensor], random: StepRandom) -> Batch:
        return Batch(read["x"], Condition({name: read[name] for name in self.condition}))


class LatentData:
    """Normalised latents drawn from the codec's posterior: (mean + std * noise - shift) / scale."""

    def __init__(self, dataset: LatentDataset):
        self.dataset = dataset
        self._space = dataset.space

    def __len__(self) -> int:
        return len(self.dataset)

    def read(self, indices: Tensor) -> dict[str, Tensor]:
        mean, std, labels = self.dataset.mean_std_labels(indices)
        return {"mean": mean, "std": std, "labels": labels}

    def batch(self, read: Mapping[str, Tensor], random: StepRandom) -> Batch:
        mean = read["mean"]
        noise = random.normal("posterior", mean.shape[1:], mean.dtype)
        self._space = self._space.to(mean.device)  # copied there once: a copy in each step would wait for the device
        return Batch(self._space.normalise(mean + read["std"] * noise), Condition(labels=read["labels"]))


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

    def indices(self, step: int, rows: slice | None = None) -> Int[Tensor, " rows"]:
        """The samples of a step, counted from 0: those in `rows` of its global batch, None for all."""
        start, stop, _ = (rows or slice(None)).indices(self.global_batch)
        positions = torch.arange(step * self.global_batch + start, step * self.global_batch + stop)
        chosen = torch.empty_like(positions)
        for epoch in torch.unique(positions // self.size).tolist():
            inside = positions // self.size == epoch
            chosen[inside] = self._permutation(epoch)[positions[inside] % self.size]
        return chosen

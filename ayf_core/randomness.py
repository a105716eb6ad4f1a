"""Randomness as a function of (seed, step, what it is for, position in the global batch).

Nothing is carried from step to step, so there is no generator state to lose: a resumed run draws what it would
have drawn. Each draw is made for the whole global batch and a worker takes its rows, so the number of workers
and of micro-batches does not change what is trained on.
"""

import hashlib

import torch
from torch import Tensor


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from any printable parts."""
    digest = hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class StepRandom:
    """The random numbers of one optimiser step, for one slice of the global batch.

    Args:
        seed, step: which step of which run.
        global_batch: samples in the whole step, over all workers and micro-batches.
        rows: the rows of the global batch that the caller trains on.
        device: where the draws are made; CPU and GPU draw different numbers.
    """

    def __init__(
        self,
        seed: int,
        step: int,
        global_batch: int,
        rows: slice | None = None,
        device: torch.device | str = "cpu",
    ):
        self.seed = seed
        self.step = step
        self.global_batch = global_batch
        self.rows = rows if rows is not None else slice(0, global_batch)
        self.device = torch.device(device)

    def _generator(self, name: str) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(derive_seed(self.seed, self.step, name))

    def normal(self, name: str, shape: tuple[int, ...] = (), dtype: torch.dtype = torch.float32) -> Tensor:
        """N(0, 1) of shape [rows, *shape]; the same name in the same step gives the same numbers."""
        draws = torch.randn(self.global_batch, *shape, generator=self._generator(name), device=self.device, dtype=dtype)
        return draws[self.rows]

    def uniform(self, name: str) -> Tensor:
        """U[0, 1) of shape [rows], float64."""
        return torch.rand(self.global_batch, generator=self._generator(name), device=self.device, dtype=torch.float64)[
            self.rows
        ]

    def integers(self, name: str, high: int) -> Tensor:
        """Integers in [0, high) of shape [rows]."""
        return torch.randint(high, (self.global_batch,), generator=self._generator(name), device=self.device)[self.rows]

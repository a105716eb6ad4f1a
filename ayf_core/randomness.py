"""Randomness as a function of (seed, step, what it is for, row of the global batch, element).

Nothing is carried from step to step, so there is no generator state to lose: a resumed run draws what it would have
drawn. A row's numbers do not depend on the rows beside it: a worker draws its own and no others, and the number of
workers and of micro-batches does not change what is trained on. The bits are the same on every device
(`ayf_core.philox`) and are made where they are used; logarithm and cosine may round differently there.
"""

import hashlib
import math
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ayf_core.philox import MASK, philox


def derive_seed(*parts: object) -> int:
    """A 63-bit seed from any printable parts."""
    return int.from_bytes(_digest(*parts)[:8], "big") >> 1


class StepRandom:
    """The random numbers of one optimiser step, for some rows of the global batch.

    Args:
        seed, step: which step of which run.
        rows: the rows of the global batch that the caller trains on; a number n stands for the first n.
        device: where the draws are made.
    """

    def __init__(self, seed: int, step: int, rows: slice | int, device: torch.device | str = "cpu"):
        self.seed = seed
        self.step = step
        self.rows = rows if isinstance(rows, slice) else slice(0, rows)
        self.device = torch.device(device)

    def on(self, device: torch.device | str) -> "StepRandom":
        """The same draws, made elsewhere."""
        return StepRandom(self.seed, self.step, self.rows, device)

    def normal(self, name: str, shape: tuple[int, ...] = (), dtype: torch.dtype = torch.float32) -> Tensor:
        """N(0, 1) of shape [rows, *shape]; the same name in the same step gives the same numbers.

        By Box and Muller: √(-2 ln u) times cosine and sine of 2πv. Float64 from 53 bits each, at most 8.6 in size;
        other types from 32 bits each in float32, at most 6.8 (the normal law passes that once in 10¹¹ draws).
        """
        elements = math.prod(shape)
        precise = dtype == torch.float64
        w0, w1, w2, w3 = self._words(name, -(-elements // (2 if precise else 4)))
        if precise:
            pairs = [(_unit(w0, w1, 0.5), _unit(w2, w3, 0.5))]
        else:
            pairs = [((u.float() + 0.5) * 2.0**-32, v.float() * 2.0**-32) for u, v in ((w0, w1), (w2, w3))]
        drawn = []
        for u, v in pairs:
            radius, angle = u.log_().mul_(-2).sqrt_(), v.mul_(2 * math.pi)
            drawn += [radius * angle.cos(), radius * angle.sin()]
        # A row's blocks one after the other: element i of a row is the same whatever the length of the row.
        whole = torch.stack(drawn, dim=-1).flatten(1)[:, :elements]
        return whole.reshape(len(whole), *shape).to(dtype)

    def uniform(self, name: str) -> Float[Tensor, " rows"]:
        """U[0, 1) of shape [rows], float64 from 53 bits."""
        w0, w1, _, _ = self._words(name, 1)
        return _unit(w0, w1, 0.0).flatten()

    def _words(self, name: str, blocks: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Four words [rows, blocks] of 32 random bits, in int64.

        The digest of (seed, step, name) fills the key and half of the counter; row and block are the other half.
        """
        digest = _digest(self.seed, self.step, name)
        k0, k1, c1, c3 = (int.from_bytes(digest[i : i + 4], "big") for i in range(0, 16, 4))
        start, stop = self.rows.start or 0, self.rows.stop
        if self.device.type == "cpu":
            words = philox(_counter(np.arange(start, stop), np.arange(blocks), c1, c3, np.full_like), (k0, k1))
            w0, w1, w2, w3 = (torch.from_numpy(word.reshape(stop - start, blocks)) for word in words)
        else:
            rows = torch.arange(start, stop, device=self.device)
            block = torch.arange(blocks, device=self.device)
            words = philox(_counter(rows, block, c1, c3, torch.full_like), (k0, k1))
            w0, w1, w2, w3 = (word.view(stop - start, blocks) for word in words)
        return w0, w1, w2, w3


def _counter(rows: Any, blocks: Any, c1: int, c3: int, full_like: Any) -> tuple[Any, Any, Any, Any]:
    """Counters (block, c1, row, c3) [rows, blocks], of numpy or of torch."""
    block = (blocks[None, :] + 0 * rows[:, None]) & MASK
    return block, full_like(block, c1), rows[:, None] + 0 * blocks[None, :], full_like(block, c3)


def _unit(high: Tensor, low: Tensor, offset: float) -> Float[Tensor, "rows blocks"]:
    """(n + offset) / 2⁵³ with n the upper 27 bits of one word and the upper 26 of another: float64."""
    return (((high >> 5) << 26 | (low >> 6)).double() + offset) * 2.0**-53


def _digest(*parts: object) -> bytes:
    return hashlib.sha256("/".join(str(part) for part in parts).encode()).digest()

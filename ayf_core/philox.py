"""Philox4x32-10: random bits as a function of a counter and a key, the same integers on every device.

Salmon, Moraes, Dror and Shaw, *Parallel random numbers: as easy as 1, 2, 3* (SC 2011). Own code, because
the generators at hand are sequences: torch's on a CPU takes 32 bits of its seed, numpy's Philox (4x64) has no
counterpart on a GPU, and neither gives the same numbers on both.

Words of 32 bits are held in int64, whose product wraps around; the same lines run on numpy arrays, which are faster on
a CPU for few numbers, and on tensors of a device.
"""

from typing import Any, TypeVar

Words = TypeVar("Words", bound=Any)
"""An int64 array of numpy or of torch, of words in [0, 2³²)."""

_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_KEY_STEPS = 0x9E3779B9, 0xBB67AE85  # golden ratio, √3 - 1
_ROUNDS = 10
MASK = 0xFFFFFFFF


def philox(counter: tuple[Words, Words, Words, Words], key: tuple[int, int]) -> tuple[Words, Words, Words, Words]:
    """Four words for each counter of four words, under a key of two.

    Any change of a bit of counter or key gives words that are independent for every practical purpose.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        # c1 and c3 are the products' lower words: what stands above them is masked after the next exclusive or.
        c0 = p1 >> 32
        c0 ^= c1
        c0 ^= k0
        c0 &= MASK
        c2 = p0 >> 32
        c2 ^= c3
        c2 ^= k1
        c2 &= MASK
        c1, c3 = p1, p0
        k0, k1 = (k0 + _KEY_STEPS[0]) & MASK, (k1 + _KEY_STEPS[1]) & MASK
    return c0, c1 & MASK, c2, c3 & MASK

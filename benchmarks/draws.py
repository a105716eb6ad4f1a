"""What a worker's draws cost: its own rows, at a growing global batch, before and after draws became counter-based.

    python benchmarks/draws.py [--repeats 15]

Baseline: `WholeBatch` below, the way before: each draw is made for the whole global batch by a torch generator seeded
with (seed, step, purpose), and the worker takes its 32 rows. A step draws noise of the posterior and of the path, each
32 x 4 x 8 x 8 float32, the pair of times (one normal, two uniform numbers a row) and a guidance scale. The second
table times single draws of noise against `torch.randn` of the same shape, whose rows no worker could draw alone. CPU
time of one thread; repetitions alternate in one process; median and, in brackets, quartiles.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from ayf_core.randomness import StepRandom, derive_seed
from ayf_core.times import IntervalLaw

OWN, SHAPE = 32, (4, 8, 8)
GLOBAL = (32, 256, 2048)
LAW = IntervalLaw(p_mean=-0.8, p_std=1.0, full_jump_fraction=0.0, diagonal_fraction=0.0)
SHAPES = ((64, (4, 4, 4)), (64, (3, 64, 64)), (32, (4, 64, 64)))


class WholeBatch:
    """The draws of the whole global batch, of which a worker takes its first rows."""

    def __init__(self, seed: int, step: int, global_batch: int) -> None:
        self.seed, self.step, self.global_batch = seed, step, global_batch

    def _generator(self, name: str) -> torch.Generator:
        return torch.Generator().manual_seed(derive_seed(self.seed, self.step, name))

    def normal(self, name: str, shape: tuple[int, ...] = (), dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(self.global_batch, *shape, generator=self._generator(name), dtype=dtype)[:OWN]

    def uniform(self, name: str) -> Tensor:
        return torch.rand(self.global_batch, generator=self._generator(name), dtype=torch.float64)[:OWN]


def step(random: WholeBatch | StepRandom) -> None:
    """What one step of a distillation draws."""
    random.normal("posterior", SHAPE)
    random.normal("noise", SHAPE)
    LAW.sample(random)  # type: ignore[arg-type]
    random.uniform("guidance scale")


def milliseconds(call: Callable[[], object], calls: int = 5) -> float:
    began = time.process_time()
    for _ in range(calls):
        call()
    return 1000 * (time.process_time() - began) / calls


def spread(values: list[float], digits: int) -> str:
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def compare(before: Callable[[], object], after: Callable[[], object], repeats: int) -> tuple[str, str, str]:
    """Time of both, and after / before within a repetition."""
    before(), after()
    runs = [(milliseconds(before), milliseconds(after)) for _ in range(repeats)]
    old, new = ([run[i] for run in runs] for i in (0, 1))
    return spread(old, 3), spread(new, 3), spread([b / a for a, b in runs], 2)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    print(f"draws of a step for {OWN} own rows, ms of CPU: global batch, before, after, ratio")
    for size in GLOBAL:
        whole, own = WholeBatch(0, 7, size), StepRandom(0, 7, OWN)
        print(
            f"  {size:5}  " + "   ".join(compare(lambda w=whole: step(w), lambda o=own: step(o), repeats)), flush=True
        )
    print("one draw of noise, ms of CPU: shape, torch.randn, ours, ratio")
    for rows, shape in SHAPES:
        plain, ours = (lambda r=rows, s=shape: torch.randn(r, *s)), StepRandom(0, 7, rows)
        figures = compare(plain, lambda o=ours, s=shape: o.normal("noise", s), repeats)
        print(f"  {rows} x {' x '.join(map(str, shape)):12}  " + "   ".join(figures), flush=True)

"""What both ways of sampling share: finished samples, times of a batch, fresh noise."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

NoiseSource = torch.Generator | Callable[[Tensor], Tensor]
"""What draws N(0, 1): a generator, or a function of the tensor that the noise shall be like."""


@dataclass(frozen=True)
class Samples:
    """Finished samples x [B, *D] and nfe, the network evaluations spent on each of them."""

    x: Tensor
    nfe: int


def batch_time(t: float | Tensor, x: Tensor) -> Float[Tensor, " batch"]:
    """The same time for every sample: float64 [B]."""
    return torch.as_tensor(t, dtype=torch.float64, device=x.device).expand(len(x))


def normal_like(x: Tensor, source: NoiseSource | None) -> Tensor:
    """N(0, 1) like x, drawn where a generator lives: a CPU generator gives the same noise on every device."""
    if source is not None and not isinstance(source, torch.Generator):
        return source(x)
    device = x.device if source is None else source.device
    return torch.randn(x.shape, dtype=x.dtype, device=device, generator=source).to(x.device)

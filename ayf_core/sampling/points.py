"""What both ways of sampling share: finished samples, times of a batch, fresh noise."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Samples:
    """Finished samples x [B, *D] and nfe, the network evaluations spent on each of them."""

    x: Tensor
    nfe: int


def batch_time(t: float | Tensor, x: Tensor) -> Float[Tensor, " batch"]:
    """The same time for every sample: float64 [B]."""
    return torch.as_tensor(t, dtype=torch.float64, device=x.device).expand(len(x))


def normal_like(x: Tensor, generator: torch.Generator | None) -> Tensor:
    """N(0, 1) like x, drawn where the generator lives: a CPU generator gives the same noise on every device."""
    device = x.device if generator is None else generator.device
    return torch.randn(x.shape, dtype=x.dtype, device=device, generator=generator).to(x.device)

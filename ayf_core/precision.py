"""In which arithmetic a network computes: a setting of its training, because it decides results.

Low precision stops at the network's door. What goes in and what comes out is float32 or better, as are its weights,
their averages, the optimiser, losses and norms; inside, torch's autocast decides function by function. Times, λ and the
phases of their embeddings stay as they came: no matrix product makes them.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from ayf_core.errors import AyfError

PRECISIONS = ("float32", "tf32", "bfloat16")
"""tf32: float32 with matrix products and convolutions in TensorFloat-32, on hardware that has it."""


class InPrecision(nn.Module):
    """A module that can be called in low precision; its state is the same in any.

    Attributes:
        precision: one of PRECISIONS. See `compute_in`.
    """

    precision: str = "float32"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.precision != "bfloat16":
            return super().__call__(*args, **kwargs)
        device = next(self.parameters()).device.type
        with torch.autocast(device, torch.bfloat16):
            result = super().__call__(*args, **kwargs)
        return pytree.tree_map(_raised, result)


def _raised(x: Any) -> Any:
    """bfloat16 as float32, of tensors and dual values; anything else as it is."""
    return x.float() if getattr(x, "dtype", None) is torch.bfloat16 else x


def compute_in(precision: str, network: nn.Module) -> None:
    """From now on calls of this network are computed so, those of its copies too.

    Raises:
        AyfError: the network is of a class that cannot: derive it from `InPrecision`.
    """
    if precision == "bfloat16" and not isinstance(network, InPrecision):
        name = type(network).__name__
        raise AyfError(f"{name} cannot compute in bfloat16: derive it from InPrecision, or set precision: float32")
    network.precision = precision  # type: ignore[assignment]


@contextmanager
def matrix_products(precision: str) -> Iterator[None]:
    """float32 products of this process in full or, for 'tf32', in TensorFloat-32; chosen here, never inherited.

    torch's own defaults differ between products (full) and convolutions (TensorFloat-32).
    """
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    _set_products("high" if precision == "tf32" else "highest", precision == "tf32")
    try:
        yield
    finally:
        _set_products(*before)


def _set_products(matmul: str, convolutions: bool) -> None:
    torch.set_float32_matmul_precision(matmul)
    torch.backends.cudnn.allow_tf32 = convolutions

"""What low precision costs each layer of a network: its value and its tangent, against the same layer in float64."""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from ayf_core.tangents.dual import Dual
from ayf_core.tangents.engines import dual
from ayf_core.tangents.points import Direction, Point


class LayerError(NamedTuple):
    """Relative errors of one layer, fed with exact inputs, so that none of them is another layer's."""

    name: str
    kind: str
    value: float
    tangent: float


def layer_errors(network: nn.Module, point: Point, direction: Direction, precision: torch.dtype) -> list[LayerError]:
    """The errors of every layer that passes a tangent on, inner layers before those that they are part of.

    Args:
        network: in float32; a copy in float64 gives each layer's inputs and what it should make of them.
        precision: that autocast computes in.

    Raises:
        AyfError: the network does not let dual values through.
    """
    exact, low = copy.deepcopy(network).double(), copy.deepcopy(network)
    calls: dict[str, tuple[Any, Any, Any]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
            calls[name] = args, kwargs, result  # of a layer called twice, the second

        return hook

    handles = [
        module.register_forward_hook(note(name), with_kwargs=True)
        for name, module in exact.named_modules()
        if name and not isinstance(module, nn.ModuleList | nn.ModuleDict)
    ]
    with torch.no_grad():
        dual(exact, point.double(), direction.double())
        for handle in handles:
            handle.remove()
        layers = dict(low.named_modules())
        found = []
        for name, (args, kwargs, result) in calls.items():
            if not isinstance(result, Dual):
                continue
            args, kwargs = pytree.tree_map(_single, (args, kwargs))
            with torch.autocast(point.x.device.type, precision):
                given = layers[name](*args, **kwargs)
            value = _relative(given.value, result.value, 0.0)
            tangent = _relative(given.tangent, result.tangent, 1e-3 * float(result.value.norm()))
            found.append(LayerError(name, type(layers[name]).__name__, value, tangent))
    return found


def _single(x: Any) -> Any:
    """float64 as float32, of tensors and dual values."""
    return x.float() if getattr(x, "dtype", None) is torch.float64 else x


def _relative(found: Tensor, exact: Tensor, floor: float) -> float:
    return float((found.double() - exact).norm() / (exact.norm() + floor + 1e-30))

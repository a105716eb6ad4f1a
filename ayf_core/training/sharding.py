"""Tensors that lie in pieces on several workers: put together, cut, and the own piece of them.

Everything here also takes a plain tensor and gives it back as it is.
"""

from typing import Any

from torch import Tensor, nn


def is_sharded(thing: nn.Module | Tensor) -> bool:
    """Whether it lies in pieces on the workers."""
    # By what it can do, not by its class: to import that class takes more than a second.
    return hasattr(thing, "set_requires_gradient_sync" if isinstance(thing, nn.Module) else "full_tensor")


def whole(tensor: Any) -> Tensor:
    """A sharded tensor put together (every worker takes part); another one as it is."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor


def local(tensor: Any) -> Tensor:
    """The piece of a sharded tensor that this worker holds, no copy; another one as it is."""
    return tensor.to_local() if is_sharded(tensor) else tensor


def gathered(state: Any, keep: bool = True) -> Any:
    """The state with its sharded tensors put together on the host. Every worker takes part, in the same order.

    Args:
        keep: false on workers that have no use for it: they get None in place of each of those tensors.
    """
    if isinstance(state, Tensor):
        if not is_sharded(state):
            return state
        full = whole(state)
        return full.cpu() if keep else None
    if isinstance(state, dict):
        return {key: gathered(value, keep) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)([gathered(value, keep) for value in state])
    return state


def shard_like(tensor: Tensor, like: Any) -> Tensor:
    """A whole tensor cut as `like` is: the way back from `gathered`. Every worker takes part."""
    if not is_sharded(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)

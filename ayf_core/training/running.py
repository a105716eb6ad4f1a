"""How a network is called where it trains: compiled, and with its activations kept or computed again.

Neither changes what is computed beyond rounding, so both belong to the machine, not to the experiment.
"""

import os
import shutil
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ayf_core.errors import AyfError
from ayf_core.networks.base import MeanVelocityNetwork
from ayf_core.tangents.dual import Dual, value_of

VARIANTS = 64
"""Compiled forms of one function: a network is called with dual values and plain ones, with gradients and without, and
every network of a process counts. After torch's own limit of 8 it would go back to eager code."""


def run_network(network: nn.Module, *, compiled: bool, checkpointed: bool = False, sharded: bool = False) -> None:
    """Choose, in place and for good, how this network is called. Its weights and their names stay as they are.

    Args:
        compiled: by torch.compile, one form for each kind of call, at its first. Of a network that is sharded or
            checkpointed its blocks are compiled one by one: what acts between them stays ordinary code.
        checkpointed: keep of each block its input alone, and compute the rest again in the backward pass. Networks
            without blocks (`MeanVelocityNetwork.sharded_blocks`) keep everything.
        sharded: FSDP2's hooks gather the weights of each block.

    Raises:
        AyfError: nothing here can compile.
    """
    blocks = network.sharded_blocks if isinstance(network, MeanVelocityNetwork) else []
    if compiled:
        if not can_compile():
            raise AyfError(
                "compile: true needs a C++ compiler and Python's headers, and they are not here: install them (Debian, "
                "Ubuntu: apt-get install g++ python3-dev), or leave compile out of the runtime"
            )
        _let_variants_be()
    if compiled and not (blocks and (sharded or checkpointed)):
        network.compile()
    for block in blocks:
        if compiled and (sharded or checkpointed):
            block.forward = torch.compile(block.forward)
        if checkpointed:
            block.forward = _Recomputed(block.forward)


def can_compile() -> bool:
    """Whether torch.compile finds what it needs: on a CPU a C++ compiler and Python's headers, on a GPU its own."""
    compilers = (os.environ.get("CXX", "g++"), "clang++", "c++")
    headers = Path(sysconfig.get_paths()["include"], "Python.h")
    return torch.cuda.is_available() or (headers.exists() and any(map(shutil.which, compilers)))


def _let_variants_be() -> None:
    import torch._dynamo  # more than a second, for those who compile

    config: Any = torch._dynamo.config
    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"
    setattr(config, name, max(VARIANTS, getattr(config, name)))


class _Recomputed:
    """The forward of a block under activation checkpointing. The second time values do: a tangent has no graph."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        self.forward = forward

    def __call__(self, *args: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.forward(*args)
        tangents = [arg.tangent if isinstance(arg, Dual) else None for arg in args]

        def run(*values: Any) -> Any:
            moving, tangents[:] = list(tangents), [None] * len(tangents)
            return self.forward(*(v if d is None else Dual(v, d) for v, d in zip(values, moving, strict=True)))

        return checkpoint(run, *(value_of(arg) for arg in args), use_reentrant=False)

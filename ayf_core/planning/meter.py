"""Counts what a step does, operation by operation: floating-point operations, bytes moved, memory held by part.

It sees every operation below autograd, on real tensors or on torch's fake ones, which have shapes and no contents.
"""

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count, shape_wrapper


def _attention_flops(query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


def _attention_backward_flops(gradient: Any, query: Any, key: Any, value: Any, *args: Any, **kwargs: Any) -> int:
    return sdpa_backward_flop_count(gradient, query, key, value)


ATTENTION_FLOPS: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}
"""Called with shapes: what torch's own table of formulas lacks, attention on a CPU, counted as torch does on a GPU."""
_FORMULAS = {**flop_registry, **{operation: shape_wrapper(formula) for operation, formula in ATTENTION_FLOPS.items()}}


class Operation(NamedTuple):
    """One operation that is no mere view: its matrix products' FLOPs, the bytes it reads and writes, its type."""

    flops: int
    moved: int
    type_name: str


class TooManyOperations(Exception):
    """More than the meter was told to follow."""


class StepMeter(TorchDispatchMode):
    """A mode that follows operations and the tensors they make. A storage counts as long as something holds it.

    Args:
        most_operations: raise `TooManyOperations` beyond.

    Attributes:
        part: what new tensors are counted as; `part_without_graph`, where one is set, if they are made without a graph.
        operations: since `begin`.
        peak: bytes held by part in the instant since `begin` at which most were held.
        instants: bytes held by part after each of the operations.
    """

    def __init__(self, most_operations: int | None = None) -> None:
        super().__init__()
        self.part = "other"
        self.part_without_graph: str | None = None
        self.operations: list[Operation] = []
        self.peak: dict[str, int] = {}
        self.instants: list[dict[str, int]] = []
        self._most = most_operations
        self._live: Counter[str] = Counter()
        self._held: dict[int, _Held] = {}
        self._total = self._peak_total = 0

    @property
    def flops(self) -> int:
        return sum(operation.flops for operation in self.operations)

    def begin(self) -> None:
        """Forget the operations and the peak so far; what is held stays."""
        self.operations, self.instants = [], []
        self._peak_total = 0
        self._note_peak()

    def live(self, part: str) -> int:
        """Bytes of a part that are held now."""
        return self._live[part]

    @contextmanager
    def counted_as(self, part: str, without_graph: str | None = None) -> Iterator[None]:
        """What is made inside belongs to a part; what is made there without a graph, to another if one is named."""
        before = self.part, self.part_without_graph
        self.part, self.part_without_graph = part, without_graph
        try:
            yield
        finally:
            self.part, self.part_without_graph = before

    def assign(self, tensors: Iterable[Tensor], part: str) -> None:
        """These tensors belong to a part, whatever they were made as."""
        for tensor in tensors:
            held = self._held.get(tensor.untyped_storage()._cdata)
            if held is not None:
                self._live[held.part] -= held.size
                self._live[part] += held.size
                held.part = part

    def assign_module(self, module: nn.Module, part: str) -> None:
        """The parameters and buffers of a module belong to a part."""
        self.assign([*module.parameters(), *module.buffers()], part)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor)]
        fresh = [self._hold(x) for x in made]
        if any(fresh) or func._schema.is_mutable:
            read = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
            self.operations.append(_operation(func, args, kwargs, result, read, made))
            self.instants.append(dict(self._live))
            if self._most is not None and len(self.operations) > self._most:
                raise TooManyOperations
        return result

    def _hold(self, tensor: Tensor) -> bool:
        """Count the tensor's storage; false where it is known, as a view's is."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._held:
            return False
        size = storage.nbytes()
        part = self.part if torch.is_grad_enabled() else self.part_without_graph or self.part
        self._held[key] = _Held(part, size, weakref.ref(storage, lambda _: self._let_go(key)))
        self._live[part] += size
        self._total += size
        if self._total > self._peak_total:
            self._note_peak()
        return True

    def _let_go(self, key: int) -> None:
        held = self._held.pop(key)
        self._live[held.part] -= held.size
        self._total -= held.size

    def _note_peak(self) -> None:
        self._peak_total = self._total
        self.peak = {part: size for part, size in self._live.items() if size}


class _Held:
    __slots__ = ("part", "reference", "size")

    def __init__(self, part: str, size: int, reference: Any) -> None:
        self.part = part
        self.size = size
        self.reference = reference  # kept, or its callback is never called


def _operation(func: Any, args: Any, kwargs: Any, result: Any, read: list[Tensor], made: list[Tensor]) -> Operation:
    formula = _FORMULAS.get(func._overloadpacket)
    flops = formula(*args, **kwargs, out_val=result) if formula else 0
    moved = sum(min(x.numel() * x.element_size(), x.untyped_storage().nbytes()) for x in (*read, *made))
    first = next((x.dtype for x in read if x.is_floating_point()), torch.float32)
    return Operation(flops, moved, str(first).removeprefix("torch."))

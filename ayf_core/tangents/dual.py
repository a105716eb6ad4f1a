"""Dual values: a tensor and its directional derivative, carried through a network as it is written.

A network in ordinary PyTorch is called with `Dual` inputs. Every torch function that meets one is answered by its rule
(`rules`, `normalisations`): the value with the graph that training needs, the tangent without one. So one pass gives
both, nothing is saved for the tangent, and the tangent reuses what the value computed. A function that has no rule is
differentiated by torch's own forward mode, exact too, at the price of that function once more.

To DistributedDataParallel, FSDP2 and `torch.compile` it is one ordinary call of the module that they wrap.
"""

import logging
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils import _pytree as pytree

from ayf_core.errors import AyfError
from ayf_core.networks.attention import forward_mode_attention

log = logging.getLogger(__name__)

RULES: dict[Any, Callable[..., Any]] = {}
"""What answers a torch function, or a method of tensors, that meets a dual value."""

_OPERATORS: dict[str, Callable[..., Any]] = {}  # such as __rsub__
_IN_PLACE = re.compile(r".*[^_]_|__setitem__")  # such as mul_
_without_rule: set[str] = set()


def rule(*functions: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator: what answers these torch functions and tensor methods, called with the same arguments."""

    def add(answer: Callable[..., Any]) -> Callable[..., Any]:
        for function in functions:
            RULES[function] = answer
            name = getattr(function, "__name__", "")
            if getattr(Tensor, name, None) is function:
                setattr(Dual, name, answer)
                if name.startswith("__"):
                    _OPERATORS[name] = answer
        return answer

    return add


class without_graph:
    """`torch.no_grad()` at a fifth of its price: it is entered once a rule."""

    __slots__ = ("before",)

    def __enter__(self) -> None:
        self.before = torch.is_grad_enabled()
        torch._C._set_grad_enabled(False)

    def __exit__(self, *_: object) -> None:
        torch._C._set_grad_enabled(self.before)


@dataclass(eq=False, repr=False)
class Dual:
    """A value, whose graph is that of training, and its tangent of the same shape and type, without a graph.

    A dataclass, because FSDP2 looks for tensors inside dataclasses. It is no tensor, but everything that a tensor
    does can be asked of it, except what changes it in place.
    """

    value: Tensor
    tangent: Tensor

    def __post_init__(self) -> None:
        if self.tangent.dtype != self.value.dtype:  # autocast: low and full precision together are full
            with without_graph():
                self.tangent = self.tangent.to(self.value.dtype)

    @staticmethod
    def __torch_function__(function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if torch.compiler.is_compiling() and function.__name__ in _OPERATORS:  # it does not find them in a table
            return _OPERATORS[function.__name__](*args, **(kwargs or {}))
        answer = RULES.get(function)
        return answer(*args, **(kwargs or {})) if answer else by_forward_mode(function, args, kwargs or {})

    @property
    def shape(self) -> torch.Size:
        return self.value.shape

    @property
    def dtype(self) -> torch.dtype:
        return self.value.dtype

    @property
    def device(self) -> torch.device:
        return self.value.device

    @property
    def ndim(self) -> int:
        return self.value.ndim

    def __len__(self) -> int:
        return len(self.value)

    def __iter__(self) -> Iterator["Dual"]:
        return iter(self.unbind(0))

    def __getattr__(self, name: str) -> Any:
        """Whatever else a tensor has: a method by its rule, a fact of the value as it is."""
        if name.startswith("__"):
            raise AttributeError(name)
        attribute = getattr(Tensor, name)
        if callable(attribute):
            return lambda *args, **kwargs: Dual.__torch_function__(attribute, (), (self, *args), kwargs)
        fact = getattr(self.value, name)
        if not isinstance(fact, Tensor):
            return fact
        if name not in ("T", "mT", "H", "mH", "real", "imag"):
            raise AyfError(f"'.{name}' would leave the tangent behind, which 'dual' cannot follow: do without it")
        with without_graph():
            return Dual(fact, getattr(self.tangent, name))


def _operator(name: str) -> Callable[..., Any]:
    method = getattr(Tensor, name)
    return lambda self, *args: Dual.__torch_function__(method, (), (self, *args))


for _name in (
    *("__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__truediv__", "__rtruediv__"),
    *("__neg__", "__pow__", "__rpow__", "__matmul__", "__abs__", "__getitem__"),
    *("__lt__", "__le__", "__gt__", "__ge__"),
):
    setattr(Dual, _name, _operator(_name))


def value_of(x: Any) -> Any:
    """The value of a dual one; anything else as it is."""
    return x.value if isinstance(x, Dual) else x


def by_forward_mode(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A function without a rule, by torch's forward mode: the function twice, exactly.

    Raises:
        AyfError: the function changes its argument, or torch has no forward derivative of it.
    """
    name = getattr(function, "__name__", str(function))
    if _IN_PLACE.fullmatch(name) or kwargs.get("out") is not None:
        raise AyfError(f"'{name}' changes a tensor in place, which 'dual' cannot follow: make a new tensor")
    leaves, form = pytree.tree_flatten((args, kwargs), is_leaf=lambda x: isinstance(x, Dual))
    plain_args, plain_kwargs = pytree.tree_unflatten([value_of(x) for x in leaves], form)
    began = time.perf_counter()
    value = function(*plain_args, **plain_kwargs)
    between = time.perf_counter()
    if not any(_moves(x) for x in pytree.tree_leaves(value)):
        return value  # a size, a comparison, an index: nothing that could move
    try:
        with without_graph(), forward_ad.dual_level(), forward_mode_attention():
            moving = [forward_ad.make_dual(x.value.detach(), x.tangent) if isinstance(x, Dual) else x for x in leaves]
            moved_args, moved_kwargs = pytree.tree_unflatten(moving, form)
            moved = pytree.tree_map(_tangent, function(*moved_args, **moved_kwargs))
    except (NotImplementedError, RuntimeError) as error:
        raise AyfError(
            f"'{name}' has no derivative in forward mode ({str(error).splitlines()[0]}): give it a rule "
            "(ayf_core.tangents.dual.rule), or choose distill.tangent.backend=finite_difference"
        ) from error
    if name not in _without_rule:
        _without_rule.add(name)
        log.warning(
            "no tangent rule for '%s': torch's forward mode computes it again (%.2g ms after %.2g ms, the first time)",
            name,
            1000 * (time.perf_counter() - between),
            1000 * (between - began),
        )
    return pytree.tree_map(lambda v, d: Dual(v, d) if isinstance(d, Tensor) else v, value, moved)


def _moves(x: Any) -> bool:
    return isinstance(x, Tensor) and (x.is_floating_point() or x.is_complex())


def _tangent(x: Any) -> Any:
    """Of one result of a function whose inputs move."""
    if not _moves(x):
        return None
    tangent = forward_ad.unpack_dual(x).tangent
    if tangent is None:
        raise NotImplementedError("it gave none")
    return tangent

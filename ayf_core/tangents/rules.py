"""The rules of dual values, one a torch function: its value as torch computes it, and its tangent without a graph.

Three kinds need no formula of their own. What is linear in the one input that moves does the same to its tangent. A sum
of products follows the product rule. And the Jacobian of a pointwise function, of a normalisation and of softmax is
symmetric, so torch's fused *backward* kernel, given the tangent for the gradient, is their tangent.

Operators stand here twice: eager code meets the method of a tensor, a compiler the function of `operator`.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ayf_core.errors import AyfError
from ayf_core.tangents.dual import RULES, Dual, by_forward_mode, rule, value_of, without_graph

aten = torch.ops.aten


# ---- linear in the input that moves -------------------------------------------------------------------------------
def _linear(function: Callable[..., Any]) -> Callable[..., Any]:
    """Linear in the first argument; of another that is dual, as in `x.to(other)`, only shape and type count."""

    @rule(function)
    def answer(h: Any, *args: Any, **kwargs: Any) -> Any:
        args = tuple(value_of(a) for a in args)
        if not isinstance(h, Dual):
            return function(h, *args, **kwargs)
        value = function(h.value, *args, **kwargs)
        with without_graph():
            tangent = function(h.tangent, *args, **kwargs)
        if isinstance(value, Tensor):
            return Dual(value, tangent)
        return tuple(Dual(v, d) for v, d in zip(value, tangent, strict=True))

    return answer


_BOTH = (  # functions that are methods too
    *("reshape", "permute", "transpose", "movedim", "moveaxis", "swapaxes", "flatten", "roll", "flip"),
    *("squeeze", "unsqueeze", "chunk", "split", "unbind", "narrow", "select", "index_select", "gather"),
    *("diagonal", "tril", "triu", "sum", "mean", "neg", "cumsum", "diff", "tile", "repeat_interleave"),
)
_METHODS = (
    *("view", "view_as", "reshape_as", "expand", "expand_as", "repeat", "t", "swapdims", "contiguous", "clone"),
    *("to", "type", "type_as", "double", "float", "half", "bfloat16", "cpu", "cuda", "__getitem__", "__neg__"),
)
for _name in _BOTH:
    _linear(getattr(torch, _name))
    _linear(getattr(Tensor, _name))
for _name in _METHODS:
    _linear(getattr(Tensor, _name))
rule(Tensor.unflatten)(_linear(torch.unflatten))
for _function in (
    *(operator.getitem, operator.neg),
    functional.interpolate,
    functional.avg_pool1d,
    functional.avg_pool2d,
    functional.pixel_shuffle,
    functional.pixel_unshuffle,
    functional.unfold,
    functional.fold,
):
    _linear(_function)


@rule(torch.cat, torch.concat)
def cat(tensors: Sequence[Any], dim: int = 0) -> Dual:
    return _joined(torch.cat, tensors, dim)


@rule(torch.stack)
def stack(tensors: Sequence[Any], dim: int = 0) -> Dual:
    return _joined(torch.stack, tensors, dim)


def _joined(function: Callable[..., Tensor], tensors: Sequence[Any], dim: int) -> Dual:
    value = function([value_of(t) for t in tensors], dim)
    with without_graph():
        return Dual(value, function([t.tangent if isinstance(t, Dual) else torch.zeros_like(t) for t in tensors], dim))


@rule(torch.where)
def where(condition: Any, a: Any, b: Any) -> Dual:
    condition = value_of(condition)
    value = torch.where(condition, value_of(a), value_of(b))
    with without_graph():
        a, b = (x.tangent if isinstance(x, Dual) else 0.0 for x in (a, b))
        return Dual(value, torch.where(condition, a, b).expand(value.shape))


@rule(functional.pad)
def pad(h: Dual, pad: Any, mode: str = "constant", value: float | None = None) -> Dual:
    padded = functional.pad(h.value, pad, mode, value)
    with without_graph():
        return Dual(padded, functional.pad(h.tangent, pad, mode))


def _dropout(function: Callable[..., Tensor]) -> None:
    """Value and tangent are dropped together: both draw from the same state."""

    @rule(function)
    def answer(h: Dual, p: float = 0.5, training: bool = True, inplace: bool = False) -> Dual:
        if not training or not p:
            return h
        devices = [h.device] if h.value.is_cuda else []
        with without_graph(), torch.random.fork_rng(devices):
            tangent = function(h.tangent, p)
        return Dual(function(h.value, p), tangent)


for _drop in (functional.dropout, functional.dropout1d, functional.dropout2d, functional.dropout3d):
    _dropout(_drop)


# ---- layers: linear in the input, the weights stand still ---------------------------------------------------------
def _layer(function: Callable[..., Tensor]) -> None:
    @rule(function)
    def answer(input: Any, weight: Any, bias: Tensor | None = None, *args: Any, **kwargs: Any) -> Any:
        if isinstance(weight, Dual) or isinstance(bias, Dual):
            return by_forward_mode(function, (input, weight, bias, *args), kwargs)
        value = function(input.value, weight, bias, *args, **kwargs)
        with without_graph():
            return Dual(value, function(input.tangent, weight, None, *args, **kwargs))


for _layer_function in (
    functional.linear,
    functional.conv1d,
    functional.conv2d,
    functional.conv3d,
    functional.conv_transpose1d,
    functional.conv_transpose2d,
    functional.conv_transpose3d,
):
    _layer(_layer_function)


# ---- sums and products --------------------------------------------------------------------------------------------
def _shaped(tangent: Tensor, value: Tensor) -> Tensor:
    """A tangent that a plain operand has broadcast."""
    return tangent if tangent.shape == value.shape else tangent.expand(value.shape)


@rule(torch.add, Tensor.add, Tensor.__add__, Tensor.__radd__, operator.add)
def add(a: Any, b: Any, *, alpha: float = 1) -> Dual:
    value = torch.add(value_of(a), value_of(b), alpha=alpha)
    with without_graph():
        if isinstance(a, Dual) and isinstance(b, Dual):
            return Dual(value, torch.add(a.tangent, b.tangent, alpha=alpha))
        moving = a.tangent if isinstance(a, Dual) else b.tangent if alpha == 1 else alpha * b.tangent
        return Dual(value, _shaped(moving, value))


@rule(torch.sub, Tensor.sub, Tensor.__sub__, operator.sub)
def sub(a: Any, b: Any, *, alpha: float = 1) -> Dual:
    return add(a, b, alpha=-alpha) if isinstance(a, (Dual, Tensor)) else add(mul(b, -alpha), a)


@rule(Tensor.__rsub__, torch.rsub)
def rsub(a: Any, b: Any) -> Dual:
    return sub(b, a)


def _bilinear(function: Any) -> Callable[..., Dual]:
    """The product rule of a function that is linear in either argument."""

    def answer(a: Any, b: Any, *args: Any, **kwargs: Any) -> Dual:
        va, vb = value_of(a), value_of(b)
        value = function(va, vb, *args, **kwargs)
        with without_graph():
            if not isinstance(b, Dual):
                return Dual(value, function(a.tangent, vb, *args, **kwargs))
            if not isinstance(a, Dual):
                return Dual(value, function(va, b.tangent, *args, **kwargs))
            return Dual(value, function(a.tangent, vb, *args, **kwargs) + function(va, b.tangent, *args, **kwargs))

    return answer


for _product, _names in {
    torch.matmul: (torch.matmul,),
    torch.bmm: (torch.bmm, Tensor.bmm),
    torch.mm: (torch.mm, Tensor.mm),
}.items():
    rule(*_names)(_bilinear(_product))


@rule(Tensor.matmul, Tensor.__matmul__, operator.matmul)
def matmul(a: Any, b: Any) -> Dual:
    # torch 2.13's compiler gives `x @ w` of a dual x to the method of w, without exchanging the two.
    if torch.compiler.is_compiling() and not isinstance(a, Dual):
        raise AyfError("'@' between a tensor and a dual value cannot be compiled: write torch.matmul(a, b)")
    return RULES[torch.matmul](a, b)


@rule(torch.einsum)
def einsum(equation: str, *operands: Any) -> Dual:
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = tuple(operands[0])
    plain = [value_of(x) for x in operands]
    value = torch.einsum(equation, *plain)
    with without_graph():
        terms = [
            torch.einsum(equation, *plain[:i], x.tangent, *plain[i + 1 :])
            for i, x in enumerate(operands)
            if isinstance(x, Dual)
        ]
        return Dual(value, sum(terms[1:], terms[0]))


@rule(torch.mul, torch.multiply, Tensor.mul, Tensor.__mul__, Tensor.__rmul__, operator.mul)
def mul(a: Any, b: Any) -> Dual:
    va, vb = value_of(a), value_of(b)
    value = va * vb
    with without_graph():
        if not isinstance(b, Dual):
            return Dual(value, a.tangent * vb)
        if not isinstance(a, Dual):
            return Dual(value, va * b.tangent)
        return Dual(value, torch.addcmul(a.tangent * vb, va, b.tangent))


@rule(torch.addcmul, Tensor.addcmul)
def addcmul(a: Any, b: Any, c: Any, *, value: float = 1) -> Dual:
    """a + value * b * c, each term of the tangent in one kernel."""
    vb, vc = value_of(b), value_of(c)
    out = torch.addcmul(value_of(a), vb, vc, value=value)
    with without_graph():
        tangent = a.tangent if isinstance(a, Dual) else torch.zeros((), dtype=out.dtype, device=out.device)
        if isinstance(b, Dual):
            tangent = torch.addcmul(tangent, b.tangent, vc, value=value)
        if isinstance(c, Dual):
            tangent = torch.addcmul(tangent, vb, c.tangent, value=value)
        return Dual(out, _shaped(tangent, out))


@rule(torch.div, torch.true_divide, Tensor.div, Tensor.__truediv__, operator.truediv)
def div(a: Any, b: Any) -> Dual:
    if not isinstance(b, Dual):
        value = a.value / b
        with without_graph():
            return Dual(value, a.tangent / b)
    value = value_of(a) / b.value
    with without_graph():
        tangent = -value * b.tangent
        return Dual(value, (tangent + a.tangent if isinstance(a, Dual) else tangent) / b.value)


@rule(Tensor.__rtruediv__)
def rdiv(a: Any, b: Any) -> Dual:
    return div(b, a)


# ---- pointwise ----------------------------------------------------------------------------------------------------
def _pointwise(*functions: Any) -> Callable[[Callable[[Tensor, Tensor, Tensor], Tensor]], None]:
    """Decorator: the tangent of y = function(x), from (dx, x, y)."""

    def add(tangent: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        @rule(*functions)
        def answer(h: Dual) -> Dual:
            value = functions[0](h.value)
            with without_graph():
                return Dual(value, tangent(h.tangent, h.value, value))

    return add


_pointwise(torch.sigmoid, Tensor.sigmoid)(lambda d, x, y: aten.sigmoid_backward(d, y))
_pointwise(torch.tanh, Tensor.tanh)(lambda d, x, y: aten.tanh_backward(d, y))
_pointwise(torch.exp, Tensor.exp)(lambda d, x, y: d * y)
_pointwise(torch.log, Tensor.log)(lambda d, x, y: d / x)
_pointwise(torch.sqrt, Tensor.sqrt)(lambda d, x, y: 0.5 * d / y)
_pointwise(torch.rsqrt, Tensor.rsqrt)(lambda d, x, y: -0.5 * d * y / x)
_pointwise(torch.square, Tensor.square)(lambda d, x, y: 2 * x * d)
_pointwise(torch.sin, Tensor.sin)(lambda d, x, y: d * x.cos())
_pointwise(torch.cos, Tensor.cos)(lambda d, x, y: -d * x.sin())


@rule(functional.gelu)
def gelu(h: Dual, approximate: str = "none") -> Dual:
    value = functional.gelu(h.value, approximate=approximate)
    with without_graph():
        return Dual(value, aten.gelu_backward(h.tangent, h.value, approximate=approximate))


@rule(functional.silu)
def silu(h: Dual, inplace: bool = False) -> Dual:
    value = functional.silu(h.value)
    with without_graph():
        return Dual(value, aten.silu_backward(h.tangent, h.value))


@rule(functional.relu, torch.relu, Tensor.relu)
def relu(h: Dual, inplace: bool = False) -> Dual:
    value = functional.relu(h.value)
    with without_graph():
        return Dual(value, aten.threshold_backward(h.tangent, value, 0))


@rule(functional.leaky_relu)
def leaky_relu(h: Dual, negative_slope: float = 0.01, inplace: bool = False) -> Dual:
    value = functional.leaky_relu(h.value, negative_slope)
    with without_graph():
        return Dual(value, aten.leaky_relu_backward(h.tangent, h.value, negative_slope, False))


# ---- what does not move -------------------------------------------------------------------------------------------
def _constant(*functions: Any) -> None:
    """Functions whose result does not move with their arguments: they take the value."""
    for function in functions:

        @rule(function)
        def constant(h: Any, *args: Any, function: Any = function, **kwargs: Any) -> Any:
            return function(value_of(h), *(value_of(a) for a in args), **kwargs)


_constant(
    *(torch.zeros_like, torch.ones_like, torch.empty_like, torch.full_like, torch.rand_like, torch.randn_like),
    *(torch.detach, Tensor.detach, torch.round, Tensor.round, torch.floor, Tensor.floor, torch.sign, Tensor.sign),
    *(Tensor.new_zeros, Tensor.new_ones, Tensor.new_empty, Tensor.new_full, Tensor.new_tensor),
    *(Tensor.__lt__, Tensor.__le__, Tensor.__gt__, Tensor.__ge__),
    *(operator.lt, operator.le, operator.gt, operator.ge),
    *(Tensor.long, Tensor.int, Tensor.bool, Tensor.size, Tensor.dim, Tensor.numel, Tensor.stride),
)

"""The rules of normalisations, softmax and attention, which share what the value computed: means, deviations, weights.

The Jacobian of each is symmetric, so the fused backward kernel is the tangent's. In low precision their statistics are
computed again in float32.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from ayf_core.errors import AyfError
from ayf_core.tangents.attention import attention
from ayf_core.tangents.dual import Dual, by_forward_mode, rule, without_graph

aten = torch.ops.aten
LOW = (torch.float16, torch.bfloat16)


def _as_under_autocast(h: Dual) -> Dual:
    """To float32, as autocast casts for normalisations and softmax, except on the CPU; their parts it does not know."""
    if h.dtype in LOW and h.device.type != "cpu" and torch.is_autocast_enabled(h.device.type):
        return h.float()
    return h


@rule(functional.layer_norm)
def layer_norm(
    input: Dual, normalized_shape: Any, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Dual:
    h, shape = _as_under_autocast(input), list(normalized_shape)
    value, mean, rstd = torch.native_layer_norm(h.value, shape, weight, bias, eps)
    with without_graph():
        x, dx = h.value, h.tangent.contiguous()
        if x.dtype in LOW:  # the statistics were rounded too
            x, dx = x.float(), dx.float()
            _, mean, rstd = torch.native_layer_norm(x, shape, None, None, eps)
        wanted = [True, False, False]
        tangent = aten.native_layer_norm_backward(dx, x, shape, mean, rstd, None, None, wanted)[0]
        return Dual(value, tangent if weight is None else tangent * weight)


@rule(functional.group_norm)
def group_norm(
    input: Dual, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Dual:
    h = _as_under_autocast(input)
    batch, channels, *sides = h.shape
    sizes = batch, channels, math.prod(sides), num_groups
    value, mean, rstd = torch.native_group_norm(h.value.contiguous(), weight, bias, *sizes, eps)
    with without_graph():
        x, dx = h.value.contiguous(), h.tangent.contiguous()
        if x.dtype in LOW:
            x, dx = x.float(), dx.float()
            _, mean, rstd = torch.native_group_norm(x, None, None, *sizes, eps)
        tangent = aten.native_group_norm_backward(dx, x, mean, rstd, None, *sizes, [True, False, False])[0]
        return Dual(value, tangent if weight is None else tangent * weight.view(-1, *(1,) * len(sides)))


@rule(functional.rms_norm)
def rms_norm(input: Dual, normalized_shape: Any, weight: Tensor | None = None, eps: float | None = None) -> Dual:
    value = functional.rms_norm(input.value, normalized_shape, weight, eps)
    with without_graph():
        x, dx = input.value, input.tangent
        if x.dtype in LOW:
            x, dx = x.float(), dx.float()
        axes = tuple(range(-len(normalized_shape), 0))
        eps = torch.finfo(input.dtype).eps if eps is None else eps
        rstd = (x.square().mean(axes, keepdim=True) + eps).rsqrt()
        y = x * rstd
        tangent = rstd * (dx - y * (y * dx).mean(axes, keepdim=True))
        return Dual(value, tangent if weight is None else tangent * weight)


@rule(functional.softmax, torch.softmax, Tensor.softmax)
def softmax(h: Dual, dim: int, _stacklevel: int = 3, dtype: torch.dtype | None = None) -> Dual:
    h = _as_under_autocast(h)
    value = torch.softmax(h.value, dim, dtype=dtype)
    with without_graph():
        return Dual(value, aten._softmax_backward_data(h.tangent.to(value.dtype), value, dim, value.dtype))


@rule(functional.scaled_dot_product_attention)
def scaled_dot_product_attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Dual:
    if dropout_p:
        raise AyfError("'dual' has no rule for dropout inside attention: drop outside of it, or set its rate to 0")
    if not all(isinstance(x, Dual) for x in (query, key, value)) or isinstance(attn_mask, Dual) or enable_gqa:
        options = {"attn_mask": attn_mask, "is_causal": is_causal, "scale": scale, "enable_gqa": enable_gqa}
        return by_forward_mode(functional.scaled_dot_product_attention, (query, key, value), options)
    return attention(query, key, value, attn_mask, is_causal, scale)

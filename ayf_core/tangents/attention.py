"""The tangent of attention: softmax(q kᵀ) v by the product rule, a few rows of scores at a time."""

import torch
from torch import Tensor
from torch.nn import functional

from ayf_core.tangents.dual import Dual, without_graph

SCORES_AT_ONCE = 2**22
"""Elements of the scores [heads, queries, keys] that are held together: 16 MiB in float32."""


def attention(
    q: Dual, k: Dual, v: Dual, mask: Tensor | None = None, causal: bool = False, scale: float | None = None
) -> Dual:
    """Value by torch's fused kernel; the tangent recomputes the scores, which that kernel does not keep.

    Args:
        q, k, v: [*batch, queries or keys, features].
        mask: broadcasts to the scores; True where a key is seen, or what is added to the scores.
    """
    value = functional.scaled_dot_product_attention(q.value, k.value, v.value, mask, 0.0, causal, scale=scale)
    with without_graph():
        *batch, queries, features = q.shape
        keys, width = k.shape[-2], v.shape[-1]
        scale = features**-0.5 if scale is None else scale
        if causal:
            mask = torch.ones(queries, keys, dtype=torch.bool, device=q.device).tril()
        if mask is not None:
            mask = mask.expand(*batch, queries, keys).reshape(-1, queries, keys)
        parts = [x.reshape(-1, *x.shape[-2:]) for x in (q.value, k.value, v.value, q.tangent, k.tangent, v.tangent)]
        tangent = torch.empty(len(parts[0]), queries, width, dtype=value.dtype, device=value.device)
        heads = max(1, SCORES_AT_ONCE // (queries * keys))
        rows = max(1, min(queries, SCORES_AT_ONCE // keys))
        for i in range(0, len(tangent), heads):
            few = [x[i : i + heads] for x in parts]
            for j in range(0, queries, rows):
                here = slice(j, j + rows)
                seen = None if mask is None else mask[i : i + heads, here]
                q_, k_, v_, dq, dk, dv = few
                tangent[i : i + heads, here] = _tangent(q_[:, here], k_, v_, dq[:, here], dk, dv, seen, scale)
        return Dual(value, tangent.view(*batch, queries, width))


def _tangent(
    q: Tensor, k: Tensor, v: Tensor, dq: Tensor, dk: Tensor, dv: Tensor, mask: Tensor | None, scale: float
) -> Tensor:
    """d softmax(scale q kᵀ) v of [heads, queries, features]."""
    kt = k.transpose(1, 2)
    scores = torch.bmm(q, kt).mul_(scale)
    if mask is not None:
        scores = scores.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    p = torch.softmax(scores, -1)
    moved = torch.baddbmm(torch.bmm(dq, kt), q, dk.transpose(1, 2)).mul_(scale)
    dp = torch.ops.aten._softmax_backward_data(moved, p, -1, p.dtype)
    return torch.baddbmm(torch.bmm(dp, v), p, dv)

"""Self-attention that can be differentiated in forward mode."""

from contextlib import AbstractContextManager

from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel


def forward_mode_attention() -> AbstractContextManager[None]:
    """Context in which scaled dot-product attention has a forward-mode rule.

    The fused kernels (flash, memory-efficient, cuDNN, and the CPU's flash kernel) have none; the plain
    matrix form has. Only the derivative pass needs it: the pass that keeps gradients uses the fused kernel.
    """
    return sdpa_kernel(SDPBackend.MATH)


class SelfAttention(nn.Module):
    """Multi-head self-attention; [B, tokens, width] in and out."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, h: Tensor) -> Tensor:
        batch, tokens, width = h.shape
        q, k, v = self.qkv(h).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.output(mixed.transpose(1, 2).reshape(batch, tokens, width))

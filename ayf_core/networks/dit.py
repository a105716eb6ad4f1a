"""A class-conditional diffusion transformer (Peebles & Xie, arXiv 2212.09748) that is also a flow map."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from ayf_core.networks.attention import SelfAttention
from ayf_core.networks.base import MeanVelocityNetwork
from ayf_core.networks.embeddings import LabelEmbedding, ScalarEmbedding, fill_labels
from ayf_core.networks.spec import NetworkSpec


def modulate(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return h * (1 + scale[:, None]) + shift[:, None]


class Block(nn.Module):
    """Attention and perceptron, each modulated and gated by the condition (adaLN-Zero)."""

    def __init__(self, width: int, heads: int, expansion: int = 4):
        super().__init__()
        self.norm_attention = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.attention = SelfAttention(width, heads)
        self.norm_perceptron = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.perceptron = nn.Sequential(
            nn.Linear(width, expansion * width), nn.GELU("tanh"), nn.Linear(expansion * width, width)
        )
        self.modulation = nn.Linear(width, 6 * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, h: Float[Tensor, "batch tokens width"], condition: Float[Tensor, "batch width"]) -> Tensor:
        shift_a, scale_a, gate_a, shift_p, scale_p, gate_p = self.modulation(condition).chunk(6, dim=1)
        h = h + gate_a[:, None] * self.attention(modulate(self.norm_attention(h), shift_a, scale_a))
        return h + gate_p[:, None] * self.perceptron(modulate(self.norm_perceptron(h), shift_p, scale_p))


class DiT(MeanVelocityNetwork):
    """Mean velocity of images or latents: F(x, t, s | label, λ) for x [B, C, H, W].

    The embeddings of the interval t - s and of the guidance scale λ - 1 start at zero, so a student that
    copies a teacher's weights starts as the teacher's velocity at every s and λ.
    """

    def __init__(self, spec: NetworkSpec):
        super().__init__(spec)
        channels, height, width = spec.shape
        self.grid = (height // spec.patch_size, width // spec.patch_size)
        patch = channels * spec.patch_size**2
        self.patches = nn.Linear(patch, spec.width)
        self.position = nn.Parameter(0.02 * torch.randn(1, self.grid[0] * self.grid[1], spec.width))
        self.time = ScalarEmbedding(spec.width)
        self.label = LabelEmbedding(spec.num_classes, spec.width) if spec.num_classes > 1 else None
        self.interval = ScalarEmbedding(spec.width, zero_init=True) if spec.interval else None
        self.guidance = ScalarEmbedding(spec.width, zero_init=True) if spec.guidance else None
        self.blocks = nn.ModuleList(Block(spec.width, spec.heads) for _ in range(spec.depth))
        self.norm = nn.LayerNorm(spec.width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(spec.width, 2 * spec.width)
        self.output = nn.Linear(spec.width, patch)
        for layer in (self.modulation, self.output):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    @property
    def last_layer(self) -> Tensor:
        return self.output.weight

    @property
    def sharded_blocks(self) -> list[nn.Module]:
        return list(self.blocks)

    def condition(self, t: Tensor, s: Tensor | None, labels: Tensor | None, guidance_scale: Tensor | None) -> Tensor:
        c = self.time(t)
        if self.label is not None:
            c = c + self.label(fill_labels(labels, len(t), self.spec.num_classes, t.device))
        if self.interval is not None and s is not None:
            c = c + self.interval(t - s)
        if self.guidance is not None and guidance_scale is not None:
            c = c + self.guidance(guidance_scale - 1)
        return nn.functional.silu(c)

    def forward(
        self,
        x: Float[Tensor, "batch channels height width"],
        t: Float[Tensor, " batch"],
        s: Float[Tensor, " batch"] | None = None,
        labels: Int[Tensor, " batch"] | None = None,
        guidance_scale: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch channels height width"]:
        condition = self.condition(t, s, labels, guidance_scale)
        h = self.patches(self.to_tokens(x)) + self.position
        for block in self.blocks:
            h = block(h, condition)
        shift, scale = self.modulation(condition).chunk(2, dim=1)
        return self.to_image(self.output(modulate(self.norm(h), shift, scale)))

    def to_tokens(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> [B, tokens, C * patch²]."""
        p, (rows, columns) = self.spec.patch_size, self.grid
        x = x.reshape(len(x), x.shape[1], rows, p, columns, p)
        return x.permute(0, 2, 4, 1, 3, 5).reshape(len(x), rows * columns, -1)

    def to_image(self, tokens: Tensor) -> Tensor:
        """[B, tokens, C * patch²] -> [B, C, H, W]."""
        p, (rows, columns) = self.spec.patch_size, self.grid
        x = tokens.reshape(len(tokens), rows, columns, -1, p, p)
        return x.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), -1, rows * p, columns * p)

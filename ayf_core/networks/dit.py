"""A conditional diffusion transformer (Peebles & Xie, arXiv 2212.09748) that is also a flow map."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ayf_core.conditions import ClassLabels, Condition
from ayf_core.errors import AyfError
from ayf_core.networks.attention import SelfAttention
from ayf_core.networks.base import MeanVelocityNetwork
from ayf_core.networks.embeddings import LabelEmbedding, ScalarEmbedding
from ayf_core.networks.patches import patch_grid, to_image, to_tokens
from ayf_core.networks.spec import NetworkSpec
from ayf_core.registry import register
from ayf_core.settings import setting


@register("network", "dit", title="Diffusion transformer")
@dataclass(frozen=True, kw_only=True)
class DiTSettings:
    """Of a transformer for samples [C, *spatial] of one to three spatial axes."""

    width: int = setting("hidden width", at_least=2)
    depth: int = setting("number of blocks", at_least=1)
    heads: int = setting("attention heads", at_least=1)
    patch_size: int = setting("side of a patch of latents", at_least=1)

    def problems(self) -> Iterator[str]:
        """A line for what is in range by itself and still cannot be."""
        if self.width % self.heads:
            yield f"width = {self.width}: must be a multiple of heads = {self.heads}; change either"

    def check(self, shape: tuple[int, ...]) -> None:
        """Raise AyfError where the settings do not fit each other, or samples of this shape."""
        if not 2 <= len(shape) <= 4:
            raise AyfError(f"a 'dit' takes samples of shape [C, *spatial], got {list(shape)}: use network kind 'mlp'")
        for problem in self.problems():
            raise AyfError(f"a 'dit' of {problem}")
        if any(side % self.patch_size for side in shape[1:]):
            raise AyfError(f"patch_size {self.patch_size} does not divide the sample's sides {list(shape[1:])}")

    def build(self, spec: NetworkSpec) -> "DiT":
        """A freshly initialised network."""
        return DiT(spec, self)


def modulate(h: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(shift[:, None], h, 1 + scale[:, None])


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
        mixed = self.attention(modulate(self.norm_attention(h), shift_a, scale_a))
        h = torch.addcmul(h, gate_a[:, None], mixed)
        return torch.addcmul(h, gate_p[:, None], self.perceptron(modulate(self.norm_perceptron(h), shift_p, scale_p)))


class DiT(MeanVelocityNetwork):
    """Mean velocity of sounds, images, films or latents of them: F(x, t, s | condition, λ) for x [B, C, *spatial].

    The embeddings of the interval t - s and of the guidance scale λ - 1 start at zero, so a student that
    copies a teacher's weights starts as the teacher's velocity at every s and λ.
    """

    EMBEDDERS: ClassVar[Mapping[type, Callable[[Any, int], nn.Module]]] = {
        ClassLabels: lambda kind, width: LabelEmbedding(kind.num_classes, width)
    }

    def __init__(self, spec: NetworkSpec, settings: DiTSettings):
        super().__init__(spec)
        channels, *spatial = spec.shape
        width, self.patch_size = settings.width, settings.patch_size
        self.grid = patch_grid(tuple(spatial), self.patch_size)
        patch = channels * self.patch_size ** len(self.grid)
        self.patches = nn.Linear(patch, width)
        self.position = nn.Parameter(0.02 * torch.randn(1, math.prod(self.grid), width))
        self.time = ScalarEmbedding(width)
        self.add_embedders(width)
        self.interval = ScalarEmbedding(width, zero_init=True) if spec.interval else None
        self.guidance = ScalarEmbedding(width, zero_init=True) if spec.guidance else None
        self.blocks = nn.ModuleList(Block(width, settings.heads) for _ in range(settings.depth))
        self.norm = nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)
        self.modulation = nn.Linear(width, 2 * width)
        self.output = nn.Linear(width, patch)
        for layer in (self.modulation, self.output):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    @property
    def last_layer(self) -> Tensor:
        return self.output.weight

    @property
    def sharded_blocks(self) -> list[nn.Module]:
        return list(self.blocks)

    def told(
        self, t: Tensor, s: Tensor | None, condition: Condition | None, guidance_scale: Tensor | None
    ) -> Float[Tensor, "batch width"]:
        """All that the blocks are modulated by: times, condition and λ, as one vector a sample."""
        c = self.embedded(self.time(t), condition)
        if self.interval is not None and s is not None:
            c = c + self.interval(t - s)
        if self.guidance is not None and guidance_scale is not None:
            c = c + self.guidance(guidance_scale - 1)
        return nn.functional.silu(c)

    def forward(
        self,
        x: Float[Tensor, "batch channels *spatial"],
        t: Float[Tensor, " batch"],
        s: Float[Tensor, " batch"] | None = None,
        condition: Condition | None = None,
        guidance_scale: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch channels *spatial"]:
        told = self.told(t, s, condition, guidance_scale)
        h = self.patches(to_tokens(x, self.patch_size)) + self.position
        for block in self.blocks:
            h = block(h, told)
        shift, scale = self.modulation(told).chunk(2, dim=1)
        return to_image(self.output(modulate(self.norm(h), shift, scale)), self.grid, self.patch_size)

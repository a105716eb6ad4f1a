"""Discriminators for the adversarial finish: a residual one for images and latents, a small one for points.

Both can be differentiated twice (gradient penalties need it): no in-place activations, no fused kernels.
"""

import math
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from ayf_core.conditions import ClassLabels, Condition, ConditionSpec
from ayf_core.errors import AyfError

SLOPE = 0.2  # of the leaky ReLU, as in StyleGAN2
SMALLEST_SIDE = 4  # of images: the last residual block's


def build_discriminator(
    sample_shape: tuple[int, ...], *, width: int, conditions: ConditionSpec
) -> "ImageDiscriminator | MLPDiscriminator":
    """The discriminator that fits one sample's shape: [C, H, W] gives an image network, [D] an MLP.

    Args:
        width: channels at full resolution, doubled at every halving up to eight times (how deep follows from
            the resolution); or the features of each of the MLP's three hidden layers.
        conditions: what samples are conditioned on; only class labels can be told.

    Raises:
        AyfError: no discriminator fits the shape.
    """
    check_shape(sample_shape)
    if len(sample_shape) == 3:
        return ImageDiscriminator(sample_shape, width=width, max_width=8 * width, conditions=conditions)
    return MLPDiscriminator(sample_shape[0], width=width, depth=3, conditions=conditions)


def check_shape(sample_shape: tuple[int, ...]) -> None:
    """Raises AyfError where no discriminator fits one sample's shape: it takes [C, H, W] with sides from 4, or [D]."""
    if len(sample_shape) not in (1, 3):
        raise AyfError(f"no discriminator for samples of shape {list(sample_shape)}: use [C, H, W] or [D]")
    if len(sample_shape) == 3 and min(sample_shape[1:]) < SMALLEST_SIDE:
        raise AyfError(
            f"latents of {sample_shape[1]} x {sample_shape[2]} are too small for the adversarial finish, which needs "
            f"{SMALLEST_SIDE} x {SMALLEST_SIDE}: take larger images, or a codec that halves their side less often"
        )


class ImageDiscriminator(nn.Module):
    """Residual discriminator of the StyleGAN2 kind (arXiv 1912.04958, section 4.1) for [B, C, H, W].

    Residual blocks halve the resolution until the shorter side is at most 4, then the minibatch standard
    deviation joins as a channel and a head gives one logit, with class projection (arXiv 1802.05637) when
    there are classes. Differences from StyleGAN2: averaging instead of a blur filter, no equalised learning
    rate.

    Args:
        sample_shape: (C, H, W), H and W from 4.
        width, max_width: channels at full resolution and their ceiling (they double at every halving).
        conditions: what samples are conditioned on; only class labels can be told.
        group_size: samples that share one minibatch standard deviation.

    Raises:
        AyfError: H or W below 4.
    """

    def __init__(
        self,
        sample_shape: tuple[int, ...],
        *,
        width: int,
        max_width: int,
        conditions: ConditionSpec,
        group_size: int = 4,
    ) -> None:
        super().__init__()
        channels, height, rows = sample_shape[0], sample_shape[1], sample_shape[2]
        if min(height, rows) < 4:
            raise AyfError(f"the image discriminator needs sides of 4 or more, got {height} x {rows}")
        self.group_size = group_size
        self.from_image = nn.Conv2d(channels, width, 1)
        blocks = []
        while min(height, rows) > 4:
            wider = min(2 * width, max_width)
            blocks.append(ResidualDown(width, wider))
            width, height, rows = wider, -(-height // 2), -(-rows // 2)
        self.blocks = nn.Sequential(*blocks)
        self.mix = nn.Conv2d(width + 1, width, 3, padding=1)
        self.features = nn.Linear(width * height * rows, width)
        self.head = ConditionProjection(width, conditions)

    def forward(
        self, x: Float[Tensor, "batch channels height width"], condition: Condition | None = None
    ) -> Float[Tensor, " batch"]:
        """Logits [B], higher for samples taken as real.

        Raises:
            AyfError: a condition that the network was built with is missing.
        """
        h = self.blocks(_activate(self.from_image(x)))
        h = torch.cat([h, minibatch_deviation(h, self.group_size)], dim=1)
        h = _activate(self.mix(h))
        return self.head(_activate(self.features(h.flatten(1))), condition)


class MLPDiscriminator(nn.Module):
    """Leaky-ReLU network for points [B, D], with class projection when there are classes."""

    def __init__(self, dim: int, *, width: int, depth: int, conditions: ConditionSpec) -> None:
        super().__init__()
        sizes = [dim] + [width] * depth
        self.layers = nn.ModuleList(nn.Linear(size, following) for size, following in pairwise(sizes))
        self.head = ConditionProjection(sizes[-1], conditions)

    def forward(self, x: Float[Tensor, "batch dim"], condition: Condition | None = None) -> Float[Tensor, " batch"]:
        """Logits [B], higher for samples taken as real.

        Raises:
            AyfError: a condition that the network was built with is missing.
        """
        for layer in self.layers:
            x = _activate(layer(x))
        return self.head(x, condition)


class ResidualDown(nn.Module):
    """Two 3x3 convolutions and a halving, joined to a 1x1 skip and scaled by 1/√2 to keep the variance."""

    def __init__(self, width: int, wider: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, wider, 3, padding=1)
        self.skip = nn.Conv2d(width, wider, 1, bias=False)

    def forward(self, x: Float[Tensor, "batch width rows columns"]) -> Float[Tensor, "batch wider _ _"]:
        """Half the resolution; an odd side keeps its last row or column."""
        residual = _halve(_activate(self.second(_activate(self.first(x)))))
        return (residual + self.skip(_halve(x))) / math.sqrt(2)


class ConditionProjection(nn.Module):
    """Logit w·h + b, plus ⟨embedding of the class, h⟩ / √width where there are classes (arXiv 1802.05637).

    Raises:
        AyfError: a condition that is no class label.
    """

    def __init__(self, width: int, conditions: ConditionSpec) -> None:
        super().__init__()
        self.linear = nn.Linear(width, 1)
        self.embeddings = nn.ModuleDict()
        for name, kind in conditions.items():
            if not isinstance(kind, ClassLabels):
                raise AyfError(f"discriminators have no projection for {kind.name} ({name})")
            self.embeddings[name] = nn.Embedding(kind.num_classes, width)

    def forward(self, h: Float[Tensor, "batch width"], condition: Condition | None) -> Float[Tensor, " batch"]:
        """Logits [B]."""
        logits = self.linear(h).squeeze(1)
        for name, embedding in self.embeddings.items():
            if condition is None or name not in condition:
                raise AyfError(f"this discriminator was built with {name}: pass them, or build it without")
            logits = logits + (embedding(condition[name]) * h).sum(1) / math.sqrt(h.shape[1])
        return logits


def minibatch_deviation(
    h: Float[Tensor, "batch channels rows columns"], group_size: int
) -> Float[Tensor, "batch 1 rows columns"]:
    """Standard deviation over a group of samples, averaged over channels and pixels (arXiv 1710.10196, section 3).

    Groups are of neighbours, so that workers that share a batch in whole groups find the same statistics as
    one worker. A batch that is no multiple of group_size is cut into the largest equal groups that fit.
    """
    batch = len(h)
    size = max(n for n in range(1, min(group_size, batch) + 1) if batch % n == 0)
    grouped = h.reshape(batch // size, size, *h.shape[1:])
    # The small constant keeps the square root differentiable twice where all samples of a group agree.
    deviation = (grouped.var(dim=1, correction=0) + 1e-8).sqrt().mean(dim=(1, 2, 3))
    return deviation.repeat_interleave(size).view(batch, 1, 1, 1).expand(batch, 1, *h.shape[2:])


def _activate(x: Tensor) -> Tensor:
    # √2 restores the variance that the leaky ReLU takes away, as in StyleGAN2.
    return functional.leaky_relu(x, SLOPE) * math.sqrt(2)


def _halve(x: Tensor) -> Tensor:
    return functional.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)

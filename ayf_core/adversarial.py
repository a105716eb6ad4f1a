"""The adversarial finish: relativistic pairing losses, gradient penalties, and the weight between two losses.

Relativistic pairing compares sample i of the real batch with sample i of the fake batch, so the two batches must be
aligned: same length, same condition at each index. From R3GAN (arXiv 2501.05441), section 2.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from ayf_core.conditions import Condition
from ayf_core.errors import AyfError

Logits = Float[Tensor, " batch"]


def relativistic_generator_loss(real_logits: Logits, fake_logits: Logits) -> Float[Tensor, ""]:
    """Mean of softplus(D(real) - D(fake)) (R3GAN eq. 2 with f(t) = -softplus(-t)): fakes should look real."""
    _check_pairs(real_logits, fake_logits)
    return softplus(real_logits - fake_logits).mean()


def relativistic_discriminator_loss(real_logits: Logits, fake_logits: Logits) -> Float[Tensor, ""]:
    """Mean of softplus(D(fake) - D(real)): the same game from the other side, without penalties."""
    _check_pairs(real_logits, fake_logits)
    return softplus(fake_logits - real_logits).mean()


def gradient_penalty(logits: Logits, x: Float[Tensor, "batch *dims"], gamma: float) -> Float[Tensor, ""]:
    """Zero-centred penalty γ/2 E‖∇_x D(x)‖² (R3GAN eq. 3): R1 on real samples, R2 on fake ones.

    Can be differentiated with respect to the discriminator's parameters.

    Args:
        logits: D(x), computed from this very x with x.requires_grad set.
        gamma: strength of the penalty, >= 0.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), x, create_graph=True)
    return gamma / 2 * gradient.square().flatten(1).sum(1).mean()


class DiscriminatorLoss(NamedTuple):
    """total = pairing + r1 + r2, all scalars; the logits [B] are for logging."""

    total: Tensor
    pairing: Tensor
    r1: Tensor
    r2: Tensor
    real_logits: Tensor
    fake_logits: Tensor


def discriminator_loss(
    discriminator: Callable[[Tensor, Condition | None], Tensor],
    real: Float[Tensor, "batch *dims"],
    fake: Float[Tensor, "batch *dims"],
    condition: Condition | None,
    *,
    gamma_real: float,
    gamma_fake: float,
) -> DiscriminatorLoss:
    """What the discriminator minimises: pairing loss + R1 on real + R2 on fake (R3GAN eq. 2 and 3).

    Runs in float32 or better even under autocast: a penalty is a squared second-order quantity, which
    bfloat16 does not carry. Samples are detached, so nothing flows back into the generator.

    Args:
        discriminator: called as discriminator(x, condition); returns logits [B].
        real, fake: aligned batches [B, *D] of equal condition at each index.
        gamma_real, gamma_fake: strengths of R1 and R2, >= 0 (R3GAN uses one value for both).

    Raises:
        AyfError: the two batches differ in length.
    """
    with torch.enable_grad(), torch.autocast(real.device.type, enabled=False):
        real, fake = _leaf(real), _leaf(fake)
        real_logits, fake_logits = discriminator(real, condition), discriminator(fake, condition)
        pairing = relativistic_discriminator_loss(real_logits, fake_logits)
        r1 = gradient_penalty(real_logits, real, gamma_real)
        r2 = gradient_penalty(fake_logits, fake, gamma_fake)
    return DiscriminatorLoss(pairing + r1 + r2, pairing, r1, r2, real_logits.detach(), fake_logits.detach())


def gradient_ratio_weight(
    loss_a: Tensor,
    loss_b: Tensor,
    last_layer_parameter: Tensor,
    maximum: float,
    average: Callable[[Tensor], Tensor] | None = None,
) -> Float[Tensor, ""]:
    """Weight of loss_b that makes it push the last layer as hard as loss_a: ‖∇a‖ / (‖∇b‖ + ε), at most `maximum`.

    VQGAN (arXiv 2012.09841, eq. 7), taken over by CTM (arXiv 2310.02279, section 3.3). Detached; keeps both
    graphs for the backward pass that follows.

    Args:
        loss_a, loss_b: scalars, both depending on the parameter.
        last_layer_parameter: the weight of the generator's last layer.
        maximum: ceiling of the weight.
        average: makes a gradient the mean over all workers, so that every worker finds the weight of the
            whole batch; not needed in one process.
    """
    norms = []
    for loss in (loss_a, loss_b):
        (gradient,) = torch.autograd.grad(loss, last_layer_parameter, retain_graph=True)
        gradient = gradient.detach().float() if average is None else average(gradient.detach().float())
        norms.append(gradient.norm())
    return (norms[0] / (norms[1] + 1e-8)).clamp(max=maximum)


def _check_pairs(real_logits: Logits, fake_logits: Logits) -> None:
    # Broadcasting would pair the wrong samples without a word.
    if real_logits.shape != fake_logits.shape:
        raise AyfError(
            "relativistic pairing needs aligned batches: "
            f"{tuple(real_logits.shape)} real and {tuple(fake_logits.shape)} fake logits"
        )


def _leaf(x: Tensor) -> Tensor:
    return x.detach().to(torch.promote_types(x.dtype, torch.float32)).requires_grad_()

"""The adversarial finish (AYF section 3.5): distillation keeps the flow map, a discriminator sharpens its full jump."""

from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
import torch.distributed as distributed
from torch import Tensor, nn

from ayf_core.adversarial import discriminator_loss, gradient_ratio_weight, relativistic_generator_loss
from ayf_core.networks.base import MeanVelocityNetwork
from ayf_core.objectives.base import Batch, Loss, Objective
from ayf_core.randomness import StepRandom
from ayf_core.tangents.engines import unwrap

LARGEST_RATIO = 1e4


def one_step_samples(network: nn.Module, batch: Batch, random: StepRandom, guidance_scale: float | None) -> Tensor:
    """Fakes f(x_1, 1, 0) with the condition of the batch, so that real and fake can be compared in pairs.

    Which jumps the fakes use is open in the paper; the full jump is where a few-step model is weakest.
    """
    noise = random.normal("fake noise", batch.x.shape[1:], batch.x.dtype)
    ones = torch.ones(len(noise), dtype=torch.float64, device=noise.device)
    scale = None if guidance_scale is None else ones * guidance_scale
    return noise - network(noise, ones, 0 * ones, batch.condition, scale)


def average_over_workers(value: Tensor, rows: int) -> Tensor:
    """The mean of a tensor over all workers, each counted with its rows; itself in a single process."""
    if distributed.is_available() and distributed.is_initialized():
        both = torch.cat([rows * value.flatten(), value.new_tensor([rows])])
        distributed.all_reduce(both)
        return (both[:-1] / both[-1]).view_as(value)
    return value


@dataclass(frozen=True, kw_only=True)
class AdversarialFinish:
    """Generator: distillation + weight * ratio * relativistic pairing loss of one-step samples.

    The ratio makes both losses push the last layer equally hard (VQGAN, CTM).

    Args:
        distillation: the objective that trained the student.
        discriminator: trained by the other phase, frozen here.
        weight: α, the share of the adversarial push.
        guidance_scale: λ of the fakes, None for a student without guidance. λ = 1 asks for the data's law.
    """

    distillation: Objective
    discriminator: nn.Module
    weight: float
    guidance_scale: float | None

    def __call__(self, network: nn.Module, batch: Batch, random: StepRandom, step: int, monitor: bool = False) -> Loss:
        loss = self.distillation(network, batch, random, step, monitor)
        fake = one_step_samples(network, batch, random, self.guidance_scale)
        self.discriminator.requires_grad_(False)
        pairing = relativistic_generator_loss(
            self.discriminator(batch.x, batch.condition), self.discriminator(fake, batch.condition)
        )
        self.discriminator.requires_grad_(True)
        last = cast(MeanVelocityNetwork, unwrap(network)).last_layer
        average = partial(average_over_workers, rows=len(batch.x))
        ratio = gradient_ratio_weight(loss.value, pairing, last, LARGEST_RATIO, average)
        loss.value = loss.value + self.weight * ratio * pairing
        loss.metrics |= {"pairing": pairing.detach(), "gradient_ratio": ratio}
        return loss


@dataclass(frozen=True, kw_only=True)
class DiscriminatorObjective:
    """Discriminator: pairing loss + R1 + R2 on the generator's one-step samples.

    Args:
        generator: the student's bare network, frozen here.
        r1, r2: strengths of the penalties on real and on generated samples.
        guidance_scale: λ of the fakes.
    """

    generator: nn.Module
    r1: float
    r2: float
    guidance_scale: float | None

    def __call__(self, network: nn.Module, batch: Batch, random: StepRandom, step: int, monitor: bool = False) -> Loss:
        with torch.no_grad():
            fake = one_step_samples(self.generator, batch, random, self.guidance_scale)
        parts = discriminator_loss(network, batch.x, fake, batch.condition, gamma_real=self.r1, gamma_fake=self.r2)
        accuracy = (parts.real_logits > parts.fake_logits).double().mean()
        metrics = {
            "loss": parts.pairing.detach(),
            "r1": parts.r1.detach(),
            "r2": parts.r2.detach(),
            "accuracy": accuracy,
        }
        return Loss(parts.total, metrics)

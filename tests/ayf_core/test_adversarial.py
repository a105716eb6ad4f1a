"""The adversarial losses: hand formulas, penalties of known gradient, gradients that reach the right side."""

import math

import pytest
import torch
from torch import nn

from ayf_core.adversarial import (
    discriminator_loss,
    gradient_penalty,
    gradient_ratio_weight,
    relativistic_discriminator_loss,
    relativistic_generator_loss,
)
from ayf_core.conditions import class_labels
from ayf_core.errors import AyfError
from ayf_core.networks.discriminator import (
    ImageDiscriminator,
    MLPDiscriminator,
    build_discriminator,
    minibatch_deviation,
)
from tests.made import labels as told


def image_discriminator(shape=(3, 8, 8), num_classes=5):
    torch.manual_seed(0)
    return ImageDiscriminator(shape, width=4, max_width=8, conditions=class_labels(num_classes))


def mlp_discriminator():
    torch.manual_seed(0)
    return MLPDiscriminator(2, width=16, depth=2, conditions=class_labels(5))


discriminators = pytest.mark.parametrize(
    ("make", "shape"),
    [(image_discriminator, (4, 3, 8, 8)), (mlp_discriminator, (4, 2))],
    ids=["image", "mlp"],
)


def batches(shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    real, fake = torch.randn(2, *shape, dtype=dtype, generator=generator)
    return real, fake, told(torch.tensor([0, 1, 2, 2]))


def test_losses_have_the_values_of_the_hand_formula():
    real, fake = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 1.0])
    generator = (math.log(1 + math.exp(1.5)) + math.log(1 + math.exp(-2.0))) / 2
    discriminator = (math.log(1 + math.exp(-1.5)) + math.log(1 + math.exp(2.0))) / 2
    assert relativistic_generator_loss(real, fake).item() == pytest.approx(generator, rel=1e-6)
    assert relativistic_discriminator_loss(real, fake).item() == pytest.approx(discriminator, rel=1e-6)


def test_batches_that_do_not_pair_are_refused():
    with pytest.raises(AyfError, match="aligned batches"):
        relativistic_generator_loss(torch.zeros(4), torch.zeros(1))
    with pytest.raises(AyfError, match="aligned batches"):
        relativistic_discriminator_loss(torch.zeros(4), torch.zeros(4, 1))


def test_penalty_of_a_quadratic_function_is_its_known_gradient_norm():
    x = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    matrix = torch.tensor([[2.0, 1.0, 0.0], [1.0, 3.0, 0.0], [0.0, 0.0, 1.0]], dtype=torch.float64)
    logits = 0.5 * (x @ matrix * x).sum(1)
    expected = 0.7 / 2 * (x @ matrix).square().sum(1).mean()
    torch.testing.assert_close(gradient_penalty(logits, x, 0.7), expected)


@discriminators
def test_total_is_pairing_plus_both_penalties_measured_apart(make, shape):
    discriminator = make().double()
    real, fake, condition = batches(shape)
    loss = discriminator_loss(discriminator, real, fake, condition, gamma_real=0.3, gamma_fake=0.9)
    real_leaf, fake_leaf = real.clone().requires_grad_(), fake.clone().requires_grad_()
    r1 = gradient_penalty(discriminator(real_leaf, condition), real_leaf, 0.3)
    r2 = gradient_penalty(discriminator(fake_leaf, condition), fake_leaf, 0.9)
    torch.testing.assert_close(loss.r1, r1)
    torch.testing.assert_close(loss.r2, r2)
    pairing = relativistic_discriminator_loss(discriminator(real, condition), discriminator(fake, condition))
    torch.testing.assert_close(loss.total, pairing + r1 + r2)


@discriminators
def test_parameter_gradients_through_the_penalties_match_finite_differences(make, shape):
    discriminator = make().double()
    real, fake, condition = batches(shape)
    parameters = list(discriminator.parameters())

    def penalties():
        loss = discriminator_loss(discriminator, real, fake, condition, gamma_real=2.0, gamma_fake=1.0)
        return loss.r1 + loss.r2

    gradients = torch.autograd.grad(penalties(), parameters, allow_unused=True, materialize_grads=True)
    generator = torch.Generator().manual_seed(2)
    direction = [torch.randn(p.shape, dtype=p.dtype, generator=generator) for p in parameters]
    h, values = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p += sign * h * d
        values.append(penalties().item())
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p -= sign * h * d
    expected = (values[0] - values[1]) / (2 * h)
    found = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True)).item()
    assert abs(found) > 1e-3
    assert found == pytest.approx(expected, rel=1e-5)


def test_discriminator_loss_sends_nothing_back_to_the_generator():
    real, fake, condition = batches((4, 2), torch.float32)
    fake.requires_grad_()
    discriminator_loss(mlp_discriminator(), real, fake, condition, gamma_real=1.0, gamma_fake=1.0).total.backward()
    assert fake.grad is None


def test_generator_loss_reaches_the_fakes():
    discriminator = mlp_discriminator()
    real, fake, condition = batches((4, 2), torch.float32)
    fake.requires_grad_()
    relativistic_generator_loss(discriminator(real, condition), discriminator(fake, condition)).backward()
    assert bool((fake.grad.abs().sum(1) > 0).all())


def test_autocast_around_the_discriminator_loss_changes_no_digit():
    discriminator = mlp_discriminator()
    real, fake, condition = batches((4, 2), torch.bfloat16)
    plain = discriminator_loss(discriminator, real, fake, condition, gamma_real=1.0, gamma_fake=1.0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = discriminator_loss(discriminator, real, fake, condition, gamma_real=1.0, gamma_fake=1.0)
    assert loss.total.dtype == torch.float32
    assert torch.equal(loss.total, plain.total)


def test_training_the_discriminator_separates_two_shifted_clouds():
    discriminator = MLPDiscriminator(2, width=16, depth=2, conditions=class_labels(0))
    optimiser = torch.optim.Adam(discriminator.parameters(), lr=1e-2)
    real, fake, _ = batches((256, 2), torch.float32)
    real = real + 1.5
    for _ in range(60):
        loss = discriminator_loss(discriminator, real, fake, None, gamma_real=0.1, gamma_fake=0.1)
        optimiser.zero_grad()
        loss.total.backward()
        optimiser.step()
    assert loss.pairing.item() < 0.5 < math.log(2)


def test_weight_is_the_ratio_of_gradient_norms_and_carries_no_gradient():
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    ratio = gradient_ratio_weight((3 * weight).sum(), (weight * torch.tensor([0.0, 2.0])).sum(), weight, 1e4)
    assert ratio.item() == pytest.approx(3 * math.sqrt(2) / 2, rel=1e-6)
    assert not ratio.requires_grad


def test_weight_is_clamped_when_the_second_loss_is_flat():
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    assert gradient_ratio_weight((3 * weight).sum(), (0 * weight).sum(), weight, 50.0).item() == 50.0


def test_weight_uses_the_average_over_workers_and_leaves_the_graphs_usable():
    weight = nn.Parameter(torch.tensor([1.0, 2.0]))
    first, second = weight.square().sum(), (weight**3).sum()
    seen = []
    gradient_ratio_weight(first, second, weight, 10.0, average=lambda g: seen.append(g) or g)
    torch.testing.assert_close(seen[0], 2 * weight.detach())
    torch.testing.assert_close(seen[1], 3 * weight.detach() ** 2)
    (first + second).backward()
    assert weight.grad is not None


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 8, 8), (4, 7, 9), (3, 28, 28), (2, 4, 16)])
def test_image_discriminator_takes_any_sides_from_four(shape):
    x = torch.randn(6, *shape)
    logits = image_discriminator(shape)(x, told(torch.arange(6) % 5))
    assert logits.shape == (6,)
    assert bool(logits.isfinite().all())


@discriminators
def test_class_changes_the_logits(make, shape):
    real, _, condition = batches(shape, torch.float32)
    discriminator = make()
    changed = discriminator(real, condition) != discriminator(real, told((condition["labels"] + 1) % 5))
    assert bool(changed.all())


def test_labels_are_required_only_with_classes():
    x = torch.randn(2, 3, 8, 8)
    assert image_discriminator(num_classes=0)(x, None).shape == (2,)
    with pytest.raises(AyfError, match="built with labels"):
        image_discriminator()(x, None)


def test_minibatch_deviation_is_the_mean_deviation_of_neighbours():
    h = torch.randn(8, 3, 4, 4, dtype=torch.float64)
    channel = minibatch_deviation(h, 4)
    expected = h[4:].std(dim=0, correction=0).mean()
    assert channel.shape == (8, 1, 4, 4)
    torch.testing.assert_close(channel[5], expected.expand(1, 4, 4), rtol=1e-6, atol=1e-6)


def test_logits_of_a_group_do_not_depend_on_the_other_groups():
    discriminator = image_discriminator()
    x, condition = torch.randn(8, 3, 8, 8), told(torch.arange(8) % 5)
    together = discriminator(x, condition)
    torch.testing.assert_close(together[:4], discriminator(x[:4], condition.rows(slice(0, 4))))


@pytest.mark.parametrize("batch", [1, 3, 6, 7])
def test_batches_that_are_no_multiple_of_the_group_have_finite_double_gradients(batch):
    discriminator = image_discriminator(num_classes=0)
    x = torch.ones(batch, 3, 8, 8)
    discriminator_loss(discriminator, x, x, None, gamma_real=1.0, gamma_fake=1.0).total.backward()
    assert all(bool(p.grad.isfinite().all()) for p in discriminator.parameters() if p.grad is not None)


def test_the_shape_of_a_sample_chooses_the_discriminator():
    settings = {"width": 4, "conditions": class_labels(0)}
    assert isinstance(build_discriminator((3, 8, 8), **settings), ImageDiscriminator)
    assert isinstance(build_discriminator((2,), **settings), MLPDiscriminator)
    with pytest.raises(AyfError, match="no discriminator"):
        build_discriminator((3, 4, 4, 4), **settings)
    with pytest.raises(AyfError, match="too small for the adversarial finish"):
        build_discriminator((3, 2, 8), **settings)

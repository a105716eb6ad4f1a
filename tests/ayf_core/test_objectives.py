"""Objectives: zero at the exact flow map, stabilisers as the paper has them, one bad sample harms no other."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from ayf_core.analytic import Gaussian
from ayf_core.conditions import Condition, class_labels
from ayf_core.errors import AyfError
from ayf_core.guidance.autoguidance import Autoguided
from ayf_core.networks.build import build_network
from ayf_core.objectives import weightings
from ayf_core.objectives.adversarial_finish import AdversarialFinish, DiscriminatorObjective
from ayf_core.objectives.base import Batch
from ayf_core.objectives.diagnostics import mean_by_bins
from ayf_core.objectives.eulerian import EulerianDistillation
from ayf_core.objectives.lagrangian import LagrangianDistillation
from ayf_core.objectives.mean_flow import MeanFlow
from ayf_core.objectives.tangent import normalise_tangent, tangent_loss
from ayf_core.randomness import StepRandom
from ayf_core.registry import components, names
from ayf_core.tangents import engines
from ayf_core.tangents.dual import Dual
from ayf_core.times import LogitNormalTime
from ayf_core.velocity import Autoguidance
from tests.made import intervals, matching, mlp, objective, tangent, without_zeros

BACKENDS = names("tangent")
OBJECTIVES = [EulerianDistillation, LagrangianDistillation]
DATA = Gaussian(torch.tensor([0.5, -1.0]), torch.tensor([[1.0, 0.3], [0.3, 0.5]]))


def small_network(guidance=False, dtype=torch.float64):
    torch.manual_seed(0)
    network = build_network(mlp(classes=1, interval=True, guidance=guidance)).to(dtype)
    return without_zeros(network, 0.3)


def batch_of(count, dtype=torch.float64):
    x = DATA.sample(count, torch.Generator().manual_seed(3)).to(dtype)
    return Batch(x, Condition(labels=torch.zeros(count, dtype=torch.long)))


def gradient_of(network):
    return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


class ExactMeanVelocity(nn.Module):
    """The Gaussian's exact F plus a learnt constant, which is right at zero."""

    def __init__(self, error=0.0):
        super().__init__()
        self.offset = nn.Parameter(torch.full((2,), error, dtype=torch.float64))

    def forward(self, x, t, s, condition=None, guidance_scale=None):
        return DATA.mean_velocity(x, t, s) + self.offset


def distillation(kind, **settings):
    given = {"tangent": tangent(**({"warmup_max": 1.0} | settings)), "steps": 200}
    return objective(kind, **given) if kind is MeanFlow else objective(kind, teacher=DATA, **given)


@pytest.mark.parametrize("backend", ["dual", "split"])
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_tangent_and_gradient_vanish_at_the_exact_flow_map(kind, normalise, backend):
    network = ExactMeanVelocity()
    loss_of = distillation(kind, normalise=normalise, backend=backend)
    loss = loss_of(network, batch_of(64), StepRandom(0, 0, 64), step=0)
    loss.value.backward()
    assert float(loss.metrics["loss"]) < 1e-9  # the mean raw tangent norm
    assert network.offset.grad.abs().max() < 1e-9


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_tangent_does_not_vanish_away_from_the_exact_flow_map(kind):
    network = ExactMeanVelocity(error=0.1)
    loss = distillation(kind)(network, batch_of(64), StepRandom(0, 0, 64), step=0)
    assert float(loss.metrics["loss"]) > 0.05


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_descent_returns_to_the_exact_flow_map(kind):
    network = ExactMeanVelocity(error=0.3)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.3)
    loss_of = distillation(kind, normalise=False)
    for step in range(40):
        optimizer.zero_grad()
        loss_of(network, batch_of(32), StepRandom(0, step, 32), step=step).value.backward()
        optimizer.step()
    assert network.offset.abs().max() < 0.03


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_warmup_short_of_one_pulls_the_exact_flow_map_towards_straight_paths(kind):
    loss = distillation(kind, warmup_max=0.5)(ExactMeanVelocity(), batch_of(64), StepRandom(0, 0, 64), step=0)
    assert float(loss.metrics["loss"]) > 1e-2


def test_tangent_warmup_grows_with_the_global_step_and_then_stays():
    settings = tangent(warmup_max=0.99, warmup_fraction=0.25)
    assert [settings.warmup(step, steps=4000) for step in (0, 100, 500, 1000, 10**6)] == pytest.approx(
        [0.0, 0.099, 0.495, 0.99, 0.99]
    )
    assert settings.warmup(100, steps=400) == 0.99
    assert tangent(warmup_max=0.99, warmup_fraction=0.0).warmup(0, steps=4000) == 0.99


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_the_step_decides_how_much_the_derivative_counts(kind):
    network, batch, random = small_network(), batch_of(8), StepRandom(0, 0, 8)
    loss_of = distillation(kind, warmup_max=0.99, warmup_fraction=0.5)
    early, middle, late, later = (
        float(loss_of(network, batch, random, step=step).value.detach()) for step in (0, 50, 100, 5000)
    )
    assert early != middle != late
    assert late == later
    assert float(loss_of.past_warmup()(network, batch, random, step=0).value.detach()) == late


def test_normalised_tangent_has_the_length_the_paper_gives():
    g = torch.tensor([[3.0, 4.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    plain = normalise_tangent(g, tangent(normalisation_constant=0.1))
    torch.testing.assert_close(plain, g / 5.1)
    divided = normalise_tangent(g, tangent(normalisation_constant=0.1, divide_by_sqrt_dim=True))
    torch.testing.assert_close(divided, g / (5.0 / 2 + 0.1))
    assert normalise_tangent(g, tangent(normalise=False)) is g


def test_normalisation_takes_each_image_as_one_vector():
    g = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    normalised = normalise_tangent(g, tangent(normalisation_constant=1e-12))
    torch.testing.assert_close(normalised.flatten(1).norm(dim=1), torch.ones(3))


def test_gradient_of_the_loss_is_the_weighted_normalised_tangent(generator):
    value = torch.randn(4, 2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    raw = torch.randn(4, 2, 3, generator=generator, dtype=torch.float64)
    weight = torch.tensor([1.0, 0.5, 2.0, 0.0], dtype=torch.float64)
    settings = tangent()
    loss, kept = tangent_loss(value, raw, weight, settings)
    loss.backward()
    torch.testing.assert_close(value.grad, weight[:, None, None] * normalise_tangent(raw, settings) / 4)
    assert kept.all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_tangent_that_is_not_finite_leaves_the_gradients_of_the_others(generator, bad):
    value = torch.randn(4, 3, generator=generator, requires_grad=True)
    raw = torch.randn(4, 3, generator=generator)
    tangent_loss(value, raw, torch.ones(4), tangent())[0].backward()
    expected, value.grad = value.grad, None
    raw[1, 2] = bad
    loss, kept = tangent_loss(value, raw, torch.ones(4), tangent())
    loss.backward()
    assert kept.tolist() == [True, False, True, True]
    assert not value.grad[1].any()
    torch.testing.assert_close(value.grad[[0, 2, 3]], expected[[0, 2, 3]], rtol=0, atol=0)
    assert loss.isfinite()


class BrokenTeacher:
    """Right but for one sample, where it is NaN."""

    evaluations_per_call = 1

    def __init__(self, row):
        self.row = row

    def __call__(self, x, t, condition=None, guidance_scale=None):
        velocity = DATA.velocity(x, t).clone()
        velocity[self.row] = float("nan")
        return velocity


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", OBJECTIVES)
def test_teacher_that_fails_on_one_sample_leaves_the_gradients_of_the_others(kind, backend):
    loss_of = replace(distillation(kind, backend=backend), teacher=BrokenTeacher(2))
    network, batch = small_network(), batch_of(6)
    loss = loss_of(network, batch, StepRandom(0, 7, 6), step=0, monitor=True)
    loss.value.backward()
    spoilt = gradient_of(network)
    network.zero_grad()

    # The other five alone: same draws, a mean over six.
    for rows in (slice(0, 2), slice(3, 6)):
        part = Batch(batch.x[rows], batch.condition.rows(rows))
        alone = distillation(kind, backend=backend)(network, part, StepRandom(0, 7, rows), step=0)
        (alone.value * len(part.x) / 6).backward()
    torch.testing.assert_close(spoilt, gradient_of(network), rtol=1e-10, atol=1e-12)
    assert float(loss.metrics["masked_samples"]) == pytest.approx(1 / 6)
    assert loss.metrics["loss"].isfinite(), "the log must go on where one sample is left out"


def test_weightings_are_one_and_the_interval():
    t, s = torch.tensor([0.9, 0.5]), torch.tensor([0.1, 0.5])
    torch.testing.assert_close(weightings.uniform(t, s), torch.ones(2))
    torch.testing.assert_close(weightings.interval(t, s), torch.tensor([0.8, 0.0]))


def test_interval_weighting_reaches_the_loss():
    network, batch = small_network(), batch_of(1)
    random = StepRandom(0, 0, 1)
    plain = distillation(EulerianDistillation)
    weighted = replace(plain, weighting="interval")
    t, s = plain.time_law.sample(random)
    with torch.no_grad():
        ratio = float(weighted(network, batch, random, 0).value / plain(network, batch, random, 0).value)
    assert ratio == pytest.approx(float(t - s))


def test_guidance_scales_fill_their_range_and_reach_teacher_and_student():
    law = Autoguided(scale_min=1.0, scale_max=3.0)
    scales = law.sample(StepRandom(0, 0, 4000))
    assert scales.min() >= 1
    assert scales.max() <= 3
    assert float(scales.mean()) == pytest.approx(2.0, abs=0.05)
    assert float(scales.std()) == pytest.approx(2 / math.sqrt(12), abs=0.02)
    assert (Autoguided(scale_min=1.0, scale_max=1.0).sample(StepRandom(0, 0, 10)) == 1).all()

    told = {}

    def teacher(x, t, condition=None, guidance_scale=None):
        told["teacher"] = guidance_scale
        return torch.zeros_like(x)

    class Student(nn.Module):
        def forward(self, x, t, s, condition=None, guidance_scale=None):
            told["student"] = guidance_scale
            return 0 * x

    loss_of = objective(EulerianDistillation, teacher=teacher, guidance=law)
    loss_of(Student(), batch_of(16), StepRandom(0, 0, 16), step=0)
    expected = law.sample(StepRandom(0, 0, 16))
    torch.testing.assert_close(told["teacher"], expected, rtol=0, atol=0)
    torch.testing.assert_close(told["student"], expected, rtol=0, atol=0)


def test_a_law_of_one_scale_draws_nothing_else_than_one_of_many():
    # λ has draws of its own: whether the student is guided does not move the points it is trained on.
    plain = distillation(EulerianDistillation)
    guided = replace(plain, guidance=Autoguided(scale_min=1.0, scale_max=3.0))
    one, other = (each.draw(batch_of(16), StepRandom(0, 0, 16)).point for each in (plain, guided))
    assert torch.equal(one.x, other.x)
    assert torch.equal(one.t, other.t)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_lambda_one_of_autoguidance_trains_as_the_teacher_alone(kind):
    other = Gaussian(torch.zeros(2), torch.eye(2))
    network, batch, random = small_network(), batch_of(8), StepRandom(0, 0, 8)
    plain = distillation(kind)
    guided = replace(plain, teacher=Autoguidance(DATA, other), guidance=Autoguided(scale_min=1.0, scale_max=1.0))
    stronger = replace(guided, guidance=Autoguided(scale_min=2.0, scale_max=2.0))
    expected = float(plain(network, batch, random, 0).value.detach())
    assert float(guided(network, batch, random, 0).value.detach()) == pytest.approx(expected, rel=1e-12)
    assert float(stronger(network, batch, random, 0).value.detach()) != pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("kind", OBJECTIVES)
def test_monitoring_adds_diagnostics_and_leaves_the_loss(kind):
    network, batch, random = small_network(), batch_of(64), StepRandom(0, 0, 64)
    plain = distillation(kind)(network, batch, random, 0)
    watched = distillation(kind)(network, batch, random, 0, monitor=True)
    assert torch.equal(plain.value, watched.value)
    quantities = {name.split("/")[0] for name in watched.metrics}
    assert quantities >= {"tangent_norm", "derivative_norm", "velocity_residual", "tangent_warmup", "loss"}


def test_velocity_residual_is_zero_for_a_student_that_knows_the_velocity():
    metrics = distillation(EulerianDistillation)(
        ExactMeanVelocity(), batch_of(256), StepRandom(0, 0, 256), 0, monitor=True
    ).metrics
    residuals = [float(value) for name, value in metrics.items() if name.startswith("velocity_residual/")]
    assert len(residuals) == 4
    assert max(residuals) < 1e-18


def test_bins_hold_the_mean_of_their_quarter_and_the_end_belongs_to_the_last():
    values = torch.tensor([1.0, 3.0, 5.0, 7.0])
    bins = mean_by_bins("norm", "t", values, torch.tensor([0.0, 0.2, 0.75, 1.0]))
    assert bins["norm/t_0.00"] == 2.0
    assert bins["norm/t_0.75"] == 6.0
    assert bins["norm/t_0.25"].isnan()
    assert bins["norm/t_0.50"].isnan()


@pytest.mark.parametrize("kind", [*OBJECTIVES, MeanFlow])
def test_objective_checks_its_back_end_in_both_directions(monkeypatch, kind):
    network, batch = small_network(), batch_of(4)
    tight = distillation(kind, self_check_tolerance=1e-6)
    assert tight.self_check(network, batch, StepRandom(0, 0, 4)) < 1e-6

    right = engines.dual

    def blind_to_s(network, point, direction):
        value, derivative = right(network, point, direction)
        return value, derivative * (0 if direction.t is None else 1)  # zero along (0, 0, 1)

    monkeypatch.setattr(engines, "dual", blind_to_s)
    with pytest.raises(AyfError, match="off by"):
        distillation(kind, self_check_tolerance=1e-2).self_check(network, batch, StepRandom(0, 0, 4))


def test_flow_matching_is_the_mean_squared_error_of_the_velocity():
    class Still(nn.Module):
        def forward(self, x, t, s=None, condition=None, guidance_scale=None):
            return torch.zeros_like(x)

    batch, random = batch_of(32), StepRandom(0, 0, 32)
    noise = random.normal("noise", (2,), torch.float64)
    loss = matching()(Still(), batch, random, 0, monitor=True)
    assert float(loss.value) == pytest.approx(float((noise - batch.x).square().mean()))
    assert any(name.startswith("velocity_error/t_") for name in loss.metrics)


@pytest.mark.parametrize(("dropout", "expected"), [(0.0, 0.0), (0.25, 0.25), (1.0, 1.0)])
def test_flow_matching_drops_the_asked_share_of_labels(dropout, expected):
    seen = {}

    class Listener(nn.Module):
        def forward(self, x, t, s=None, condition=None, guidance_scale=None):
            seen["labels"] = condition["labels"]
            return x

    batch = Batch(torch.zeros(4000, 2), Condition(labels=torch.arange(4000) % 10))
    matching(conditions=class_labels(10), label_dropout=dropout)(Listener(), batch, StepRandom(0, 0, 4000), 0)
    dropped = seen["labels"] == 10
    assert float(dropped.double().mean()) == pytest.approx(expected, abs=0.03)
    assert (seen["labels"][~dropped] == batch.condition["labels"][~dropped]).all()


def test_logit_normal_time_lies_inside_the_path_with_its_median_at_the_logistic_of_the_mean():
    t = LogitNormalTime(mean=-1.0, std=1.0).sample(StepRandom(0, 0, 20_000))
    assert t.dtype == torch.float64
    assert t.min() > 0
    assert t.max() < 1
    assert float(t.median()) == pytest.approx(1 / (1 + math.e), abs=0.01)


class LinearDiscriminator(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.3, -0.2], dtype=torch.float64))

    def forward(self, x, condition=None):
        return torch.tanh(x @ self.weight)


def test_adversarial_finish_adds_a_push_as_strong_as_its_share_of_the_distillation():
    network, batch, random = small_network(), batch_of(16), StepRandom(0, 0, 16)
    base = distillation(EulerianDistillation)
    discriminator = LinearDiscriminator()

    def last_layer_gradient(loss_of):
        network.zero_grad()
        loss_of(network, batch, random, 0).value.backward()
        return network.last_layer.grad.clone()

    alone = last_layer_gradient(base)
    finish = AdversarialFinish(distillation=base, discriminator=discriminator, weight=0.1, guidance_scale=None)
    push = last_layer_gradient(finish) - alone
    assert float(push.norm() / alone.norm()) == pytest.approx(0.1, rel=1e-3)
    assert discriminator.weight.grad is None
    assert discriminator.weight.requires_grad


def test_discriminator_objective_leaves_the_generator_alone():
    network, batch, random = small_network(), batch_of(16), StepRandom(0, 0, 16)
    discriminator = LinearDiscriminator()
    loss_of = DiscriminatorObjective(generator=network, r1=0.1, r2=0.1, guidance_scale=None)
    loss = loss_of(discriminator, batch, random, 0)
    loss.value.backward()
    assert discriminator.weight.grad.abs().max() > 0
    assert all(p.grad is None for p in network.parameters())
    assert 0 <= float(loss.metrics["accuracy"]) <= 1


def test_every_objective_says_whether_it_needs_a_teacher():
    found = {name: each.facts["needs_teacher"] for name, each in components("objective").items()}
    assert found == {"emd": True, "lmd": True, "mean_flow": False}
    assert components("objective")["emd"].title == "Student, AYF-EMD"


@pytest.mark.slow
def test_mean_flow_has_on_average_the_gradient_of_distilling_the_exact_velocity():
    # The raw tangent is linear in the velocity, and the marginal velocity is the mean of the conditional one.
    network = small_network()
    settings = {"normalise": False, "warmup_max": 1.0}
    differences, expected = [], []
    for step in range(100):
        batch = Batch(DATA.sample(2000, torch.Generator().manual_seed(step)), Condition())
        gradients = []
        for kind in (MeanFlow, EulerianDistillation):
            network.zero_grad()
            distillation(kind, **settings)(network, batch, StepRandom(0, step, 2000), step=0).value.backward()
            gradients.append(gradient_of(network))
        differences.append(gradients[0] - gradients[1])
        expected.append(gradients[1])
    difference, mean = torch.stack(differences), torch.stack(expected).mean(0)
    error = difference.std(0) / len(difference) ** 0.5
    # In units of their standard errors the means of the differences are about normal: their mean square is about 1.
    assert float((difference.mean(0) / error).square().mean()) < 1.6
    assert float(error.norm() / mean.norm()) < 0.05, "the average must be fine enough to tell"


def test_mean_flow_on_the_diagonal_is_flow_matching():
    network, batch, random = small_network(), batch_of(64), StepRandom(0, 0, 64)
    loss_of = replace(distillation(MeanFlow, normalise=False), time_law=intervals(diagonal_fraction=1.0))
    loss_of(network, batch, random, step=0).value.backward()
    found = gradient_of(network)
    network.zero_grad()
    point, velocity, _ = loss_of.draw(batch, random)
    assert torch.equal(point.t, point.s)
    residual = network(point.x, point.t, point.t) - velocity
    (0.5 * residual.flatten(1).square().sum(dim=1).mean()).backward()
    torch.testing.assert_close(found, gradient_of(network), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("fraction", [0.3, 1.0])
@pytest.mark.parametrize("kind", [EulerianDistillation, LagrangianDistillation, MeanFlow])
def test_no_derivative_on_the_diagonal_and_the_same_gradient(monkeypatch, kind, fraction):
    network, batch, random = small_network(), batch_of(64), StepRandom(0, 0, 64)
    loss_of = replace(distillation(kind), time_law=intervals(diagonal_fraction=fraction))
    moving = []
    network.register_forward_hook(lambda module, args, result: moving.append((len(result), type(result))))
    loss_of(network, batch, random, step=500).value.backward()
    found, calls = gradient_of(network), list(moving)
    network.zero_grad()
    monkeypatch.setattr(type(loss_of.time_law), "diagonal", lambda law, random: None)
    loss_of(network, batch, random, step=500).value.backward()
    torch.testing.assert_close(found, gradient_of(network), rtol=1e-10, atol=1e-12)
    t, s = loss_of.time_law.sample(random)
    off = int((t != s).sum())
    assert [(max(off, 1), Dual), (64 - off, torch.Tensor)] == calls[:2]


def test_mean_flow_watches_the_error_of_its_velocity_and_tells_the_network_no_guidance_scale():
    network, batch, random = small_network(guidance=True), batch_of(64), StepRandom(0, 0, 64)
    loss = distillation(MeanFlow)(network, batch, random, step=0, monitor=True)
    assert any(name.startswith("velocity_error/t_") for name in loss.metrics)
    assert distillation(MeanFlow).draw(batch, random).point.guidance_scale is None

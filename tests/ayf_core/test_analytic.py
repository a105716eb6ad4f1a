"""Properties that define a flow map and its velocity, on the exact fields."""

import pytest
import torch

from ayf_core.analytic import Gaussian, GaussianMixture, consistency_optimum
from ayf_core.conditions import Condition
from ayf_core.errors import AyfError


def gaussian():
    return Gaussian(torch.tensor([0.5, -1.0]), torch.tensor([[1.5, 0.4], [0.4, 0.3]]))


def mixture():
    return GaussianMixture(
        torch.tensor([1.0, 3.0]),
        torch.tensor([[2.0, 0.0], [-1.0, 1.0]]),
        torch.tensor([[[0.2, 0.05], [0.05, 0.1]], [[0.3, 0.0], [0.0, 0.4]]]),
    )


fields = pytest.mark.parametrize("field", [gaussian(), mixture()], ids=["gaussian", "mixture"])


def draws(n=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, dtype=torch.float64, generator=generator)
    times = torch.rand(3, n, dtype=torch.float64, generator=generator)
    return x, *times


@fields
def test_flow_map_at_equal_times_is_identity(field):
    x, t, *_ = draws()
    torch.testing.assert_close(field.flow_map(x, t, t), x, rtol=0, atol=1e-12)


@fields
def test_two_jumps_equal_one_jump(field):
    x, t, u, s = draws()
    torch.testing.assert_close(
        field.flow_map(field.flow_map(x, t, u), u, s), field.flow_map(x, t, s), rtol=1e-8, atol=1e-8
    )


@fields
def test_slope_of_the_flow_map_at_equal_times_is_the_velocity(field):
    x, t, *_ = draws()
    h = 1e-4
    slope = (field.flow_map(x, t, t + h) - field.flow_map(x, t, t - h)) / (2 * h)
    torch.testing.assert_close(slope, field.velocity(x, t), rtol=1e-5, atol=1e-5)


@fields
def test_velocity_solves_the_continuity_equation(field):
    x, t, *_ = draws()
    h = 1e-5
    flux = torch.zeros_like(t)
    for axis in range(2):
        step = h * torch.eye(2, dtype=torch.float64)[axis]
        ahead, behind = (field.log_density(p, t).exp() * field.velocity(p, t)[:, axis] for p in (x + step, x - step))
        flux += (ahead - behind) / (2 * h)
    growth = (field.log_density(x, t + h).exp() - field.log_density(x, t - h).exp()) / (2 * h)
    torch.testing.assert_close(growth, -flux, rtol=1e-5, atol=1e-7)


@fields
def test_samples_have_the_moments_of_the_data(field):
    n = 200_000
    x = field.sample(n, torch.Generator().manual_seed(0))
    parts = field.components if isinstance(field, GaussianMixture) else [field]
    weights = field.weights if isinstance(field, GaussianMixture) else torch.ones(1)
    mean = sum(w * p.mean for w, p in zip(weights, parts, strict=True))
    second = sum(w * (p.cov + torch.outer(p.mean, p.mean)) for w, p in zip(weights, parts, strict=True))
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.02)
    torch.testing.assert_close(x.T @ x / n, second, rtol=0, atol=0.05)


@fields
def test_results_keep_the_dtype_of_the_points(field):
    x, t, s, _ = draws()
    assert field(x.float(), t).dtype == torch.float32
    assert field.flow_map(x.float(), t, s).dtype == torch.float32


@fields
def test_conditions_and_guidance_are_ignored(field):
    x, t, s, _ = draws()
    condition, scale = Condition(labels=torch.zeros(6, dtype=torch.long)), torch.full((6,), 3.0)
    assert torch.equal(field(x, t, condition, scale), field(x, t))
    assert torch.equal(field.flow_map(x, t, s, condition, scale), field.flow_map(x, t, s))


def test_gaussian_mean_velocity_is_the_scaled_displacement():
    x, t, s, _ = draws()
    field = gaussian()
    displacement = (field.flow_map(x, t, s) - x) / (s - t)[:, None]
    torch.testing.assert_close(field.mean_velocity(x, t, s), displacement)


def test_gaussian_flow_map_satisfies_the_eulerian_equation_exactly():
    x, t, s, _ = draws()
    field = gaussian()
    tangents = (field.velocity(x, t), torch.ones_like(t), torch.zeros_like(s))
    _, derivative = torch.func.jvp(field.flow_map, (x, t, s), tangents)
    torch.testing.assert_close(derivative, torch.zeros_like(x), rtol=0, atol=1e-12)


def test_gaussian_flow_map_satisfies_the_lagrangian_equation_exactly():
    x, t, s, _ = draws()
    field = gaussian()
    tangents = (torch.zeros_like(x), torch.zeros_like(t), torch.ones_like(s))
    arrived, derivative = torch.func.jvp(field.flow_map, (x, t, s), tangents)
    torch.testing.assert_close(derivative, field.velocity(arrived, s), rtol=1e-12, atol=1e-12)


def test_mixture_of_one_component_is_that_gaussian():
    x, t, s, _ = draws()
    single = gaussian()
    alone = GaussianMixture(torch.ones(1), single.mean[None], single.cov[None])
    torch.testing.assert_close(alone.velocity(x, t), single.velocity(x, t))
    torch.testing.assert_close(alone.flow_map(x, t, s), single.flow_map(x, t, s), rtol=1e-9, atol=1e-9)


def test_consistency_optimum_is_the_flow_map_to_time_zero():
    x, t, *_ = draws()
    field = Gaussian(torch.zeros(2), 0.25 * torch.eye(2))
    torch.testing.assert_close(consistency_optimum(x, t, 0.5), field.flow_map(x, t, torch.zeros_like(t)))


def test_a_covariance_that_is_not_positive_definite_is_refused():
    with pytest.raises(AyfError, match="positive definite"):
        Gaussian(torch.zeros(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]]))
    with pytest.raises(AyfError, match="weights"):
        GaussianMixture(torch.tensor([1.0, -1.0]), torch.zeros(2, 1), torch.ones(2, 1, 1))

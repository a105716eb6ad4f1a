"""Samplers on exact fields: marginals kept, orders of convergence, honest counts, clear refusals."""

import sys
from itertools import pairwise

import pytest
import torch

from ayf_core.analytic import Gaussian
from ayf_core.conditions import Condition
from ayf_core.errors import AyfError
from ayf_core.sampling.flow_map_chain import sample_flow_map
from ayf_core.sampling.grids import polynomial_grid, shifted_grid, uniform_grid
from ayf_core.sampling.ode import solve_ode
from ayf_core.sampling.settings import SamplingSettings, read_grid

FIELD = Gaussian(torch.tensor([0.5, -1.0]), torch.tensor([[1.5, 0.4], [0.4, 0.3]]))


def noise(n=64, seed=0):
    return torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def exact(x):
    return FIELD.flow_map(x, torch.ones(len(x)), torch.zeros(len(x)))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("end", [0.0, 0.4])
def test_gamma_sampling_with_an_exact_map_keeps_the_marginals(gamma, end):
    n = 400_000
    grid = 1 + (end - 1) * torch.tensor([0.0, 0.2, 0.5, 0.8, 1.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    x = sample_flow_map(FIELD.flow_map, noise(n), grid, gamma=gamma, generator=generator).x
    cov = (1 - end) ** 2 * FIELD.cov + end**2 * torch.eye(2, dtype=torch.float64)
    # About four standard errors of a mean and of a variance for n draws.
    torch.testing.assert_close(x.mean(0), (1 - end) * FIELD.mean, rtol=0, atol=8e-3)
    torch.testing.assert_close(x.T.cov(), cov, rtol=0, atol=1.4e-2)


def test_deterministic_chain_of_an_exact_map_is_one_exact_jump():
    x = noise()
    chained = sample_flow_map(FIELD.flow_map, x, uniform_grid(5)).x
    torch.testing.assert_close(chained, exact(x))


def test_half_gamma_jumps_past_the_target_by_the_documented_time():
    asked = []

    def spy(x, t, s, condition, guidance_scale):
        asked.append((t[0].item(), s[0].item()))
        return FIELD.flow_map(x, t, s)

    sample_flow_map(spy, noise(2), torch.tensor([1.0, 0.6, 0.0]), gamma=0.5)
    target_sigma = (1 - 0.5**2) ** 0.5 * 0.6 / 0.4
    assert asked[0] == pytest.approx((1.0, target_sigma / (1 + target_sigma)), abs=1e-7)
    assert asked[1] == pytest.approx((0.6, 0.0), abs=1e-7)


def test_gamma_one_is_consistency_sampling():
    asked = []

    def spy(x, t, s, condition, guidance_scale):
        asked.append(s[0].item())
        return torch.zeros_like(x)

    x = sample_flow_map(spy, noise(50_000), torch.tensor([1.0, 0.7, 0.3]), gamma=1.0).x
    assert asked == [0.0, 0.0]
    assert x.std().item() == pytest.approx(0.3, abs=0.005)


def test_same_generator_seed_gives_the_same_samples_and_another_seed_does_not():
    def run(seed):
        generator = torch.Generator().manual_seed(seed)
        return sample_flow_map(FIELD.flow_map, noise(), uniform_grid(3), gamma=0.5, generator=generator).x

    assert torch.equal(run(0), run(0))
    assert not torch.equal(run(0), run(1))


def test_flow_map_costs_one_evaluation_a_jump():
    assert sample_flow_map(FIELD.flow_map, noise(2), uniform_grid(4), gamma=0.5).nfe == 4


@pytest.mark.parametrize(("method", "calls"), [("euler", 32), ("heun", 63)])
def test_ode_evaluations_are_calls_times_the_cost_of_a_call(method, calls):
    class Counting:
        evaluations_per_call = 2
        calls = 0

        def __call__(self, x, t, condition=None, guidance_scale=None):
            self.calls += 1
            return FIELD(x, t)

    velocity = Counting()
    samples = solve_ode(velocity, noise(2), uniform_grid(32), method)
    assert velocity.calls == calls
    assert samples.nfe == 2 * calls


def test_heun_that_stops_before_data_uses_two_calls_in_every_step():
    assert solve_ode(FIELD, noise(2), torch.tensor([1.0, 0.5, 0.2]), "heun").nfe == 4


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2)])
def test_halving_the_step_divides_the_error_by_two_to_the_order(method, order):
    x = noise()
    errors = [(solve_ode(FIELD, x, uniform_grid(n), method).x - exact(x)).norm().item() for n in (128, 256, 512)]
    for coarse, fine in pairwise(errors):
        assert coarse / fine == pytest.approx(2**order, rel=0.06)


def test_dopri5_reaches_the_exact_map_and_counts_its_evaluations():
    pytest.importorskip("torchdiffeq")
    x = noise()
    tight = solve_ode(FIELD, x, uniform_grid(1), "dopri5", rtol=1e-9, atol=1e-9)
    loose = solve_ode(FIELD, x, uniform_grid(1), "dopri5", rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(tight.x, exact(x), rtol=1e-7, atol=1e-7)
    assert tight.nfe > loose.nfe > 6


def test_dopri5_without_torchdiffeq_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(AyfError, match=r"torchdiffeq.*pip install"):
        solve_ode(FIELD, noise(2), uniform_grid(1), "dopri5")


@pytest.mark.parametrize("method", ["euler", "heun", "dopri5"])
def test_samples_keep_the_dtype_of_the_noise_while_time_stays_float64(method):
    class Spy:
        evaluations_per_call = 1

        def __call__(self, x, t, condition=None, guidance_scale=None):
            assert t.dtype == torch.float64
            assert t.shape == (len(x),)
            assert x.dtype == torch.float32
            return FIELD(x, t).double()

    assert solve_ode(Spy(), noise(4).float(), uniform_grid(3), method).x.dtype == torch.float32
    chain = sample_flow_map(FIELD.flow_map, noise(4).float(), uniform_grid(3), gamma=0.5)
    assert chain.x.dtype == torch.float32


def test_condition_and_guidance_reach_the_network():
    condition, scale = Condition(labels=torch.tensor([3, 7])), torch.tensor([1.0, 2.0])
    seen = []

    class Spy:
        evaluations_per_call = 1

        def __call__(self, x, t, condition=None, guidance_scale=None):
            seen.append((condition, guidance_scale))
            return x

    solve_ode(Spy(), noise(2), uniform_grid(1), "euler", condition, scale)
    sample_flow_map(
        lambda x, t, s, condition, guidance_scale: seen.append((condition, guidance_scale)) or x,
        noise(2),
        uniform_grid(1),
        condition,
        scale,
    )
    assert len(seen) == 2
    assert all(told is condition and seen_scale is scale for told, seen_scale in seen)


def test_sampling_records_no_gradient():
    x = noise(2).requires_grad_()
    assert not sample_flow_map(FIELD.flow_map, x, uniform_grid(2)).x.requires_grad
    assert not solve_ode(FIELD, x, uniform_grid(2)).x.requires_grad


@pytest.mark.parametrize("grid", [uniform_grid(5), shifted_grid(5, 3.0), shifted_grid(5, 0.5), polynomial_grid(5, 3.0)])
def test_grids_fall_strictly_from_one_to_zero(grid):
    assert grid.dtype == torch.float64
    assert len(grid) == 6
    assert grid[0] == 1
    assert grid[-1] == 0
    assert bool((grid.diff() < 0).all())


def test_shift_and_rho_of_one_are_the_uniform_grid():
    torch.testing.assert_close(shifted_grid(7, 1.0), uniform_grid(7))
    torch.testing.assert_close(polynomial_grid(7, 1.0), uniform_grid(7))


def test_shift_leans_to_noise_and_rho_leans_to_data():
    middle = uniform_grid(8)[1:-1]
    assert bool((shifted_grid(8, 3.0)[1:-1] > middle).all())
    assert bool((polynomial_grid(8, 3.0)[1:-1] < middle).all())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: uniform_grid(0), "at least 1 step"),
        (lambda: shifted_grid(4, 0.0), "shift"),
        (lambda: polynomial_grid(4, -1.0), "rho"),
    ],
)
def test_grids_refuse_settings_out_of_range(make, message):
    with pytest.raises(AyfError, match=message):
        make()


@pytest.mark.parametrize(
    "times", [[1.0], [0.0, 1.0], [1.0, 0.5, 0.5, 0.0], [1.2, 0.0], [1.0, -0.1], [1.0, float("nan")]]
)
def test_malformed_grids_are_refused(times):
    grid = torch.tensor(times)
    with pytest.raises(AyfError, match="time grid"):
        sample_flow_map(FIELD.flow_map, noise(2), grid)
    with pytest.raises(AyfError, match="time grid"):
        solve_ode(FIELD, noise(2), grid)


def test_unknown_method_and_gamma_out_of_range_are_refused():
    with pytest.raises(AyfError, match="euler, heun or dopri5"):
        solve_ode(FIELD, noise(2), uniform_grid(1), "rk4")
    with pytest.raises(AyfError, match="gamma"):
        sample_flow_map(FIELD.flow_map, noise(2), uniform_grid(1), gamma=1.5)


@pytest.mark.parametrize("gamma", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("grid", ["uniform", "shifted:3.0", "shifted:0.4", "polynomial:2.0", "polynomial:0.6"])
def test_an_exact_map_keeps_the_marginals_on_every_grid(grid, gamma):
    n = 100_000
    settings = SamplingSettings(*read_grid(grid), gamma=gamma)
    x = sample_flow_map(
        FIELD.flow_map, noise(n), settings.times(4), gamma=settings.gamma, generator=torch.Generator().manual_seed(1)
    ).x
    # About four standard errors of a mean and of a variance for n draws.
    torch.testing.assert_close(x.mean(0), FIELD.mean, rtol=0, atol=1.6e-2)
    torch.testing.assert_close(x.T.cov(), FIELD.cov, rtol=0, atol=2.8e-2)


@pytest.mark.parametrize(
    ("settings", "times"),
    [
        (SamplingSettings(), [1, 0.75, 0.5, 0.25, 0]),
        (SamplingSettings("shifted", 3.0), [1, 0.9, 0.75, 0.5, 0]),
        (SamplingSettings("polynomial", 2.0), [1, 0.5625, 0.25, 0.0625, 0]),
    ],
)
def test_settings_say_the_times_of_their_grid(settings, times):
    assert settings.times(4).tolist() == pytest.approx(times)
    assert settings.times(1).tolist() == [1, 0]


@pytest.mark.parametrize("grid", ["shifted", "polynomial"])
def test_every_parameter_gives_times_that_a_chain_takes(grid):
    for parameter in torch.logspace(-1, 1, 201, dtype=torch.float64).tolist():
        times = SamplingSettings(grid, parameter).times(8)
        assert times[[0, -1]].tolist() == [1, 0]
        assert (times.diff() < 0).all()


def test_settings_come_back_from_their_dictionary_whatever_else_stands_there():
    settings = SamplingSettings("polynomial", 0.7, 0.25, 1.5)
    assert SamplingSettings.from_dict(settings.to_dict() | {"gain": 0.1}) == settings
    with pytest.raises(AyfError, match="lack gamma"):
        SamplingSettings.from_dict({"grid": "uniform", "grid_parameter": 1.0, "guidance_scale": None})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"grid": "cosine"}, "unknown time grid 'cosine': choose polynomial, shifted, uniform"),
        ({"grid": "shifted", "grid_parameter": 0.0}, "above 0"),
        ({"grid": "polynomial", "grid_parameter": float("inf")}, "above 0"),
        ({"grid_parameter": 2.0}, "takes no parameter"),
        ({"gamma": 1.01}, "gamma must lie in"),
        ({"gamma": "half"}, "gamma must lie in"),
        ({"guidance_scale": -1.0}, "guidance scale must be"),
        ({"guidance_scale": True}, "guidance scale must be"),
    ],
)
def test_settings_that_cannot_be_are_refused_in_one_line(values, message):
    with pytest.raises(AyfError, match=message) as caught:
        SamplingSettings(**values)
    assert "\n" not in str(caught.value)


def test_a_grid_is_written_as_its_name_and_parameter():
    assert read_grid("uniform") == ("uniform", 1.0)
    assert read_grid("shifted:2.0") == ("shifted", 2.0)
    assert read_grid("polynomial:0.7") == ("polynomial", 0.7)


@pytest.mark.parametrize("text", ["", "shifted", "shifted:", "shifted:two", "uniform:1", "cosine:1", "shifted:nan"])
def test_what_is_no_grid_is_refused_with_an_example(text):
    with pytest.raises(AyfError, match=r"write polynomial:0.7, shifted:2.0 or uniform"):
        read_grid(text)

"""The two objectives, run whole, against derivatives and gradients computed independently (tests/golden)."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from ayf_core.analytic import GaussianMixture
from ayf_core.conditions import Condition
from ayf_core.interpolants import LinearInterpolant, expand
from ayf_core.objectives.base import Batch
from ayf_core.objectives.eulerian import EulerianDistillation
from ayf_core.objectives.lagrangian import LagrangianDistillation
from ayf_core.objectives.tangent import normalise_tangent
from ayf_core.tangents.engines import value_and_derivative
from ayf_core.tangents.points import Point, eulerian_direction, lagrangian_direction
from ayf_core.times import PairLaw
from tests.made import objective, tangent

FILE = json.loads((Path(__file__).parents[1] / "golden" / "reference.json").read_text())
GOLDEN = FILE["objectives"]
TOLERANCE = {"dual": 1e-9, "split": 1e-9, "finite_difference": 2e-4}
KINDS = {"emd": EulerianDistillation, "lmd": LagrangianDistillation}


def tensor(values):
    return torch.tensor(values, dtype=torch.float64)


def column(key):
    return tensor([row[key] for row in GOLDEN["rows"]])


class Tanh(nn.Module):
    """W tanh(A x + b t + c s + e) with the golden weights; only W is trained."""

    def __init__(self):
        super().__init__()
        self.W = nn.Parameter(tensor(GOLDEN["W"]))
        for name in "Abce":
            self.register_buffer(name, tensor(GOLDEN[name]))

    def forward(self, x, t, s, condition=None, guidance_scale=None):
        return torch.tanh(x @ self.A.T + t[:, None] * self.b + s[:, None] * self.c + self.e) @ self.W.T


class GoldenTimes(PairLaw):
    """In place of a law of times and of a step's randomness: the times and the noise of chosen rows."""

    def __init__(self, rows=slice(None)):
        self.rows = rows

    def sample(self, random):
        return column("t")[self.rows], column("s")[self.rows]

    def normal(self, name, shape=(), dtype=torch.float32):
        assert name == "noise"
        return column("x1")[self.rows]


def teacher():
    about = FILE["mixture"]
    return GaussianMixture(tensor(about["weights"]), tensor(about["means"]), tensor(about["covs"]))


def settings(backend="dual", normalise=True):
    return tangent(backend=backend, warmup_max=GOLDEN["warmup_r"], normalise=normalise)


def gradient(kind, backend, row, normalise=True):
    rows = slice(row, row + 1)
    source = GoldenTimes(rows)
    loss = objective(KINDS[kind], teacher=teacher(), time_law=source, tangent=settings(backend, normalise))
    network = Tanh()
    loss(network, Batch(column("x0")[rows], Condition()), source, step=0).value.backward()
    return network.W.grad


def point():
    return Point(LinearInterpolant.interpolate(column("x0"), column("x1"), column("t")), column("t"), column("s"))


def assert_close(actual, expected, backend="dual"):
    torch.testing.assert_close(actual, expected, rtol=TOLERANCE[backend], atol=TOLERANCE[backend])


@pytest.mark.parametrize("backend", TOLERANCE)
def test_value_and_time_derivative_match_the_golden_values(backend):
    here = point()
    velocity = teacher().velocity(here.x, here.t)
    value, derivative = value_and_derivative(Tanh(), here, eulerian_direction(here, velocity), backend)
    assert_close(value.detach(), column("F"))
    assert_close(derivative, column("dF_dt"), backend)
    df_dt = (velocity - value.detach()) + expand(here.s - here.t, velocity) * derivative
    assert_close(df_dt, column("df_dt"), backend)


@pytest.mark.parametrize("backend", TOLERANCE)
def test_value_and_end_derivative_match_the_golden_values(backend):
    here = point()
    value, derivative = value_and_derivative(Tanh(), here, lagrangian_direction(here), backend)
    assert_close(value.detach(), column("F"))
    assert_close(derivative, column("dF_ds"), backend)
    df_ds = value.detach() + expand(here.s - here.t, value) * derivative
    assert_close(df_ds, column("df_ds"), backend)


@pytest.mark.parametrize("backend", TOLERANCE)
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_of_each_objective_matches_the_golden_values(kind, backend):
    for row in range(len(GOLDEN["rows"])):
        assert_close(gradient(kind, backend, row), column(f"{kind}_grad_W")[row], backend)


@pytest.mark.parametrize("kind", KINDS)
def test_raw_tangent_inside_each_objective_matches_the_golden_values(kind):
    # Without normalisation the gradient for W is tangent ⊗ features, which gives the tangent back.
    here = point()
    network = Tanh()
    features = torch.tanh(here.x @ network.A.T + here.t[:, None] * network.b + here.s[:, None] * network.c + network.e)
    for row, h in enumerate(features):
        raw = gradient(kind, "dual", row, normalise=False) @ h / h.square().sum()
        assert_close(raw, column(f"{kind}_tangent")[row])


@pytest.mark.parametrize("kind", KINDS)
def test_normalised_tangent_matches_the_golden_values(kind):
    normalised = normalise_tangent(column(f"{kind}_tangent"), settings())
    assert_close(normalised, column(f"{kind}_tangent_normalised"))


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_of_a_batch_is_the_mean_of_its_samples(kind):
    source = GoldenTimes()
    network = Tanh()
    loss = objective(KINDS[kind], teacher=teacher(), time_law=source, tangent=settings())
    loss(network, Batch(column("x0"), Condition()), source, step=0).value.backward()
    assert_close(network.W.grad, column(f"{kind}_grad_W").mean(0))

"""The derivative engine: its back ends agree, and its self-check catches one that is wrong."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from ayf_core.errors import AyfError
from ayf_core.networks.build import build_network
from ayf_core.registry import names
from ayf_core.tangents import engines
from ayf_core.tangents.check import self_check
from ayf_core.tangents.engines import central_difference, unwrap, value_and_derivative
from ayf_core.tangents.points import Point, eulerian_direction, lagrangian_direction
from tests.made import dit, labels, mlp, without_zeros

BACKENDS = names("tangent")
MLP = mlp(depth=3, interval=True, guidance=True)
DIT = dit((2, 4, 4), depth=2, interval=True, guidance=True)
SPECS = {"mlp": MLP, "dit": DIT}


def network_of(kind, dtype=torch.float64):
    torch.manual_seed(0)
    network = build_network(SPECS[kind]).to(dtype)
    return without_zeros(network, 0.2)


def point_of(kind, dtype=torch.float64, count=3):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(count, *SPECS[kind].shape, generator=generator, dtype=torch.float64).to(dtype)
    t = 0.5 + 0.4 * torch.rand(count, generator=generator, dtype=torch.float64)
    s = 0.4 * torch.rand(count, generator=generator, dtype=torch.float64)
    return Point(x, t, s, labels(torch.arange(count) % 3), torch.linspace(1, 2, count, dtype=torch.float64))


def directions_of(point):
    velocity = torch.randn(point.x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return {"eulerian": eulerian_direction(point, velocity), "lagrangian": lagrangian_direction(point)}


def exact_derivative(network, point, direction):
    """Fourth-order differences in float64, good to about 1e-10."""
    with torch.no_grad():
        coarse, fine = (central_difference(network, point, direction, h) for h in (4e-4, 2e-4))
    return (4 * fine - coarse) / 3


@pytest.mark.parametrize("way", ["eulerian", "lagrangian"])
@pytest.mark.parametrize("kind", SPECS)
@pytest.mark.parametrize("backend", ["dual", "split"])
def test_forward_mode_equals_float64_differences(backend, kind, way):
    network, point = network_of(kind), point_of(kind)
    direction = directions_of(point)[way]
    expected = exact_derivative(network, point, direction)
    value, derivative = value_and_derivative(network, point, direction, backend)
    assert expected.norm() > 1e-3
    torch.testing.assert_close(derivative, expected, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(value, network(*point), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", SPECS)
def test_every_back_end_gives_the_same_gradient_for_the_parameters(kind):
    gradients = {}
    for backend in BACKENDS:
        network, point = network_of(kind), point_of(kind)
        value, derivative = value_and_derivative(network, point, directions_of(point)["eulerian"], backend)
        assert not derivative.requires_grad
        value.square().sum().backward()
        gradients[backend] = torch.cat([p.grad.flatten() for p in network.parameters()])
    for backend in ("dual", "finite_difference"):
        torch.testing.assert_close(gradients[backend], gradients["split"], rtol=1e-10, atol=1e-12)


def test_finite_differences_in_float32_are_good_to_a_hundredth():
    network, point = network_of("dit"), point_of("dit")
    direction = directions_of(point)["eulerian"]
    expected = exact_derivative(network, point, direction)
    low = point._replace(x=point.x.float(), guidance_scale=point.guidance_scale.float())
    value, derivative = value_and_derivative(
        copy.deepcopy(network).float(), low, eulerian_direction(low, direction.x), "finite_difference"
    )
    assert value.dtype == torch.float32
    assert (derivative.double() - expected).norm() < 1e-2 * expected.norm()


def test_differences_evaluate_both_sides_with_the_same_dropout():
    network, point = network_of("mlp"), point_of("mlp")
    network.hidden.append(nn.Dropout(0.5))
    network.train()
    derivative = central_difference(network, point, lagrangian_direction(point), 1e-6)
    # Two different masks would differ by order one, over a step of 1e-6.
    assert derivative.abs().max() < 1e3


def test_unknown_back_end_names_those_there_are():
    with pytest.raises(AyfError, match=r"unknown derivative engine 'symbolic'.*dual, finite_difference, split"):
        value_and_derivative(network_of("mlp"), point_of("mlp"), lagrangian_direction(point_of("mlp")), "symbolic")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", SPECS)
def test_self_check_passes_for_every_back_end(kind, backend):
    torch.manual_seed(0)
    network = build_network(SPECS[kind])  # fresh, in float32, with its zero layers
    point = point_of(kind, torch.float32)
    before = copy.deepcopy(network.state_dict())
    for direction in directions_of(point).values():
        assert self_check(network, point, direction, backend, tolerance=1e-2) < 1e-2
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda derivative: 1.05 * derivative, id="too long"),
        pytest.param(lambda derivative: -derivative, id="wrong sign"),
        pytest.param(torch.zeros_like, id="zero"),
        pytest.param(lambda derivative: derivative.flip(0), id="rows exchanged"),
        pytest.param(lambda derivative: derivative * float("nan"), id="not a number"),
        pytest.param(lambda derivative: derivative / 0, id="infinite"),
    ],
)
@pytest.mark.parametrize("way", ["eulerian", "lagrangian"])
def test_self_check_refuses_a_wrong_back_end(monkeypatch, way, spoil):
    right = engines.dual

    def wrong(network, point, direction):
        value, derivative = right(network, point, direction)
        return value, spoil(derivative)

    monkeypatch.setattr(engines, "dual", wrong)
    torch.manual_seed(0)
    network = build_network(DIT)  # its output layer is zero: the check has to look behind it
    point = point_of("dit", torch.float32)
    with pytest.raises(AyfError, match="'dual': its derivative is off by"):
        self_check(network, point, directions_of(point)[way], "dual", tolerance=1e-2)


def test_self_check_leaves_the_random_state_as_it_was():
    network, point = network_of("mlp"), point_of("mlp")
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    self_check(network, point, lagrangian_direction(point), "dual", tolerance=1e-2)
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


def test_unwrap_gives_the_module_inside_a_compiled_one():
    network = network_of("mlp")
    assert unwrap(network) is network
    assert unwrap(torch.compile(network)) is network


def test_rows_of_a_point_keep_their_condition_and_scale():
    point = point_of("mlp", count=5)
    few = point.rows(slice(1, 3))
    assert torch.equal(few.x, point.x[1:3])
    assert torch.equal(few.t, point.t[1:3])
    assert torch.equal(few.s, point.s[1:3])
    assert few.condition["labels"].tolist() == [1, 2]
    assert torch.equal(few.guidance_scale, point.guidance_scale[1:3])
    bare = point._replace(condition=None, guidance_scale=None).rows(slice(0, 1))
    assert bare.condition is None
    assert bare.guidance_scale is None


class Deaf(nn.Module):
    """F that depends on x alone."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x, t, s, condition=None, guidance_scale=None):
        return self.layer(x)


@pytest.mark.parametrize("backend", ["dual", "split"])
def test_a_derivative_that_is_not_there_is_an_error_and_no_zero(backend):
    point = point_of("mlp", torch.float32)
    with pytest.raises(AyfError, match=f"'{backend}' found no derivative"):
        value_and_derivative(Deaf(), point, lagrangian_direction(point), backend)


def test_self_check_refuses_a_value_that_has_lost_its_gradient(monkeypatch):
    right = engines.dual

    def cut(network, point, direction):
        value, derivative = right(network, point, direction)
        return value.detach() + 0 * network.output.bias.sum(), derivative

    monkeypatch.setattr(engines, "dual", cut)
    network, point = network_of("mlp", torch.float32), point_of("mlp", torch.float32)
    with pytest.raises(AyfError, match="'dual': its gradient of the value is off by 1 "):
        self_check(network, point, lagrangian_direction(point), "dual", tolerance=1e-2)


class Checkpointed(nn.Module):
    """A network whose blocks are computed again in the backward pass."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        for block in network.blocks:
            forward = block.forward
            block.forward = lambda *args, forward=forward: checkpoint(forward, *args, use_reentrant=False)

    def forward(self, *point):
        return self.network(*point)


def test_activation_checkpointing_changes_nothing():
    found = []
    for wrap in (lambda network: network, Checkpointed):
        network, point = wrap(network_of("dit")), point_of("dit")
        value, derivative = value_and_derivative(network, point, directions_of(point)["eulerian"], "dual")
        value.square().sum().backward()
        found.append((value, derivative, [p.grad for p in network.parameters()]))
    torch.testing.assert_close(*found, rtol=0, atol=0)

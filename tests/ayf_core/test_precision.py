"""Precision is a setting of a training: what it covers, what stays in float32, and how its derivative is judged."""

import copy

import pytest
import torch
from torch import nn

from ayf_core.errors import AyfError
from ayf_core.networks.build import build_network
from ayf_core.precision import InPrecision, compute_in, matrix_products
from ayf_core.tangents.check import TANGENT_MAY_LOSE, self_check
from ayf_core.tangents.engines import value_and_derivative
from ayf_core.tangents.layers import layer_errors
from ayf_core.tangents.points import Point, eulerian_direction, lagrangian_direction
from ayf_core.training.context import LocalContext
from ayf_core.training.data import TensorData
from ayf_core.training.phases import Phase
from ayf_core.training.trainer import Trainer
from tests.ayf_core.trainings import training_settings
from tests.made import dit, labels, matching, mlp, without_zeros

SPECS = {
    "mlp": mlp(depth=3, interval=True, guidance=True),
    "dit": dit((2, 4, 4), depth=2, interval=True, guidance=True),
}


def network_of(kind):
    torch.manual_seed(0)
    network = build_network(SPECS[kind])
    return without_zeros(network, 0.2)


def point_of(shape, count=4):
    generator = torch.Generator().manual_seed(1)
    t = torch.tensor([0.9, 0.7, 0.5, 0.3], dtype=torch.float64)[:count]
    x = torch.randn(count, *shape, generator=generator)
    return Point(x, t, 0.5 * t, labels(torch.arange(count) % 3), torch.linspace(1, 2, count, dtype=torch.float64))


@pytest.mark.parametrize("backend", ["dual", "split"])
@pytest.mark.parametrize("kind", SPECS)
def test_low_precision_stops_at_the_door_of_the_network(kind, backend):
    network, point = network_of(kind), point_of(SPECS[kind].shape)
    direction = eulerian_direction(point, torch.ones_like(point.x))
    exact_value, exact_derivative = value_and_derivative(network, point, direction, backend)
    compute_in("bfloat16", network)
    inside = set()
    for module in network.modules():
        if isinstance(module, nn.Linear):
            module.register_forward_hook(lambda m, args, result: inside.add(result.dtype))
    value, derivative = value_and_derivative(network, point, direction, backend)
    assert value.dtype == derivative.dtype == torch.float32
    assert {parameter.dtype for parameter in network.parameters()} == {torch.float32}
    assert inside == {torch.bfloat16}
    for found, exact in ((value, exact_value), (derivative, exact_derivative)):
        assert 1e-4 < float(((found - exact).norm() / exact.norm()).detach()) < 0.05


def test_precision_goes_with_a_copy_and_is_no_state():
    network = network_of("dit")
    before = set(network.state_dict())
    compute_in("bfloat16", network)
    assert copy.deepcopy(network).precision == "bfloat16"
    assert set(network.state_dict()) == before


def test_a_class_that_cannot_is_refused_by_name():
    with pytest.raises(AyfError, match=r"Linear cannot compute in bfloat16: derive it from InPrecision"):
        compute_in("bfloat16", nn.Linear(1, 1))


def test_what_is_learnt_stays_in_float32(tmp_path):
    network = network_of("mlp")
    data = TensorData(torch.randn(16, 2), labels(torch.arange(16) % 3))
    settings = training_settings(steps=3, precision="bfloat16")
    phase = Phase(name="teacher", network=network, objective=matching())
    trainer = Trainer([phase], data, settings, LocalContext(tmp_path), seed=0)
    trainer.fit()
    assert network.precision == "bfloat16"
    tensors = [*network.parameters(), *(p.grad for p in network.parameters() if p.grad is not None)]
    optimiser = trainer.phases[0].optimizer.state.values()
    assert {t.dtype for t in tensors} | {v.dtype for entry in optimiser for v in entry.values()} == {torch.float32}


def test_what_is_differentiated_twice_stays_in_float32(tmp_path):
    network = network_of("mlp")
    phase = Phase(name="judge", network=network, objective=matching(), differentiated_twice=True)
    data = TensorData(torch.randn(16, 2), labels(torch.arange(16) % 3))
    Trainer([phase], data, training_settings(precision="bfloat16"), LocalContext(tmp_path), seed=0)
    assert network.precision == "float32"


def test_tensorfloat_is_chosen_and_given_back():
    def chosen():
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    before = chosen()
    with matrix_products("float32"):
        assert chosen() == ("highest", False)
    with matrix_products("tf32"):
        assert chosen() == ("high", True)
    with pytest.raises(AyfError), matrix_products("tf32"):
        raise AyfError("a training that fails")
    assert chosen() == before


def test_a_training_computes_its_products_as_it_says(tmp_path):
    seen = []

    class Looking(nn.Module):
        def after_step(self, step):
            seen.append(torch.get_float32_matmul_precision())

        name = "looking"

    network = network_of("mlp")
    data = TensorData(torch.randn(16, 2), labels(torch.arange(16) % 3))
    phase = Phase(name="teacher", network=network, objective=matching())
    settings = training_settings(steps=1, precision="tf32")
    Trainer([phase], data, settings, LocalContext(tmp_path), [Looking()], seed=0).fit()
    assert seen == ["high"]


@pytest.mark.parametrize("kind", SPECS)
def test_the_check_judges_in_the_networks_own_precision(kind):
    network, point = network_of(kind), point_of(SPECS[kind].shape)
    for direction in (eulerian_direction(point, torch.ones_like(point.x)), lagrangian_direction(point)):
        exact = self_check(network, point, direction, "dual", tolerance=1e-2)
        compute_in("bfloat16", network)
        low = self_check(network, point, direction, "dual", tolerance=1e-4)  # as much as its value loses is allowed
        compute_in("float32", network)
        assert exact < 1e-5 < 1e-3 < low < 0.05


def test_finite_differences_are_refused_in_low_precision():
    network, point = network_of("dit"), point_of(SPECS["dit"].shape)
    compute_in("bfloat16", network)
    with pytest.raises(AyfError, match=r"'finite_difference': its derivative is off by"):
        self_check(network, point, lagrangian_direction(point), "finite_difference", tolerance=1e-2)


class LinearAttention(nn.Module):
    """relu(q) relu(k)ᵀ v, normalised: its tangent is a difference of two large terms."""

    def __init__(self, width):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        nn.init.constant_(self.qkv.bias[2 * width :], 30.0)

    def forward(self, h):
        q, k, v = self.qkv(h).chunk(3, dim=-1)
        q, k = q.relu(), k.relu()
        return q @ (k.transpose(1, 2) @ v) / (q @ k.sum(1, keepdim=True).transpose(1, 2))


class LinearTransformer(InPrecision):
    def __init__(self, width=16):
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Linear(3, width)
        self.attention = LinearAttention(width)
        self.out = nn.Linear(width, 3)

    def forward(self, x, t, s, condition=None, guidance_scale=None):
        return self.out(self.attention(self.tokens(x) + (t - s)[:, None, None].to(x.dtype)))


def test_the_layer_whose_tangent_low_precision_spoils_is_named():
    network, point = LinearTransformer(), point_of((8, 3))
    direction = eulerian_direction(point, torch.randn(point.x.shape, generator=torch.Generator().manual_seed(3)))
    assert self_check(network, point, direction, "dual", tolerance=1e-2) < 1e-3
    compute_in("bfloat16", network)
    words = (
        r"in bfloat16 LinearAttention \(attention\) is right to \S+ in value and to \S+ in tangent; compute that layer"
    )
    with pytest.raises(AyfError, match=words):
        self_check(network, point, direction, "dual", tolerance=1e-2)


def test_errors_of_layers_do_not_add_up():
    """A layer is fed with exact inputs: behind one that loses much, the next loses as little as alone."""
    network, point = LinearTransformer(), point_of((8, 3))
    direction = eulerian_direction(point, torch.randn(point.x.shape, generator=torch.Generator().manual_seed(3)))
    errors = {error.name: error for error in layer_errors(network, point, direction, torch.bfloat16)}
    assert set(errors) == {"tokens", "attention", "attention.qkv", "out"}
    assert errors["attention"].kind == "LinearAttention"
    assert errors["attention"].tangent > TANGENT_MAY_LOSE * errors["attention"].value
    assert max(errors[name].tangent for name in ("out", "attention.qkv")) < 0.01

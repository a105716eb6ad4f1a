"""Compiled, or with activations computed again: what is trained stays the same, and what cannot be is said."""

import copy
import shutil

import pytest
import torch

from ayf_core.analytic import Gaussian
from ayf_core.errors import AyfError
from ayf_core.networks.build import build_network
from ayf_core.precision import compute_in
from ayf_core.tangents.check import self_check
from ayf_core.tangents.engines import value_and_derivative
from ayf_core.tangents.points import Point, eulerian_direction
from ayf_core.training.context import LocalContext
from ayf_core.training.data import TensorData
from ayf_core.training.memory import peak_bytes
from ayf_core.training.options import LoopOptions
from ayf_core.training.phases import Phase
from ayf_core.training.running import run_network
from ayf_core.training.trainer import Trainer
from ayf_core.velocity import NetworkVelocity
from tests.ayf_core.trainings import training_settings
from tests.made import dit, labels, mlp, objective, without_zeros

WAYS = {
    "compiled": {"compiled": True},
    "checkpointed": {"compiled": False, "checkpointed": True},
    "both": {"compiled": True, "checkpointed": True},
    "sharded": {"compiled": True, "sharded": True},
}
COMPILED = {"compiled", "both", "sharded"}  # a compiler works for seconds


def ways():
    return [pytest.param(way, marks=pytest.mark.compiler if way in COMPILED else ()) for way in WAYS]


def network_of(spec):
    torch.manual_seed(0)
    network = build_network(spec)
    return without_zeros(network, 0.2)


def point_of(shape, count=3):
    generator = torch.Generator().manual_seed(1)
    t = torch.tensor([0.9, 0.7, 0.5], dtype=torch.float64)
    scale = torch.linspace(1, 2, count, dtype=torch.float64)
    return Point(torch.randn(count, *shape, generator=generator), t, 0.5 * t, labels(torch.arange(count) % 3), scale)


def passed(network, point):
    """Value, derivative and gradient."""
    value, derivative = value_and_derivative(
        network, point, eulerian_direction(point, torch.ones_like(point.x)), "dual"
    )
    network.zero_grad()
    value.square().sum().backward()
    return value.detach(), derivative, torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("way", ways())
def test_value_derivative_and_gradient_stay_the_same(way, precision):
    spec = dit((2, 4, 4), depth=2, interval=True, guidance=True)
    network, point = network_of(spec), point_of(spec.shape)
    compute_in(precision, network)
    expected = passed(network, point)
    other = copy.deepcopy(network)
    names = set(other.state_dict())
    run_network(other, **WAYS[way])
    found = passed(other, point)
    assert set(other.state_dict()) == names
    # A compiler keeps in float32 what ordinary code rounds between two functions.
    close = {"rtol": 0, "atol": 0} if way == "checkpointed" else {"rtol": 1e-4, "atol": 1e-5}
    if precision == "bfloat16" and way != "checkpointed":
        close = {"rtol": 0.05, "atol": 0.05 * float(expected[2].abs().max())}
    for one, two in zip(found, expected, strict=True):
        torch.testing.assert_close(one, two, **close)


def test_activations_computed_again_take_less_memory():
    spec = dit((2, 8, 8), depth=6, width=32, patch_size=1, interval=True, guidance=True)
    network, point = network_of(spec), point_of(spec.shape)
    peaks = [peak_bytes(lambda: passed(network, point), torch.device("cpu"))]
    run_network(network, compiled=False, checkpointed=True)
    peaks.append(peak_bytes(lambda: passed(network, point), torch.device("cpu")))
    assert peaks[1] < 0.6 * peaks[0]


def test_the_tangent_is_not_computed_again():
    """A block that is computed again for the gradient runs on values."""
    spec = dit((2, 4, 4), depth=1, interval=True, guidance=True)
    network, point = network_of(spec), point_of(spec.shape)
    kinds = []
    network.blocks[0].perceptron.register_forward_hook(lambda module, args, result: kinds.append(type(result).__name__))
    run_network(network, compiled=False, checkpointed=True)
    passed(network, point)
    assert kinds == ["Dual", "Tensor"]


@pytest.mark.compiler
def test_a_back_end_whose_derivative_a_compiler_drops_is_refused_before_training():
    spec = mlp(depth=2, interval=True, guidance=True)
    network, point = network_of(spec), point_of(spec.shape)
    direction = eulerian_direction(point, torch.ones_like(point.x))
    assert self_check(network, point, direction, "dual", tolerance=1e-3, compiled=True) < 1e-4
    with pytest.raises(AyfError, match=r"'split' found no derivative.*leave compile off in the runtime"):
        self_check(network, point, direction, "split", tolerance=1e-3, compiled=True)


def trainer_of(folder, steps=3, **options):
    data = TensorData(torch.randn(64, 2, generator=torch.Generator().manual_seed(0)), labels(torch.arange(64) % 3))
    network = network_of(mlp(interval=True))
    teacher = Gaussian(torch.tensor([0.5, -1.0]), torch.tensor([[1.0, 0.3], [0.3, 0.5]]))
    phase = Phase(name="student", network=network, objective=objective(teacher=teacher))
    settings = training_settings(steps=steps, batch_size=32)
    return Trainer([phase], data, settings, LocalContext(folder), seed=0, options=LoopOptions(**options))


def trained(folder, **options):
    trainer = trainer_of(folder, **options)
    trainer.fit()
    return torch.cat([p.detach().flatten() for p in trainer.phases[0].network.parameters()]), trainer


def test_a_machine_that_cannot_compile_says_so(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(AyfError, match=r"needs a C\+\+ compiler.*apt-get install g\+\+"):
        run_network(network_of(mlp()), compiled=True)


@pytest.mark.compiler
def test_a_compiled_training_ends_where_an_ordinary_one_does(tmp_path):
    plain, _ = trained(tmp_path / "plain")
    compiled, _ = trained(tmp_path / "compiled", compile=True)
    torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.compiler
def test_a_compiled_teacher_and_its_student_share_a_process():
    shape = (2, 4, 4)
    student, teacher = (network_of(dit(shape, depth=1, interval=interval)) for interval in (True, False))
    point = point_of(shape)
    expected = NetworkVelocity(teacher)(point.x, point.t, point.condition)
    for network in (student, teacher):
        run_network(network, compiled=True)
    student(point.x, point.t, point.s, point.condition)
    found = NetworkVelocity(teacher)(point.x, point.t, point.condition)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("left", "expected"), [(1.0, 32), (0.4, range(8, 16)), (0.0, None)])
def test_auto_finds_the_micro_batch_that_fits(tmp_path, monkeypatch, left, expected):
    """`left` is the free memory, in shares of what a step of the whole batch takes."""
    plain, _ = trained(tmp_path / "plain")
    trainer = trainer_of(tmp_path / "measured")
    runner, (batch,) = trainer.phases[0], trainer._batches()
    trainer.close()
    runner.try_out(*batch, 0)
    whole = peak_bytes(lambda: runner.try_out(*batch, 0), torch.device("cpu"))
    free = int(left * whole / 0.9) + runner.bytes_to_come() + (1000 if left else 0)
    monkeypatch.setattr("ayf_core.training.trainer.free_bytes", lambda device, processes: free)
    if expected is None:
        with pytest.raises(
            AyfError, match=r"not one sample fits into the \S+ GiB that are left: set activation_checkp"
        ):
            trained(tmp_path / "auto", micro_batch="auto")
        return
    found, trainer = trained(tmp_path / "auto", micro_batch="auto")
    torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-6)
    largest = max(part.rows.stop - part.rows.start for part in trainer.micro_batches)
    assert largest in (expected if isinstance(expected, range) else [expected])


def test_a_trial_leaves_nothing_behind(tmp_path):
    """The first step after it is that of a training without it."""
    plain, _ = trained(tmp_path / "plain", steps=1)
    found, _ = trained(tmp_path / "auto", steps=1, micro_batch="auto")
    assert torch.equal(found, plain)


def test_peak_of_a_call_on_the_cpu_counts_what_is_held_together():
    def call():
        a = torch.ones(1000, dtype=torch.float64)
        b = a + 1
        del a
        return b * 2

    assert 16000 <= peak_bytes(call, torch.device("cpu")) < 20000

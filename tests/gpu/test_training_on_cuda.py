"""A GPU trains and samples what the CPU does. What is not about the GPU runs on the CPU too, so that it cannot rot."""

import pytest
import torch

from ayf_core.analytic import Gaussian
from ayf_core.conditions import Condition
from ayf_core.errors import Preempted
from ayf_core.flow_map import FlowMap
from ayf_core.networks.build import build_network
from ayf_core.networks.spec import NetworkSpec
from ayf_core.objectives.eulerian import EulerianDistillation
from ayf_core.objectives.tangent import TangentSettings
from ayf_core.sampling.flow_map_chain import sample_flow_map
from ayf_core.sampling.grids import uniform_grid
from ayf_core.times import IntervalLaw
from ayf_core.training.callbacks import FollowAverages
from ayf_core.training.context import LocalContext
from ayf_core.training.data import TensorData
from ayf_core.training.options import LoopOptions
from ayf_core.training.phases import Phase
from ayf_core.training.trainer import Trainer
from tests.ayf_core.trainings import training_settings
from tests.made import without_zeros

CUDA = pytest.param("cuda", marks=pytest.mark.gpu)
STEPS = 8
TANGENT = TangentSettings(
    backend="dual",
    warmup_max=0.99,
    warmup_fraction=0.5,
    normalise=True,
    normalisation_constant=0.1,
    divide_by_sqrt_dim=True,
    self_check_tolerance=0.05,
)


def trainer_of(folder, device, steps=STEPS, precision="float32", **options):
    """A distillation of a Gaussian's exact velocity."""
    torch.manual_seed(0)
    kind = {"width": 16, "depth": 2, "activation": "silu"}
    network = build_network(NetworkSpec(kind="mlp", settings=kind, shape=(2,), interval=True))
    without_zeros(network, 0.1)
    mean, covariance = torch.tensor([0.5, -1.0]), torch.tensor([[1.0, 0.3], [0.3, 0.5]])
    x = Gaussian(mean, covariance).sample(64, torch.Generator().manual_seed(0)).float()
    data, context = TensorData(x, Condition()), LocalContext(folder, device)
    objective = EulerianDistillation(
        teacher=Gaussian(mean.to(device), covariance.to(device)),
        time_law=IntervalLaw(p_mean=-0.8, p_std=1.0, full_jump_fraction=0.1, diagonal_fraction=0.1),
        tangent=TANGENT,
        weighting="uniform",
        steps=steps,
        guidance=None,
    )
    settings = training_settings(steps=steps, batch_size=16, learning_rate=1e-3, precision=precision)
    phase = Phase(name="student", network=network, objective=objective)
    averages = FollowAverages(network, settings, context, snapshots=1)
    loop = LoopOptions(log_every=100, checkpoint_every=4, **options)
    return Trainer([phase], data, settings, context, [averages], seed=3, options=loop)


def weights(trainer):
    return {name: value.cpu().clone() for name, value in trainer.phases[0].network.state_dict().items()}


@pytest.mark.gpu
def test_a_few_steps_of_distillation_on_a_gpu_are_those_of_the_cpu(tmp_path):
    found = []
    for device in ("cpu", "cuda"):
        trainer = trainer_of(tmp_path / device, device)
        trainer.fit()
        found.append(weights(trainer))
    torch.testing.assert_close(found[1], found[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_a_training_that_goes_on_from_a_checkpoint_gives_the_same_bytes(tmp_path, device):
    whole = trainer_of(tmp_path / "whole", device)
    whole.fit()
    begun = trainer_of(tmp_path / "cut", device)
    begun.context.stop_asked = lambda: begun.step == 5  # between two checkpoints
    with pytest.raises(Preempted):
        begun.fit()
    again = trainer_of(tmp_path / "cut", device)
    again.fit()
    for name, value in weights(whole).items():
        assert torch.equal(weights(again)[name], value), name


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_each_precision_ends_near_float32_of_the_cpu(tmp_path, device, precision):
    exact, low = trainer_of(tmp_path / "exact", "cpu"), trainer_of(tmp_path / "low", device, precision=precision)
    start = weights(exact)
    exact.fit()
    low.fit()
    away = sum(float((weights(low)[name] - value).norm()) for name, value in weights(exact).items())
    moved = sum(float((start[name] - value).norm()) for name, value in weights(exact).items())
    assert away < 0.1 * moved
    assert {value.dtype for value in weights(low).values()} == {torch.float32}


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{"compile": True}, {"activation_checkpointing": True}, {"micro_batch": "auto"}])
def test_how_a_training_runs_does_not_change_where_it_ends(tmp_path, options):
    plain, other = trainer_of(tmp_path / "plain", "cuda"), trainer_of(tmp_path / "other", "cuda", **options)
    plain.fit()
    other.fit()
    torch.testing.assert_close(weights(other), weights(plain), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "way",
    [
        ("cpu", "cpu"),
        pytest.param(("cpu", "cuda"), marks=pytest.mark.gpu),
        pytest.param(("cuda", "cpu"), marks=pytest.mark.gpu),
    ],
)
def test_a_checkpoint_goes_from_one_device_to_another(tmp_path, way):
    first, second = way
    whole = trainer_of(tmp_path / "whole", "cpu")
    whole.fit()
    begun = trainer_of(tmp_path / "moved", first)
    begun.context.stop_asked = lambda: begun.step == 5
    with pytest.raises(Preempted):
        begun.fit()
    again = trainer_of(tmp_path / "moved", second)
    again.fit()
    torch.testing.assert_close(weights(again), weights(whole), rtol=1e-3, atol=1e-5)


@pytest.mark.gpu
def test_noise_of_the_cpu_gives_the_cpus_samples_on_a_gpu(tmp_path):
    trainer = trainer_of(tmp_path, "cpu")
    trainer.fit()
    noise = torch.randn(32, 2, generator=torch.Generator().manual_seed(1))
    found = []
    for device in ("cpu", "cuda"):
        flow_map = FlowMap(trainer.phases[0].network.to(device).eval())
        with torch.no_grad():
            found.append(sample_flow_map(flow_map, noise.to(device), uniform_grid(4)).x.cpu())
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", ["cpu", CUDA])
def test_a_step_that_is_not_logged_never_waits_for_the_device(tmp_path, device):
    trainer = trainer_of(tmp_path, device, steps=50)
    for _ in range(3):  # the first is logged and checked; kernels are chosen
        trainer.advance()
    with no_waiting(device):
        for _ in range(3):
            trainer.advance()
    trainer.close()
    assert trainer.step == 6


class no_waiting:
    """Raises where the host waits for the GPU; on a CPU there is nothing to wait for."""

    def __init__(self, device):
        self.mode = "error" if device == "cuda" else None

    def __enter__(self):
        if self.mode:
            torch.cuda.set_sync_debug_mode(self.mode)

    def __exit__(self, *_):
        if self.mode:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_batches_come_from_pinned_memory_without_waiting(tmp_path, monkeypatch):
    """The copy to the GPU overlaps with the step before: its source is pinned, and nobody waits for it."""
    moved = []
    to = torch.Tensor.to

    def noting(tensor, *arguments, **named):
        result = to(tensor, *arguments, **named)
        if tensor.device.type == "cpu" and result.device.type == "cuda" and tensor.shape == (16, 2):
            moved.append((tensor.is_pinned(), bool(named.get("non_blocking"))))
        return result

    trainer = trainer_of(tmp_path, "cuda")
    monkeypatch.setattr(torch.Tensor, "to", noting)
    trainer.advance()
    trainer.advance()
    trainer.close()
    assert moved
    assert all(pinned and without_waiting for pinned, without_waiting in moved)

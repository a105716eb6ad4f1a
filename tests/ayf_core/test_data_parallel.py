"""Two workers train what one would, and what would train without synchronising is refused (gloo, two processes)."""

import json
from pathlib import Path

import pytest
import torch
from torch import distributed, multiprocessing, nn

from ayf_core.analytic import Gaussian
from ayf_core.errors import AyfError
from ayf_core.networks import NetworkSpec, build_network
from ayf_core.networks.discriminator import build_discriminator
from ayf_core.objectives import (
    AdversarialFinish,
    DiscriminatorObjective,
    EulerianDistillation,
    FlowMatching,
    Loss,
    TangentSettings,
)
from ayf_core.tangents import unwrap
from ayf_core.times import IntervalLaw
from ayf_core.training.context import LocalContext
from ayf_core.training.data import TensorData
from ayf_core.training.optimisers import OptimiserSettings
from ayf_core.training.trainer import LoopSettings, Phase, Trainer

pytestmark = pytest.mark.slow
WORKERS = 2
OPTIMISER = OptimiserSettings(learning_rate=1e-2, weight_decay=0.01)
LAW = IntervalLaw(full_jump_fraction=0.1)


class Worker(LocalContext):
    """One of several processes; only rank 0 writes."""

    world_size = WORKERS

    def __init__(self, folder, rank):
        super().__init__(folder / f"rank_{rank}")
        self.rank = rank

    def log(self, step, total, metrics):
        if self.rank == 0:
            super().log(step, total, metrics)

    def latest_checkpoint(self):
        return None


class ImageTeacher:
    """A velocity that pulls every pixel to its label."""

    evaluations_per_call = 1

    def __call__(self, x, t, labels=None, guidance_scale=None):
        return x - labels.view(-1, 1, 1, 1) / 3 + t.to(x.dtype).view(-1, 1, 1, 1) * torch.sin(x)


def images():
    x = torch.randn(40, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return TensorData(x, torch.arange(40) % 3)


def points():
    data = Gaussian(torch.tensor([0.5, -1.0]), torch.tensor([[1.0, 0.3], [0.3, 0.5]]))
    return data, TensorData(data.sample(40, torch.Generator().manual_seed(0)), torch.arange(40) % 3)


def train(context, phases, data, steps=5, micro_batch=None):
    settings = LoopSettings(steps=steps, batch_size=8, seed=0, micro_batch=micro_batch, log_every=1)
    trainer = Trainer(phases, data, settings, context)
    trainer.fit()
    weights = {f"{phase.name}/{name}": p for phase in phases for name, p in phase.network.state_dict().items()}
    return {"weights": weights, "skipped": trainer.skipped}


def distil(context, backend="split", micro_batch=None):
    torch.manual_seed(context.rank)  # DistributedDataParallel starts everyone from rank 0's weights
    shape = {"kind": "dit", "shape": (1, 4, 4), "patch_size": 2, "heads": 2}
    network = build_network(NetworkSpec(**shape, num_classes=3, width=8, depth=1, interval=True)).double()
    tangent = TangentSettings(warmup_steps=4, backend=backend)
    objective = EulerianDistillation(teacher=ImageTeacher(), time_law=LAW, tangent=tangent)
    return train(context, [Phase("student", network, objective, OPTIMISER)], images(), micro_batch=micro_batch)


def distil_in_micro_batches(context):
    return distil(context, micro_batch=2)


def distil_fused(context):
    return distil(context, backend="fused")


def finish(context):
    torch.manual_seed(context.rank)
    teacher, data = points()
    spec = NetworkSpec(kind="mlp", shape=(2,), num_classes=3, width=8, depth=2, interval=True)
    student = build_network(spec).double()
    discriminator = build_discriminator((2,), width=8, num_classes=3).double()
    base = EulerianDistillation(teacher=teacher, time_law=LAW, tangent=TangentSettings())
    generator = AdversarialFinish(distillation=base, discriminator=discriminator, weight=0.1, guidance_scale=None)
    judge = DiscriminatorObjective(generator=student, r1=0.1, r2=0.1, guidance_scale=None)
    phases = [
        Phase("student", student, generator, OPTIMISER),
        Phase("discriminator", discriminator, judge, OPTIMISER),
    ]
    return train(context, phases, data)


class Bare(FlowMatching):
    """Wrong: calls the module inside DistributedDataParallel."""

    def __call__(self, network, batch, random, step, monitor=False):
        return super().__call__(unwrap(network), batch, random, step, monitor)


class BrokenAtFirst(FlowMatching):
    """The first loss of the last worker is not a number."""

    def __call__(self, network, batch, random, step, monitor=False):
        loss = super().__call__(network, batch, random, step, monitor)
        bad = step == 0 and random.rows.stop == random.global_batch
        return Loss(loss.value * float("nan"), {}) if bad else loss


def regress(context, objective):
    torch.manual_seed(context.rank)
    network = nn.Sequential(nn.Linear(2, 8), nn.SiLU(), nn.Linear(8, 2)).double()

    class Field(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x, t, s, labels):
            return self.network(x)

    return train(context, [Phase("teacher", Field(), objective, OPTIMISER)], points()[1])


def regress_bare(context):
    return regress(context, Bare())


def regress_broken_at_first(context):
    return regress(context, BrokenAtFirst())


SCENARIOS = [distil, distil_in_micro_batches, distil_fused, finish, regress_bare, regress_broken_at_first]


def work(rank, folder):
    """One worker: every scenario in turn, what came of it into `folder`."""
    torch.set_num_threads(1)
    rendezvous = f"file://{folder / 'rendezvous'}"
    distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=WORKERS)
    for scenario in SCENARIOS:
        name = scenario.__name__
        try:
            result = scenario(Worker(folder / name, rank))
        except AyfError as error:
            result = {"error": str(error)}
        torch.save(result, folder / f"{name}_{rank}.pt")
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("workers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        multiprocessing.spawn(work, args=(place,), nprocs=WORKERS)
    return place


def results(folder, scenario):
    return [torch.load(folder / f"{scenario.__name__}_{rank}.pt", weights_only=True) for rank in range(WORKERS)]


def losses(path: Path):
    return [json.loads(line)["metrics"] for line in path.read_text().splitlines()]


@pytest.mark.parametrize("scenario", [distil, distil_in_micro_batches, finish])
def test_two_workers_train_what_one_worker_trains(folder, tmp_path, scenario):
    first, second = results(folder, scenario)
    torch.testing.assert_close(first["weights"], second["weights"], rtol=0, atol=0)
    alone = scenario(LocalContext(tmp_path))
    torch.testing.assert_close(first["weights"], alone["weights"], rtol=1e-6, atol=1e-8)
    gradient_norms = [
        [metrics["gradient_norm"] for metrics in losses(place / "metrics.jsonl")]
        for place in (folder / scenario.__name__ / "rank_0", tmp_path)
    ]
    assert len(gradient_norms[0]) == 5
    assert gradient_norms[0] == pytest.approx(gradient_norms[1], rel=1e-6)


def test_fused_derivative_is_refused_on_every_worker(folder):
    for result in results(folder, distil_fused):
        assert "would train without synchronising gradients" in result["error"]


def test_objective_that_calls_the_bare_module_is_found_out_at_the_first_step_on_every_worker(folder):
    for result in results(folder, regress_bare):
        assert "they are not synchronised" in result["error"]
    assert not (folder / "regress_bare" / "rank_0" / "metrics.jsonl").exists()


def test_gradient_that_is_not_finite_at_first_is_skipped_and_not_called_unsynchronised(folder):
    first, second = results(folder, regress_broken_at_first)
    assert first.get("error") is None
    assert first["skipped"] == second["skipped"] == 1
    torch.testing.assert_close(first["weights"], second["weights"], rtol=0, atol=0)
    assert all(tensor.isfinite().all() for tensor in first["weights"].values())

"""Several workers train what one would, whole or sharded; what would train unsynchronised is refused (gloo)."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import distributed, multiprocessing, nn

from ayf_core.analytic import Gaussian
from ayf_core.conditions import class_labels
from ayf_core.errors import AyfError
from ayf_core.networks.build import build_network
from ayf_core.networks.discriminator import build_discriminator
from ayf_core.objectives.adversarial_finish import AdversarialFinish, DiscriminatorObjective
from ayf_core.objectives.base import Loss
from ayf_core.objectives.eulerian import EulerianDistillation
from ayf_core.objectives.flow_matching import FlowMatching
from ayf_core.objectives.lagrangian import LagrangianDistillation
from ayf_core.objectives.mean_flow import MeanFlow
from ayf_core.tangents.engines import unwrap
from ayf_core.training.callbacks import FollowAverages
from ayf_core.training.checkpoints import load_state
from ayf_core.training.context import LocalContext
from ayf_core.training.data import TensorData
from ayf_core.training.options import LoopOptions
from ayf_core.training.parallel import distribute
from ayf_core.training.phases import Phase
from ayf_core.training.sharding import gathered, is_sharded
from ayf_core.training.trainer import Trainer
from tests.ayf_core.trainings import training_settings
from tests.made import dit, intervals, labels, matching, mlp, tangent, without_zeros
from tests.made import objective as made_objective

pytestmark = pytest.mark.slow
LAW = intervals(full_jump_fraction=0.1)
SHAPES = {
    "dit": partial(dit, width=8, depth=2),
    "mlp": partial(mlp, width=9, depth=3),  # nine rows do not divide over the workers
}


class ImageTeacher:
    """A velocity that pulls every pixel to its label."""

    evaluations_per_call = 1

    def __call__(self, x, t, condition=None, guidance_scale=None):
        return x - condition["labels"].view(-1, 1, 1, 1) / 3 + t.to(x.dtype).view(-1, 1, 1, 1) * torch.sin(x)


def images():
    x = torch.randn(40, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return TensorData(x, labels(torch.arange(40) % 3))


def points():
    data = Gaussian(torch.tensor([0.5, -1.0]), torch.tensor([[1.0, 0.3], [0.3, 0.5]]))
    return data, TensorData(data.sample(40, torch.Generator().manual_seed(0)), labels(torch.arange(40) % 3))


def network_of(kind, context, **told):
    torch.manual_seed(context.rank)  # everyone starts from rank 0's weights
    network = build_network(SHAPES[kind](**told)).double()
    return without_zeros(network, 0.1)


def train(context, phases, data, sharding="none", steps=5, micro_batch=None):
    settings = training_settings(steps=steps, weight_decay=0.01)
    options = LoopOptions(micro_batch=micro_batch, log_every=1, checkpoint_every=3, sharding=sharding)
    averages = FollowAverages(phases[0].network, settings, context, snapshots=2)
    trainer = Trainer(phases, data, settings, context, [averages], seed=0, options=options)
    trainer.fit()
    networks = {phase.name: gathered(phase.network.state_dict()) for phase in phases}
    return {
        "weights": {f"{phase}/{name}": p for phase, weights in networks.items() for name, p in weights.items()},
        "averages": gathered(averages.ema.weights(0.1)),
        "sharded": [is_sharded(phase.network) for phase in phases],
        "held": sum(p.to_local().numel() if is_sharded(p) else p.numel() for p in averages.ema.averages[0.1].values()),
        "skipped": trainer.skipped,
    }


def match(context, sharding="none", micro_batch=None):
    phase = Phase(name="teacher", network=network_of("mlp", context), objective=matching())
    return train(context, [phase], points()[1], sharding, micro_batch=micro_batch)


def distil(
    context,
    sharding="none",
    kind="dit",
    objective=EulerianDistillation,
    backend="dual",
    micro_batch=None,
    diagonal=0.0,
):
    teacher, data = (ImageTeacher(), images()) if kind == "dit" else points()
    given = {} if objective is MeanFlow else {"teacher": teacher}
    tamed = tangent(warmup_fraction=0.8, backend=backend)
    law = replace(LAW, diagonal_fraction=diagonal)
    loss = made_objective(objective, time_law=law, tangent=tamed, steps=5, **given)
    phase = Phase(name="student", network=network_of(kind, context, interval=True), objective=loss)
    return train(context, [phase], data, sharding, micro_batch=micro_batch)


def finish(context, sharding="none"):
    teacher, data = points()
    student = network_of("mlp", context, interval=True)
    discriminator = build_discriminator((2,), width=8, conditions=class_labels(3)).double()
    base = made_objective(teacher=teacher, time_law=LAW, tangent=tangent(warmup_fraction=1.0))
    generator = AdversarialFinish(distillation=base, discriminator=discriminator, weight=0.1, guidance_scale=None)
    judge = DiscriminatorObjective(generator=student, r1=0.1, r2=0.1, guidance_scale=None)
    phases = [
        Phase(name="student", network=student, objective=generator),
        Phase(name="discriminator", network=discriminator, objective=judge),
    ]
    return train(context, phases, data, sharding)


class Bare(FlowMatching):
    """Wrong: calls the module inside DistributedDataParallel."""

    def __call__(self, network, batch, random, step, monitor=False):
        return super().__call__(unwrap(network), batch, random, step, monitor)


class AroundTheHooks(FlowMatching):
    """Wrong: gathers the weights of a sharded network by hand and calls it without what would bring gradients back."""

    def __call__(self, network, batch, random, step, monitor=False):
        network.unshard()
        return super().__call__(network.forward, batch, random, step, monitor)


class BrokenAtFirst(FlowMatching):
    """The first loss of the last worker is not a number."""

    def __call__(self, network, batch, random, step, monitor=False):
        loss = super().__call__(network, batch, random, step, monitor)
        bad = step == 0 and random.rows.stop == 8
        return Loss(loss.value * float("nan"), loss.metrics) if bad else loss


def regress(context, objective, sharding="none"):
    phase = Phase(name="teacher", network=network_of("mlp", context), objective=matching(objective))
    return train(context, [phase], points()[1], sharding)


EQUAL = {
    "flow_matching": match,
    "flow_matching_in_micro_batches": partial(match, micro_batch=2),
    "emd": distil,
    "emd_of_points": partial(distil, kind="mlp"),
    "emd_in_micro_batches": partial(distil, micro_batch=1),
    "emd_split": partial(distil, backend="split"),
    "lmd": partial(distil, kind="mlp", objective=LagrangianDistillation),
    "mean_flow": partial(distil, kind="mlp", objective=MeanFlow),
    "mean_flow_on_the_diagonal": partial(distil, objective=MeanFlow, kind="mlp", diagonal=0.5, micro_batch=2),
    "adversarial": finish,
}
CASES = [(name, sharding) for name in EQUAL for sharding in ("none", "full")]
WRONG = {
    "bare": partial(regress, objective=Bare),
    "around_the_hooks": partial(regress, objective=AroundTheHooks, sharding="full"),
    "broken_at_first": partial(regress, objective=BrokenAtFirst),
    "broken_at_first_sharded": partial(regress, objective=BrokenAtFirst, sharding="full"),
}
BEGUN = {"one worker": "adversarial", "none": "adversarial_none", "full": "adversarial_full"}
GONE_ON = {
    f"from_{source}_on_{sharding}": partial(finish, sharding=sharding)
    for source in BEGUN.values()
    for sharding in ("none", "full")
}
SCENARIOS = (
    {f"{name}_{sharding}": partial(EQUAL[name], sharding=sharding) for name, sharding in CASES} | WRONG | GONE_ON
)


def work(rank, workers, folder, names):
    """One worker: every scenario in turn, what came of it into `folder`."""
    torch.set_num_threads(1)
    rendezvous = f"file://{folder / 'rendezvous'}"
    distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=workers)
    for name in names:
        try:
            result = SCENARIOS[name](LocalContext(folder / name, rank=rank, world_size=workers))
        except AyfError as error:
            result = {"error": str(error)}
        torch.save(result, folder / f"{name}_{rank}.pt")
        distributed.barrier()
    distributed.destroy_process_group()


def run(folder, workers, names):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GLOO_SOCKET_IFNAME", "lo")
        multiprocessing.spawn(work, args=(workers, folder, sorted(names)), nprocs=workers)
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return run(tmp_path_factory.mktemp("two"), 2, SCENARIOS.keys() - GONE_ON.keys())


@pytest.fixture(scope="module")
def trio(tmp_path_factory, pair, alone):
    """A global batch of eight does not divide over three. They also go on from checkpoints of one worker and of two."""
    folder = tmp_path_factory.mktemp("three")
    for source in BEGUN.values():
        for sharding in ("none", "full"):
            begun = (alone[0] if source in EQUAL else pair) / source
            shutil.copytree(begun / "checkpoints", folder / f"from_{source}_on_{sharding}" / "checkpoints")
    return run(folder, 3, SCENARIOS.keys() - WRONG.keys())


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    place = tmp_path_factory.mktemp("one")
    return place, {name: scenario(LocalContext(place / name)) for name, scenario in EQUAL.items()}


def results(folder):
    return lambda name: [torch.load(path, weights_only=True) for path in sorted(folder.glob(f"{name}_[0-9].pt"))]


def logged(folder: Path):
    return [json.loads(line)["metrics"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("workers", ["pair", "trio"])
@pytest.mark.parametrize(("name", "sharding"), CASES)
def test_several_workers_train_what_one_worker_trains(request, alone, workers, name, sharding):
    folder = request.getfixturevalue(workers)
    found = results(folder)(f"{name}_{sharding}")
    assert len(found) == {"pair": 2, "trio": 3}[workers]
    assert found[0]["sharded"][0] == (sharding == "full")
    place, whole = alone
    for each in found:
        for part in ("weights", "averages"):
            torch.testing.assert_close(each[part], found[0][part], rtol=0, atol=0)
            torch.testing.assert_close(each[part], whole[name][part], rtol=1e-6, atol=1e-8)
    mine, theirs = logged(folder / f"{name}_{sharding}"), logged(place / name)
    assert len(mine) == len(theirs) == 5
    for key in ("gradient_norm", "loss"):
        assert [metrics[key] for metrics in mine] == pytest.approx([metrics[key] for metrics in theirs], rel=1e-6)


@pytest.mark.parametrize("workers", ["pair", "trio"])
def test_a_worker_of_a_sharded_training_holds_only_its_part_of_the_averages(request, alone, workers):
    found = results(request.getfixturevalue(workers))("emd_full")
    total = alone[1]["emd"]["held"]
    assert sum(each["held"] for each in found) == total
    assert max(each["held"] for each in found) < 0.75 * total


@pytest.mark.parametrize("sharding", ["none", "full"])
def test_snapshots_and_checkpoints_are_those_of_one_worker(pair, alone, sharding):
    ours, theirs = pair / f"emd_{sharding}", alone[0] / "emd"
    names = sorted(path.name for path in (theirs / "ema").iterdir())
    assert names == sorted(path.name for path in (ours / "ema").iterdir())
    for name in names:
        torch.testing.assert_close(
            load_file(ours / "ema" / name), load_file(theirs / "ema" / name), rtol=1e-6, atol=1e-8
        )
    states = [load_state(place / "checkpoints" / "step_00000003") for place in (ours, theirs)]
    torch.testing.assert_close(*states, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("begun", BEGUN)
def test_a_checkpoint_goes_on_at_any_other_worker_count_and_sharding(tmp_path, trio, pair, alone, begun):
    source = BEGUN[begun]
    expected = alone[1]["adversarial"]
    shutil.copytree((alone[0] if source in EQUAL else pair) / source / "checkpoints", tmp_path / "checkpoints")
    names = [f"from_{source}_on_{sharding}" for sharding in ("none", "full")]
    found = [result for name in names for result in results(trio)(name)]
    for each in [*found, finish(LocalContext(tmp_path))]:
        for part in ("weights", "averages"):
            torch.testing.assert_close(each[part], expected[part], rtol=1e-6, atol=1e-8)
    assert len(found) == 6
    assert [len(logged(place)) for place in (*(trio / name for name in names), tmp_path)] == [2, 2, 2]


@pytest.mark.parametrize("wiring", ["bare", "around_the_hooks"])
def test_wiring_that_leaves_gradients_unsynchronised_is_found_out_at_the_first_step_on_every_worker(pair, wiring):
    for result in results(pair)(wiring):
        assert "they are not synchronised" in result["error"]
    assert not (pair / wiring / "metrics.jsonl").exists()


@pytest.mark.parametrize("name", ["broken_at_first", "broken_at_first_sharded"])
def test_gradient_that_is_not_finite_at_first_is_skipped_and_not_called_unsynchronised(pair, name):
    first, second = results(pair)(name)
    assert first.get("error") is None
    assert first["skipped"] == second["skipped"] == 1
    torch.testing.assert_close(first["weights"], second["weights"], rtol=0, atol=0)
    assert all(tensor.isfinite().all() for tensor in first["weights"].values())


def test_a_torch_too_old_to_shard_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "__version__", type(torch.__version__)("2.10.1"))
    context = LocalContext(tmp_path)
    network = network_of("mlp", context)
    context.world_size = 2
    with pytest.raises(AyfError, match=r"needs torch 2\.11, here is 2\.10\.1: upgrade"):
        distribute(network, context, "full")


def test_an_unknown_sharding_is_named(tmp_path):
    with pytest.raises(AyfError, match="unknown sharding 'half': choose none or full"):
        distribute(nn.Linear(1, 1), LocalContext(tmp_path), "half")

"""The training loop: resumes bit for bit, accumulates honestly, stops when gradients stay broken."""

import contextlib
import copy
import dataclasses
import json
import math
import threading

import pytest
import torch
from torch import nn

from ayf_core.analytic import Gaussian
from ayf_core.errors import AyfError, Preempted
from ayf_core.networks.build import build_network
from ayf_core.objectives.base import Batch, Loss, Objective
from ayf_core.objectives.flow_matching import FlowMatching
from ayf_core.training import phases as phases_module
from ayf_core.training.callbacks import FollowAverages
from ayf_core.training.context import LocalContext
from ayf_core.training.data import TensorData
from ayf_core.training.options import LoopOptions
from ayf_core.training.phases import SKIPPED_IN_A_ROW, Phase
from ayf_core.training.trainer import Trainer
from tests.ayf_core.trainings import training_settings
from tests.made import labels, matching, mlp, tangent
from tests.made import objective as made_objective

DATA = Gaussian(torch.tensor([0.5, -1.0]), torch.tensor([[1.0, 0.3], [0.3, 0.5]]))
STEPS = 12
SETTINGS = training_settings(steps=STEPS, weight_decay=0.01, warmup_steps=3, schedule="cosine")


def network_of(dropout=False, dtype=torch.float32):
    torch.manual_seed(0)
    network = build_network(mlp(classes=1, width=8, interval=True))
    if dropout:
        network.hidden.append(nn.Dropout(0.3))
    return network.to(dtype)


def data_of(count=21, dtype=torch.float32):
    x = DATA.sample(count, torch.Generator().manual_seed(0)).to(dtype)
    return TensorData(x, labels(torch.zeros(count, dtype=torch.long)))


def distillation(**settings):
    return made_objective(teacher=DATA, tangent=tangent(warmup_fraction=0.5, **settings), steps=STEPS)


class Stop(Exception):
    """In place of a kill."""


class StopAfter:
    """Ends the training after a step, as a kill would."""

    name = "stop"

    def __init__(self, step):
        self.step = step

    def after_step(self, step):
        if step == self.step:
            raise Stop

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


def trainer_of(folder, *, stop=None, objectives=None, dropout=True, data=None, steps=STEPS, seed=3, **options):
    context = LocalContext(folder)
    objectives = objectives or {"student": distillation(), "other": matching()}
    phases = [
        Phase(name=name, network=network_of(dropout), objective=objective) for name, objective in objectives.items()
    ]
    averages = FollowAverages(phases[0].network, SETTINGS, context, snapshots=2)
    settings = dataclasses.replace(SETTINGS, steps=steps)
    options = LoopOptions(**{"log_every": 2, "checkpoint_every": 2} | options)
    followers = [averages, StopAfter(stop)]
    return Trainer(phases, data or data_of(), settings, context, followers, seed=seed, options=options)


def everything(trainer):
    """All tensors and numbers that a checkpoint would hold."""
    found = {}

    def walk(path, node):
        if isinstance(node, dict):
            for key, value in node.items():
                walk(f"{path}/{key}", value)
        elif isinstance(node, list | tuple):
            for i, value in enumerate(node):
                walk(f"{path}/{i}", value)
        else:
            found[path] = copy.deepcopy(node)

    walk("phases", [phase.state_dict() for phase in trainer.phases])
    walk("callbacks", [callback.state_dict() for callback in trainer.callbacks])
    walk("counts", [trainer.step, trainer.skipped])
    return found


def assert_same_bits(a, b):
    assert a.keys() == b.keys()
    for name, value in a.items():
        same = torch.equal(value, b[name]) if isinstance(value, torch.Tensor) else value == b[name]
        assert same, name


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    trainer = trainer_of(folder)
    trainer.fit()
    return everything(trainer), folder


def records(folder):
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if k != "time"} for line in lines]


@pytest.mark.parametrize("stops", [[1], [4], [5], [11], [3, 4, 9]])
def test_interrupted_and_resumed_training_equals_an_uninterrupted_one_bit_for_bit(tmp_path, uninterrupted, stops):
    expected, whole = uninterrupted
    for stop in stops:
        with pytest.raises(Stop):
            trainer_of(tmp_path, stop=stop).fit()
        torch.rand(stop)  # whatever the new process did before
    trainer = trainer_of(tmp_path)
    trainer.fit()
    assert_same_bits(everything(trainer), expected)
    assert records(tmp_path) == records(whole)
    for snapshot in sorted((whole / "ema").iterdir()):
        assert (tmp_path / "ema" / snapshot.name).read_bytes() == snapshot.read_bytes()


def test_resumed_training_starts_at_its_newest_checkpoint(tmp_path):
    with pytest.raises(Stop):
        trainer_of(tmp_path, stop=7).fit()
    seen = []

    class Counting(FlowMatching):
        def __call__(self, network, batch, random, step, monitor=False):
            seen.append(step)
            return super().__call__(network, batch, random, step, monitor)

    trainer_of(tmp_path, objectives={"student": matching(Counting), "other": matching()}).fit()
    assert seen == list(range(6, STEPS))


def test_training_changes_the_weights_and_another_seed_changes_the_result(tmp_path, uninterrupted):
    trainer = trainer_of(tmp_path, seed=4)
    start = copy.deepcopy(trainer.phases[0].network.state_dict())
    trainer.fit()
    end = trainer.phases[0].network.state_dict()
    assert not torch.equal(start["output.weight"], end["output.weight"])
    assert not torch.equal(uninterrupted[0]["phases/0/network/output.weight"], end["output.weight"])


@pytest.mark.parametrize("micro_batch", [1, 2, 3, 7])
def test_micro_batches_give_the_result_of_the_whole_batch_up_to_rounding(tmp_path, micro_batch):
    results = []
    for size in (None, micro_batch):
        trainer = trainer_of(tmp_path / str(size), dropout=False, micro_batch=size)
        trainer.fit()
        results.append([trainer.phases[0].network.state_dict(), records(tmp_path / str(size))])
    torch.testing.assert_close(results[1][0], results[0][0], rtol=1e-4, atol=1e-5)
    losses = [[record["metrics"]["loss"] for record in result[1]] for result in results]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_a_bin_that_is_empty_in_one_micro_batch_is_still_logged(tmp_path):
    trainer_of(tmp_path, micro_batch=1).fit()
    logged = records(tmp_path)[-1]["metrics"]
    assert sum(name.startswith("tangent_norm/") for name in logged) >= 4


class Breaking(Objective):
    """Flow matching whose loss is spoilt at chosen steps."""

    def __init__(self, broken, bad=float("nan")):
        self.broken, self.bad = broken, bad
        self.inner = matching()

    def __call__(self, network, batch, random, step, monitor=False):
        loss = self.inner(network, batch, random, step, monitor)
        if self.broken(step):
            return Loss(loss.value * self.bad, {"loss": loss.value.detach() * self.bad})
        return loss


def moved_by_a_step(trainer):
    """All that an optimiser step changes: weights, moments and the optimiser's own count."""
    state = trainer.phases[0].state_dict()
    return copy.deepcopy([state["network"], state["optimizer"]["state"]])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_step_with_a_gradient_that_is_not_finite_is_skipped_and_counted(tmp_path, bad):
    objectives = {"student": Breaking(lambda step: step == 5, bad)}
    trainer = trainer_of(tmp_path, objectives=objectives, stop=6)
    with pytest.raises(Stop):
        trainer.fit()
    after = moved_by_a_step(trainer)
    assert trainer.skipped == 1
    assert all(p.isfinite().all() for p in trainer.phases[0].network.parameters())

    before = trainer_of(tmp_path / "before", objectives={"student": matching()}, stop=5)
    with pytest.raises(Stop):
        before.fit()
    torch.testing.assert_close(after, moved_by_a_step(before), rtol=0, atol=0)

    trainer_of(tmp_path / "whole", objectives=objectives, log_every=1).fit()
    logged = records(tmp_path / "whole")
    assert len(logged) == STEPS
    for record in logged:
        assert all(math.isfinite(value) for value in record["metrics"].values())
    assert "loss" not in logged[5]["metrics"]
    assert [record["metrics"]["skipped_steps"] for record in logged] == [0] * 5 + [1] * (STEPS - 5)


def test_broken_gradients_many_times_in_a_row_end_the_training(tmp_path):
    trainer = trainer_of(tmp_path, objectives={"student": Breaking(lambda step: step >= 2)}, steps=100)
    with pytest.raises(AyfError, match=f"'student' was not finite for {SKIPPED_IN_A_ROW} steps in a row"):
        trainer.fit()
    assert trainer.step == 2 + SKIPPED_IN_A_ROW - 1


def test_broken_gradients_now_and_then_do_not_end_the_training(tmp_path):
    trainer = trainer_of(tmp_path, objectives={"student": Breaking(lambda step: step % 2 == 0)}, steps=60)
    trainer.fit()
    assert trainer.skipped == 30


def test_one_broken_phase_ends_the_training_though_the_other_is_well(tmp_path):
    objectives = {"student": Breaking(lambda step: True), "other": matching()}
    with pytest.raises(AyfError, match="'student' was not finite"):
        trainer_of(tmp_path, objectives=objectives, steps=100).fit()


def test_broken_steps_are_counted_across_a_resumption(tmp_path):
    objectives = {"student": Breaking(lambda step: True)}
    with pytest.raises(Stop):
        trainer_of(tmp_path, objectives=objectives, steps=100, stop=11).fit()
    trainer = trainer_of(tmp_path, objectives=objectives, steps=100)
    with pytest.raises(AyfError, match="in a row"):
        trainer.fit()
    assert trainer.step == SKIPPED_IN_A_ROW - 1


def test_nan_in_the_data_ends_the_training_with_a_word_about_the_data(tmp_path):
    data = data_of()
    data.x[:] = float("nan")
    with pytest.raises(AyfError, match="NaN in the data"):
        trainer_of(tmp_path, objectives={"student": matching()}, data=data, steps=100).fit()


def test_gradients_are_clipped_to_the_asked_norm(tmp_path, monkeypatch):
    seen = []

    class Recording(torch.optim.SGD):
        def step(self, closure=None):
            grads = [p.grad.flatten() for group in self.param_groups for p in group["params"] if p.grad is not None]
            seen.append(float(torch.cat(grads).norm()))

    monkeypatch.setattr(phases_module, "build_optimiser", lambda module, _: Recording(module.parameters(), lr=0.1))
    phase = Phase(name="student", network=network_of(), objective=matching())
    settings = training_settings(steps=3, gradient_clip=0.01)
    Trainer([phase], data_of(), settings, LocalContext(tmp_path), seed=0).fit()
    assert seen == pytest.approx([0.01] * 3, rel=1e-2)


@pytest.mark.parametrize("name", ["state.json", "state.safetensors"])
def test_damaged_checkpoint_costs_the_steps_since_the_one_before(tmp_path, uninterrupted, name):
    with pytest.raises(Stop):
        trainer_of(tmp_path, stop=5).fit()
    newest = tmp_path / "checkpoints" / "step_00000004"
    payload = (newest / name).read_bytes()
    (newest / name).write_bytes(payload[: len(payload) // 2])
    trainer = trainer_of(tmp_path)
    assert trainer.context.latest_checkpoint().name == "step_00000002"
    trainer.fit()
    assert_same_bits(everything(trainer), uninterrupted[0])


def test_a_stop_is_a_checkpoint_of_that_very_step_and_the_rest_goes_on_from_it(tmp_path, uninterrupted):
    trainer = trainer_of(tmp_path)
    trainer.context.stop_asked = lambda: trainer.step == 3  # between two checkpoints
    with pytest.raises(Preempted, match="stopped at step 3 with a checkpoint"):
        trainer.fit()
    trainer = trainer_of(tmp_path)
    assert trainer.context.latest_checkpoint().name == "step_00000003"
    trainer.fit()
    assert_same_bits(everything(trainer), uninterrupted[0])


def other_phases(folder):
    return trainer_of(folder, objectives={"teacher": matching()})


def other_network(folder):
    trainer = trainer_of(folder, dropout=False)
    trainer.phases[0].network = nn.Linear(2, 2)
    return trainer


def other_averages(folder):
    trainer = trainer_of(folder)
    trainer.callbacks[0] = FollowAverages(
        trainer.phases[0].network, dataclasses.replace(SETTINGS, ema_stds=[0.05, 0.2], ema_std=0.2), trainer.context
    )
    return trainer


@pytest.mark.parametrize("other", [other_phases, other_network, other_averages])
def test_checkpoint_of_another_training_is_refused_by_name(tmp_path, other):
    with pytest.raises(Stop):
        trainer_of(tmp_path, stop=5).fit()
    with pytest.raises(AyfError, match=r"step_00000004' is of another training.*delete that folder"):
        other(tmp_path).fit()


def test_phases_train_one_after_the_other_on_the_same_batch(tmp_path):
    seen = []

    class Seeing(FlowMatching):
        def __call__(self, network, batch, random, step, monitor=False):
            seen.append((step, batch.x))
            return super().__call__(network, batch, random, step, monitor)

    trainer_of(tmp_path, objectives={"student": matching(Seeing), "other": matching(Seeing)}, steps=3).fit()
    assert [step for step, _ in seen] == [0, 0, 1, 1, 2, 2]
    for (_, first), (_, second) in zip(seen[::2], seen[1::2], strict=True):
        assert torch.equal(first, second)
    assert not torch.equal(seen[0][1], seen[2][1])
    logged = records(tmp_path)[-1]["metrics"]
    assert {"loss", "other/loss", "learning_rate", "other/learning_rate"} <= logged.keys()


def test_tensor_data_gives_the_asked_samples():
    data = TensorData(torch.arange(10.0)[:, None], labels(torch.arange(10)))
    batch = data.batch(data.read(torch.tensor([3, 3, 7])), random=None)
    assert isinstance(batch, Batch)
    assert batch.condition["labels"].tolist() == [3, 3, 7]
    assert len(data) == 10


@pytest.mark.parametrize("end", ["stop", "preemption", "error in the data", "last step"])
def test_what_reads_ahead_ends_with_the_training(tmp_path, end):
    data = data_of()
    if end == "error in the data":
        read, calls = data.read, []

        def failing(indices):
            calls.append(indices)
            if len(calls) == 5:
                raise OSError("the disk is gone")
            return read(indices)

        data.read = failing
    trainer = trainer_of(tmp_path, data=data, stop=3 if end == "stop" else None)
    if end == "preemption":
        trainer.context.stop_asked = lambda: trainer.step == 3
    expected = {"stop": Stop, "preemption": Preempted, "error in the data": OSError}.get(end)
    with pytest.raises(expected) if expected else contextlib.nullcontext():
        trainer.fit()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]

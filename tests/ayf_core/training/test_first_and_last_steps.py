"""What happens at the first and at the last step: the rate that is used, the snapshots that are taken."""

import json

import pytest
import torch
from torch import nn

from ayf_core.conditions import Condition
from ayf_core.objectives.base import Loss
from ayf_core.training import phases
from ayf_core.training.callbacks import FollowAverages
from ayf_core.training.context import LocalContext
from ayf_core.training.data import TensorData
from ayf_core.training.ema import load_snapshots
from ayf_core.training.options import LoopOptions
from ayf_core.training.phases import Phase
from ayf_core.training.trainer import Trainer
from tests.ayf_core.trainings import training_settings


def squares(network, batch, random, step, monitor=False):
    """The smallest objective."""
    loss = network(batch.x).square().mean()
    return Loss(loss, {"loss": loss.detach()})


def train(folder, steps, snapshots=4, **changes):
    torch.manual_seed(0)
    context, network = LocalContext(folder), nn.Linear(2, 2)
    settings = training_settings(steps=steps, batch_size=4, ema_stds=[0.1], **changes)
    data = TensorData(torch.randn(8, 2), Condition())
    averages = FollowAverages(network, settings, context, snapshots=snapshots)
    phase = Phase(name="teacher", network=network, objective=squares)
    Trainer([phase], data, settings, context, [averages], seed=0, options=LoopOptions(log_every=1)).fit()
    return averages


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.2, 0.4, 0.6, 0.6, 0.6, 0.6]),
        ("cosine", [0.2, 0.4, 0.6, 0.6, 0.45, 0.15]),  # half a cosine over three steps, which reaches 0 after the last
    ],
)
def test_the_rate_of_each_step_is_that_of_the_schedule_from_the_first_to_the_last(
    tmp_path, monkeypatch, schedule, expected
):
    used = []

    class Noting(torch.optim.SGD):
        def step(self, closure=None):
            used.append([group["lr"] for group in self.param_groups])

    monkeypatch.setattr(phases, "build_optimiser", lambda module, _: Noting(module.parameters(), lr=9.0))
    train(tmp_path, 6, schedule=schedule, warmup_steps=3, learning_rate=0.6)
    assert used == [[pytest.approx(rate)] for rate in expected]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["metrics"]["learning_rate"] for line in lines] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("steps", "snapshots", "at"),
    [(10, 4, [2, 5, 8, 10]), (7, 2, [4, 7]), (5, 1, [5]), (3, 8, [1, 2, 3])],
)
def test_snapshots_are_spread_evenly_and_the_last_holds_the_end(tmp_path, steps, snapshots, at):
    averages = train(tmp_path, steps, snapshots)
    taken = load_snapshots(tmp_path / "ema")
    assert sorted(snapshot.step for snapshot in taken) == at
    last = max(taken, key=lambda snapshot: snapshot.step)
    for name, value in averages.ema.weights(0.1).items():
        assert torch.equal(last.weights[name], value)

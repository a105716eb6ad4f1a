"""What happens at the first and at the last step: the rate that is used, the snapshots that are taken."""

import json

import pytest
import torch
from torch import nn

from ayf_core.objectives import FlowMatching
from ayf_core.training import trainer as trainer_module
from ayf_core.training.callbacks import FollowAverages
from ayf_core.training.context import LocalContext
from ayf_core.training.data import TensorData
from ayf_core.training.ema import load_snapshots
from ayf_core.training.optimisers import OptimiserSettings
from ayf_core.training.trainer import LoopSettings, Phase, Trainer


class Linear(nn.Module):
    """The smallest network of an objective."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x, t, *_, **__):
        return self.layer(x)


def train(folder, steps, schedule="constant", warmup_steps=0, snapshots=None):
    torch.manual_seed(0)
    context, network = LocalContext(folder), Linear()
    settings = OptimiserSettings(learning_rate=0.6, schedule=schedule, warmup_steps=warmup_steps, weight_decay=0.0)
    phase = Phase("teacher", network, FlowMatching(), settings)
    data = TensorData(torch.randn(8, 2), torch.zeros(8, dtype=torch.long))
    followers = [] if snapshots is None else [FollowAverages(network, [0.1], context, steps, snapshots=snapshots)]
    loop = LoopSettings(steps=steps, batch_size=4, seed=0, log_every=1)
    Trainer([phase], data, loop, context, followers).fit()
    return network, followers


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

    monkeypatch.setattr(trainer_module, "build_optimiser", lambda module, _: Noting(module.parameters(), lr=9.0))
    train(tmp_path, 6, schedule, warmup_steps=3)
    assert used == [[pytest.approx(rate)] for rate in expected]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["metrics"]["learning_rate"] for line in lines] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("steps", "snapshots", "at"),
    [(10, 4, [2, 5, 8, 10]), (7, 2, [4, 7]), (5, 1, [5]), (3, 8, [1, 2, 3])],
)
def test_snapshots_are_spread_evenly_and_the_last_holds_the_end(tmp_path, steps, snapshots, at):
    _, (averages,) = train(tmp_path, steps, snapshots=snapshots)
    taken = load_snapshots(tmp_path / "ema")
    assert sorted(snapshot.step for snapshot in taken) == at
    last = max(taken, key=lambda snapshot: snapshot.step)
    for name, value in averages.ema.weights(0.1).items():
        assert torch.equal(last.weights[name], value)

"""The averages of a training: which are kept, which is published, when snapshots are taken."""

import pytest
import torch
from torch import nn

from ayf_core.errors import AyfError
from ayf_core.training.callbacks import FollowAverages
from ayf_core.training.context import LocalContext
from ayf_core.training.ema import load_snapshots
from tests.ayf_core.trainings import training_settings


def followed(folder, steps, snapshots=4, **settings):
    network = nn.Linear(1, 1, bias=False)
    averages = FollowAverages(network, training_settings(steps=steps, **settings), LocalContext(folder), snapshots)
    for step in range(1, steps + 1):
        with torch.no_grad():
            network.weight.fill_(float(step))
        averages.after_step(step)
    return averages


@pytest.mark.parametrize(
    ("steps", "snapshots", "expected"),
    [(12, 4, [3, 6, 9, 12]), (10, 4, [2, 5, 8, 10]), (7, 1, [7]), (2, 4, [1, 2]), (1, 4, [1])],
)
def test_snapshots_are_evenly_spaced_and_the_last_is_of_the_last_step(tmp_path, steps, snapshots, expected):
    followed(tmp_path, steps, snapshots)
    assert sorted({snapshot.step for snapshot in load_snapshots(tmp_path / "ema")}) == expected


@pytest.mark.parametrize("published", [0.05, 0.1, 0.2])
def test_the_width_that_settings_name_is_published(tmp_path, published):
    averages = followed(tmp_path, 20, ema_stds=[0.05, 0.1, 0.2], ema_std=published)
    assert torch.equal(averages.published()["weight"], averages.ema.averages[published]["weight"])
    others = [averages.ema.averages[std]["weight"] for std in (0.05, 0.1, 0.2) if std != published]
    assert not any(torch.equal(averages.published()["weight"], other) for other in others)


def test_a_width_that_is_not_kept_is_refused_before_training(tmp_path):
    with pytest.raises(AyfError, match=r"ema_std = 0\.15 is none of ema_stds"):
        followed(tmp_path, 2, ema_std=0.15)

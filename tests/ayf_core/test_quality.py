"""Quality of a set of samples: a copy of the training data is exposed, real data set the floor."""

import math

import pytest
import torch

from ayf_core.evaluation.features.pixels import PixelFeatures
from ayf_core.evaluation.quality import ImageReference, PointReference


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def real_images(count, seed):
    """Smooth random pictures [N, 1, 3, 3] in (-1, 1)."""
    mixing = torch.randn(9, 9, generator=seeded(9)) / 3
    return torch.tanh(torch.randn(count, 9, generator=seeded(seed)) @ mixing).view(-1, 1, 3, 3)


TRAIN, TEST, NEW = real_images(240, 1), real_images(60, 2), real_images(240, 3)


@pytest.fixture(scope="module")
def reference():
    pixels = PixelFeatures()
    return ImageReference(pixels, pixels(TRAIN), pixels(TEST), neighbours=3)


@pytest.fixture(scope="module")
def copied(reference):
    return reference.measure(TRAIN.clone(), seed=0)


@pytest.fixture(scope="module")
def fresh(reference):
    return reference.measure(NEW, seed=0)


def test_copy_of_the_training_images_has_no_distance_and_is_exposed(copied):
    assert copied["fd"] == pytest.approx(0.0, abs=1e-9)
    assert copied["copy_ratio"] == 0.0
    assert copied["authenticity"] == 0.0


def test_new_images_of_the_same_kind_are_no_copies(fresh):
    assert 0.8 < fresh["copy_ratio"] < 1.25
    assert fresh["authenticity"] == pytest.approx(0.5, abs=0.15)
    assert fresh["fd"] > 0


def test_against_the_test_split_copies_look_as_good_as_new_images(copied, fresh, reference):
    # So `fd_test` alone does not expose copies: it is the floor itself, and copy_ratio has to stand beside it.
    floor = reference.floor(seed=0)
    assert copied["fd_test"] == pytest.approx(floor["fd_test"], rel=0.4)
    assert fresh["fd_test"] == pytest.approx(floor["fd_test"], rel=0.4)


def test_floor_is_finite_and_covers_every_measure_against_the_test_split(reference, fresh):
    floor = reference.floor(seed=0)
    assert floor.keys() == fresh.keys() - {"fd", "copy_ratio", "authenticity"}
    assert all(math.isfinite(value) for value in floor.values())
    assert floor["fd_test"] > 0
    assert abs(floor["kernel_distance"]) < 0.05
    assert reference.floor(seed=0) == floor


def test_worse_images_measure_worse(reference, fresh):
    noisy = reference.measure(NEW + 0.5 * torch.randn(NEW.shape, generator=seeded(4)), seed=0)
    assert noisy["fd"] > 3 * fresh["fd"]
    assert noisy["fd_test"] > 1.5 * fresh["fd_test"]
    assert noisy["precision"] < fresh["precision"]
    assert noisy["copy_ratio"] > fresh["copy_ratio"]


def test_fewer_kinds_of_images_lose_recall_and_coverage(reference, fresh):
    narrow = reference.measure(NEW[:5].repeat(48, 1, 1, 1), seed=0)
    assert narrow["recall"] < 0.5 * fresh["recall"]
    assert narrow["coverage"] < 0.5 * fresh["coverage"]


def test_images_are_clipped_to_their_range_before_they_are_measured(reference):
    beyond = torch.where(TRAIN > 0.8, TRAIN + 1, TRAIN)
    inside = beyond.clamp(-1, 1)
    assert (beyond > 1).any()
    assert reference.measure(beyond, seed=0) == reference.measure(inside, seed=0)


def test_measures_depend_on_the_seed_of_the_subset_alone(reference, fresh):
    torch.rand(3)
    assert reference.measure(NEW, seed=0) == fresh
    other = reference.measure(NEW, seed=1)
    assert other["fd"] == fresh["fd"]
    assert other["fd_test"] != fresh["fd_test"]


def board(count, seed):
    """Points of a 4 x 4 checkerboard on [-4, 4]²."""
    generator = seeded(seed)
    x, y = torch.rand(2, count, generator=generator) * 2
    column, row = torch.randint(4, (count,), generator=generator), torch.randint(2, (count,), generator=generator)
    return torch.stack([x + 2 * column - 4, y + 2 * (2 * row + column % 2) - 4], dim=1)


def test_points_on_the_board_measure_at_the_floor_and_others_far_above_it():
    reference = PointReference(board(1500, 1), board(1500, 2), half_width=4.0)
    floor = reference.floor(seed=0)
    good = reference.measure(board(1500, 3), seed=0)
    assert good.keys() == floor.keys() == {"jsd", "sliced_wasserstein"}
    for name, value in floor.items():
        assert math.isfinite(value)
        assert 0 < good[name] < 2.5 * value
    everywhere = reference.measure(8 * torch.rand(1500, 2, generator=seeded(4)) - 4, seed=0)
    assert everywhere["jsd"] > 5 * floor["jsd"]
    shifted = reference.measure(board(1500, 3) + 1.0, seed=0)
    assert shifted["sliced_wasserstein"] > 3 * floor["sliced_wasserstein"]

"""Distances against closed forms, brute force and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from ayf_core.data.sets.checkerboard import HALF_WIDTH, sample_checkerboard
from ayf_core.errors import AyfError
from ayf_core.evaluation.distances import (
    Gaussian,
    checkerboard_divergence,
    frechet_distance,
    frechet_distance_of_gaussians,
    jensen_shannon_divergence,
    kernel_distance,
    nearest_distances,
    precision_recall_density_coverage,
    sliced_wasserstein,
)


def normal(n: int, features: int, seed: int) -> Tensor:
    return torch.randn((n, features), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_covariance(features: int, seed: int) -> Tensor:
    root = normal(features, features, seed)
    return root @ root.T / features


def test_frechet_distance_of_commuting_gaussians_is_the_closed_form() -> None:
    mean_a, mean_b = torch.tensor([1.0, -2.0, 0.5]), torch.tensor([0.0, 1.0, 0.5])
    std_a, std_b = torch.tensor([1.0, 0.3, 2.0]).double(), torch.tensor([0.5, 0.0, 2.5]).double()
    rotation = torch.linalg.qr(normal(3, 3, 0)).Q
    covariance_a, covariance_b = ((rotation * std**2) @ rotation.T for std in (std_a, std_b))
    expected = 1.0 + 9.0 + (std_a - std_b).square().sum().item()
    distance = frechet_distance_of_gaussians(
        Gaussian(mean_a.double(), covariance_a), Gaussian(mean_b.double(), covariance_b)
    )
    assert distance == pytest.approx(expected, rel=1e-10)


def test_frechet_distance_of_any_gaussians_agrees_with_scipy() -> None:
    linalg = pytest.importorskip("scipy.linalg")
    a, b = random_covariance(12, 1), random_covariance(12, 2)
    zero = torch.zeros(12).double()
    cross = np.trace(linalg.sqrtm((a @ b).numpy())).real
    expected = (a.trace() + b.trace()).item() - 2 * cross
    assert frechet_distance_of_gaussians(Gaussian(zero, a), Gaussian(zero, b)) == pytest.approx(expected, rel=1e-9)


def test_frechet_distance_of_samples_uses_the_unbiased_moments() -> None:
    a, b = normal(50, 4, 0), 2 * normal(70, 4, 1) + 1
    expected = frechet_distance_of_gaussians(Gaussian(a.mean(0), torch.cov(a.T)), Gaussian(b.mean(0), torch.cov(b.T)))
    assert frechet_distance(a.float(), b.float()) == pytest.approx(expected, rel=1e-5)
    assert frechet_distance(a, b) == pytest.approx(frechet_distance(b, a), rel=1e-12)


def test_frechet_distance_of_singular_sets_is_small_and_exact() -> None:
    a = normal(10, 40, 0)  # covariances of rank 9 in 40 dimensions
    assert frechet_distance(a, a) < 1e-10
    assert frechet_distance(a, a + 0.25) == pytest.approx(40 * 0.0625, rel=1e-9)


def test_frechet_distance_in_one_dimension() -> None:
    a = normal(30, 1, 0)
    assert frechet_distance(a, 3 * a) == pytest.approx((4 * a.mean() ** 2 + 4 * a.var()).item(), rel=1e-10)


def test_kernel_distance_agrees_with_the_double_sum() -> None:
    a, b = normal(7, 3, 0), normal(9, 3, 1) + 0.5

    def mean_kernel(x: Tensor, y: Tensor, *, without_diagonal: bool) -> float:
        terms = [
            (float(x[i] @ y[j]) / 3 + 1) ** 3
            for i in range(len(x))
            for j in range(len(y))
            if not (without_diagonal and i == j)
        ]
        return sum(terms) / len(terms)

    expected = (
        mean_kernel(a, a, without_diagonal=True)
        + mean_kernel(b, b, without_diagonal=True)
        - 2 * mean_kernel(a, b, without_diagonal=False)
    )
    assert kernel_distance(a, b) == pytest.approx(expected, rel=1e-12)


def test_kernel_distance_is_unbiased() -> None:
    values = [kernel_distance(normal(20, 2, 2 * seed), normal(20, 2, 2 * seed + 1)) for seed in range(200)]
    error = np.std(values) / math.sqrt(len(values))
    assert abs(np.mean(values)) < 3 * error
    assert min(values) < 0


def test_kernel_distance_in_chunks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = normal(50, 3, 0), normal(40, 3, 1)
    whole = kernel_distance(a, b), precision_recall_density_coverage(a, b, 3)
    monkeypatch.setattr("ayf_core.evaluation.distances.CHUNK", 7)
    parts = kernel_distance(a, b), precision_recall_density_coverage(a, b, 3)
    assert parts[0] == pytest.approx(whole[0], rel=1e-12)
    assert parts[1] == whole[1]


@pytest.mark.parametrize("k", [1, 3])
def test_prdc_agrees_with_its_definition_written_out(k: int) -> None:
    real, fake = normal(14, 2, 0).tolist(), (0.8 * normal(11, 2, 1) + 0.7).tolist()

    def radius(points: list[list[float]], i: int) -> float:
        return sorted(math.dist(points[i], other) for j, other in enumerate(points) if j != i)[k - 1]

    def inside(x: list[float], points: list[list[float]], i: int) -> bool:
        return math.dist(x, points[i]) <= radius(points, i)

    around = [[inside(y, real, i) for i in range(len(real))] for y in fake]
    result = precision_recall_density_coverage(torch.tensor(real), torch.tensor(fake), k)
    assert result.precision == pytest.approx(np.mean([any(row) for row in around]))
    assert result.density == pytest.approx(np.sum(around) / (k * len(fake)))
    assert result.coverage == pytest.approx(np.mean(np.any(around, axis=0)))
    assert result.recall == pytest.approx(np.mean([any(inside(x, fake, j) for j in range(len(fake))) for x in real]))
    assert 0 < result.precision < 1  # the sets are such that each figure says something
    assert 0 < result.coverage < 1


def test_collapsed_model_is_precise_but_neither_recalls_nor_covers() -> None:
    real = normal(200, 2, 0)
    fake = real[0] + 1e-3 * normal(200, 2, 1)
    result = precision_recall_density_coverage(real, fake, 5)
    assert result.precision > 0.95
    assert result.recall < 0.05
    assert result.coverage < 0.2


def test_prdc_of_a_set_with_itself_is_perfect() -> None:
    real = normal(60, 3, 0)
    result = precision_recall_density_coverage(real, real, 5)
    assert (result.precision, result.recall, result.coverage) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("k", [0, 10])
def test_prdc_with_too_many_neighbours_is_refused(k: int) -> None:
    with pytest.raises(AyfError, match=f"k is {k}"):
        precision_recall_density_coverage(normal(10, 2, 0), normal(20, 2, 1), k)


def test_sliced_wasserstein_of_a_shift_is_the_shift_over_root_dimension() -> None:
    a = normal(40, 3, 0)
    shift = torch.tensor([1.0, 2.0, -2.0])
    generator = torch.Generator().manual_seed(0)
    distance = sliced_wasserstein(a, a + shift, 20_000, generator)
    assert distance == pytest.approx(3 / math.sqrt(3), rel=0.02)


def test_sliced_wasserstein_on_a_line_is_exact_for_unequal_counts() -> None:
    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [0.0], [3.0]])
    # Quantiles of a jump at 1/2, of b at 2/3: gaps 0, 1 and 2 over lengths 1/2, 1/6 and 1/3.
    assert sliced_wasserstein(a, b, 4) == pytest.approx(math.sqrt(1 / 6 + 4 / 3), rel=1e-12)


def test_sliced_wasserstein_agrees_with_sorting_each_projection() -> None:
    a, b = normal(30, 2, 0), 2 * normal(30, 2, 1)
    directions = torch.randn((2, 5), generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    directions = directions / directions.norm(dim=0)
    gap = (a @ directions).sort(dim=0).values - (b @ directions).sort(dim=0).values
    expected = gap.square().mean().sqrt().item()
    assert sliced_wasserstein(a, b, 5, torch.Generator().manual_seed(3)) == pytest.approx(expected, rel=1e-12)
    assert sliced_wasserstein(a, a, 5) == 0.0


def test_jensen_shannon_agrees_with_density_estimates_of_scikit_learn() -> None:
    neighbours = pytest.importorskip("sklearn.neighbors")
    a, b = normal(300, 2, 0), 0.7 * normal(250, 2, 1) + 0.4
    axis = np.linspace(-3, 3, 60)
    grid = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    p, q = (
        np.exp(neighbours.KernelDensity(bandwidth=0.3).fit(points[:200].numpy()).score_samples(grid))
        for points in (a, b)
    )
    m = (p + q) / 2
    expected = 0.5 * np.sum(p * np.log(p / m) + q * np.log(q / m)) * (axis[1] - axis[0]) ** 2
    found = jensen_shannon_divergence(a, b, bandwidth=0.3, half_width=3.0, grid_points=60, max_points=200)
    assert found == pytest.approx(expected, rel=1e-9)


def test_jensen_shannon_is_zero_for_equal_sets_and_log_two_for_separate_ones() -> None:
    a = 0.1 * normal(50, 2, 0)
    left, right = a - torch.tensor([2.0, 0.0]), a + torch.tensor([2.0, 0.0])
    assert jensen_shannon_divergence(a, a, bandwidth=0.2, half_width=4.0) == 0.0
    separate = jensen_shannon_divergence(left, right, bandwidth=0.1, half_width=4.0, grid_points=400)
    assert separate == pytest.approx(math.log(2), rel=1e-4)


def test_checkerboard_divergence_does_not_depend_on_the_units_and_sees_a_wrong_board() -> None:
    first, second = (sample_checkerboard(1000, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    h = HALF_WIDTH
    same = checkerboard_divergence(first, second, board_half_width=h)
    in_peer_units = checkerboard_divergence(first * 2 / h, second * 2 / h, board_half_width=2.0)
    mirrored = second * torch.tensor([-1.0, 1.0])
    assert same == pytest.approx(in_peer_units, rel=1e-5)
    assert same < 0.02
    assert checkerboard_divergence(first, mirrored, board_half_width=h) > 10 * same
    assert checkerboard_divergence(first, second, board_half_width=h, window=0.75) < same


def test_divergence_is_for_points_in_the_plane() -> None:
    with pytest.raises(AyfError, match="in the plane"):
        jensen_shannon_divergence(normal(5, 3, 0), normal(5, 3, 1), bandwidth=0.1, half_width=1.0)


def test_nearest_distances_name_the_neighbour() -> None:
    b = torch.tensor([[0.0, 0.0], [3.0, 4.0], [10.0, 0.0]]).double()
    distance, index = nearest_distances(torch.tensor([[3.0, 4.0], [9.0, 0.0]]).double(), b)
    assert distance.tolist() == [0.0, 1.0]
    assert index.tolist() == [1, 2]
    assert nearest_distances(b, b, skip_self=True)[0].tolist() == [5.0, 5.0, pytest.approx(math.sqrt(65))]


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
def test_samples_that_diverged_or_are_too_few_are_refused(distance) -> None:
    good = normal(5, 2, 0)
    bad = good.clone()
    bad[3, 1] = float("nan")
    with pytest.raises(AyfError, match="1 of 5 samples hold NaN"):
        distance(good, bad)
    with pytest.raises(AyfError, match="at least 2"):
        distance(good[:1], good)
    with pytest.raises(ValueError, match="2 and 3 features"):
        distance(good, normal(5, 3, 0))

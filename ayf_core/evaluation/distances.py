"""Distances between two sets of samples, given as features or points [N, F]; all in float64.

Each of these depends on how many samples are used (more samples, smaller distance), so compare figures at
equal counts only, and beside the distance between two sets of real data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from ayf_core.errors import AyfError

CHUNK = 1024
"""Rows of a distance matrix that are held at once."""


def frechet_distance(a: Float[Tensor, "N F"], b: Float[Tensor, "M F"]) -> float:
    """Squared Fréchet (2-Wasserstein) distance between the Gaussians fitted to a and b.

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^1/2 C_b C_a^1/2)^1/2), C the unbiased covariances (Heusel et al.
    2017, arXiv:1706.08500, eq. 6). It is FID only for Inception-v3 features.
    """
    a, b = _pair(a, b)
    return frechet_distance_of_gaussians(Gaussian.of(a), Gaussian.of(b))


@dataclass(frozen=True)
class Gaussian:
    """Mean and unbiased covariance, in float64."""

    mean: Float[Tensor, " F"]
    covariance: Float[Tensor, "F F"]

    @classmethod
    def of(cls, x: Float[Tensor, "N F"]) -> Gaussian:
        """The one fitted to samples; raises as `as_features` does."""
        x = as_features(x)
        return cls(x.mean(0), torch.cov(x.T).reshape(2 * x.shape[1:]))

    @cached_property
    def root(self) -> Float[Tensor, "F F"]:
        """The symmetric square root of the covariance."""
        return _square_root(self.covariance)


def frechet_distance_of_gaussians(a: Gaussian, b: Gaussian) -> float:
    """The distance of `frechet_distance` between two Gaussians.

    The trace of (C_a^1/2 C_b C_a^1/2)^1/2 is the sum of the singular values of C_a^1/2 C_b^1/2. This stays
    real and accurate where covariances are singular, where a square root of the product C_a C_b turns
    complex.
    """
    if len(a.mean) != len(b.mean):
        raise ValueError(f"the Gaussians have {len(a.mean)} and {len(b.mean)} dimensions")
    cross = torch.linalg.svdvals(a.root @ b.root).sum()
    shift = (a.mean - b.mean).square().sum()
    distance = shift + a.covariance.trace() + b.covariance.trace() - 2.0 * cross
    return max(distance.item(), 0.0)


def kernel_distance(a: Float[Tensor, "N F"], b: Float[Tensor, "M F"]) -> float:
    """Unbiased squared maximum mean discrepancy with the kernel k(x, y) = (x . y / F + 1)^3.

    The kernel is KID's (Binkowski et al. 2018, arXiv:1801.01401), on whichever features are given. Unbiased,
    so values below 0 occur when the sets are alike. All samples are used at once, not subsets.
    """
    a, b = _pair(a, b)

    def kernel_sum(x: Tensor, y: Tensor) -> float:
        rows = (((part @ y.T) / x.shape[1] + 1.0).pow(3).sum() for part in x.split(CHUNK))
        return math.fsum(row.item() for row in rows)

    def within(x: Tensor) -> float:
        diagonal = (x.square().sum(dim=1) / x.shape[1] + 1.0).pow(3).sum().item()
        return (kernel_sum(x, x) - diagonal) / (len(x) * (len(x) - 1))

    return within(a) + within(b) - 2.0 * kernel_sum(a, b) / (len(a) * len(b))


@dataclass(frozen=True)
class PRDC:
    """Each in [0, 1], except density, which may exceed 1; higher is better."""

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall_density_coverage(
    real: Float[Tensor, "N F"], fake: Float[Tensor, "M F"], k: int, real_radius: Float[Tensor, " N"] | None = None
) -> PRDC:
    """Quality and diversity apart, by balls that reach to each point's k-th nearest neighbour in its own set.

    With B(x) the closed ball around x of the distance to its k-th nearest neighbour (itself not counted):
    precision, the share of fakes inside some B(real), and recall, the share of reals inside some B(fake)
    (Kynkäänniemi et al. 2019, arXiv:1904.06991, eqs. 1-3); density, the mean over fakes of the number of
    B(real) around it, divided by k; coverage, the share of reals whose B(real) holds a fake (Naeem et al.
    2020, arXiv:2002.09797, eqs. 3 and 5). Density and coverage bear outliers better.

    Args:
        real_radius: `kth_neighbour(real, k)`, where it is known already.

    Raises:
        AyfError: a set has k samples or fewer.
    """
    real, fake = _pair(real, fake)
    if k < 1 or k >= min(len(real), len(fake)):
        raise AyfError(f"k is {k}: it must be at least 1 and below the smaller set, {min(len(real), len(fake))}")
    fake_radius = kth_neighbour(fake, k)
    real_radius = kth_neighbour(real, k) if real_radius is None else real_radius
    in_balls = 0
    recalled, covered = 0, 0
    fake_is_inside = torch.zeros(len(fake), dtype=torch.bool, device=fake.device)
    for rows, radius in zip(real.split(CHUNK), real_radius.split(CHUNK), strict=True):
        distance = _distances(rows, fake)
        inside = distance <= radius[:, None]
        in_balls += int(inside.sum())
        covered += int(inside.any(dim=1).sum())
        fake_is_inside |= inside.any(dim=0)
        recalled += int((distance <= fake_radius).any(dim=1).sum())
    return PRDC(
        precision=int(fake_is_inside.sum()) / len(fake),
        recall=recalled / len(real),
        density=in_balls / (k * len(fake)),
        coverage=covered / len(real),
    )


def sliced_wasserstein(
    a: Float[Tensor, "N F"],
    b: Float[Tensor, "M F"],
    projections: int,
    generator: torch.Generator | None = None,
) -> float:
    """Sliced 2-Wasserstein distance: root of the mean W2^2 of projections on random unit directions.

    On a line W2^2 is the integral over u in (0, 1) of (Q_a(u) - Q_b(u))^2, Q the quantile functions, exact
    here for sets of any two sizes. A shift by d in F dimensions gives |d| / sqrt(F) on average.

    Args:
        projections: number of directions.
        generator: a CPU generator the directions are drawn from.
    """
    a, b = _pair(a, b)
    n, m = len(a), len(b)
    directions = torch.randn((a.shape[1], projections), generator=generator, dtype=torch.float64).to(a.device)
    directions = directions / directions.norm(dim=0)
    # Both quantile functions are constant between the levels i / n and j / m. Counted in units of 1 / (n m),
    # the levels are whole numbers, so none is missed by rounding.
    levels = torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]).unique().to(a.device)
    widths = torch.diff(levels, prepend=levels.new_zeros(1)).double() / (n * m)
    of_a, of_b = (levels - 1) // m, (levels - 1) // n
    total = 0.0
    for part in directions.split(64, dim=1):
        gap = (a @ part).sort(dim=0).values[of_a] - (b @ part).sort(dim=0).values[of_b]
        total += (widths @ gap.square()).sum().item()
    return math.sqrt(total / projections)


def jensen_shannon_divergence(
    a: Float[Tensor, "N 2"],
    b: Float[Tensor, "M 2"],
    *,
    bandwidth: float,
    half_width: float,
    grid_points: int = 200,
    max_points: int = 1000,
) -> float:
    """Jensen-Shannon divergence (nats) between kernel density estimates of two sets of points in the plane.

    p and q are the means of Gaussians of standard deviation `bandwidth` around the first `max_points` points
    of each set. With m = (p + q) / 2, the divergence 1/2 ∫ p log(p / m) + 1/2 ∫ q log(q / m) is summed over a
    square grid of `grid_points` x `grid_points` values on [-half_width, half_width]^2, each standing for the
    area of one mesh. Whatever lies outside the square is left out, and the densities are not normalised
    within it. 0 for equal sets, at most log 2. Scaling the points, the bandwidth and the half width together
    changes nothing.
    """
    a, b = _pair(a, b)
    if a.shape[1] != 2:
        raise AyfError(f"the Jensen-Shannon divergence is for points in the plane, not in {a.shape[1]} dimensions")
    axis = torch.linspace(-half_width, half_width, grid_points, dtype=torch.float64, device=a.device)
    mesh_area = (2.0 * half_width / (grid_points - 1)) ** 2

    def density(points: Tensor) -> Tensor:
        # A Gaussian in the plane is a product of two on the axes, so the whole grid is one matrix product.
        along = torch.exp(-0.5 * ((points[:, :, None] - axis) / bandwidth).square())
        return along[:, 0].T @ along[:, 1] / (len(points) * 2.0 * math.pi * bandwidth**2)

    p, q = density(a[:max_points]), density(b[:max_points])
    m = 0.5 * (p + q)
    tiny = torch.finfo(torch.float64).tiny
    log_m = m.clamp_min(tiny).log()
    both = torch.xlogy(p, p) - p * log_m + torch.xlogy(q, q) - q * log_m
    return max(0.5 * both.sum().item() * mesh_area, 0.0)


def checkerboard_divergence(
    real: Float[Tensor, "N 2"],
    fake: Float[Tensor, "M 2"],
    *,
    board_half_width: float,
    window: float = 1.25,
) -> float:
    """`jensen_shannon_divergence` with the settings usual for a checkerboard on [-h, h]^2, h its half width.

    The bandwidth is h / 10 and there are 1,000 points of each set: that is, 0.2 on the board [-2, 2]^2 of the
    public code revsic/flowmodels. Its toy evaluation (commit bae2246) sums over [-1.5, 1.5]^2, which is
    `window` = 0.75 and leaves out the outer half squares; a `window` of 1.25 sees the whole board and its
    surroundings. Figures from different windows are not comparable.
    """
    return jensen_shannon_divergence(real, fake, bandwidth=0.1 * board_half_width, half_width=window * board_half_width)


def nearest_distances(
    a: Float[Tensor, "N F"], b: Float[Tensor, "M F"], *, skip_self: bool = False
) -> tuple[Float[Tensor, " N"], Int64[Tensor, " N"]]:
    """Euclidean distance from each row of a to the nearest row of b, and that row's index.

    With `skip_self`, a and b are the same set and row i is not its own neighbour.
    """
    distances, indices = [], []
    for start, rows in zip(range(0, len(a), CHUNK), a.split(CHUNK), strict=True):
        distance = _distances(rows, b)
        if skip_self:
            here = torch.arange(len(rows), device=a.device)
            distance[here, start + here] = torch.inf
        nearest = distance.min(dim=1)
        distances.append(nearest.values)
        indices.append(nearest.indices)
    return torch.cat(distances), torch.cat(indices)


def kth_neighbour(x: Float[Tensor, "N F"], k: int) -> Float[Tensor, " N"]:
    """Euclidean distance of each row to its k-th nearest other row; k is at least 1 and below N."""
    # The smallest of the k + 1 is the row itself, at 0.
    return torch.cat([_distances(rows, x).kthvalue(k + 1, dim=1).values for rows in x.split(CHUNK)])


def as_features(x: Float[Tensor, "N F"], at_least: int = 2) -> Float[Tensor, "N F"]:
    """x in float64, checked.

    Raises:
        AyfError: fewer samples than `at_least`, or NaN or infinity among them.
        ValueError: not two-dimensional.
    """
    if x.ndim != 2:
        raise ValueError(f"expected features or points [N, F], got {tuple(x.shape)}")
    if len(x) < at_least:
        raise AyfError(f"a distance between sets needs at least {at_least} samples in each, got {len(x)}: draw more")
    x = x.detach().double()
    bad = int((~torch.isfinite(x).all(dim=1)).sum())
    if bad:
        raise AyfError(f"{bad} of {len(x)} samples hold NaN or infinity: the model that made them has diverged")
    return x


def _pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    a, b = as_features(a), as_features(b)
    if a.shape[1] != b.shape[1]:
        raise ValueError(f"the sets have {a.shape[1]} and {b.shape[1]} features")
    return a, b


def _distances(a: Tensor, b: Tensor) -> Tensor:
    # Differences, not the faster expansion of the square: a copy must be at distance 0 exactly.
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist")


def _square_root(covariance: Tensor) -> Tensor:
    """The symmetric square root; eigenvalues below rounding are 0, or their roots would add up."""
    values, vectors = torch.linalg.eigh(covariance)
    floor = values[-1].clamp_min(0.0) * len(values) * torch.finfo(torch.float64).eps
    return (vectors * torch.where(values > floor, values, 0.0).sqrt()) @ vectors.T

"""Fields whose velocity and flow map are known exactly: the truth that tests and benchmarks measure against.

Data are a Gaussian or a mixture of Gaussians, the path is the linear one (x_t = (1 - t) x_0 + t x_1). Both
classes are velocity fields (call them as such) and hand out a flow map with the call signature of `FlowMap`;
conditions and guidance scales are accepted and ignored. All sums are in float64; velocities and points return in the
dtype and on the device of x.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from ayf_core.conditions import Condition
from ayf_core.errors import AyfError, require
from ayf_core.interpolants import expand


class Gaussian:
    """Data N(mean, cov): everything in closed form, smooth at s = t and differentiable (torch.func.jvp too).

    x_t ~ N((1 - t) μ, Σ_t) with Σ_t = (1 - t)² C + t² I. All Σ_t share the eigenvectors of C, so that matrix
    square roots are square roots of eigenvalues.

    Args:
        mean: [D].
        cov: [D, D], symmetric and positive definite.

    Raises:
        AyfError: cov is not symmetric positive definite.
    """

    evaluations_per_call = 1

    def __init__(self, mean: Float[Tensor, " dim"], cov: Float[Tensor, "dim dim"]) -> None:
        self.mean = torch.as_tensor(mean, dtype=torch.float64)
        self.cov = torch.as_tensor(cov, dtype=torch.float64)
        self._variances, self._axes = torch.linalg.eigh(self.cov)
        if not torch.allclose(self.cov, self.cov.T) or self._variances.min() <= 0:
            raise AyfError("covariance must be symmetric and positive definite")

    def velocity(
        self,
        x: Float[Tensor, "batch dim"],
        t: Float[Tensor, " batch"],
        condition: Condition | None = None,
        guidance_scale: Tensor | None = None,
    ) -> Float[Tensor, "batch dim"]:
        """v(x, t) = E[x_1 - x_0 | x_t = x] = -μ + ½ (d Σ_t / dt) Σ_t^{-1} (x - (1 - t) μ)."""
        return self.mean_velocity(x, t, t)

    __call__ = velocity

    def flow_map(
        self,
        x: Float[Tensor, "batch dim"],
        t: Float[Tensor, " batch"],
        s: Float[Tensor, " batch"],
        condition: Condition | None = None,
        guidance_scale: Tensor | None = None,
    ) -> Float[Tensor, "batch dim"]:
        """f(x, t, s) = (1 - s) μ + Σ_s^{1/2} Σ_t^{-1/2} (x - (1 - t) μ)."""
        x64 = x.to(self.mean)
        jump = expand((s - t).to(x64), x64) * self.mean_velocity(x64, t, s)
        return (x64 + jump).to(x)

    def mean_velocity(
        self,
        x: Float[Tensor, "batch dim"],
        t: Float[Tensor, " batch"],
        s: Float[Tensor, " batch"],
        condition: Condition | None = None,
        guidance_scale: Tensor | None = None,
    ) -> Float[Tensor, "batch dim"]:
        """F(x, t, s) = (f(x, t, s) - x) / (s - t), the velocity itself at s = t.

        With λ_t an eigenvalue of Σ_t, (√(λ_s / λ_t) - 1) / (s - t) is (λ_s - λ_t) / (s - t) over
        λ_t (√(λ_s / λ_t) + 1), and the quotient of differences is a polynomial: nothing divides by s - t.
        """
        x64 = x.to(self.mean)
        t64, s64 = expand(t.to(x64), x64), expand(s.to(x64), x64)
        at_t, at_s = self._path_variances(t64), self._path_variances(s64)
        slope = (s64 + t64 - 2) * self._variances + (s64 + t64)
        gain = slope / (at_t * ((at_s / at_t).sqrt() + 1))
        along_axes = (x64 - (1 - t64) * self.mean) @ self._axes
        return ((gain * along_axes) @ self._axes.T - self.mean).to(x)

    def log_density(
        self, x: Float[Tensor, "batch dim"], t: Float[Tensor, " batch"] | None = None
    ) -> Float[Tensor, " batch"]:
        """Log density of x_t at x, in nats, float64; t = 0 (the data) when t is not given."""
        x64 = x.to(self.mean)
        t64 = torch.zeros_like(x64[:, :1]) if t is None else expand(t.to(x64), x64)
        variances = self._path_variances(t64)
        along_axes = (x64 - (1 - t64) * self.mean) @ self._axes
        return -0.5 * (along_axes**2 / variances + variances.log() + math.log(2 * math.pi)).sum(-1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n dim"]:
        """n draws of data, float64 [n, D]."""
        z = torch.randn(n, len(self.mean), dtype=torch.float64, generator=generator)
        return self.mean + (z * self._variances.sqrt()) @ self._axes.T

    def _path_variances(self, t: Float[Tensor, "batch 1"]) -> Float[Tensor, "batch dim"]:
        return (1 - t) ** 2 * self._variances + t**2


class GaussianMixture:
    """Data Σ_k weights_k N(means_k, covs_k): velocity in closed form, flow map by a tight ODE solve.

    The velocity is differentiable; the flow map is computed in numpy and is not.

    Args:
        weights: [K], positive; scaled to sum 1.
        means: [K, D].
        covs: [K, D, D], each symmetric and positive definite.

    Raises:
        AyfError: weights not positive, or a covariance not positive definite.
    """

    evaluations_per_call = 1

    def __init__(
        self,
        weights: Float[Tensor, " components"],
        means: Float[Tensor, "components dim"],
        covs: Float[Tensor, "components dim dim"],
    ) -> None:
        weights = torch.as_tensor(weights, dtype=torch.float64)
        if not bool((weights > 0).all()):
            raise AyfError("mixture weights must all be positive")
        self.weights = weights / weights.sum()
        self.components = [Gaussian(mean, cov) for mean, cov in zip(means, covs, strict=True)]

    def velocity(
        self,
        x: Float[Tensor, "batch dim"],
        t: Float[Tensor, " batch"],
        condition: Condition | None = None,
        guidance_scale: Tensor | None = None,
    ) -> Float[Tensor, "batch dim"]:
        """v(x, t) = Σ_k p(k | x_t = x) v_k(x, t)."""
        x64 = x.to(self.weights)
        posterior = self._joint_log_density(x64, t).softmax(-1)
        velocities = torch.stack([component.velocity(x64, t) for component in self.components], dim=1)
        return (posterior.unsqueeze(-1) * velocities).sum(1).to(x)

    __call__ = velocity

    @torch.no_grad()
    def flow_map(
        self,
        x: Float[Tensor, "batch dim"],
        t: Float[Tensor, " batch"],
        s: Float[Tensor, " batch"],
        condition: Condition | None = None,
        guidance_scale: Tensor | None = None,
    ) -> Float[Tensor, "batch dim"]:
        """The point at s on the trajectory through (x, t): DOP853 at tolerances 1e-10, one solve for all.

        The solver bounds the root mean square error over the batch, so ask for few points when each one
        matters.

        Raises:
            AyfError: scipy is missing, or the solver gave up.
        """
        integrate = require("scipy.integrate", extra="platform", needed_for="the flow map of a mixture")
        start, t64, span = x.to(self.weights), t.to(self.weights), (s - t).to(self.weights)

        # Each sample has its own interval: all run over u in [0, 1] with time t + u (s - t).
        def along(u, flat):  # type: ignore[no-untyped-def]
            points = torch.from_numpy(flat).view_as(start)
            return (span.unsqueeze(-1) * self.velocity(points, t64 + u * span)).flatten().numpy()

        solution = integrate.solve_ivp(
            along, (0.0, 1.0), start.flatten().numpy(), method="DOP853", rtol=1e-10, atol=1e-10
        )
        if not solution.success:
            raise AyfError(f"the flow map of the mixture could not be solved: {solution.message}")
        return torch.from_numpy(solution.y[:, -1].copy()).view_as(start).to(x)

    def log_density(
        self, x: Float[Tensor, "batch dim"], t: Float[Tensor, " batch"] | None = None
    ) -> Float[Tensor, " batch"]:
        """Log density of x_t at x, in nats, float64; t = 0 (the data) when t is not given."""
        return self._joint_log_density(x, t).logsumexp(-1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Float[Tensor, "n dim"]:
        """n draws of data, float64 [n, D]."""
        chosen = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        draws = torch.stack([component.sample(n, generator) for component in self.components])
        return draws[chosen, torch.arange(n)]

    def _joint_log_density(
        self, x: Float[Tensor, "batch dim"], t: Float[Tensor, " batch"] | None
    ) -> Float[Tensor, "batch components"]:
        densities = torch.stack([component.log_density(x, t) for component in self.components], dim=-1)
        return self.weights.log() + densities


def consistency_optimum(
    x: Float[Tensor, "batch *dims"], t: Float[Tensor, " batch"], c: float
) -> Float[Tensor, "batch *dims"]:
    """The exact consistency map f(x, t, 0) for data N(0, c² I): c x / √(t² + (1 - t)² c²).

    The setting of AYF's theorem that near-optimal consistency models get worse with more steps.
    """
    t64 = t.double()
    return x * expand(c / (t64**2 + (1 - t64) ** 2 * c**2).sqrt(), x)

"""The path between data and noise: x_t = (1 - t) x_0 + t x_1 with t = 0 data and t = 1 noise.

Every formula of the path lives here, so that objectives and samplers contain no schedule algebra.
"""

from jaxtyping import Float
from torch import Tensor


def expand(coefficient: Float[Tensor, " batch"], x: Float[Tensor, "batch *dims"]) -> Float[Tensor, "batch *ones"]:
    """View a per-sample coefficient [B] as [B, 1, ..., 1] in the dtype of x [B, *D], so that it broadcasts
    over x.

    Time is float64 as a rule: form the whole coefficient (1 - t, s - t, ...) first, it is rounded once, here.
    """
    return coefficient.to(x.dtype).view(-1, *(1,) * (x.ndim - 1))


class LinearInterpolant:
    """Linear (rectified-flow) path, AYF (arXiv 2506.14603) section 2: x_t = (1 - t) x_0 + t x_1."""

    @staticmethod
    def interpolate(
        x0: Float[Tensor, "batch *dims"], x1: Float[Tensor, "batch *dims"], t: Float[Tensor, " batch"]
    ) -> Float[Tensor, "batch *dims"]:
        """x_t for data x0, noise x1 [B, *D] and t [B] in [0, 1]; the result has the dtype of x0."""
        return expand(1 - t, x0) * x0 + expand(t, x0) * x1

    @staticmethod
    def velocity(x0: Float[Tensor, "batch *dims"], x1: Float[Tensor, "batch *dims"]) -> Float[Tensor, "batch *dims"]:
        """Conditional velocity d x_t / dt = x_1 - x_0, constant along the path."""
        return x1 - x0

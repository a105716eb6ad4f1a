"""Is the derivative right? A few samples of the real batch through the real network, against float64 differences."""

import copy

import torch
from torch import Tensor, nn

from ayf_core.errors import AyfError
from ayf_core.tangents.engines import central_difference, unwrap, value_and_derivative
from ayf_core.tangents.points import Direction, Point


def self_check(network: nn.Module, point: Point, direction: Direction, backend: str, tolerance: float) -> float:
    """Compare a back end on the real network with float64 central differences, on a few samples.

    Args:
        network: the network about to be trained; a copy is checked, whose all-zero layers are moved off zero.
        point, direction: a small batch; two samples are enough.
        tolerance: largest relative error accepted, per batch: |d - d64| / (|d64| + 1e-3 |F|) of the derivative, and
            |g - g'| / |g'| of the parameters' gradient against that of an ordinary pass.

    Returns:
        The relative error of the derivative.

    Raises:
        AyfError: if an error exceeds the tolerance, or is not finite.
    """
    probe = copy.deepcopy(unwrap(network))
    devices = [point.x.device] if point.x.is_cuda else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(0)
        with torch.no_grad():
            for parameter in probe.parameters():
                if not parameter.any():  # a zero-initialised layer would hide the derivative behind it
                    parameter.normal_(std=0.02)
        with torch.random.fork_rng(devices):  # both passes drop the same
            value, derivative = value_and_derivative(probe, point, direction, backend)
        given, expected = _gradient(probe, value), _gradient(probe, probe(*point))
        spoilt = _relative(given, expected, 1e-30)
        reference, size = _reference(probe.double(), point, direction), value.detach().double().norm()
        error = _relative(derivative.double(), reference, 1e-3 * float(size) + 1e-30)
    for what, found in (("derivative", error), ("gradient of the value", spoilt)):
        if not found <= tolerance:
            raise AyfError(
                f"tangent back end '{backend}': its {what} is off by {found:.2g} (relative) on this network, more than "
                f"the tolerance {tolerance:g}: use another back end or raise distill.tangent.self_check_tolerance"
            )
    return error


def _relative(found: Tensor, expected: Tensor, floor: float) -> float:
    return float((found - expected).norm() / (expected.norm() + floor))


def _gradient(network: nn.Module, value: Tensor) -> Tensor:
    """Of the mean square of F, by all parameters that have one."""
    wanted = [p for p in network.parameters() if p.requires_grad]
    gradients = torch.autograd.grad(value.square().mean(), wanted, allow_unused=True)
    given = (torch.zeros_like(p) if g is None else g for p, g in zip(wanted, gradients, strict=True))
    return torch.cat([g.flatten() for g in given])


@torch.no_grad()
def _reference(exact: nn.Module, point: Point, direction: Direction) -> Tensor:
    """By Richardson extrapolation of two central differences in float64: error O(h⁴)."""
    scale = None if point.guidance_scale is None else point.guidance_scale.double()
    point = Point(point.x.double(), point.t.double(), point.s.double(), point.condition, scale)
    direction = Direction(*(None if part is None else part.double() for part in direction))
    coarse, fine = (central_difference(exact, point, direction, step) for step in (2e-4, 1e-4))
    return (4 * fine - coarse) / 3

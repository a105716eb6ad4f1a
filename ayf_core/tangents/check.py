"""Is the derivative right? A few samples of the real batch through the real network, against float64 differences."""

import copy

import torch
from torch import Tensor, nn

from ayf_core.errors import AyfError
from ayf_core.precision import InPrecision
from ayf_core.tangents.engines import central_difference, unwrap, value_and_derivative
from ayf_core.tangents.layers import layer_errors
from ayf_core.tangents.points import Direction, Point

TANGENT_MAY_LOSE = 10.0
"""A tangent in low precision may be off by so many times what the value is off: 0.7 to 4.8 times in sound networks."""


def self_check(
    network: nn.Module, point: Point, direction: Direction, backend: str, tolerance: float, compiled: bool = False
) -> float:
    """Compare a back end on the real network, in its own precision, with float64 central differences.

    Args:
        network: the network about to be trained; a copy is checked, whose all-zero layers are moved off zero.
        point, direction: a small batch; two samples are enough.
        tolerance: largest relative error accepted, per batch: |d - d64| / (|d64| + 1e-3 |F|) of the derivative, and
            |g - g'| / |g'| of the parameters' gradient against that of an ordinary pass. Where low precision alone
            puts the value further off, the derivative may lose TANGENT_MAY_LOSE times as much.
        compiled: as it will be trained; the reference is ordinary code.

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
        exact = copy.deepcopy(probe).double()
        if compiled:
            probe.compile()
        with torch.random.fork_rng(devices):  # both passes drop the same
            value, derivative = value_and_derivative(probe, point, direction, backend)
        given, expected = _gradient(probe, value), _gradient(probe, probe(*point))
        spoilt = _relative(given, expected, 1e-30)
        reference, size = _reference(exact, point, direction), float(value.detach().double().norm())
        error = _relative(derivative.double(), reference, 1e-3 * size + 1e-30)
        with torch.no_grad():
            rounding = _relative(value.detach().double(), exact(*point.double()), 1e-30)
        allowed = max(tolerance, TANGENT_MAY_LOSE * rounding) if _is_low(probe) else tolerance
        if not error <= allowed:
            raise AyfError(_too_far(backend, "derivative", error, allowed) + _remedy(probe, point, direction))
        if not spoilt <= allowed:
            raise AyfError(_too_far(backend, "gradient of the value", spoilt, allowed) + "use another back end")
    return error


def _too_far(backend: str, what: str, error: float, allowed: float) -> str:
    return (
        f"tangent back end '{backend}': its {what} is off by {error:.2g} (relative) on this network, more than the "
        f"{allowed:.2g} allowed: "
    )


def _is_low(network: nn.Module) -> bool:
    return isinstance(network, InPrecision) and network.precision == "bfloat16"


def _remedy(network: nn.Module, point: Point, direction: Direction) -> str:
    """What to do about a derivative that is wrong; in low precision, which kind of layer makes it so."""
    if not _is_low(network):
        return "use another back end or raise distill.tangent.self_check_tolerance"
    try:
        errors = layer_errors(network, point, direction, torch.bfloat16)
    except AyfError:  # not a network for dual values
        errors = []
    for layer in errors:
        if not layer.tangent <= TANGENT_MAY_LOSE * max(layer.value, torch.finfo(torch.bfloat16).eps):
            return (
                f"in bfloat16 {layer.kind} ({layer.name}) is right to {layer.value:.2g} in value and to "
                f"{layer.tangent:.2g} in tangent; compute that layer in float32 (torch.autocast with enabled=False "
                "inside it), or set precision: float32 for this training"
            )
    return "set precision: float32 for this training"


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
    point, direction = point.double(), direction.double()
    coarse, fine = (central_difference(exact, point, direction, step) for step in (2e-4, 1e-4))
    return (4 * fine - coarse) / 3

"""The one derivative engine: d/dt and d/ds of a mean velocity F(x, t, s) along a trajectory.

Both continuous-time objectives need F with gradients for the parameters and one directional derivative of F
without: the Eulerian one along (dx, dt, ds) = (v, 1, 0), the Lagrangian one along (0, 0, 1). Back ends:

- `split` (default): an ordinary forward pass that keeps gradients, then a forward-mode derivative without.
  It goes through DistributedDataParallel, gradient checkpointing and a compiled forward.
- `fused`: one forward-mode pass whose value keeps gradients. One forward cheaper, but it must call the bare
  module: under DistributedDataParallel its gradients would silently not be synchronised, so that is refused.
- `finite_difference`: central differences; the cheapest, accurate to about 1e-3 in float32, useless in bfloat16.
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from ayf_core.conditions import Condition
from ayf_core.errors import AyfError
from ayf_core.networks.attention import forward_mode_attention
from ayf_core.registry import find, register

FINITE_DIFFERENCE_STEP = 5e-3
FUSED_SHARDS_SINCE = "2.13"  # compared as versions are, not as words
"""The first torch whose FSDP2 lets `torch.func.jvp` through; the hooks of 2.11 stop it (pytorch issue 182641)."""


class Point(NamedTuple):
    """Where F is evaluated."""

    x: Float[Tensor, "batch *dims"]
    t: Float[Tensor, " batch"]
    s: Float[Tensor, " batch"]
    condition: Condition | None = None
    guidance_scale: Float[Tensor, " batch"] | None = None


class Direction(NamedTuple):
    """The direction (dx, dt, ds) in which F is differentiated; the condition and λ stay fixed."""

    x: Float[Tensor, "batch *dims"]
    t: Float[Tensor, " batch"]
    s: Float[Tensor, " batch"]


def eulerian_direction(point: Point, velocity: Tensor) -> Direction:
    """(v, 1, 0): the starting point moves along the trajectory, the target time s stays."""
    return Direction(velocity.to(point.x.dtype), torch.ones_like(point.t), torch.zeros_like(point.s))


def lagrangian_direction(point: Point) -> Direction:
    """(0, 0, 1): the starting point stays, the target time s moves."""
    return Direction(torch.zeros_like(point.x), torch.zeros_like(point.t), torch.ones_like(point.s))


def unwrap(network: nn.Module) -> nn.Module:
    """The bare module inside DistributedDataParallel or `torch.compile`."""
    if isinstance(network, DistributedDataParallel):
        network = network.module
    return getattr(network, "_orig_mod", network)


def _jvp(network: nn.Module, point: Point, direction: Direction) -> tuple[Tensor, Tensor]:
    def mean_velocity(x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        return network(x, t, s, point.condition, point.guidance_scale)

    with forward_mode_attention():
        result = torch.func.jvp(mean_velocity, (point.x, point.t, point.s), tuple(direction))
    return result[0], result[1]


@register("tangent", "split", title="Forward mode, two passes")
def split(network: nn.Module, point: Point, direction: Direction) -> tuple[Tensor, Tensor]:
    value = network(*point)
    return value, _derivative(unwrap(network), point, direction)


class _LinearOfMovingInput(torch.autograd.Function):
    """`linear` whose forward-mode rule knows that the weights stand still.

    The built-in rule also multiplies by a tangent of zeros for the weights: a third of the pass.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_forward(inputs[1])

    @staticmethod
    def jvp(ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None = None) -> Tensor:
        return nn.functional.linear(x, ctx.saved_tensors[0])


class _WeightsStandStill(TorchFunctionMode):
    """Send every `linear` through `_LinearOfMovingInput`; in eager code only, a compiler drops the rule."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is nn.functional.linear and not kwargs:
            return _LinearOfMovingInput.apply(*args)
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def _derivative(network: nn.Module, point: Point, direction: Direction) -> Tensor:
    """The directional derivative alone, in forward mode without a graph."""
    with forward_ad.dual_level(), forward_mode_attention(), _WeightsStandStill():
        x, t, s = (forward_ad.make_dual(p, d) for p, d in zip(point[:3], direction, strict=True))
        value, derivative = forward_ad.unpack_dual(network(x, t, s, point.condition, point.guidance_scale))
    return torch.zeros_like(value) if derivative is None else derivative


@register("tangent", "fused", title="Forward mode, one pass")
def fused(network: nn.Module, point: Point, direction: Direction) -> tuple[Tensor, Tensor]:
    if isinstance(network, DistributedDataParallel):
        raise AyfError(
            "tangent back end 'fused' would train without synchronising gradients across workers: "
            "use 'split', or one worker"
        )
    if hasattr(network, "set_requires_gradient_sync") and torch.__version__ < FUSED_SHARDS_SINCE:
        raise AyfError(
            f"tangent back end 'fused' passes through sharded networks since torch {FUSED_SHARDS_SINCE}, "
            f"here is {torch.__version__}: use 'split'"
        )
    value, derivative = _jvp(unwrap(network), point, direction)
    return value, derivative.detach()


@register("tangent", "finite_difference", title="Central differences")
def finite_difference(network: nn.Module, point: Point, direction: Direction) -> tuple[Tensor, Tensor]:
    value = network(*point)
    with torch.no_grad():
        derivative = central_difference(unwrap(network), point, direction, FINITE_DIFFERENCE_STEP)
    return value, derivative


def central_difference(network: nn.Module, point: Point, direction: Direction, step: float) -> Tensor:
    """(F(p + h d) - F(p - h d)) / 2h, both evaluations with the same random state (dropout)."""

    def moved(h: float) -> Tensor:
        return network(
            point.x + h * direction.x,
            point.t + h * direction.t,
            point.s + h * direction.s,
            point.condition,
            point.guidance_scale,
        )

    devices = [point.x.device] if point.x.is_cuda else []
    with torch.random.fork_rng(devices=devices):
        ahead = moved(step)
    behind = moved(-step)
    return (ahead - behind) / (2 * step)


def value_and_derivative(
    network: nn.Module, point: Point, direction: Direction, backend: str
) -> tuple[Float[Tensor, "batch *dims"], Float[Tensor, "batch *dims"]]:
    """F with gradients for the parameters, and its directional derivative without.

    Args:
        backend: a name of the room `tangent`.

    Raises:
        AyfError: for an unknown back end, or `fused` under DistributedDataParallel.
    """
    return find("tangent", backend).load()(network, point, direction)


def self_check(network: nn.Module, point: Point, direction: Direction, backend: str, tolerance: float) -> float:
    """Compare a back end on the real network with float64 central differences, on a few samples.

    Args:
        network: the network about to be trained; a copy is checked, whose all-zero layers are moved off zero.
        point, direction: a small batch; two samples are enough.
        tolerance: largest relative error accepted, per batch: |d - d64| / (|d64| + 1e-3 |F|).

    Returns:
        The relative error.

    Raises:
        AyfError: if the error exceeds the tolerance, or is not finite.
    """
    probe = copy.deepcopy(unwrap(network))
    with torch.no_grad(), torch.random.fork_rng(devices=[point.x.device] if point.x.is_cuda else []):
        torch.manual_seed(0)
        for parameter in probe.parameters():
            if not parameter.any():  # a zero-initialised layer would hide the derivative behind it
                parameter.normal_(std=0.02)
        value, derivative = value_and_derivative(probe, point, direction, backend)
        exact = probe.double()
        point64 = Point(
            point.x.double(), point.t.double(), point.s.double(), point.condition, _double(point.guidance_scale)
        )
        direction64 = Direction(*(part.double() for part in direction))
        # Richardson extrapolation of two central differences: error O(h^4).
        coarse = central_difference(exact, point64, direction64, 2e-4)
        fine = central_difference(exact, point64, direction64, 1e-4)
        reference = (4 * fine - coarse) / 3
        scale = reference.norm() + 1e-3 * value.double().norm() + 1e-30
        error = float((derivative.double() - reference).norm() / scale)
    if not error <= tolerance:
        raise AyfError(
            f"tangent back end '{backend}' is off by {error:.2g} (relative) on this network, more than the tolerance "
            f"{tolerance:g}: use another back end or raise distill.tangent.self_check_tolerance"
        )
    return error


def _double(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.double()

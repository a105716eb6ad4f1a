"""The derivative engines: a mean velocity F(x, t, s) with gradients for the parameters, and d/dt or d/ds of it without.

Both continuous-time objectives need F and one directional derivative of it: the Eulerian one along (dx, dt, ds) =
(v, 1, 0), the Lagrangian one along (0, 0, 1).

- `dual` (default): one pass that carries value and tangent (`ayf_core.tangents.dual`). The tangent has no graph, so it
  costs about a forward pass and hardly any memory.
- `split`: an ordinary pass for the value, then torch's forward mode for the derivative. For a foreign network that a
  dual value does not pass through, and the reference that `dual` is compared with.
- `finite_difference`: central differences; accurate to about 1e-3 in float32, useless in bfloat16.
"""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.nn.parallel import DistributedDataParallel
from torch.overrides import TorchFunctionMode

from ayf_core.errors import AyfError
from ayf_core.networks.attention import forward_mode_attention
from ayf_core.registry import find, register
from ayf_core.tangents import normalisations, rules  # noqa: F401  (what dual values meet)
from ayf_core.tangents.dual import Dual
from ayf_core.tangents.points import Direction, Point

FINITE_DIFFERENCE_STEP = 5e-3


def value_and_derivative(
    network: nn.Module,
    point: Point,
    direction: Direction,
    backend: str,
    diagonal: Bool[Tensor, " batch"] | None = None,
) -> tuple[Float[Tensor, "batch *dims"], Float[Tensor, "batch *dims"]]:
    """F with gradients for the parameters, and its directional derivative without.

    Args:
        network: as it is trained: bare, or wrapped for several workers.
        backend: a name of the room `tangent`.
        diagonal: on the host, the samples with s = t, whose derivative no objective asks for: zeros are given.

    Raises:
        AyfError: for an unknown back end, or where there is no derivative.
    """
    engine = find("tangent", backend).load()
    if diagonal is None:
        return engine(network, point, direction)
    # Where the network is spread over workers they have to call it equally often: a part without samples is given one.
    order = torch.cat([(~diagonal).nonzero(), diagonal.nonzero()]).flatten()
    count = int((~diagonal).sum())
    parts = (part if len(part) else order[:1] for part in (order[:count], order[count:]))
    moving, still, back = (rows.to(point.x.device, non_blocking=True) for rows in (*parts, order.argsort()))
    value, derivative = engine(network, point.rows(moving), direction.rows(moving))
    values = value[:count], network(*point.rows(still))[: len(order) - count]
    zeros = derivative.new_zeros(len(order) - count, *derivative.shape[1:])
    return torch.cat(values)[back], torch.cat([derivative[:count], zeros])[back]


def unwrap(network: nn.Module) -> nn.Module:
    """The bare module inside DistributedDataParallel or `torch.compile`."""
    if isinstance(network, DistributedDataParallel):
        network = network.module
    return getattr(network, "_orig_mod", network)


@register("tangent", "dual", title="Dual values, one pass")
def dual(network: nn.Module, point: Point, direction: Direction) -> tuple[Tensor, Tensor]:
    moving = (p if d is None else Dual(p, d) for p, d in zip(point[:3], direction, strict=True))
    result = network(*moving, point.condition, point.guidance_scale)
    if not isinstance(result, Dual):
        raise _no_derivative("dual")
    return result.value, result.tangent


@register("tangent", "split", title="Forward mode, two passes")
def split(network: nn.Module, point: Point, direction: Direction) -> tuple[Tensor, Tensor]:
    value = network(*point)
    with torch.no_grad(), forward_ad.dual_level(), forward_mode_attention(), _WeightsStandStill():
        parts = zip(point[:3], direction, strict=True)
        moving = (p if d is None else forward_ad.make_dual(p, d.to(p.dtype)) for p, d in parts)
        result = unwrap(network)(*moving, point.condition, point.guidance_scale)
        derivative = forward_ad.unpack_dual(result).tangent
    if derivative is None:
        raise _no_derivative("split")
    return value, derivative


@register("tangent", "finite_difference", title="Central differences")
def finite_difference(network: nn.Module, point: Point, direction: Direction) -> tuple[Tensor, Tensor]:
    value = network(*point)
    with torch.no_grad():
        derivative = central_difference(unwrap(network), point, direction, FINITE_DIFFERENCE_STEP)
    return value, derivative


def central_difference(network: nn.Module, point: Point, direction: Direction, step: float) -> Tensor:
    """(F(p + h d) - F(p - h d)) / 2h, both evaluations with the same random state (dropout)."""

    def moved(h: float) -> Tensor:
        parts = (p if d is None else p + h * d for p, d in zip(point[:3], direction, strict=True))
        return network(*parts, point.condition, point.guidance_scale)

    devices = [point.x.device] if point.x.is_cuda else []
    with torch.random.fork_rng(devices=devices):
        ahead = moved(step)
    behind = moved(-step)
    return (ahead - behind) / (2 * step)


def _no_derivative(backend: str) -> AyfError:
    return AyfError(
        f"tangent back end '{backend}' found no derivative: the network's output does not depend on what moves, or a "
        "function inside it (a custom one, with 'split' also a compiled one) does not pass it on: leave compile off in "
        "the runtime, or set distill.tangent.backend=finite_difference, which needs none"
    )


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

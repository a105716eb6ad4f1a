"""Training on several workers: each holds the whole network (DDP), or a piece of every weight (FSDP2).

The loop calls the same functions whatever the network is spread over; with one worker they do nothing. Sharded
weights, gradients, optimiser states and averages are DTensors of which a worker holds its rows. Whole tensors exist
one module at a time, while it computes, and one tensor at a time, while a checkpoint or a model is gathered.

How the exact derivative passes through FSDP2: the objective calls the sharded module itself, whose hooks gather the
weights around the pass; the weights carry no tangent. So no pass sees a shard, and the derivative is the unsharded one.
"""

import warnings
from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ayf_core.errors import AyfError
from ayf_core.networks.base import MeanVelocityNetwork
from ayf_core.tangents.engines import unwrap
from ayf_core.training.context import TrainingContext
from ayf_core.training.sharding import is_sharded, shard_like, whole

SHARDINGS = ("none", "full")
SHARDS_SINCE = "2.11"  # compared as versions are, not as words
"""The oldest torch on which sharded training was tried; 2.6 does not shard on CPUs at all."""


def distribute(network: nn.Module, context: TrainingContext, sharding: str = "none") -> nn.Module:
    """Put a network on this worker's device; returns the module that an objective has to call.

    All workers start from rank 0's weights. With sharding 'full' the networks that are large (teachers, students) are
    sharded in place; small ones (codecs, classifiers, discriminators) stay whole on every worker.

    Raises:
        AyfError: for an unknown sharding, or a torch too old to shard.
    """
    if sharding not in SHARDINGS:
        raise AyfError(f"unknown sharding '{sharding}': choose {' or '.join(SHARDINGS)}")
    if context.world_size == 1:
        return network.to(context.device)
    if sharding == "full" and isinstance(network, MeanVelocityNetwork):
        return _shard(network, context)
    ids = [context.device.index] if context.device.type == "cuda" else None
    return DistributedDataParallel(network.to(context.device), device_ids=ids)


def _shard(network: MeanVelocityNetwork, context: TrainingContext) -> nn.Module:
    if torch.__version__ < SHARDS_SINCE:
        here = torch.__version__
        raise AyfError(f"sharding 'full' needs torch {SHARDS_SINCE}, here is {here}: upgrade, or sharding: none")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    # A network's output may be a view; it warns of writing in place to it, which no objective does.
    warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")
    for tensor in (*network.parameters(), *network.buffers()):
        shared = tensor.detach().to(context.device)
        distributed.broadcast(shared, src=0)
        tensor.detach().copy_(shared)
    mesh = init_device_mesh(context.device.type, (context.world_size,))
    for block in network.sharded_blocks:  # each moves to the device when its turn comes
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
    return network


def synchronise(wrapped: nn.Module, wanted: bool) -> None:
    """Whether the next backward pass brings gradients together: only that of the last micro-batch need."""
    module: Any = wrapped
    if isinstance(wrapped, DistributedDataParallel):
        wrapped.require_backward_grad_sync = wanted
    elif is_sharded(wrapped):
        module.set_requires_gradient_sync(wanted)


def reshard(network: nn.Module) -> None:
    """Back to shards: the outermost module keeps its weights gathered after a pass that no backward followed."""
    module: Any = network
    if is_sharded(network):
        module.reshard()


def clip_gradients(network: nn.Module, limit: float) -> Tensor:
    """Scale the gradients down to the norm `limit`; returns the norm of the whole gradient before, on every worker."""
    return whole(nn.utils.clip_grad_norm_(network.parameters(), limit))


def load_network_state(network: nn.Module, state: dict[str, Tensor]) -> None:
    """`load_state_dict` of whole tensors, into a network that may be sharded."""
    own = network.state_dict()
    network.load_state_dict({name: shard_like(tensor, own.get(name)) for name, tensor in state.items()})


def load_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """`load_state_dict` of whole tensors, into an optimiser whose parameters may be sharded."""
    parameters = dict(enumerate(p for group in optimizer.param_groups for p in group["params"]))

    def cut(index: int, value: Any) -> Any:
        parameter = parameters.get(index)
        moments = isinstance(value, Tensor) and parameter is not None and value.shape == parameter.shape
        return shard_like(value, parameter) if moments else value

    entries = {index: {name: cut(index, v) for name, v in entry.items()} for index, entry in state["state"].items()}
    optimizer.load_state_dict({**state, "state": entries})


def mean_over_workers(sums: Tensor, weights: Tensor, context: TrainingContext) -> Tensor:
    """sums / weights, both added up over all workers first: 0 / 0 = NaN where nobody has a value."""
    if context.world_size > 1:
        both = torch.stack([sums, weights])
        distributed.all_reduce(both)
        sums, weights = both
    return sums / weights


def least_of_workers(number: int, context: TrainingContext) -> int:
    """The smallest of the workers' numbers. Every worker takes part."""
    if context.world_size == 1:
        return number
    shared = torch.tensor([number], device=context.device)
    distributed.all_reduce(shared, op=distributed.ReduceOp.MIN)
    return int(shared)


def check_gradients_are_synchronised(network: nn.Module, name: str) -> None:
    """Look at the gradients after the first backward pass; one collective call, once a training.

    A forward-mode pass on the bare module inside DistributedDataParallel trains without synchronising, silently: the
    workers' gradients differ. A pass that goes around the hooks of FSDP2 stops at once where it meets shards; where
    somebody gathered them beforehand, the gradient stays with the gathered weight, and the shard gets none.

    Raises:
        AyfError: on every worker, if gradients are not those of all workers.
    """
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return
    if is_sharded(network):
        gradients = [p.grad for p in network.parameters() if p.requires_grad]
        wrong = any(gradient is None or not is_sharded(gradient) for gradient in gradients)
        count = torch.tensor(float(wrong), device=next(network.parameters()).device)
        distributed.all_reduce(count)
        synchronised = not count
    else:
        own = torch.stack([p.grad.double().square().sum() for p in unwrap(network).parameters() if p.grad is not None])
        own = own.nan_to_num()  # a gradient that is not finite is the non-finite guard's to name
        everyone = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
        distributed.all_gather(everyone, own)
        spread = max(float((other - everyone[0]).abs().max()) for other in everyone)
        synchronised = spread <= 1e-6 * float(everyone[0].abs().max()) + 1e-30
    if not synchronised:
        raise AyfError(
            f"workers hold different gradients for '{name}' after the first step: they are not synchronised; "
            "the objective must call the wrapped network, not the bare module"
        )

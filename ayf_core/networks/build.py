"""A network from its spec, and a student's start from its teacher."""

from torch import nn

from ayf_core.networks.base import MeanVelocityNetwork
from ayf_core.networks.spec import NetworkSpec


def build_network(spec: NetworkSpec) -> MeanVelocityNetwork:
    """A freshly initialised network; draws from torch's global generator."""
    return spec.network.build(spec)


def copy_shared_weights(source: nn.Module, target: nn.Module) -> None:
    """Start `target` (a flow map's network) from `source` (its teacher's).

    Everything the teacher has is copied; what only the target has (the embeddings of the interval and of the
    guidance scale) keeps its zero-initialised output, so both give the same velocity at the start.

    Raises:
        RuntimeError: if the teacher has a weight that the target lacks, or of another shape.
    """
    missing, unexpected = target.load_state_dict(source.state_dict(), strict=False)
    if unexpected:
        raise RuntimeError(f"the target network has no place for {unexpected}")
    extra = {name.split(".")[0] for name in missing}
    if not extra <= {"interval", "guidance"}:
        raise RuntimeError(f"the source network lacks {sorted(extra - {'interval', 'guidance'})}")

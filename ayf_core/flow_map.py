"""The flow map f(x, t, s) = x + (s - t) F(x, t, s)."""

from pathlib import Path
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from ayf_core.conditions import Condition
from ayf_core.errors import AyfError
from ayf_core.interpolants import expand
from ayf_core.networks.base import MeanVelocityNetwork
from ayf_core.networks.files import load_network, save_network


class FlowMap(nn.Module):
    """Jumps from noise level t to noise level s along the teacher's trajectories (AYF equation 3).

    Args:
        network: the mean velocity F over [s, t], told t - s (and λ, where it was distilled with guidance).

    Example:
        >>> flow_map = FlowMap.load("models/emd")
        >>> noise = torch.randn(16, *flow_map.network.spec.shape)
        >>> condition = Condition(labels=torch.arange(16) % 10)
        >>> x = flow_map(noise, torch.ones(16), torch.zeros(16), condition)
    """

    evaluations_per_call = 1

    def __init__(self, network: MeanVelocityNetwork):
        super().__init__()
        self.network = network

    def mean_velocity(
        self,
        x: Float[Tensor, "batch *dims"],
        t: Float[Tensor, " batch"],
        s: Float[Tensor, " batch"],
        condition: Condition | None = None,
        guidance_scale: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch *dims"]:
        """F(x, t, s | condition, λ); at s = t the instantaneous velocity."""
        return self.network(x, t, s, condition, guidance_scale)

    def forward(
        self,
        x: Float[Tensor, "batch *dims"],
        t: Float[Tensor, " batch"],
        s: Float[Tensor, " batch"],
        condition: Condition | None = None,
        guidance_scale: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch *dims"]:
        """The point at time s of the trajectory through x at time t; f(x, t, t) = x exactly."""
        return x + expand(s - t, x) * self.mean_velocity(x, t, s, condition, guidance_scale)

    def save(self, folder: str | Path, **details: Any) -> None:
        save_network(folder, self.network, role="flow_map", **details)

    @classmethod
    def load(cls, folder: str | Path) -> "FlowMap":
        """Read a flow map from a model folder, in evaluation mode.

        Raises:
            AyfError: if the folder is missing, damaged, or holds something else.
        """
        network, details = load_network(folder)
        if details["role"] != "flow_map":
            raise AyfError(f"{folder} holds a {details['role']}, not a flow map: name a distilled student")
        return cls(network).eval()

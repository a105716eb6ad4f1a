"""The flow map f(x, t, s) = x + (s - t) F(x, t, s), and networks on disk."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor, nn

from ayf_core.errors import AyfError
from ayf_core.files import first_line, read_json
from ayf_core.interpolants import expand
from ayf_core.networks import MeanVelocityNetwork, NetworkSpec, build_network

FORMAT = "ayf-network"
VERSION = 1


class FlowMap(nn.Module):
    """Jumps from noise level t to noise level s along the teacher's trajectories (AYF equation 3).

    Args:
        network: the mean velocity F over [s, t], told t - s (and λ, where it was distilled with guidance).

    Example:
        >>> flow_map = FlowMap.load("models/emd")
        >>> noise = torch.randn(16, *flow_map.network.spec.shape)
        >>> x = flow_map(noise, t=torch.ones(16), s=torch.zeros(16), labels=torch.arange(16) % 10)
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
        labels: Int[Tensor, " batch"] | None = None,
        guidance_scale: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch *dims"]:
        """F(x, t, s | label, λ); at s = t the instantaneous velocity."""
        return self.network(x, t, s, labels, guidance_scale)

    def forward(
        self,
        x: Float[Tensor, "batch *dims"],
        t: Float[Tensor, " batch"],
        s: Float[Tensor, " batch"],
        labels: Int[Tensor, " batch"] | None = None,
        guidance_scale: Float[Tensor, " batch"] | None = None,
    ) -> Float[Tensor, "batch *dims"]:
        """The point at time s of the trajectory through x at time t; f(x, t, t) = x exactly."""
        return x + expand(s - t, x) * self.mean_velocity(x, t, s, labels, guidance_scale)

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


def save_network(
    folder: str | Path,
    network: MeanVelocityNetwork,
    weights: Mapping[str, Tensor] | None = None,
    *,
    role: str,
    **details: Any,
) -> None:
    """Write `model.safetensors` (weights) and `model.json` (architecture, checksum, details) into a folder.

    Args:
        weights: in place of the network's own, e.g. an average.
        role: 'velocity' or 'flow_map'.
        details: anything that JSON holds; the same details give the same bytes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().contiguous().cpu() for name, tensor in (weights or network.state_dict()).items()}
    payload = safetensors.torch.save(tensors)
    (folder / "model.safetensors").write_bytes(payload)
    card = {
        "format": FORMAT,
        "version": VERSION,
        "role": role,
        "network": network.spec.to_dict(),
        "sha256": hashlib.sha256(payload).hexdigest(),
        **details,
    }
    (folder / "model.json").write_text(json.dumps(card, indent=2, sort_keys=True) + "\n")


def read_card(folder: str | Path) -> dict[str, Any]:
    """What `model.json` says of a model folder.

    Raises:
        AyfError: if there is none, or it is not this library's.
    """
    path = Path(folder) / "model.json"
    if not path.is_file():
        raise AyfError(f"no model in '{folder}': {path.name} is missing; name a folder that a training stage wrote")
    try:
        card = read_json(path)
    except (OSError, ValueError) as error:  # not JSON, or not even text
        raise AyfError(f"'{path}' is damaged ({error}): train or download the model again") from None
    if not isinstance(card, dict) or card.get("format") != FORMAT:
        raise AyfError(f"'{path}' is not a model of this library: name a folder that a training stage wrote")
    if not isinstance(card.get("version", 0), int):
        raise AyfError(f"'{path}' has no version that can be read: train or download the model again")
    if card.get("version", 0) > VERSION:
        raise AyfError(f"'{path}' has version {card['version']}, newer than this library reads ({VERSION}): upgrade")
    return card


def load_network(folder: str | Path, device: torch.device | str = "cpu") -> tuple[MeanVelocityNetwork, dict[str, Any]]:
    """The network of a model folder, in evaluation mode without gradients, and its `model.json`.

    Raises:
        AyfError: if the folder is missing, truncated, altered, or not this library's.
    """
    card = read_card(folder)
    path = Path(folder) / "model.safetensors"
    if not path.is_file():
        raise AyfError(f"'{path}' is missing: run the stage that trains it again")
    payload = path.read_bytes()
    if hashlib.sha256(payload).hexdigest() != card.get("sha256"):
        raise AyfError(f"'{path}' is truncated or altered (checksum differs): run the stage that trains it again")
    try:
        with torch.random.fork_rng():
            network = build_network(NetworkSpec.from_dict(card["network"]))
        network.load_state_dict(safetensors.torch.load(payload))
    except (
        SafetensorError,
        LookupError,
        RuntimeError,
        TypeError,
        ValueError,
        AttributeError,
        ArithmeticError,
    ) as error:
        raise AyfError(
            f"'{path}' does not fit its model.json ({first_line(error)}): train or download the model again"
        ) from None
    return network.eval().requires_grad_(False).to(device), card

"""Networks on disk: `model.safetensors` holds the weights, `model.json` the spec, a checksum and what else is known."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ayf_core.errors import AyfError
from ayf_core.files import first_line, read_json, write_whole
from ayf_core.networks.base import MeanVelocityNetwork
from ayf_core.networks.build import build_network
from ayf_core.networks.spec import NetworkSpec

FORMAT = "ayf-network"
VERSION = 2


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
    write_whole(folder / "model.safetensors", payload)
    card = {
        "format": FORMAT,
        "version": VERSION,
        "role": role,
        "network": network.spec.to_dict(),
        "sha256": hashlib.sha256(payload).hexdigest(),
        **details,
    }
    # Last: a folder with a card has the weights that the card names.
    write_whole(folder / "model.json", json.dumps(card, indent=2, sort_keys=True) + "\n")


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
    version = card.get("version", 0)
    if not isinstance(version, int):
        raise AyfError(f"'{path}' has no version that can be read: train or download the model again")
    if version > VERSION:
        raise AyfError(f"'{path}' has version {version}, newer than this library reads ({VERSION}): upgrade")
    if version < VERSION:
        raise AyfError(f"'{path}' has version {version}, older than this library reads ({VERSION}): train it again")
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
        AyfError,
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

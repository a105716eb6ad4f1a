"""Training state on disk: tensors in safetensors, everything else in JSON, a checksum over both. No pickle."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from ayf_core.errors import AyfError
from ayf_core.files import read_json

State = Any
"""A tree of dictionaries, lists and tuples whose leaves are tensors or JSON scalars."""

TENSORS, TREE = "state.safetensors", "state.json"


@dataclass(frozen=True)
class HostCopy:
    """A state as it was at one moment, in this process's memory: training may go on changing the original."""

    tree: Any
    tensors: dict[str, Tensor]


def copy_to_host(state: State) -> HostCopy:
    """Copy every tensor, wherever it is, into memory of its own."""
    tensors: dict[str, Tensor] = {}
    return HostCopy(_detach(state, "", tensors), tensors)


def write_state(folder: Path, copy: HostCopy) -> None:
    """Write a state into an existing folder. The caller makes the folder appear at once (beside, then renamed)."""
    safetensors.torch.save_file(copy.tensors, folder / TENSORS)
    text = json.dumps({"sha256": _checksum(folder / TENSORS, copy.tree), "state": copy.tree})
    (folder / TREE).write_text(text)


def save_state(folder: Path, state: State) -> None:
    """`write_state` of the state as it is now."""
    write_state(folder, copy_to_host(state))


def load_state(folder: Path) -> State:
    """The state that `write_state` wrote.

    Raises:
        AyfError: if a file is missing, truncated or altered.
    """
    tree = _sound_tree(folder)
    try:
        return _attach(tree, safetensors.torch.load((folder / TENSORS).read_bytes()))
    except (SafetensorError, LookupError, TypeError, ValueError, AttributeError) as error:  # sound, but not ours
        raise AyfError(f"checkpoint '{folder}' is foreign ({error}): delete that folder and run again") from None


def verify_state(folder: Path) -> None:
    """Read every byte.

    Raises:
        AyfError: if a file is missing, truncated or altered.
    """
    _sound_tree(folder)


def _sound_tree(folder: Path) -> Any:
    try:
        header = read_json(folder / TREE)
        checksum = _checksum(folder / TENSORS, header.get("state")) if isinstance(header, dict) else None
    except (OSError, ValueError) as error:
        raise AyfError(f"checkpoint '{folder}' cannot be read ({error}): delete that folder and run again") from None
    if checksum is None or checksum != header.get("sha256"):
        raise AyfError(f"checkpoint '{folder}' is truncated or altered: delete that folder and run again")
    return header["state"]


def _checksum(payload: Path, tree: Any) -> str:
    with payload.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(json.dumps(tree).encode())
    return digest.hexdigest()


def _detach(node: State, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, Tensor):
        tensors[path] = node.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        return {"tensor": path}
    if isinstance(node, dict):  # as pairs: keys may be numbers
        return {"dict": [[key, _detach(value, f"{path}/{key}", tensors)] for key, value in node.items()]}
    if isinstance(node, list | tuple):
        kind = "tuple" if isinstance(node, tuple) else "list"
        return {kind: [_detach(value, f"{path}/{i}", tensors) for i, value in enumerate(node)]}
    return {"value": node}


def _attach(node: Any, tensors: dict[str, Tensor]) -> State:
    ((kind, content),) = node.items()
    if kind == "tensor":
        return tensors[content]
    if kind == "dict":
        return {key: _attach(value, tensors) for key, value in content}
    if kind in ("list", "tuple"):
        items = [_attach(value, tensors) for value in content]
        return tuple(items) if kind == "tuple" else items
    return content

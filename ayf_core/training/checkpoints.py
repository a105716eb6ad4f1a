"""Training state on disk: tensors in safetensors, everything else in JSON, a checksum over both. No pickle."""

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from ayf_core.errors import AyfError

State = Any
"""A tree of dictionaries, lists and tuples whose leaves are tensors or JSON scalars."""


def save_state(folder: Path, state: State) -> None:
    """Write `state` into an existing folder. The caller makes the folder appear at once (beside, then renamed)."""
    tensors: dict[str, Tensor] = {}
    tree = _detach(state, "", tensors)
    payload = safetensors.torch.save(tensors)
    (folder / "state.safetensors").write_bytes(payload)
    text = json.dumps({"sha256": _checksum(payload, tree), "state": tree})
    (folder / "state.json").write_text(text)


def load_state(folder: Path) -> State:
    """The state that `save_state` wrote.

    Raises:
        AyfError: if a file is missing, truncated or altered.
    """
    try:
        header = json.loads((folder / "state.json").read_text())
        payload = (folder / "state.safetensors").read_bytes()
    except (OSError, ValueError) as error:
        raise AyfError(f"checkpoint '{folder}' cannot be read ({error}): delete that folder and run again") from None
    if not isinstance(header, dict) or _checksum(payload, header.get("state")) != header.get("sha256"):
        raise AyfError(f"checkpoint '{folder}' is truncated or altered: delete that folder and run again")
    return _attach(header["state"], safetensors.torch.load(payload))


def _checksum(payload: bytes, tree: Any) -> str:
    digest = hashlib.sha256(payload)
    digest.update(json.dumps(tree).encode())
    return digest.hexdigest()


def _detach(node: State, path: str, tensors: dict[str, Tensor]) -> Any:
    if isinstance(node, Tensor):
        tensors[path] = node.detach().cpu().contiguous().clone()
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

"""Files that somebody else might hand over: pickles that would run code, JSON and safetensors that claim the absurd."""

from __future__ import annotations

import io
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch

DEEP = 100_000


class RunsCode:
    """Writes `marker` when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({str(self.marker)!r}, 'w').close()",)


def pickles(marker: Path) -> dict[str, bytes]:
    """Pickled code in the dresses it comes in."""
    trap = RunsCode(marker)
    archive, checkpoint = io.BytesIO(), io.BytesIO()
    np.savez(archive, weights=np.array([trap], dtype=object))
    torch.save({"weights": trap}, checkpoint)
    return {
        "pickle": pickle.dumps(trap),
        "pickle of protocol 0": pickle.dumps(trap, protocol=0),
        "torch checkpoint": checkpoint.getvalue(),
        "npz": archive.getvalue(),
    }


def safetensors(header: bytes, body: bytes = b"", length: int | None = None) -> bytes:
    """The bytes of a safetensors file with this header, which may lie about its length."""
    return struct.pack("<Q", len(header) if length is None else length) + header + body


def tensor(dtype: str, shape: Any, offsets: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def nested(depth: int = DEEP) -> bytes:
    """JSON that no recursive reader comes out of."""
    return b"[" * depth + b"]" * depth


def absurd_safetensors() -> dict[str, bytes]:
    """Files that a reader of memory maps must not trust."""
    entry = tensor("F32", [1], [0, 4])
    return {
        "nothing": b"",
        "three bytes": b"abc",
        "header of 2^60 bytes": safetensors(b"{}", length=2**60),
        "header of 2^64 - 1 bytes": safetensors(b"{}", length=2**64 - 1),
        "header that is a list": safetensors(b"[1, 2]"),
        "header that is a number": safetensors(b"7"),
        "header nested deeply": safetensors(nested()),
        "tensor that is a word": safetensors(json.dumps({"mean": "all"}).encode()),
        "end before begin": safetensors(json.dumps({"mean": entry | {"data_offsets": [4, 0]}}).encode(), bytes(8)),
        "beyond the end": safetensors(json.dumps({"mean": entry | {"data_offsets": [0, 2**62]}}).encode(), bytes(8)),
    }

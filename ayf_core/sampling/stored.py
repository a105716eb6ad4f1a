"""Sampling settings kept beside a model's weights, in `sampling.json`: for numbers of steps, what was found best."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ayf_core.errors import AyfError
from ayf_core.files import read_json
from ayf_core.networks.files import read_card
from ayf_core.sampling.settings import SamplingSettings

SAMPLING_FILE = "sampling.json"
_FORMAT = "ayf-sampling"
_VERSION = 1


def read_sampling(folder: Path) -> dict[int, dict[str, Any]]:
    """Stored sampling settings of a model folder by number of steps, with what was measured; empty if there are none.

    Raises:
        AyfError: the file is damaged, newer than this library, or was written for other weights.
    """
    path = folder / SAMPLING_FILE
    if not path.exists():
        return {}
    remedy = "delete it, or run `ayf tune-sampling` on the model again"
    try:
        document = read_json(path)
        if not isinstance(document, dict) or document.get("format") != _FORMAT:
            raise AyfError("it holds no sampling settings of this library")
        if document["version"] != _VERSION:
            raise AyfError(f"it has version {document['version']}, this library reads {_VERSION}")
        if document["model_sha256"] != read_card(folder).get("sha256"):
            raise AyfError("it was written for other weights than this model's")
        stored = {int(steps): dict(entry) for steps, entry in document["steps"].items()}
        for entry in stored.values():
            SamplingSettings.from_dict(entry)
    except AyfError as error:
        raise AyfError(f"'{path}' cannot be used ({error}): {remedy}") from None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise AyfError(f"'{path}' is damaged ({error}): {remedy}") from None
    return stored


def write_sampling(folder: Path, stored: Mapping[int, Mapping[str, Any]]) -> Path:
    """Write the sampling settings of a model folder, with what was measured, by number of steps; returns the file."""
    document = {
        "format": _FORMAT,
        "version": _VERSION,
        "model_sha256": read_card(folder)["sha256"],
        "steps": {str(steps): dict(stored[steps]) for steps in sorted(stored)},
    }
    # Beside the folder, not in it: DVC and the keys of stages must not see what a kill may leave behind.
    beside = folder.absolute().with_name(f".{folder.absolute().name}.{SAMPLING_FILE}.partial")
    beside.write_text(json.dumps(document, indent=2) + "\n")
    os.replace(beside, folder / SAMPLING_FILE)
    return folder / SAMPLING_FILE

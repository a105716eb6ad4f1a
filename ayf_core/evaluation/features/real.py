"""Features of the real images, taken once beside their extractor and read by every evaluation."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ayf_core.errors import AyfError
from ayf_core.evaluation.features.base import FeatureExtractor

FILE = "real.safetensors"


def write_real_features(folder: Path, extractor: FeatureExtractor, images: Mapping[str, Tensor]) -> None:
    """Features of each split's images [N, C, H, W], into `models/features`."""
    features = {split: extractor(x).contiguous() for split, x in images.items()}
    save_file(features, folder / FILE, metadata={"sha256": _digest(features)})


def real_features(
    folder: Path, extractor: FeatureExtractor, images: Mapping[str, Tensor]
) -> dict[str, Float[Tensor, "N F"]]:
    """Features of each split's images: those that were written, or, of a folder without any, taken now.

    Raises:
        AyfError: the file is damaged, or holds features of other images.
    """
    if not (folder / FILE).is_file():
        return {split: extractor(x) for split, x in images.items()}
    try:
        with safe_open(folder / FILE, "pt") as file:
            found = {split: file.get_tensor(split) for split in file.keys()}  # noqa: SIM118  (it is no mapping)
            if (file.metadata() or {}).get("sha256") != _digest(found):
                raise ValueError("its checksum differs")
    except (OSError, ValueError, SafetensorError) as error:
        raise AyfError(f"{folder / FILE} is damaged ({error}): `dvc repro --force train_features` mends it") from error
    counts = {split: len(x) for split, x in images.items()}
    if {split: len(x) for split, x in found.items()} != counts:
        raise AyfError(f"{folder / FILE} holds features of other images: `dvc repro train_features` takes them anew")
    return found


def _digest(features: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for split, x in sorted(features.items()):
        digest.update(split.encode() + x.numpy().tobytes())
    return digest.hexdigest()

"""Features of the Inception-v3 network that FID is defined by (torch-fidelity's copy)."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from ayf_core.errors import AyfError, require
from ayf_core.evaluation.features.base import FeaturesChoice
from ayf_core.files import first_line, read_json
from ayf_core.registry import register
from ayf_core.settings import setting

FEATURES_FILE = "features.json"


class InceptionFeatures:
    """The 2,048 pooled features of Inception-v3.

    Grey images are repeated to three channels; values are rounded to 8 bits; the network resizes to 299 pixels
    itself.

    Args:
        weights: a local file of the network's weights; None lets torch-fidelity download them once.
    """

    name = "inception"
    distance_name = "FID"

    def __init__(
        self, *, weights: str | Path | None = None, device: str | torch.device = "cpu", batch_size: int = 64
    ) -> None:
        module = "torch_fidelity.feature_extractor_inceptionv3"
        try:
            extractors = require(module, extra="inception", needed_for="Inception-v3 features (FID)")
        except (ImportError, RuntimeError) as error:  # what a torchvision built for another torch raises
            raise AyfError(
                f"cannot import torch-fidelity ({error}): install a torchvision that matches torch {torch.__version__}"
            ) from error
        self.device = torch.device(device)
        self.batch_size = batch_size
        path = None if weights is None else str(weights)
        try:
            if path is not None:
                # torch-fidelity opens the file as torch does by default: read here so that no code in it runs.
                torch.load(path, map_location="cpu", weights_only=True)
            network: Any = extractors.FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048"], feature_extractor_weights_path=path
            )
        except (OSError, EOFError, RuntimeError, ValueError, UnpicklingError) as error:
            raise AyfError(
                f"cannot load the Inception-v3 weights from {path or 'the network'} ({first_line(error)}): download "
                "weights-inception-2015-12-05-6726825d.pth from torch-fidelity's releases and name the file"
            ) from error
        self.network = network.to(self.device).eval()

    @torch.no_grad()
    def __call__(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N F"]:
        if x.ndim != 4 or x.shape[1] not in (1, 3):
            raise AyfError(f"Inception-v3 features are for images [N, 1 or 3, H, W], got {list(x.shape)}")
        parts = []
        for part in x.split(self.batch_size):
            pixels = ((part.to(self.device).float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)
            parts.append(self.network(pixels.expand(-1, 3, -1, -1))[0].double().cpu())
        return torch.cat(parts)


@register("features", "inception", title="Inception-v3, which FID is defined by")
@dataclass(frozen=True, kw_only=True)
class Inception(FeaturesChoice):
    """A distance measured in these features may be called FID."""

    weights: str | None = setting("local file of the network's weights; null = torch-fidelity downloads them once")

    def check(self, example_shape: Sequence[int], num_classes: int) -> None:
        if len(example_shape) != 3:
            raise AyfError("features.kind = inception is for images: the data are none; set features.kind to pixels")
        if importlib.util.find_spec("torch_fidelity") is None:
            raise AyfError(
                "features.kind = inception needs the package torch_fidelity, which is not installed: "
                "pip install 'align-your-flow[inception]'"
            )
        if self.weights is not None and not Path(self.weights).is_file():
            raise AyfError(f"features.weights = {self.weights}: there is no such file; name it, or set it to null")

    def record(self, folder: Path) -> dict[str, Any]:
        return {} if self.weights is None else {"sha256": _sha256(self.weights)}

    def extractor(self, folder: Path, device: torch.device | str) -> InceptionFeatures:
        if self.weights is not None:
            try:
                known = read_json(folder / FEATURES_FILE)["sha256"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise AyfError(
                    f"{folder / FEATURES_FILE} does not tell which weights were chosen ({error}): "
                    "`dvc repro --force train_features` makes it again"
                ) from None
            if _sha256(self.weights) != known:
                raise AyfError(
                    f"{self.weights} is no longer the file that was chosen: restore it, or take the new one with "
                    "`dvc repro --force train_features`"
                )
        return InceptionFeatures(weights=self.weights, device=device)


def _sha256(file: str) -> str:
    try:
        with Path(file).open("rb") as opened:
            return hashlib.file_digest(opened, "sha256").hexdigest()
    except OSError as error:
        raise AyfError(f"cannot read the Inception-v3 weights {file} ({error}): name another file") from None

"""A small convolutional classifier, its files, and its last hidden layer as features."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from ayf_core.errors import AyfError
from ayf_core.evaluation.features.base import WIDTH_STEP
from ayf_core.files import read_json, write_whole
from ayf_core.precision import InPrecision

FORMAT = 1
CLASSIFIER_FILE = "classifier.json"
WEIGHTS_FILE = "classifier.safetensors"
FEATURES = 64
"""Numbers in the classifier's last hidden layer."""


class SmallClassifier(InPrecision):
    """Three convolutions and a hidden layer of 64 features, for images of about 8 to 64 pixels a side.

    Args:
        channels: of the images, 1 or 3.
        num_classes: at least 2, or there is nothing to learn.
        width: channels of the first convolution; the next have twice and four times as many. A multiple of 4.
    """

    def __init__(self, channels: int, num_classes: int, width: int) -> None:
        super().__init__()
        if num_classes < 2:
            raise AyfError(
                f"a classifier needs at least 2 classes, the data have {num_classes}: compare samples by their pixels"
            )
        if width < 4 or width % WIDTH_STEP:
            raise AyfError(f"the classifier's width is {width}: choose a multiple of 4, such as 16")
        self.settings = {"channels": channels, "num_classes": num_classes, "width": width}
        widths = (width, 2 * width, 4 * width)
        layers: list[nn.Module] = []
        before = channels
        for number, after in enumerate(widths):
            layers += [
                nn.Conv2d(before, after, 3, stride=1 if number == 0 else 2, padding=1),
                nn.GroupNorm(WIDTH_STEP, after),
                nn.SiLU(),
            ]
            before = after
        self.convolutions = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.hidden = nn.Linear(4 * widths[-1], FEATURES)
        self.head = nn.Linear(FEATURES, num_classes)

    def features(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B 64"]:
        """The last hidden layer, after its SiLU."""
        return functional.silu(self.hidden(self.convolutions(images)))

    def forward(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B K"]:
        """Logits of the K classes."""
        return self.head(self.features(images))

    def save(self, folder: str | Path) -> None:
        """Write classifier.safetensors and, last, classifier.json."""
        place = Path(folder)
        place.mkdir(parents=True, exist_ok=True)
        weights = {name: tensor.detach().cpu().contiguous() for name, tensor in self.state_dict().items()}
        beside = place / f"{WEIGHTS_FILE}.part"
        save_file(weights, beside)
        digest = hashlib.sha256(beside.read_bytes()).hexdigest()
        os.replace(beside, place / WEIGHTS_FILE)
        content = {"format": FORMAT, "kind": "small_classifier", **self.settings, "sha256": digest}
        write_whole(place / CLASSIFIER_FILE, json.dumps(content, indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> SmallClassifier:
        """Read what `save` wrote, in evaluation mode and frozen.

        Raises:
            AyfError: naming the file that is missing, foreign, truncated or damaged.
        """
        settings, weights = Path(folder) / CLASSIFIER_FILE, Path(folder) / WEIGHTS_FILE
        try:
            content = read_json(settings)
            if (content["format"], content["kind"]) != (FORMAT, "small_classifier"):
                raise ValueError(f"format {content['format']}, kind {content['kind']}")
            classifier = cls(content["channels"], content["num_classes"], content["width"])
            digest = content["sha256"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise AyfError(f"{settings} is missing or foreign ({error}): train the classifier again") from error
        try:
            data = weights.read_bytes()
            if hashlib.sha256(data).hexdigest() != digest:
                raise ValueError("its checksum differs")
            classifier.load_state_dict(load_file(weights))
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise AyfError(
                f"classifier weights {weights} are missing, truncated or foreign ({error}): train it again"
            ) from error
        return classifier.eval().requires_grad_(False)


class ClassifierFeatures:
    """The 64 features of a classifier trained on the same data set; runs where the classifier is."""

    name = "classifier"
    distance_name = "FD"

    def __init__(self, classifier: SmallClassifier, *, batch_size: int = 256) -> None:
        self.classifier = classifier.eval()
        self.batch_size = batch_size

    @torch.no_grad()
    def __call__(self, x: Float[Tensor, "N C H W"]) -> Float[Tensor, "N F"]:
        channels = self.classifier.settings["channels"]
        if x.ndim != 4 or x.shape[1] != channels:
            raise AyfError(f"the classifier was trained on images [N, {channels}, H, W], got {list(x.shape)}")
        device = next(self.classifier.parameters()).device
        batches = x.split(self.batch_size)
        return torch.cat([self.classifier.features(batch.to(device)).double().cpu() for batch in batches])

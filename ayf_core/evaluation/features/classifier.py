"""Features of a small classifier that is trained on the data set itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from ayf_core.errors import AyfError
from ayf_core.evaluation.features.base import WIDTH_STEP, FeaturesChoice
from ayf_core.registry import register
from ayf_core.settings import group, setting
from ayf_core.training_settings import TrainingSettings

if TYPE_CHECKING:
    import torch

    from ayf_core.evaluation.features.small_classifier import ClassifierFeatures, SmallClassifier


@register("features", "classifier", title="Small classifier, trained here")
@dataclass(frozen=True, kw_only=True)
class TrainedClassifier(FeaturesChoice):
    """Suits images of about 8 to 64 pixels a side, of two classes or more."""

    width: int = setting("width of the classifier", at_least=1)
    training: TrainingSettings = group("how the classifier is trained")

    needs_training: ClassVar[bool] = True

    def problems(self) -> Iterator[str]:
        if self.width % WIDTH_STEP:
            yield f"width = {self.width}: must be a multiple of {WIDTH_STEP}; round it"

    def check(self, example_shape: Sequence[int], num_classes: int) -> None:
        if len(example_shape) != 3:
            raise AyfError("features.kind = classifier is for images: the data are none; set features.kind to pixels")
        if num_classes < 2:
            raise AyfError(
                "features.kind = classifier needs at least 2 classes, the data have 1: set features.kind to pixels or "
                "inception"
            )

    def new(self, example_shape: Sequence[int], num_classes: int) -> SmallClassifier:
        """The classifier to train; weights are drawn from torch's global generator: seed it first."""
        from ayf_core.evaluation.features.small_classifier import SmallClassifier

        return SmallClassifier(example_shape[0], num_classes, self.width)

    def extractor(self, folder: Path, device: torch.device | str) -> ClassifierFeatures:
        from ayf_core.evaluation.features.small_classifier import ClassifierFeatures, SmallClassifier

        return ClassifierFeatures(SmallClassifier.load(folder))

"""Feature extractors: types, batching, names, and what damaged classifier files say."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch

from ayf_core.data.sets.digits import Digits
from ayf_core.errors import AyfError
from ayf_core.evaluation.features.inception import InceptionFeatures
from ayf_core.evaluation.features.pixels import PixelFeatures
from ayf_core.evaluation.features.small_classifier import ClassifierFeatures, SmallClassifier


@pytest.fixture
def classifier() -> SmallClassifier:
    torch.manual_seed(0)
    return SmallClassifier(channels=1, num_classes=10, width=8)


def make_images(n: int = 10, channels: int = 1, side: int = 8) -> torch.Tensor:
    return 2 * torch.rand((n, channels, side, side), generator=torch.Generator().manual_seed(1)) - 1


def test_pixel_features_are_the_numbers_themselves() -> None:
    images = make_images()
    features = PixelFeatures()(images)
    assert features.dtype == torch.float64
    assert torch.equal(features, images.double().reshape(10, 64))


def test_classifier_features_do_not_depend_on_the_batch_size(classifier: SmallClassifier) -> None:
    images = make_images()
    whole = ClassifierFeatures(classifier, batch_size=64)(images)
    parts = ClassifierFeatures(classifier, batch_size=3)(images)
    assert whole.shape == (10, 64)
    assert whole.dtype == torch.float64
    assert not whole.requires_grad
    assert torch.allclose(whole, parts, atol=1e-6)


@pytest.mark.parametrize("side", [4, 8, 28, 64])
def test_classifier_takes_images_of_any_side(classifier: SmallClassifier, side: int) -> None:
    assert classifier(make_images(side=side)).shape == (10, 10)


def test_only_inception_distances_are_called_fid(classifier: SmallClassifier) -> None:
    assert PixelFeatures().distance_name == ClassifierFeatures(classifier).distance_name == "FD"
    assert InceptionFeatures.distance_name == "FID"


def test_classifier_learns_digits(classifier: SmallClassifier) -> None:
    pytest.importorskip("sklearn")
    data = Digits(test_fraction=0.2).load(seed=0)
    optimiser = torch.optim.Adam(classifier.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(100):
        batch = torch.randint(len(data.train), (64,), generator=generator)
        loss = torch.nn.functional.cross_entropy(classifier(data.train.x[batch]), data.train.labels[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    accuracy = (classifier(data.test.x).argmax(dim=1) == data.test.labels).double().mean()
    assert accuracy > 0.9


def test_saved_classifier_comes_back_and_gives_the_same_bytes(classifier: SmallClassifier, tmp_path: Path) -> None:
    classifier.save(tmp_path / "first")
    loaded = SmallClassifier.load(tmp_path / "first")
    assert torch.equal(loaded(make_images()), classifier(make_images()))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    loaded.save(tmp_path / "second")
    for name in ("classifier.json", "classifier.safetensors"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()
    assert sorted(file.name for file in (tmp_path / "first").iterdir()) == [
        "classifier.json",
        "classifier.safetensors",
    ]


@pytest.mark.parametrize("kept", [0, 50, -3])
def test_truncated_classifier_weights_are_named(classifier: SmallClassifier, tmp_path: Path, kept: int) -> None:
    classifier.save(tmp_path)
    weights = tmp_path / "classifier.safetensors"
    weights.write_bytes(weights.read_bytes()[:kept])
    with pytest.raises(AyfError, match=r"classifier\.safetensors"):
        SmallClassifier.load(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"format": 1, "kind": "other"}', '{"format": 1}'])
def test_foreign_classifier_file_is_named(classifier: SmallClassifier, tmp_path: Path, text: str) -> None:
    classifier.save(tmp_path)
    (tmp_path / "classifier.json").write_text(text)
    with pytest.raises(AyfError, match=r"classifier\.json"):
        SmallClassifier.load(tmp_path)


def test_folder_without_a_classifier_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AyfError, match=r"classifier\.json is missing"):
        SmallClassifier.load(tmp_path)


def test_single_class_and_odd_width_are_refused() -> None:
    with pytest.raises(AyfError, match="at least 2 classes"):
        SmallClassifier(channels=1, num_classes=1, width=8)
    with pytest.raises(AyfError, match="multiple of 4"):
        SmallClassifier(channels=1, num_classes=10, width=6)


def test_images_of_other_channels_are_refused(classifier: SmallClassifier) -> None:
    with pytest.raises(AyfError, match="trained on images"):
        ClassifierFeatures(classifier)(make_images(channels=3))


def test_missing_torch_fidelity_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.delitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", raising=False)
    with pytest.raises(AyfError, match=r"align-your-flow\[inception\]"):
        InceptionFeatures()


def test_torchvision_of_another_torch_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken_import(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr("importlib.import_module", broken_import)
    with pytest.raises(AyfError, match="install a torchvision that matches"):
        InceptionFeatures()


def test_inception_is_given_rgb_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    class Network(torch.nn.Module):
        """Stands in for torch-fidelity's network: returns its input, one row an image."""

        def __init__(self, name: str, features_list: list[str], feature_extractor_weights_path: str | None):
            super().__init__()
            assert features_list == ["2048"]

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor]:
            assert x.dtype == torch.uint8
            return (x.flatten(1).float(),)

    package = types.ModuleType("torch_fidelity")
    module = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = Network  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", module)
    images = torch.tensor([-1.0, 0.0, 1.0, 1.5]).reshape(1, 1, 2, 2)
    features = InceptionFeatures()(images)
    assert features.tolist() == [[0.0, 128.0, 255.0, 255.0] * 3]
    assert features.dtype == torch.float64

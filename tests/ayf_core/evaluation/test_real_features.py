"""Features of real images: written once, read by all, and never those of other images."""

import pytest
import torch

from ayf_core.errors import AyfError
from ayf_core.evaluation.features.real import FILE, real_features, write_real_features

IMAGES = {"train": torch.randn(6, 1, 4, 4), "test": torch.randn(3, 1, 4, 4)}


class Counting:
    """Pixels, and how often they were asked for."""

    calls = 0

    def __call__(self, x):
        self.calls += 1
        return x.flatten(1).double()


def test_what_was_written_is_read_without_the_extractor(tmp_path):
    write_real_features(tmp_path, Counting(), IMAGES)
    extractor = Counting()
    found = real_features(tmp_path, extractor, IMAGES)
    assert extractor.calls == 0
    for split, x in IMAGES.items():
        assert torch.equal(found[split], x.flatten(1).double())


def test_a_folder_without_them_has_them_taken(tmp_path):
    found = real_features(tmp_path, Counting(), IMAGES)
    assert torch.equal(found["test"], IMAGES["test"].flatten(1).double())


def test_those_of_other_images_are_refused(tmp_path):
    write_real_features(tmp_path, Counting(), IMAGES)
    with pytest.raises(AyfError, match=r"holds features of other images: `dvc repro train_features`"):
        real_features(tmp_path, Counting(), {**IMAGES, "test": IMAGES["test"][:2]})


@pytest.mark.parametrize("damage", [lambda data: data[:50], lambda data: data[:-1] + bytes([data[-1] ^ 1])])
def test_a_damaged_file_is_named(tmp_path, damage):
    write_real_features(tmp_path, Counting(), IMAGES)
    file = tmp_path / FILE
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(AyfError, match=r"real\.safetensors is damaged"):
        real_features(tmp_path, Counting(), IMAGES)

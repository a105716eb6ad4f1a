"""Nothing that others wrote is executed or trusted: each foreign file ends in one clear line, and no code has run."""

from __future__ import annotations

import hashlib
import json
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ayf_core.data.codecs.files import load_codec
from ayf_core.data.latents import LatentDataset
from ayf_core.data.sets.folder import ImageFolder
from ayf_core.errors import AyfError
from ayf_core.evaluation.features.inception import InceptionFeatures
from ayf_core.evaluation.features.small_classifier import SmallClassifier
from ayf_core.flow_map import load_network
from ayf_core.sampling.generator import Generator
from ayf_core.sampling.stored import read_sampling
from ayf_core.training.checkpoints import load_state
from ayf_core.training.ema import load_snapshots
from sweeps.ledger import Ledger
from tests.security.hostile import absurd_safetensors, nested, pickles, safetensors, tensor

SNAPSHOT = "model/ema/ema_0.05_00000001.safetensors"
CODEC_WEIGHTS = "model/codec/autoencoder/diffusion_pytorch_model.safetensors"
READERS: dict[str, Callable[[Path], Any]] = {
    "model/model.safetensors": lambda made: load_network(made / "model"),
    CODEC_WEIGHTS: lambda made: load_codec(made / "model/codec"),
    SNAPSHOT: lambda made: load_snapshots(made / "model/ema"),
    "features/classifier.safetensors": lambda made: SmallClassifier.load(made / "features"),
    "latents/shard_00000.safetensors": lambda made: LatentDataset(made / "latents"),
    "checkpoint/state.safetensors": lambda made: load_state(made / "checkpoint"),
}
DOCUMENTS: dict[str, Callable[[Path], Any]] = {
    "model/model.json": lambda made: Generator.load(made / "model"),
    "model/codec/codec.json": lambda made: Generator.load(made / "model"),
    "model/codec/autoencoder/config.json": lambda made: Generator.load(made / "model"),
    "model/sampling.json": lambda made: read_sampling(made / "model"),
    "features/classifier.json": lambda made: SmallClassifier.load(made / "features"),
    "latents/manifest.json": lambda made: LatentDataset(made / "latents"),
    "checkpoint/state.json": lambda made: load_state(made / "checkpoint"),
}
FOREIGN = {
    "a list": b"[]",
    "a number": b"7",
    "null": b"null",
    "not text": b"\xff\xfe\x00",
    "nested deeply": nested(),
    "an object nested deeply": b'{"format": ' + nested() + b"}",
}


def refused(read: Callable[[Path], Any], made: Path, marker: Path | None = None) -> str:
    """The one line that `read` ends in; nothing has run that would leave the marker."""
    with pytest.raises(AyfError) as caught:
        read(made)
    assert "\n" not in str(caught.value)
    assert marker is None or not marker.exists()
    return str(caught.value)


def with_checksum(made: Path, place: str, content: bytes) -> None:
    """Put bytes there, and their checksum where there is one: whoever hands over a folder can count it too."""
    (made / place).write_bytes(content)
    card = {
        "model/model.safetensors": "model/model.json",
        "features/classifier.safetensors": "features/classifier.json",
    }
    if place in card:
        document = json.loads((made / card[place]).read_text())
        document["sha256"] = hashlib.sha256(content).hexdigest()
        (made / card[place]).write_text(json.dumps(document))
    if place == "checkpoint/state.safetensors":
        tree = json.loads((made / "checkpoint/state.json").read_text())["state"]
        digest = hashlib.sha256(content + json.dumps(tree).encode()).hexdigest()
        (made / "checkpoint/state.json").write_text(json.dumps({"sha256": digest, "state": tree}))


def test_what_is_disturbed_below_can_be_read_as_it_is(made: Path) -> None:
    for read in READERS.values():
        read(made)
    Generator.load(made / "model", ema_std=0.1)


@pytest.mark.parametrize("dress", ["pickle", "pickle of protocol 0", "torch checkpoint", "npz"])
@pytest.mark.parametrize("place", READERS)
def test_a_pickle_in_the_place_of_weights_is_refused_and_not_run(
    made: Path, tmp_path: Path, place: str, dress: str
) -> None:
    marker = tmp_path / "code has run"
    with_checksum(made, place, pickles(marker)[dress])
    refused(READERS[place], made, marker)


def test_the_pickles_of_these_tests_do_run_code_where_somebody_loads_them(tmp_path: Path) -> None:
    import pickle

    marker = tmp_path / "code has run"
    pickle.loads(pickles(marker)["pickle"])
    assert marker.exists()


@pytest.mark.parametrize("name", absurd_safetensors())
@pytest.mark.parametrize("place", READERS)
def test_safetensors_that_claim_the_absurd_are_refused(made: Path, place: str, name: str) -> None:
    with_checksum(made, place, absurd_safetensors()[name])
    refused(READERS[place], made)


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("place", DOCUMENTS)
def test_a_document_that_is_something_else_is_refused(made: Path, place: str, name: str) -> None:
    (made / place).write_bytes(FOREIGN[name])
    refused(DOCUMENTS[place], made)


@pytest.mark.parametrize(
    ("mean", "why"),
    [
        ([-64, 1536 - 64], "is said to lie at -64"),
        ([0, 1535], "is said to lie at 0 to 1535"),
        ([0.0, 1536.0], "truncated or foreign"),
        ([True, 1536], "is said to lie at"),
        (["0", "1536"], "truncated or foreign"),
        ([0], "truncated or foreign"),
        ({"begin": 0}, "truncated or foreign"),
        ([2**70, 2**70 + 1536], "expected"),
    ],
)
def test_offsets_of_a_latent_shard_stay_in_its_data(made: Path, mean: Any, why: str) -> None:
    header = {
        "mean": tensor("F32", [6, 4, 4, 4], mean),
        "std": tensor("F32", [6, 4, 4, 4], [1536, 3072]),
        "label": tensor("I64", [6], [3072, 3120]),
    }
    shard = made / "latents/shard_00000.safetensors"
    shard.write_bytes(safetensors(json.dumps(header).encode(), bytes(3120)))
    assert why in refused(READERS["latents/shard_00000.safetensors"], made)


@pytest.mark.parametrize(
    "change",
    [
        {"count": "6"},
        {"count": 6.0},
        {"count": -6},
        {"shape": 4},
        {"shape": []},
        {"shape": [4, "4", 4]},
        {"shards": None},
        {"shards": [7]},
        {"shards": [{"file": "shard_00000.safetensors"}]},
        {"shift": "zero"},
        {"shift": [0.0]},
        {"scale": [1.0, 1.0, float("nan"), 1.0]},
        {"codec": ["fingerprint"]},
    ],
    ids=str,
)
def test_a_manifest_with_other_kinds_of_values_is_refused(made: Path, change: dict[str, Any]) -> None:
    path = made / "latents/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert "manifest" in refused(DOCUMENTS["latents/manifest.json"], made)


@pytest.mark.parametrize(
    ("place", "change"),
    [
        ("model/model.json", {"version": "1"}),
        ("model/model.json", {"network": []}),
        ("model/model.json", {"network": {"kind": "subprocess"}}),
        ("model/model.json", {"latent_space": {"shift": "0"}}),
        ("model/codec/codec.json", {"image_channels": "1"}),
        ("model/codec/codec.json", {"pretrained": {"source": "x", "trust_remote_code": True}}),
        ("model/codec/autoencoder/config.json", {"block_out_channels": "wide"}),
        ("model/codec/autoencoder/config.json", {"act_fn": ["silu"]}),
        ("model/codec/autoencoder/config.json", {"down_block_types": ["os.system"]}),
    ],
    ids=str,
)
def test_settings_of_another_kind_in_a_model_are_refused(made: Path, place: str, change: dict[str, Any]) -> None:
    path = made / place
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused(DOCUMENTS[place], made)


@pytest.mark.parametrize("about", ["7", '{"step": "last"}', "[" * 100_000, '{"step": 1, "std": [], "buffers": 3}'])
def test_an_ema_snapshot_with_foreign_notes_is_refused(made: Path, about: str) -> None:
    from safetensors.torch import save_file

    from ayf_core.training.ema import METADATA

    save_file({"weight": torch.ones(1)}, made / SNAPSHOT, metadata={METADATA: about})
    refused(READERS[SNAPSHOT], made)


@pytest.mark.parametrize("document", ["[" * 100_000, '{"number": "one", "point": {}}', '{"number": 1}', "7"])
def test_a_foreign_ledger_is_refused(tmp_path: Path, document: str) -> None:
    (tmp_path / "0001").mkdir()
    (tmp_path / "0001/trial.json").write_text(document)
    assert "0001" in refused(Ledger, tmp_path)


# -------------------------------------------------------------------------------------------------- images, features


def images(folder: Path) -> Path:
    for number in range(3):
        Image.new("L", (4, 4), 60 * number).save(folder / f"{number}.png")
    return folder


def read_images(folder: Path) -> Any:
    return ImageFolder(folder=str(folder), image_size=4, test_fraction=0.5).load(seed=0)


@pytest.mark.parametrize("dress", ["pickle", "torch checkpoint", "npz"])
def test_a_pickle_among_the_images_is_refused_and_not_run(tmp_path: Path, dress: str) -> None:
    marker, folder = tmp_path / "code has run", tmp_path / "images"
    folder.mkdir()
    (images(folder) / "3.png").write_bytes(pickles(marker)[dress])
    assert "3.png" in refused(read_images, folder, marker)


@pytest.mark.parametrize("side", [9_200, 30_000])
def test_an_image_that_unfolds_to_gigabytes_is_refused(tmp_path: Path, side: int) -> None:
    Image.new("1", (side, side)).save(images(tmp_path) / "3.png")
    assert (tmp_path / "3.png").stat().st_size < 2_000_000
    assert "pixels" in refused(read_images, tmp_path)


def test_an_image_is_read_as_what_pictures_are_not_as_a_program(tmp_path: Path) -> None:
    """Pillow knows a file by its content: PostScript called .png would be handed to Ghostscript."""
    program = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n%%EOF\n"
    (images(tmp_path) / "3.png").write_bytes(program)
    assert "cannot identify" in refused(read_images, tmp_path)


def test_inception_weights_that_are_pickled_code_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marker, weights = tmp_path / "code has run", tmp_path / "inception.pth"
    weights.write_bytes(pickles(marker)["torch checkpoint"])

    class Trusting:
        def __init__(self, name: str, features: list[str], feature_extractor_weights_path: str) -> None:
            torch.load(feature_extractor_weights_path, weights_only=False)

    module = types.ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    module.FeatureExtractorInceptionV3 = Trusting  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_fidelity", types.ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", module)
    refused(lambda path: InceptionFeatures(weights=path), weights, marker)

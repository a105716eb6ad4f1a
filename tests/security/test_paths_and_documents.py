"""Names in files cannot lead out of their folder, and what a store holds is data."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from ayf_core.data.latents import LatentDataset
from ayf_core.errors import AyfError
from ayf_core.files import inside
from dashboards.frames import metrics_by_nfe, runs
from pipelines.commands.adopt import adopted
from pipelines.project.declarations import read_declarations
from pipelines.settings.runtime import RuntimeConfig
from pipelines.tracking.lineage import settings_of_run
from pipelines.tracking.registry import resolve_model
from pipelines.tracking.runs import StageRun, open_run
from pipelines.tracking.store import ensure_store
from tests.security.hostile import DEEP

OUTSIDE = [
    "../secret",
    "a/../../secret",
    "/etc/passwd",
    "",
    "..",
    "C:\\secret",
    "..\\secret",
    "\\\\host\\share",
    "a\0b",
]
RUNTIME = RuntimeConfig(mode="inline")


@pytest.mark.parametrize("name", [*OUTSIDE, 7, None, ["shard"], {"file": "shard"}])
def test_a_name_that_leaves_its_folder_is_refused_and_named(tmp_path: Path, name: Any) -> None:
    with pytest.raises(AyfError, match=r"^manifest\.json names .* no file inside"):
        inside(tmp_path, name, "manifest.json")


@pytest.mark.parametrize("name", ["shard_00000.safetensors", "models/emd", "a..b", ".hidden", "walk@up"])
def test_a_plain_name_lies_in_its_folder(tmp_path: Path, name: str) -> None:
    assert inside(tmp_path, name, "manifest.json") == tmp_path / name


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_manifest_cannot_name_a_shard_elsewhere(made: Path, name: str) -> None:
    """Even where the file is there and its checksum is right."""
    elsewhere = made / "secret"
    elsewhere.write_bytes((made / "latents/shard_00000.safetensors").read_bytes())
    path = made / "latents/manifest.json"
    manifest = json.loads(path.read_text())
    manifest["shards"][0] |= {"file": name, "sha256": hashlib.sha256(elsewhere.read_bytes()).hexdigest()}
    path.write_text(json.dumps(manifest))
    with pytest.raises(AyfError, match="no file inside"):
        LatentDataset(made / "latents")


@pytest.mark.parametrize("where", ["outs: [{}]", "metrics: [{{{}: {{cache: false}}}}]", "plots: [{}]"])
@pytest.mark.parametrize("out", ["../models", "/etc/cron.d/job", "data/../../made"])
def test_a_stage_cannot_declare_an_output_outside_the_project(tmp_path: Path, where: str, out: str) -> None:
    (tmp_path / "dvc.yaml").write_text(f"stages:\n  make:\n    cmd: make\n    {where.format(out)}\n")
    with pytest.raises(AyfError, match="no file inside"):
        read_declarations(tmp_path)


def test_an_output_filled_in_from_params_cannot_leave_either(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text("stages:\n  make:\n    cmd: make\n    outs: ['data/${place}']\n")
    (tmp_path / "params.yaml").write_text("place: ../../made\n")
    with pytest.raises(AyfError, match="no file inside"):
        read_declarations(tmp_path)


def test_an_item_of_a_matrix_cannot_lead_scratch_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text("stages:\n  w:\n    cmd: w\n    matrix: {way: ['../../../up']}\n")
    with pytest.raises(AyfError, match="no file inside"):
        read_declarations(tmp_path)


# ------------------------------------------------------------------------------------------------- an MLflow store


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("MLFLOW_TRACKING_URI", raising=False)
        ensure_store(folder)
    return folder


@pytest.fixture(autouse=True)
def _own_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def opened(root: Path, scratch: Path, **tags: str) -> StageRun:
    place = {"root": root, "scratch": scratch, "runtime": RUNTIME}
    return open_run("evaluate@emd", run_name="x", params={}, tags=tags, **place)


@pytest.mark.parametrize("point", ["[" * DEEP, "{", "[1, 2]", "null"])
def test_settings_that_somebody_put_into_a_run_are_refused_in_one_line(root: Path, tmp_path: Path, point: str) -> None:
    run = opened(root, tmp_path, **{"ayf.point": point})
    with pytest.raises(AyfError, match="settings that cannot be read") as caught:
        settings_of_run(run.id, root, RUNTIME)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", ["!!python/object/apply:os.system ['true']", "[" * 3000, "{a: [", "&a [*a]"])
def test_a_param_is_read_as_plain_yaml(root: Path, tmp_path: Path, repository: Path, value: str) -> None:
    run = opened(root, tmp_path)
    MlflowClient(run.uri).log_param(run.id, "teacher.training.steps", value)
    for name in ("params.yaml", "conf"):
        (tmp_path / name).symlink_to(repository / name)
    with pytest.raises(AyfError):
        adopted(root, run.id, RUNTIME)


@pytest.mark.parametrize("content", ["[" * DEEP, "7", "{}", '{"rows": [1]}', '{"rows": [{"nfe": []}]}', "\x00"])
def test_a_foreign_evaluation_in_the_store_is_passed_over(root: Path, tmp_path: Path, content: str) -> None:
    run = opened(root, tmp_path, **{"ayf.model": "emd", "ayf.point": "[" * DEEP})
    run.log_text("evaluation.json", content)
    run.finish()
    assert metrics_by_nfe(run.uri, [run.id]).empty
    assert run.id in set(runs(run.uri)["run_id"])


@pytest.mark.parametrize("path", ["../../../../etc", "%2e%2e/%2e%2e/etc", "/etc"])
def test_an_artefact_of_a_run_cannot_be_named_outside_it(root: Path, tmp_path: Path, path: str) -> None:
    run = opened(root, tmp_path)
    run.log_text("model/weights.txt", "1")
    with pytest.raises(AyfError, match="not in the MLflow store"):
        resolve_model(f"runs:/{run.id}/{path}", root, RUNTIME)

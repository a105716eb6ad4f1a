"""A package of one's own adds an objective, a network, a data set, features and a measure; nothing is touched."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from ayf_core import registry
from ayf_core.errors import AyfError
from ayf_core.sampling.generator import Generator
from pipelines.execution.run import run_stage
from pipelines.project.code import stage_code, write_code
from pipelines.project.declarations import read_declarations
from pipelines.settings import params_file as params
from pipelines.settings.reading import load_config
from tests.chain import REPOSITORY, inline, make_project

PLUGIN = REPOSITORY / "tests/plugin/ayf_example"
SETTINGS = [
    "plugins=[ayf_example]",
    *("data.name=rings", "data.count=90", "data.pixels=8"),
    "codec.kind=identity",
    *("features.kind=fourier", "features.size=3"),
    *(f"{name}.network.{one}" for name in ("teacher", "weak_teacher") for one in ("kind=convolutions", "layers=1")),
    *(f"{name}.network.width=8" for name in ("teacher", "weak_teacher")),
    "distill.objectives=[capped]",
    "distill.capped.ceiling=5.0",
    "adversarial.student=capped",
    "evaluation.models=[teacher,capped,adversarial]",
    "evaluation.neighbours=3",
]


def trained_like_emd(project: Path) -> list[str]:
    """The settings of a student's training, taken over from another student's."""
    emd = yaml.safe_load((project / "params.yaml").read_text())["distill"]["emd"]["training"]
    return [f"distill.capped.training.{name}={json.dumps(value)}" for name, value in emd.items()]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    before = registry.plugins()
    root = make_project(tmp_path / "mine")
    shutil.copytree(PLUGIN, root / "ayf_example", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.chdir(root)
    params.update(root, params.changed(root, [*SETTINGS, *trained_like_emd(root)]), "smoke")
    write_code(root)
    yield root
    registry.use_plugins(before)


def test_the_smoke_chain_runs_with_five_components_of_a_plugin(project: Path) -> None:
    for name in [name for name in read_declarations(project) if name not in ("code", "plugin@ayf_example")]:
        run_stage(project, name, runtime=inline())
    config = load_config(project)
    assert config.distill.students["capped"].component["ceiling"] == 5.0
    student = Generator.load(project / "models/capped")
    assert type(student.network).__name__ == "Convolutions"
    measured = json.loads((project / "reports/evaluation/capped.json").read_text())
    assert all("mean_gap" in row and "fd" in row for row in measured["rows"])
    assert "Student, capped tangents" in (project / "reports/results.md").read_text()


def test_the_plugins_code_is_watched_like_the_projects_own(project: Path) -> None:
    def rebuilt(file: str, old: str, new: str) -> set[str]:
        path = project / "ayf_example" / file
        text = path.read_text()
        before = stage_code(project)
        path.write_text(text.replace(old, new))
        changed = {name for name, modules in stage_code(project).items() if modules != before[name]}
        path.write_text(text)
        return changed

    assert rebuilt("objective.py", "The Eulerian objective", "An Eulerian objective") == set()
    assert rebuilt("objective.py", "clamp(max=1.0)", "clamp(max=2.0)") == {
        "distill@capped",
        "finetune_adversarial",
        "report",
    }
    assert "train_teacher" in rebuilt("network.py", "torch.tanh(h)", "torch.sin(h)")
    assert "train_codec" in rebuilt("data.py", "RADII = (1.5", "RADII = (1.0")


def test_a_model_of_a_plugin_that_is_not_named_is_refused_in_words(project: Path) -> None:
    for name in ("train_codec", "encode_latents", "train_teacher"):
        run_stage(project, name, runtime=inline())
    registry.use_plugins([])
    with pytest.raises(AyfError, match="convolutions"):
        Generator.load(project / "models/teacher")


def test_a_plugin_that_is_not_there_is_named_with_its_line(project: Path) -> None:
    path = project / "params.yaml"
    path.write_text(path.read_text().replace("plugins: [ayf_example]", "plugins: [ayf_exampel]"))
    with pytest.raises(AyfError, match=r"params.yaml:\d+: plugins: there is no package 'ayf_exampel'"):
        load_config(project)

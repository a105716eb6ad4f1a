"""dvc.yaml as this project reads it, and what this project's own declares."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ayf_core.errors import AyfError
from pipelines.project.code import PLUGIN_STAGE, lists_code
from pipelines.project.declarations import read_declarations

REPOSITORY = Path(__file__).resolve().parents[2]
NOT_COMPUTED = {"code", PLUGIN_STAGE}


def project(root: Path, stages: str, params: str = "") -> Path:
    (root / "dvc.yaml").write_text(stages)
    (root / "params.yaml").write_text(params)
    return root


def test_every_stage_lists_its_own_code_and_no_other() -> None:
    for stage in read_declarations(REPOSITORY).values():
        if stage.base not in NOT_COMPUTED:
            assert lists_code(stage)
            assert [dep for dep in stage.deps if dep.endswith((".py", ".json")) or dep.startswith("ayf_core")] == [
                f".code/{stage.name}.json"
            ]


def test_every_stage_has_its_module() -> None:
    bases = {stage.base for stage in read_declarations(REPOSITORY).values()} - NOT_COMPUTED
    assert {base for base in bases if not (REPOSITORY / f"pipelines/stages/{base}.py").is_file()} == set()


TEMPLATED = """
vars: [{models: [a, b]}]
stages:
  distill:
    matrix: {objective: "${distill.objectives}", model: "${models}"}
    cmd: echo
    outs: ["made/${item.objective}/${item.model}"]
  flow:
    matrix: {objective: "${flow}"}
    cmd: echo
"""


def test_a_matrix_takes_its_lists_from_settings_and_vars_and_an_empty_one_makes_no_stage(tmp_path: Path) -> None:
    root = project(tmp_path, TEMPLATED, "distill: {objectives: [emd, lmd]}\nflow: []\n")
    declared = read_declarations(root)
    assert list(declared) == ["distill@emd-a", "distill@emd-b", "distill@lmd-a", "distill@lmd-b"]
    assert declared["distill@lmd-b"].outputs == ("made/lmd/b",)


def test_dvc_reads_templated_matrices_as_this_project_does(tmp_path: Path) -> None:
    root = project(tmp_path, TEMPLATED, "distill: {objectives: [emd, lmd]}\nflow: []\n")
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], cwd=root, check=True)
    listed = subprocess.run(
        [sys.executable, "-m", "dvc", "stage", "list", "--name-only"], cwd=root, capture_output=True, text=True
    )
    assert listed.stdout.split() == list(read_declarations(root)), listed.stderr
    shutil.rmtree(root / ".dvc")


def test_a_matrix_over_something_else_than_a_list_is_named(tmp_path: Path) -> None:
    root = project(tmp_path, 'stages: {flow: {matrix: {objective: "${flow}"}, cmd: x}}', "flow: emd\n")
    with pytest.raises(AyfError, match=r"the matrix's objective is 'emd': make it a list"):
        read_declarations(root)

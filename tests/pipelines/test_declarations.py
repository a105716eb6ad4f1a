"""dvc.yaml declares what the stages' code reads: an edit that can change a result must rebuild it."""

import ast
from pathlib import Path

import pytest

from pipelines.project.declarations import Declaration, read_declarations

REPOSITORY = Path(__file__).resolve().parents[2]
DECLARED = read_declarations(REPOSITORY)
# Carries a training function to where it runs, checks settings, writes the story: it decides no result.
ORCHESTRATION = {"config", "declarations", "execution", "runtime", "stage", "stages", "tracking"}
# A job's settings come from here; what it does with a trained model concerns training stages alone.
NO_TRAINING = {"encode_latents", "evaluate"}
# What becomes of files that cannot be read, and where a function runs: they give no result.
REFUSALS = {"ayf_core/errors.py", "ayf_core/files.py", "ayf_core/training/context.py"}
# Draws reports/dashboard.html, which is no output: a change of it rebuilds nothing.
BY_PRODUCT = {"dashboards/page.py"}


def imported_files(path: Path) -> set[str]:
    """Files of this repository that a module imports, as dvc.yaml would name them."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        else:
            continue
        for module in modules:
            file = REPOSITORY / Path(*module.split(".")).with_suffix(".py")
            if file.is_file():
                found.add(file.relative_to(REPOSITORY).as_posix())
    return found


def covered(file: str, declaration: Declaration) -> bool:
    return any(file == dep or file.startswith(f"{dep}/") for dep in declaration.deps)


@pytest.mark.parametrize("name", DECLARED)
def test_a_stage_depends_on_its_own_file_and_on_what_that_imports(name: str) -> None:
    declaration = DECLARED[name]
    own = f"pipelines/stages/{declaration.base}.py"
    wanted = {own} | imported_files(REPOSITORY / own)
    if "pipelines/stages/assembly.py" in wanted and declaration.base not in NO_TRAINING:
        wanted |= imported_files(REPOSITORY / "pipelines/stages/assembly.py")
    else:
        wanted.discard("pipelines/stages/assembly.py")
    ours = {f for f in wanted if not (f.startswith("pipelines/") and Path(f).stem in ORCHESTRATION)}
    missing = {f for f in ours - REFUSALS if not covered(f, declaration)}
    missing -= BY_PRODUCT
    assert not missing


@pytest.mark.parametrize("name", DECLARED)
def test_the_library_code_a_stage_depends_on_brings_what_it_imports(name: str) -> None:
    """What a declared file of `ayf_core` imports is declared too, all the way down."""
    declaration = DECLARED[name]
    files = [
        file
        for dep in declaration.deps
        if dep.startswith("ayf_core")
        for file in ([REPOSITORY / dep] if dep.endswith(".py") else sorted((REPOSITORY / dep).rglob("*.py")))
    ]
    imported = {found for file in files for found in imported_files(file)}
    library = {f for f in imported if f.startswith("ayf_core/")} - REFUSALS
    assert not {f for f in library if not covered(f, declaration)}

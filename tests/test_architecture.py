"""What a machine can check of the architecture: what stands alone, where imports run, what is not named."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# What `ayf_core` has to be imported without: orchestration always, and the heavier packages that only some of
# its functions use (those import them when they are called).
BLOCKED = (
    "diffusers",
    "dvc",
    "hydra",
    "mlflow",
    "omegaconf",
    "pandas",
    "PIL",
    "pipelines",
    "ray",
    "scipy",
    "sklearn",
    "submitit",
    "torchdiffeq",
    "torchvision",
)

IMPORT_ALL = """
import importlib, importlib.abc, pkgutil, sys

BLOCKED = set(sys.argv[1].split(","))

class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"blocked: {name}", name=name)

sys.meta_path.insert(0, Blocker())

import ayf_core

names = ["ayf_core"]
for module in pkgutil.walk_packages(ayf_core.__path__, "ayf_core.", onerror=lambda name: None):
    importlib.import_module(module.name)
    names.append(module.name)
print("\\n".join(names))
"""


def tracked_files() -> list[Path]:
    """The project's own files: those git knows and those it does not ignore."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True)
    if listed.returncode != 0:
        pytest.skip("not a git clone: there is no list of the project's own files")
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def python_files(package: str) -> list[Path]:
    return [path for path in tracked_files() if path.suffix == ".py" and path.is_relative_to(ROOT / package)]


def test_every_module_of_the_library_imports_with_torch_alone() -> None:
    result = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, ",".join(BLOCKED)], cwd=ROOT, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    imported = set(result.stdout.split())
    on_disk = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in python_files("ayf_core")
    }
    assert on_disk - imported == set(), "modules that the walk did not reach: is an __init__.py missing?"


@pytest.mark.parametrize("package", ["ayf_core", "pipelines"])
def test_every_folder_with_code_is_a_package(package: str) -> None:
    without_init = {
        str(path.parent.relative_to(ROOT))
        for path in python_files(package)
        if not (path.parent / "__init__.py").exists()
    }
    assert without_init == set()


def test_imports_run_one_way() -> None:
    """import-linter's contracts in pyproject.toml, also for those who run only the tests."""
    pytest.importorskip("importlinter")
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_no_file_names_a_path_of_a_developers_machine() -> None:
    homes = re.compile(r"(?<![\w.])/(?:home|Users)/\w+/|[A-Z]:\\+Users\\")
    # This checkout's own folder and home, where they are long enough not to occur by chance.
    own = [str(path) for path in (ROOT, Path.home()) if len(str(path)) >= 8]
    found = []
    for path in tracked_files():
        text = path.read_bytes().decode("utf-8", errors="ignore")
        for number, line in enumerate(text.splitlines(), 1):
            if homes.search(line) or any(folder in line for folder in own):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert found == []


def test_the_tables_of_files_are_up_to_date() -> None:
    result = subprocess.run([sys.executable, "docs/rooms.py", "--check"], cwd=ROOT)
    assert result.returncode == 0, "write them again: python docs/rooms.py"

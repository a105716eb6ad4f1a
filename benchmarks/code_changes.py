"""Which stages an edit of the code rebuilds: five kinds of edit in five places, in a copy of this project.

    python benchmarks/code_changes.py

Baseline: deps that list whole folders, where each of these edits in the library rebuilt 8 to 13 of the 14 stages.
A stage runs again where its code file changes, so nothing is trained here.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PLACES = {
    "an objective": "ayf_core/objectives/lagrangian.py",
    "a network": "ayf_core/networks/dit.py",
    "the trainer": "ayf_core/training/trainer.py",
    "a stage": "pipelines/stages/train_features.py",
    "orchestration": "pipelines/execution/ray_train.py",
}
EDITS: dict[str, Callable[[str], str]] = {
    "comment": lambda text: text + "\n# a comment\n",
    "docstring": lambda text: text.replace('"""', '"""Said otherwise. ', 1),
    "constant": lambda text: text + "\nLIMIT = 3\n",
    "code": lambda text: text + "\n\ndef other() -> int:\n    return 3\n",
}


def copied(target: Path) -> Path:
    """This project's code and declarations, to edit."""
    for name in ("ayf_core", "dashboards", "pipelines", "conf"):
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(ROOT / name, target / name)
    return target


def rebuilt(root: Path, before: dict[str, dict[str, str]]) -> str:
    """The stages whose code differs, matrix entries under one name."""
    from pipelines.project.code import stage_code

    now = stage_code(root)
    changed = {name.partition("@")[0] for name in now if now[name] != before[name]}
    return ", ".join(sorted(changed)) or "none"


def main() -> None:
    from pipelines.project.code import stage_code

    with tempfile.TemporaryDirectory() as folder:
        root = copied(Path(folder))
        begun = time.perf_counter()
        before = stage_code(root)
        print(f"{len(before)} stages read in {time.perf_counter() - begun:.1f} s\n")
        print("| place | edit | stages that run again |\n|---|---|---|")
        for place, name in PLACES.items():
            path = root / name
            text = path.read_text()
            for edit, change in EDITS.items():
                path.write_text(change(text))
                print(f"| {place} | {edit} | {rebuilt(root, before)} |")
                path.write_text(text)
            beside = path.with_name("brand_new.py")
            beside.write_text("LIMIT = 3\n")
            print(f"| {place} | new file beside it | {rebuilt(root, before)} |")
            beside.unlink()


if __name__ == "__main__":
    main()

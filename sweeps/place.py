"""A sweep's folder, `runs/sweeps/NAME/NUMBER/`: begun with its file and the params.yaml of that moment, or resumed."""

from __future__ import annotations

import dataclasses
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from ayf_core.errors import AyfError
from pipelines.project.declarations import check_deps, fingerprint, read_declarations
from pipelines.settings.places import PARAMS_FILE
from pipelines.settings.reading import load_config
from pipelines.settings.runtime import RuntimeConfig
from pipelines.settings.words import nearest
from sweeps.definition import Sweep, read_sweep, sweep_names
from sweeps.ledger import Ledger, read_json, write_json

SWEEP_FILE = "sweep.json"


@dataclass(frozen=True)
class Place:
    """A sweep's folder and what lies in it."""

    root: Path
    folder: Path
    sweep: Sweep
    runtime: RuntimeConfig

    @property
    def search(self) -> Path:
        return self.folder / "trials"

    @property
    def confirmation(self) -> Path:
        return self.folder / "confirmation"

    @property
    def key(self) -> str:
        """What MLflow knows this sweep by, whatever is killed."""
        return f"sweep/{self.sweep.name}/{self.folder.name}/{read_json(self.folder / SWEEP_FILE, {'began'})['began']}"


def described_sweep(root: Path, name: str) -> Sweep:
    path = root / "sweeps" / f"{name}.yaml"
    if not path.is_file():
        guess = nearest(name, sweep_names(root))
        hint = f"did you mean {guess}?" if guess else f"there are {', '.join(sweep_names(root)) or 'none in sweeps/'}"
        raise AyfError(f"no sweep {name}: {hint}")
    sweep = read_sweep(root, path, load_config(root))
    _check_inputs(root, sweep)
    return sweep


def _check_inputs(root: Path, sweep: Sweep) -> None:
    """Everything that the chain does not make itself must be there."""
    declared = read_declarations(root)
    made = {out for stage in sweep.chain for out in stage.outputs}
    for stage in sweep.chain:
        given = dataclasses.replace(stage, deps=tuple(dep for dep in stage.deps if dep not in made))
        check_deps(root, given, declared)
    features = dataclasses.replace(sweep.chain[-1], deps=("models/features",))
    check_deps(root, features, declared)


def _inputs(root: Path, sweep: Sweep) -> dict[str, str]:
    """Fingerprints of what the trials share: other stages' outputs."""
    declared = read_declarations(root)
    outputs = {out for stage in declared.values() for out in stage.outputs}
    made = {out for stage in sweep.chain for out in stage.outputs}
    shared = {dep for stage in sweep.chain for dep in stage.deps if dep in outputs - made} | {"models/features"}
    return {dep: fingerprint(root / dep) for dep in sorted(shared)}


def begun(root: Path, folder: Path, sweep: Sweep, runtime: RuntimeConfig, anew: bool) -> Place:
    newest = newest_place(folder)
    if newest is not None and not anew and not (newest / "answer.json").exists():
        ledger = Ledger(newest / "trials")
        done = f"{len(ledger.ended)} trials done"
        raise AyfError(
            f"sweep {sweep.name} was interrupted ({done}): go on with `ayf sweep {sweep.name} --resume`, "
            "or begin another with --new"
        )
    number = int(newest.name) + 1 if newest else 1
    beside, place = folder / f".{number:03d}.partial", folder / f"{number:03d}"
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir()
    shutil.copyfile(root / "sweeps" / f"{sweep.name}.yaml", beside / f"{sweep.name}.yaml")
    shutil.copyfile(root / PARAMS_FILE, beside / PARAMS_FILE)
    write_json(beside / SWEEP_FILE, {"began": time.time(), "inputs": _inputs(root, sweep)})
    beside.rename(place)
    return Place(root, place, sweep, runtime)


def resumed(root: Path, folder: Path, runtime: RuntimeConfig) -> Place:
    place = newest_place(folder)
    if place is None:
        raise AyfError(f"no sweep {folder.name} to resume: start it with `ayf sweep {folder.name}`")
    noted = read_json(place / SWEEP_FILE, {"began", "inputs"})
    for part in (f"{folder.name}.yaml", PARAMS_FILE):
        if not (place / part).is_file():
            raise AyfError(f"sweep folder damaged: {place / part} is missing: restore it, or begin another with --new")
    sweep = read_sweep(root, place / f"{folder.name}.yaml", load_config(place))
    _check_inputs(root, sweep)
    for dep, digest in _inputs(root, sweep).items():
        if noted["inputs"].get(dep) != digest:
            raise AyfError(
                f"{dep} is not what the sweep {folder.name} began with: bring it back (git checkout, dvc checkout), "
                "or begin another with --new"
            )
    return Place(root, place, sweep, runtime)


def newest_place(folder: Path) -> Path | None:
    found = [place for place in folder.iterdir() if place.name.isdigit() and place.is_dir()] if folder.is_dir() else []
    return max(found, key=lambda place: int(place.name), default=None)

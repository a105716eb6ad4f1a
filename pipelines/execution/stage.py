"""What a stage's `run(config, stage)` works with: its inputs, its settings, its scratch folder, its training.

The key of the scratch folder is a hash of the settings that the stage declares and of the contents of what it reads:
an interrupted stage finds itself again there, a changed setting never continues an old run.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ayf_core.errors import AyfError
from ayf_core.files import write_whole
from ayf_core.training.context import read_notes, tell_on_stderr
from pipelines.project import dvc_lock
from pipelines.project.declarations import Declaration, declared_params, fingerprint, read_params

if TYPE_CHECKING:
    import torch

    from pipelines.execution.ray_train import TrainFunction
    from pipelines.settings.runtime import RuntimeConfig
    from pipelines.tracking.runs import StageRun

PREVIEWS = "reports/previews"

Launch = Callable[..., dict]
Watch = Callable[..., Any]
"""Something that follows the training of a generator without changing it; travels to the workers."""


class Stage:
    """What a stage's `run(config, stage)` works with: inputs, scratch, outputs, its MLflow run.

    Args:
        root: the project.
        settings: what stands for params.yaml, as nested mappings; None reads it.
        instead: places of inputs that are not the project's own, by their declared paths (a sweep's trial reads what
            an earlier stage of its chain made).
        runs: where scratch folders lie; None is the project's `runs/`.

    Attributes:
        run: where its story is written.
        launch: runs a training function, as `pipelines.execution.ray_train.run_training` does.
        watch: follows the training of a generator, if somebody wants to.
        forecast: lines to tell before the training begins, such as that it will not fit.
        shows_pictures: whether a person sees what was trained as it comes: not of a sweep's trials.
    """

    def __init__(
        self,
        root: Path,
        declaration: Declaration,
        runtime: RuntimeConfig,
        *,
        settings: Mapping[str, Any] | None = None,
        instead: Mapping[str, Path] | None = None,
        runs: Path | None = None,
    ) -> None:
        self.root = root
        self.declaration = declaration
        self.name = declaration.name
        self.item = declaration.item
        self.runtime = runtime
        self.inputs = {dep: root / dep for dep in declaration.deps} | {
            dep: place for dep, place in (instead or {}).items() if dep in declaration.deps
        }
        self.params = declared_params(read_params(root) if settings is None else settings, declaration)
        self.fingerprints = {dep: fingerprint(path) for dep, path in self.inputs.items()}
        self.key = self._key()
        self.scratch = (runs or root / "runs") / self.name / self.key[:16]
        self.run: StageRun
        self.launch: Launch | None = None
        self.watch: Watch | None = None
        self.forecast: Callable[[], list[str]] | None = None
        self.shows_pictures = runs is None

    def input(self, path: str) -> Path:
        """A declared dep's place. Raises AyfError for an undeclared one: DVC would not notice its changes."""
        if path not in self.inputs:
            raise AyfError(f"{self.name} reads {path}, which dvc.yaml does not list among its deps: add it there")
        return self.inputs[path]

    def check_watched(self, places: Iterable[Path]) -> None:
        """Raises AyfError for a folder that no declared dep holds: no change of it would be noticed."""
        for place in places:
            real = (self.root / place).resolve()
            deps = {dep: (self.root / dep).resolve() for dep in self.inputs}
            if not any(real == dep or dep in real.parents for dep in deps.values()):
                data = next((dep for dep in deps if dep.startswith("data/")), "data/images")
                raise AyfError(
                    f"{place} is not inside {data}, so DVC would not see that it changes: put the files there, "
                    f"or links to them (`cp -rs {real} {data}/`), and name that folder"
                )

    def output(self, path: str) -> Path:
        """Where to write a declared output: a place in scratch, published once the stage has finished."""
        if path not in self.declaration.outputs:
            raise AyfError(f"{self.name} writes {path}, which dvc.yaml does not list among its outs: add it there")
        place = self.made(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        return place

    def made(self, path: str) -> Path:
        """Where a finished output lies in scratch."""
        return self.scratch / "outputs" / path

    def train(self, train: TrainFunction, config: dict, *, name: str | None = None) -> dict:
        """Train in `scratch/training[/name]` on the runtime's workers, metrics to MLflow; returns its result.

        A training that already finished is not repeated: its result is read again. Its artefact is in
        `final/`.
        """
        from pipelines.execution.ray_train import run_training

        launch = self.launch or run_training
        folder = self.training_folder(name)
        result = folder / "result.json"
        if result.exists():
            return json.loads(result.read_text())
        for line in self.forecast() if self.forecast is not None else []:
            tell_on_stderr(f"warning: {line}")
        returned = launch(
            train,
            config,
            folder=folder,
            name=f"{self.name} {name}" if name else self.name,
            runtime=self.runtime,
            on_log=self.run.offer_metrics,
        )
        notes = read_notes(folder / "metrics.jsonl") if (folder / "metrics.jsonl").exists() else []
        if notes:
            self.run.set_tags({"ayf.note": "; ".join(notes)})
        write_whole(result, json.dumps(returned))
        return returned

    def keep(self, path: str) -> Path:
        """Take what the training wrote to `final/` as the declared output `path`; training keeps its own.

        A stage interrupted after its training thus finds the artefact again. Nobody changes either, so they may share
        their bytes.
        """
        place = self.output(path)
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.training_folder() / "final", place, copy_function=_link_or_copy)
        return place

    def show(self, picture: Path, name: str, words: str) -> None:
        """Show a picture, if it is there: a file of the project, a line that names it, and the run's copy.

        No output of the stage: it is of what was trained last, and DVC neither keeps nor restores it.
        """
        if not picture.exists():
            return
        self.run.log_artifact(picture)
        shown = Path(PREVIEWS) / f"{name}.png"
        (self.root / PREVIEWS).mkdir(parents=True, exist_ok=True)
        write_whole(self.root / shown, picture.read_bytes())
        print(f"{self.name}: {words}: {shown}", flush=True)

    def publish_dashboard(self, path: str) -> None:
        """Draw the dashboard over the store as it is now. No output of the stage: it names runs and times."""
        from dashboards.page import store_page, write

        write(self.root / path, self.run.retry.call(lambda: store_page(self.run.uri)))
        self.run.log_artifact(self.root / path)

    def training_folder(self, name: str | None = None) -> Path:
        """Where `train` keeps a training; the finished artefact is `training_folder() / "final"`."""
        return self.scratch / "training" / name if name else self.scratch / "training"

    @property
    def threads(self) -> int:
        """Threads for a stage that computes in this process."""
        from pipelines.execution.shares import worker_threads

        return worker_threads(self.runtime)

    @property
    def serve_teachers(self) -> Callable[..., Any]:
        """What puts frozen teachers on processes of their own: `pipelines.execution.teacher_servers.served`."""
        from pipelines.execution.teacher_servers import served

        return served

    @property
    def device(self) -> torch.device:
        """Where a stage computes that trains nothing."""
        from pipelines.execution.ray_train import torch_device

        return torch_device(self.runtime)

    def digest(self, path: str) -> str:
        """DVC's MD5 of an input from dvc.lock, or the start of its fingerprint where DVC has none."""
        for stage in dvc_lock.committed(self.root).values():
            for out in stage.get("outs", []):
                if out.get("path") == path and "md5" in out:
                    return out["md5"]
        return self.fingerprints.get(path, "unknown")[:32]

    def _key(self) -> str:
        """A hash of everything that decides the result; run ids, times and hosts are no part of it."""
        content = {"stage": self.name, "params": self.params, "deps": self.fingerprints}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # some file systems have no links
        shutil.copyfile(source, target)

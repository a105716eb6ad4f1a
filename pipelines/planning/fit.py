"""What to say where a training will not fit its device's memory or the disk: the arithmetic, and what helps."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ayf_core.errors import AyfError
from ayf_core.files import first_line, read_json, write_whole

if TYPE_CHECKING:
    from pipelines.execution.stage import Stage
    from pipelines.planning.chain import Chain
    from pipelines.planning.estimate import Plan, TrainingEstimate
    from pipelines.settings.experiment import Config
    from pipelines.settings.runtime import RuntimeConfig

log = logging.getLogger(__name__)

GIB = 2**30
_NAMED = 5
"""Parts that a complaint names."""
_OF_PASSES = ("activations", "tangents", "backward")
_OF_STATE = ("weights", "gradients", "optimiser", "averages")


def size(bytes_: float) -> str:
    """`1.5 GiB`, `320 MiB`, `41 KiB`."""
    for unit, name in ((GIB, "GiB"), (2**20, "MiB")):
        if bytes_ >= 0.995 * unit:
            return f"{bytes_ / unit:.3g} {name}" if bytes_ < 1000 * unit else f"{bytes_ / unit:,.0f} {name}"
    return f"{bytes_ / 1024:.3g} KiB"


def memory_complaint(estimate: TrainingEstimate, device: str) -> str | None:
    """A line where the training needs more than the device has; None where it fits."""
    if estimate.fits:
        return None
    parts = sorted(estimate.memory.items(), key=lambda entry: -entry[1])
    large, small = parts[:_NAMED], parts[_NAMED:]
    words = [f"{name} {size(held)}" for name, held in large]
    words += [f"other {size(sum(held for _, held in small))}"] if small else []
    shown = " + ".join(words)
    helps = " or ".join(_remedies(estimate))
    return (
        f"{estimate.stage} will not fit: a worker needs {size(estimate.peak)} ({shown}), {device} has "
        f"{size(estimate.memory_available)}: {helps}"
    )


def _remedies(estimate: TrainingEstimate) -> list[str]:
    """What makes it smaller, what disturbs least first."""
    passes = sum(estimate.memory.get(part, 0.0) for part in _OF_PASSES)
    state = sum(estimate.memory.get(part, 0.0) for part in _OF_STATE)
    available = estimate.memory_available
    for_passes, for_state = available - (estimate.peak - passes), available - (estimate.peak - state)
    found = []
    if for_passes > 0 and estimate.micro_batch > 1:
        found.append(f"micro_batch={max(1, int(0.9 * estimate.micro_batch * for_passes / passes))} in the runtime")
    if for_passes > 0 and not estimate.checkpointed:
        found.append("activation_checkpointing in the runtime")
    if for_state > 0:
        workers = math.ceil(estimate.workers * state / for_state)
        found.append(f"sharding=full on about {max(2, workers)} workers")
    return found or ["a smaller network, or a device with more memory"]


def disk_complaint(plan: Plan, free: float) -> str | None:
    """A line where the chain writes more than the disk has free, if nothing of it is there yet."""
    kept = plan.disk_kept
    running = max((each.disk_running for each in plan.trainings), default=0.0)
    if kept + running <= free:
        return None
    return (
        f"the disk will not do: outputs and snapshots {size(kept)} + checkpoints {size(running)}, free are "
        f"{size(free)}: free some, move the project, or let DVC link in place of its copy (cache.type in .dvc/config)"
    )


# -------------------------------------------------------------------------------- remembered for `ayf params check`


def remember(root: Path, config: Config, runtime: RuntimeConfig, complaints: Sequence[str]) -> None:
    """Note what a plan found for whoever has no time to plan."""
    _file(root).parent.mkdir(exist_ok=True)
    write_whole(_file(root), json.dumps({"of": _digest(config, runtime), "complaints": list(complaints)}) + "\n")


def remembered(root: Path, config: Config) -> list[str]:
    """What the last `ayf plan` of these very settings and the present runtime found; nothing if it was of others."""
    from pipelines.settings.runtime import load_runtime

    try:
        found: Any = read_json(_file(root))
        runtime = load_runtime(root)
    except (OSError, ValueError, AyfError):
        return []
    if not isinstance(found, Mapping) or found.get("of") != _digest(config, runtime):
        return []
    return [str(line) for line in found.get("complaints", [])]


def _file(root: Path) -> Path:
    return root / "runs" / "plan.json"


def _digest(config: Config, runtime: RuntimeConfig) -> str:
    import dataclasses

    settings = [config.to_dict(), dataclasses.asdict(runtime)]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


# ------------------------------------------------------------------------------------------- before a stage trains


def forecast(config: Config, stage: Stage) -> list[str]:
    """What to tell before this stage trains: that it will not fit, if so.

    The exact memory of a step from tensors without contents, in a process that is about to train and has torch at hand.
    Never an error: a training that cannot be reckoned is left to show it itself, and the log says why.
    """
    from pipelines.planning.estimate import Device, estimate

    runtime = stage.runtime
    if runtime.hardware is None and (runtime.address is not None or runtime.mode == "slurm"):
        return []  # what a cluster's nodes have is not known here
    try:
        device = Device.of(runtime)
        planned = _chain(config, stage).trainings().get(stage.name)
        if planned is None:
            return []
        made = estimate(stage.name, planned, runtime, device, measure=False, never_real=True)
    except Exception as error:  # whatever a person's own network does with tensors that have no contents
        log.info("%s cannot be planned: %s", stage.name, first_line(error))
        return []
    complaint = memory_complaint(made, device.title)
    return [] if complaint is None else [complaint]


def _chain(config: Config, stage: Stage) -> Chain:
    """From the latents where there are some: they say what a network has to know, and data may take long to read."""
    from ayf_core.data.latents import LatentDataset
    from ayf_core.data.sets.base import Outline
    from pipelines.planning.chain import Chain, Latents

    remote = stage.runtime.teacher_workers > 0
    if "data/latents" not in stage.inputs:
        return Chain.of(config, config.data.build().outline(config.seed), remote)
    found = LatentDataset(stage.input("data/latents") / "train")
    latents = Latents(tuple(found.shape), found.num_classes)
    return Chain(config, Outline(latents.shape, latents.num_classes, len(found), 0), None, latents, remote)

"""Pictures from any trained model: a folder, a pipeline output, or a model of MLflow's registry."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ayf_core.errors import AyfError
from ayf_core.generator import Generator
from ayf_core.samplers import SamplingSettings, read_grid
from pipelines.stages.pictures import POINTS_SHOWN, class_rows, grid


def sample_grid(
    model: str | Path,
    root: Path,
    *,
    steps: int,
    labels: Sequence[int] | None = None,
    guidance_scale: float | None = None,
    gamma: float | None = None,
    time_grid: str | None = None,
    untuned: bool = False,
    seed: int = 0,
    ema_std: float | None = None,
    count: int = 10,
    out: Path,
) -> str:
    """Write a PNG: a row of `count` samples for each label (of every class, if none is named).

    Args:
        guidance_scale, gamma, time_grid: in place of what is stored with the model for this number of steps.
        untuned: pass over what is stored.

    Returns:
        How it was sampled, in words.

    Raises:
        AyfError: for a model that is not there or damaged, a label that it does not know, or settings it cannot take.
    """
    generator = Generator.load(local_model(str(model), root), ema_std=ema_std)
    classes = generator.spec.num_classes
    unknown = [label for label in labels or [] if not 0 <= label < max(classes, 1)]
    if unknown:
        raise AyfError(f"label {unknown[0]} is not one of the model's classes: choose 0 to {classes - 1}")
    chosen = torch.tensor(labels).repeat_interleave(count) if labels else class_rows(classes, count)
    noise = generator.draw_noise(POINTS_SHOWN if generator.makes_points else len(chosen), seed)
    renoise = torch.Generator().manual_seed(seed)
    conditions = chosen if classes > 1 else None
    if generator.role == "flow_map":
        how, words = _settings(generator, steps, untuned, guidance_scale, gamma, time_grid)
        drawn = generator.sample(noise, steps, conditions, generator=renoise, **how.arguments(steps))
    else:
        if gamma or time_grid:
            raise AyfError("a velocity network is sampled by an ODE solver: leave --gamma and --grid out")
        words = "an ODE solver"
        drawn = generator.sample(noise, steps, conditions, guidance_scale)
    out.parent.mkdir(parents=True, exist_ok=True)
    grid(drawn.x, columns=count).save(out)
    return words


def _settings(
    generator: Generator,
    steps: int,
    untuned: bool,
    guidance_scale: float | None,
    gamma: float | None,
    time_grid: str | None,
) -> tuple[SamplingSettings, str]:
    """The settings to sample by, and in words what they are and where they come from."""
    known = generator.untuned if untuned else generator.sampling(steps)
    changes: dict[str, Any] = {}
    if guidance_scale is not None:
        changes["guidance_scale"] = guidance_scale
    if gamma is not None:
        changes["gamma"] = gamma
    if time_grid is not None:
        changes["grid"], changes["grid_parameter"] = read_grid(time_grid)
    how = dataclasses.replace(known, **changes)
    sources = [f"tuned for {steps} step{'' if steps == 1 else 's'}"] if known != generator.untuned else []
    sources += ["changed as asked"] if changes else []
    return how, f"{how} ({', '.join(sources)})" if sources else str(how)


def local_model(model: str, root: Path) -> Path:
    """The folder of a model; only a registry address needs MLflow."""
    from pipelines.tracking.registry import resolve_model

    return Path(model) if (Path(model) / "model.json").is_file() else resolve_model(model, root)

"""Pictures from any trained model: a folder, a pipeline output, or a model of MLflow's registry."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ayf_core.errors import AyfError
from ayf_core.sampling.generator import Generator
from ayf_core.sampling.settings import SamplingSettings, read_grid
from pipelines.stages.pictures import grid, preview_inputs


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
    """Write a picture: a row of `count` samples for each label (of every class, if none is named).

    Args:
        guidance_scale, gamma, time_grid: in place of what is stored with the model for this number of steps.
        untuned: pass over what is stored.

    Returns:
        How it was sampled, in words.

    Raises:
        AyfError: for a model that is not there or damaged, a label that it does not know, or settings it cannot take.
    """
    check_picture_name(out)
    generator = Generator.load(local_model(str(model), root), ema_std=ema_std)
    noise, condition = preview_inputs(generator, count, seed, labels)
    renoise = torch.Generator().manual_seed(seed)
    settings, words = sampling_settings(generator, steps, untuned, guidance_scale, gamma, time_grid)
    drawn = generator.sample(noise, steps, condition, generator=renoise, **arguments(generator, settings, steps))
    out.parent.mkdir(parents=True, exist_ok=True)
    grid(drawn.x, columns=count).save(out)
    return words


def check_picture_name(out: Path) -> None:
    """Raise AyfError where no picture can be written to a file of this name: sampling may take long."""
    known = Image.registered_extensions()
    if known.get(out.suffix.lower()) not in Image.SAVE:
        raise AyfError(f"{out}: no picture can be written with the ending '{out.suffix}': name a file such as grid.png")
    if out.is_dir():
        raise AyfError(f"{out} is a folder: name a file such as {out / 'grid.png'}")


def sampling_settings(
    generator: Generator,
    steps: int,
    untuned: bool,
    guidance_scale: float | None,
    gamma: float | None,
    time_grid: str | None,
) -> tuple[dict[str, Any], str]:
    """The settings to sample by, as plain data for `arguments`; in words what they are and where they come from.

    Raises:
        AyfError: settings that the model cannot take.
    """
    weights = f", {generator.rebuilt}" if generator.rebuilt else ""
    if not generator.sampler.takes_settings:
        if gamma or time_grid:
            raise AyfError(f"the model is sampled by {generator.sampler.words}: leave --gamma and --grid out")
        return {"guidance_scale": guidance_scale}, f"{generator.sampler.words}{weights}"
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
    return how.to_dict(), f"{how} ({', '.join(sources)}){weights}" if sources else f"{how}{weights}"


def arguments(generator: Generator, settings: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """What `Generator.sample` is to be called with, besides noise, steps and condition."""
    if not generator.sampler.takes_settings:
        return dict(settings)
    return SamplingSettings.from_dict(settings).arguments(steps)


def local_model(model: str, root: Path) -> Path:
    """The folder of a model; only a registry address needs MLflow."""
    from pipelines.tracking.registry import resolve_model

    return Path(model) if (Path(model) / "model.json").is_file() else resolve_model(model, root)

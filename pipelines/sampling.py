"""Pictures from any trained model: a folder, a pipeline output, or a model of MLflow's registry."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ayf_core.errors import AyfError
from ayf_core.generator import Generator
from pipelines.pictures import POINTS_SHOWN, class_rows, grid


def sample_grid(
    model: str | Path,
    root: Path,
    *,
    steps: int,
    labels: Sequence[int] | None = None,
    guidance_scale: float | None = None,
    gamma: float = 0.0,
    seed: int = 0,
    ema_std: float | None = None,
    count: int = 10,
    out: Path,
) -> Path:
    """Write a PNG: a row of `count` samples for each label (of every class, if none is named).

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
    drawn = generator.sample(noise, steps, chosen if classes > 1 else None, guidance_scale, gamma, generator=renoise)
    out.parent.mkdir(parents=True, exist_ok=True)
    grid(drawn.x, columns=count).save(out)
    return out


def local_model(model: str, root: Path) -> Path:
    """The folder of a model; only a registry address needs MLflow."""
    from pipelines.tracking import resolve_model

    return Path(model) if (Path(model) / "model.json").is_file() else resolve_model(model, root)

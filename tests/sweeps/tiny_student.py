"""A project with one small student of points, for tests; as a process, `python tiny_student.py ROOT LOG KILL_AT`.

The process tunes the student for two steps, writes a line to LOG for every draw it measured, and is killed by its own
hand where KILL_AT draws were measured (0: never).
"""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ayf_core.data.codecs.identity import IdentityCodec
from ayf_core.data.latents import LatentSpace
from ayf_core.guidance.scale import GuidanceRange
from ayf_core.networks.build import build_network
from ayf_core.networks.spec import NetworkSpec
from ayf_core.training.artefact import save_model
from pipelines.settings import params_file as params
from pipelines.settings.runtime import RuntimeConfig
from pipelines.stages.bench import Bench
from sweeps.sampling_search import SamplingSearch
from sweeps.tune_sampling import tune

REPOSITORY = Path(__file__).resolve().parents[2]
INLINE = RuntimeConfig(mode="inline", threads_per_worker=1, device="cpu", system_metrics=False)
SEARCH = SamplingSearch(
    kind="sampling",
    model="models/student",
    metric=None,
    steps=[2],
    candidates=8,
    selection_seeds=2,
    held_out_seeds=3,
    seed=0,
    shift=[0.3, 3.0],
    rho=[0.5, 2.0],
    largest_gamma=1.0,
    largest_guidance_scale=None,
)


def write_project(root: Path) -> Path:
    """Settings of the checkerboard, and a student of it that nobody trained."""
    root.mkdir(parents=True, exist_ok=True)
    shutil.copytree(REPOSITORY / "conf", root / "conf")
    settings = params.from_preset(root, "checkerboard", ["data.size=600", "evaluation.batch_size=512"])
    params.write(root, settings, "checkerboard")
    write_model(root / "models/student")
    return root


def write_model(folder: Path, role: str = "flow_map", seed: int = 0) -> None:
    guided = role == "flow_map"
    torch.manual_seed(seed)
    network = build_network(
        NetworkSpec(
            kind="mlp",
            settings={"width": 16, "depth": 2, "activation": "silu"},
            shape=(2,),
            interval=guided,
            guidance=guided,
        )
    )
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.3)
    codec = folder.parent / "codec"
    IdentityCodec().save(codec)
    space = LatentSpace(torch.zeros(2), torch.ones(2))
    learnt = GuidanceRange(1.0, 2.0) if guided else None
    save_model(folder, network, network.state_dict(), role=role, codec=codec, space=space, guidance=learnt)


def watched(measure: Callable[..., dict[str, float]], log: Path, kill_at: int) -> Callable[..., dict[str, float]]:
    """`Bench.measure` that writes what it measured, and ends the process at the right moment."""

    def told(bench: Bench, samples: Tensor, seed: int) -> dict[str, float]:
        lines = log.read_text().splitlines() if log.exists() else []
        if kill_at and len(lines) == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        found = measure(bench, samples, seed)
        log.write_text("\n".join([*lines, f"{seed} {samples.double().sum().item()!r}"]) + "\n")
        return found

    return told


def main(root: Path, log: Path, kill_at: int) -> None:
    changed: Any = Bench
    changed.measure = watched(Bench.measure, log, kill_at)
    tune(root, "models/student", SEARCH, runtime=INLINE)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))

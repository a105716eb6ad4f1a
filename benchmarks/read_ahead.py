"""What reading ahead saves: a training step with samples read ahead against one that reads when it needs them.

    python benchmarks/read_ahead.py [--repeats 15] [--device cpu]

Baseline: the same loop (`Trainer`), whose reads begin when they are asked for, on the same memory-mapped latents of
4 x 64 x 64, eight shards. Repetitions alternate in one process with one thread of torch; wall time, because the saving
is waiting. The first case reads from the disk's cache; in the second each read takes 20 ms more, as from a file system
on a network. A figure is the median of the ratio within a repetition, quartiles in brackets.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
import worker_cost
from torch import Tensor

from ayf_core.conditions import class_labels
from ayf_core.data.latent_shards import write_latents
from ayf_core.data.latents import LatentDataset
from ayf_core.networks.build import build_network
from ayf_core.networks.spec import NetworkSpec
from ayf_core.objectives.flow_matching import FlowMatching
from ayf_core.times import LogitNormalTime
from ayf_core.training import trainer as trainer_module
from ayf_core.training.context import LocalContext
from ayf_core.training.data import LatentData
from ayf_core.training.options import LoopOptions
from ayf_core.training.phases import Phase
from ayf_core.training.trainer import Trainer

SHAPE, COUNT, BATCH, STEPS = (4, 64, 64), 2048, 32, 4
SLOW_SECONDS = 0.02
SETTINGS = dataclasses.replace(worker_cost.SETTINGS, batch_size=BATCH)


class ReadWhenAsked:
    """In place of `ReadAhead`."""

    def __init__(self, read: Callable[..., Mapping[str, Tensor]], requests: Iterator, device: torch.device) -> None:
        self.read, self.requests, self.device = read, requests, device

    def take(self) -> dict[str, Tensor]:
        return {name: tensor.to(self.device) for name, tensor in self.read(next(self.requests)).items()}

    def close(self) -> None:
        """Nothing runs."""


class SlowData(LatentData):
    """Latents on a disk that takes its time."""

    def read(self, indices: Tensor) -> dict[str, Tensor]:
        time.sleep(SLOW_SECONDS)
        return super().read(indices)


def training(data: LatentData, folder: Path, device: str) -> Trainer:
    torch.manual_seed(0)
    sizes = {"width": 32, "depth": 1, "heads": 2, "patch_size": 16}
    spec = NetworkSpec(kind="dit", settings=sizes, shape=SHAPE, conditions=class_labels(10))
    law = LogitNormalTime(mean=0.0, std=1.0)
    objective = FlowMatching(time_law=law, conditions=spec.conditions, label_dropout=0.0)
    phase = Phase(name="network", network=build_network(spec), objective=objective)
    quiet = LoopOptions(log_every=10**6, checkpoint_every=10**6)
    return Trainer([phase], data, SETTINGS, LocalContext(folder, device), seed=0, options=quiet)


def seconds(trainer: Trainer, device: str) -> float:
    began = time.perf_counter()
    for _ in range(STEPS):
        trainer.advance()
    if device != "cpu":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / STEPS


def measure(title: str, data: LatentData, folder: Path, repeats: int, device: str) -> None:
    ahead = trainer_module.ReadAhead
    trainers = {}
    for name, reader in (("when asked", ReadWhenAsked), ("ahead", ahead)):
        trainer_module.ReadAhead = reader  # type: ignore[assignment, misc]
        trainers[name] = training(data, folder / title / name, device)
        trainers[name].advance()  # makes its reader
    trainer_module.ReadAhead = ahead  # type: ignore[misc]
    runs = [{name: seconds(trainer, device) for name, trainer in trainers.items()} for _ in range(repeats)]
    for trainer in trainers.values():
        trainer.close()
    base = statistics.median(run["when asked"] for run in runs)
    low, middle, high = statistics.quantiles([run["ahead"] / run["when asked"] for run in runs], n=4)
    print(f"{title}: a step that reads when it needs to takes {1000 * base:.1f} ms, reading ahead ", end="")
    print(f"{middle:.2f} [{low:.2f}, {high:.2f}] of that", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        parts = (
            (torch.randn(256, *SHAPE), torch.rand(256, *SHAPE), torch.arange(256) % 10) for _ in range(COUNT // 256)
        )
        write_latents(Path(place, "latents"), parts, SHAPE, 10, "none", 256)
        latents = LatentDataset(Path(place, "latents"), keep_in_memory_bytes=0)
        for title, kind in (("cached", LatentData), ("20 ms a read", SlowData)):
            measure(title, kind(latents), Path(place), arguments.repeats, arguments.device)

"""What several workers cost: a step of DDP with one worker against a plain step, and FSDP2 against DDP with two.

    python benchmarks/worker_cost.py [--repeats 15]

Baseline of the first table: the same loop (`Trainer`) on the same network without a wrapper. The wrapped one is
forced: the loop itself wraps nothing for one worker. Repetitions alternate in one process; time is its CPU time with
one thread. Baseline of the second table: DDP on two gloo workers of this machine; wall time of rank 0, because it waits
for the other. A figure is the median of the ratio within a repetition, quartiles in brackets.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from step_cost import TANGENT, TIMES
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from ayf_core.conditions import Condition, class_labels
from ayf_core.networks.build import build_network
from ayf_core.networks.spec import NetworkSpec
from ayf_core.objectives.base import Objective
from ayf_core.objectives.eulerian import EulerianDistillation
from ayf_core.objectives.flow_matching import FlowMatching
from ayf_core.times import LogitNormalTime
from ayf_core.training.context import LocalContext
from ayf_core.training.data import TensorData
from ayf_core.training.options import LoopOptions
from ayf_core.training.phases import Phase
from ayf_core.training.trainer import Trainer
from ayf_core.training_settings import TrainingSettings
from ayf_core.velocity import NetworkVelocity

SPEC = NetworkSpec(  # of the preset digits
    kind="dit",
    settings={"width": 96, "depth": 3, "heads": 4, "patch_size": 1},
    shape=(4, 4, 4),
    conditions=class_labels(10),
)
BATCH, STEPS = 64, 4
OBJECTIVES = ("flow matching", "EMD")
SETTINGS = TrainingSettings(
    steps=10**6,
    batch_size=BATCH,
    precision="float32",
    learning_rate=1e-4,
    beta1=0.9,
    beta2=0.99,
    weight_decay=0.0,
    warmup_steps=0,
    schedule="constant",
    gradient_clip=1.0,
    ema_stds=[0.1],
    ema_std=0.1,
)


def objective_of(name: str) -> Objective:
    if name == "flow matching":
        times = LogitNormalTime(mean=0.0, std=1.0)
        return FlowMatching(time_law=times, conditions=SPEC.conditions, label_dropout=0.0)
    teacher = build_network(SPEC).requires_grad_(False)
    return EulerianDistillation(
        teacher=NetworkVelocity(teacher),
        guidance=None,
        time_law=TIMES,
        tangent=dataclasses.replace(TANGENT, backend="split"),
        weighting="uniform",
        steps=10**6,
    )


def training(name: str, context: LocalContext, sharding: str = "none", wrapped: bool = False) -> Callable[[], None]:
    """A few more steps of a training of its own, ready to be called again and again."""
    torch.manual_seed(0)
    network = build_network(dataclasses.replace(SPEC, interval=name != "flow matching"))
    data = TensorData(torch.randn(4 * BATCH, *SPEC.shape), Condition(labels=torch.zeros(4 * BATCH, dtype=torch.long)))
    phase = Phase(name="network", network=network, objective=objective_of(name))
    options = LoopOptions(log_every=10**6, checkpoint_every=10**6, sharding=sharding)
    trainer = Trainer([phase], data, SETTINGS, context, seed=0, options=options)
    if wrapped:
        trainer.phases[0].wrapped = DistributedDataParallel(network)

    def some_steps() -> None:
        for _ in range(STEPS):
            trainer.advance()

    return some_steps


def table(
    title: str, cases: dict[str, Callable[[], None]], baseline: str, repeats: int, now: Callable[[], float]
) -> None:
    def seconds(call: Callable[[], None]) -> float:
        began = now()
        call()
        return (now() - began) / STEPS

    for call in cases.values():  # warm up
        call()
    runs = [{name: seconds(call) for name, call in cases.items()} for _ in range(repeats)]
    if distributed.get_rank() != 0:
        return
    base = statistics.median(run[baseline] for run in runs)
    print(f"{title}: a step of {baseline} takes {1000 * base:.1f} ms")
    for name in cases:
        low, middle, high = statistics.quantiles([run[name] / run[baseline] for run in runs], n=4)
        print(f"  {name:10}{middle:6.2f}  [{low:.2f}, {high:.2f}]", flush=True)


def work(rank: int, workers: int, place: Path, repeats: int) -> None:
    """One of one or two workers."""
    torch.set_num_threads(1)
    rendezvous = f"file://{place / f'rendezvous_{workers}'}"
    distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=workers)
    for name in OBJECTIVES:
        if workers == 1:
            contexts = [LocalContext(place / f"{name} {i}") for i in range(2)]
            cases = {"plain": training(name, contexts[0]), "DDP": training(name, contexts[1], wrapped=True)}
            table(f"{name}, one worker", cases, "plain", repeats, time.process_time)
        else:
            contexts = [LocalContext(place / f"{name} {i} of 2", rank=rank, world_size=2) for i in range(2)]
            cases = {"DDP": training(name, contexts[0]), "FSDP2": training(name, contexts[1], "full")}
            table(f"{name}, two workers", cases, "DDP", repeats, time.perf_counter)
    distributed.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as folder:
        for count in (1, 2):
            multiprocessing.spawn(work, args=(count, Path(folder), arguments.repeats), nprocs=count)

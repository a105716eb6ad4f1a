"""How far several workers end from where one worker ends, beside what the order of additions alone does.

    python benchmarks/worker_equality.py [--steps 200] [--workers 2 3 4]

Baseline: one process that trains on the whole global batch at once. Yardstick: the same process with the batch in
micro-batches, which computes the same sums in another order and nothing else. Then workers (gloo processes of this
machine) with the same global batch, each with the whole network (DDP) or with a piece of every weight (FSDP2); three
do not divide the batch. A figure is the distance of the final parameters from the baseline's, relative to the way that
training went: ‖θ - θ_one‖ / ‖θ_one - θ_start‖. In float64 it must shrink by the ratio of the roundings, 2^-29, or
something else than rounding would differ.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, distributed, multiprocessing, nn

from ayf_core.conditions import Condition, class_labels
from ayf_core.guidance.autoguidance import Autoguided
from ayf_core.networks.build import build_network
from ayf_core.networks.spec import NetworkSpec
from ayf_core.objectives.base import Objective
from ayf_core.objectives.eulerian import EulerianDistillation
from ayf_core.objectives.flow_matching import FlowMatching
from ayf_core.objectives.tangent import TangentSettings
from ayf_core.times import IntervalLaw, LogitNormalTime
from ayf_core.training.context import LocalContext, TrainingContext
from ayf_core.training.data import TensorData
from ayf_core.training.options import LoopOptions
from ayf_core.training.phases import Phase
from ayf_core.training.sharding import gathered
from ayf_core.training.trainer import Trainer
from ayf_core.training_settings import TrainingSettings
from ayf_core.velocity import Autoguidance, NetworkVelocity

BATCH, CLASSES = 16, 3
NETWORKS = {
    "dit": NetworkSpec(
        kind="dit",
        settings={"patch_size": 2, "heads": 2, "width": 16, "depth": 2},
        shape=(1, 4, 4),
        conditions=class_labels(CLASSES),
    ),
    "mlp": NetworkSpec(
        kind="mlp",
        settings={"width": 16, "depth": 3, "activation": "silu"},
        shape=(2,),
        conditions=class_labels(CLASSES),
    ),
}
WARMUP_STEPS = 50
TIMES = IntervalLaw(p_mean=-0.8, p_std=1.0, full_jump_fraction=0.0, diagonal_fraction=0.0)
DTYPES = {"float32": torch.float32, "float64": torch.float64}
OBJECTIVES = ("flow matching", "EMD")


class Case(NamedTuple):
    """One training."""

    objective: str
    dtype: str
    sharding: str = "none"
    micro_batch: int | None = None
    network: str = "dit"


def network_of(case: Case, seed: int, **told: bool) -> nn.Module:
    torch.manual_seed(seed)
    network = build_network(dataclasses.replace(NETWORKS[case.network], **told))
    for parameter in network.parameters():
        if not parameter.any():  # so that the first steps have a gradient behind it
            nn.init.normal_(parameter, std=0.02)
    return network.to(DTYPES[case.dtype])


def objective_of(case: Case, steps: int) -> Objective:
    if case.objective == "flow matching":
        times = LogitNormalTime(mean=0.0, std=1.0)
        return FlowMatching(time_law=times, conditions=class_labels(CLASSES), label_dropout=0.1)
    strong, weak = (network_of(case, seed).requires_grad_(False) for seed in (1, 2))
    return EulerianDistillation(
        teacher=Autoguidance(NetworkVelocity(strong), NetworkVelocity(weak)),
        time_law=TIMES,
        tangent=TangentSettings(
            backend="split",
            warmup_max=0.99,
            warmup_fraction=min(1.0, WARMUP_STEPS / steps),
            normalise=True,
            normalisation_constant=0.1,
            divide_by_sqrt_dim=False,
            self_check_tolerance=0.01,
        ),
        guidance=Autoguided(scale_min=1.0, scale_max=2.0),
        weighting="uniform",
        steps=steps,
    )


def flat(weights: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.double().flatten() for tensor in weights.values()])


def trained(context: TrainingContext, case: Case, steps: int) -> tuple[Tensor, Tensor]:
    """All parameters before and after the training, in one vector each."""
    shape = (10 * BATCH, *NETWORKS[case.network].shape)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    data = TensorData(x.to(DTYPES[case.dtype]), Condition(labels=torch.arange(len(x)) % CLASSES))
    student = case.objective != "flow matching"
    network = network_of(case, 0, interval=student, guidance=student)
    start = flat(network.state_dict())
    settings = TrainingSettings(
        steps=steps,
        batch_size=BATCH,
        precision="float32",
        learning_rate=1e-3,
        beta1=0.9,
        beta2=0.99,
        weight_decay=0.01,
        warmup_steps=20,
        schedule="cosine",
        gradient_clip=1.0,
        ema_stds=[0.1],
        ema_std=0.1,
    )
    options = LoopOptions(micro_batch=case.micro_batch, checkpoint_every=steps, sharding=case.sharding)
    phase = Phase(name="network", network=network, objective=objective_of(case, steps))
    Trainer([phase], data, settings, context, seed=0, options=options).fit()
    return start, flat(gathered(network.state_dict()))


def work(rank: int, workers: int, folder: Path, cases: list[Case], steps: int) -> None:
    """One of several workers: every training in turn; rank 0 notes where it ended."""
    torch.set_num_threads(1)
    rendezvous = f"file://{folder / 'rendezvous'}"
    distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=workers)
    ends = []
    for i, case in enumerate(cases):
        ends.append(trained(LocalContext(folder / str(i), rank=rank, world_size=workers), case, steps)[1])
    if rank == 0:
        torch.save(ends, folder / "ends.pt")
    distributed.destroy_process_group()


def ends_of_workers(workers: int, cases: list[Case], steps: int) -> list[Tensor]:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    with tempfile.TemporaryDirectory() as place:
        multiprocessing.spawn(work, args=(workers, Path(place), cases, steps), nprocs=workers)
        return torch.load(Path(place) / "ends.pt", weights_only=True)


def end_alone(case: Case, steps: int) -> tuple[Tensor, Tensor]:
    with tempfile.TemporaryDirectory() as place:
        return trained(LocalContext(place), case, steps)


def distances(
    workers: Sequence[int], steps: int, network: str = "dit"
) -> Iterator[tuple[str, dict[tuple[str, str], float]]]:
    """Rows, each with (objective, dtype) -> relative distance from one worker with the whole batch."""
    plain = [Case(objective, dtype, network=network) for dtype in DTYPES for objective in OBJECTIVES]
    one = {case: end_alone(case, steps) for case in plain}

    def row(ends: Iterable[Tensor]) -> dict[tuple[str, str], float]:
        ways = {case: baseline - start for case, (start, baseline) in one.items()}
        return {
            case[:2]: float((end - one[case][1]).norm() / ways[case].norm())
            for case, end in zip(plain, ends, strict=True)
        }

    for pieces in (2, 4):
        alone = (end_alone(case._replace(micro_batch=BATCH // pieces), steps)[1] for case in plain)
        yield f"one process, {pieces} micro-batches", row(alone)
    for count in workers:
        names = {"DDP": "none", "FSDP2": "full"}
        cases = [case._replace(sharding=sharding) for sharding in names.values() for case in plain]
        ends = iter(ends_of_workers(count, cases, steps))
        for name in names:
            yield f"{count} workers, {name}", row([next(ends) for _ in plain])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 3, 4])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"distance of the parameters after {arguments.steps} steps from one worker's, relative to the way they went")
    for row, found in distances(arguments.workers, arguments.steps):
        cells = "  ".join(f"{objective} {dtype}: {value:.1e}" for (objective, dtype), value in found.items())
        print(f"  {row:30} {cells}", flush=True)

"""What one distillation step costs, per objective and back end, in plain flow-matching steps of the same network.

    python benchmarks/step_cost.py [--networks mlp dit ...] [--repeats 15] [--device cpu|cuda] [--precision bfloat16]
        [--compile] [--rows 'EMD dual' 'LMD dual'] [--diagonal 0.75]

Baseline: one optimiser step of flow matching (forward, backward, Adam) of the same network on the same batch. An
objective's row is one optimiser step with a teacher that costs nothing (the derivative engine alone), with a teacher
of the student's size, and with autoguidance by that teacher and a weak one of half the width. Repetitions alternate
over all rows in one process, so that a machine that gets busy slows all; a figure is the median over repetitions of
the ratio within a repetition, quartiles in brackets. Time is this process's CPU time, one thread; on CUDA it is the
wall time between synchronisations. --diagonal is the share of pairs with s = t. With --compile, baseline and teachers
are compiled too. "memory" is the peak of what a step allocates, in that of the baseline.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time
from collections.abc import Callable, Collection

import torch
from torch import Tensor, nn

from ayf_core.conditions import Condition, class_labels
from ayf_core.guidance.autoguidance import Autoguided
from ayf_core.networks.base import MeanVelocityNetwork
from ayf_core.networks.build import build_network
from ayf_core.networks.spec import NetworkSpec
from ayf_core.objectives.base import Batch, Objective
from ayf_core.objectives.eulerian import EulerianDistillation
from ayf_core.objectives.flow_matching import FlowMatching
from ayf_core.objectives.lagrangian import LagrangianDistillation
from ayf_core.objectives.tangent import TangentSettings
from ayf_core.precision import PRECISIONS, compute_in, matrix_products
from ayf_core.randomness import StepRandom
from ayf_core.tangents.engines import value_and_derivative
from ayf_core.tangents.points import Point, eulerian_direction
from ayf_core.times import IntervalLaw, LogitNormalTime
from ayf_core.training.memory import peak_bytes
from ayf_core.training.running import run_network
from ayf_core.velocity import Autoguidance, NetworkVelocity, VelocityField


def transformer(width: int, depth: int, heads: int, shape: tuple[int, ...]) -> NetworkSpec:
    settings = {"width": width, "depth": depth, "heads": heads, "patch_size": 1}
    return NetworkSpec(kind="dit", settings=settings, shape=shape, conditions=class_labels(10), interval=True)


NETWORKS = {  # and batch sizes; the first two are those of the presets checkerboard and digits
    "mlp": (
        NetworkSpec(kind="mlp", settings={"width": 256, "depth": 5, "activation": "silu"}, shape=(2,), interval=True),
        512,
    ),
    "dit": (transformer(96, 3, 4, (4, 4, 4)), 64),
    "dit_256_tokens": (transformer(384, 6, 6, (4, 16, 16)), 4),
    "dit_4096_tokens": (transformer(96, 3, 4, (3, 64, 64)), 2),
}
DEFAULT = ("mlp", "dit")
TIMES = IntervalLaw(p_mean=-0.8, p_std=1.0, full_jump_fraction=0.0, diagonal_fraction=0.0)
TANGENT = TangentSettings(
    backend="dual",
    warmup_max=0.99,
    warmup_fraction=0.0,
    normalise=True,
    normalisation_constant=0.1,
    divide_by_sqrt_dim=False,
    self_check_tolerance=0.01,
)
METHODS = {
    "EMD dual": (EulerianDistillation, "dual"),
    "EMD split": (EulerianDistillation, "split"),
    "EMD finite_difference": (EulerianDistillation, "finite_difference"),
    "LMD dual": (LagrangianDistillation, "dual"),
    "LMD split": (LagrangianDistillation, "split"),
}
BASELINE = ("flow matching", "")
CALLS = 3


@dataclasses.dataclass(frozen=True)
class Way:
    """How every network here is computed."""

    device: str
    precision: str
    compiled: bool

    def made(self, spec: NetworkSpec) -> MeanVelocityNetwork:
        """A network without the zero-initialised layers of a fresh one."""
        network = build_network(spec)
        for parameter in network.parameters():
            if not parameter.any():
                nn.init.normal_(parameter, std=0.02)
        compute_in(self.precision, network)
        run_network(network.to(self.device), compiled=self.compiled)
        return network


Timed = dict[tuple[str, str], Callable[[], object]]


class FreeVelocity:
    """A teacher that costs nothing: always the same stored velocity."""

    evaluations_per_call = 0

    def __init__(self, velocity: Tensor):
        self.velocity = velocity

    def __call__(self, *point: object, **conditions: object) -> Tensor:
        return self.velocity


def optimiser_step(spec: NetworkSpec, objective: Objective, batch: Batch, way: Way) -> Callable[[], None]:
    """One whole step of a network of its own, ready to be called again and again."""
    network = way.made(spec)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    random = StepRandom(0, 0, len(batch.x), device=way.device)

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        objective(network, batch, random, step=1000).value.backward()
        optimiser.step()

    return step


def cases(
    spec: NetworkSpec, size: int, way: Way, rows: Collection[str] = tuple(METHODS), diagonal: float = 0.0
) -> Timed:
    """What is timed, by row and teacher."""
    device = way.device
    x = torch.randn(size, *spec.shape, device=device)
    batch = Batch(x, Condition(labels=torch.zeros(size, dtype=torch.long, device=device)))
    plain = dataclasses.replace(spec, interval=False)
    strong = NetworkVelocity(way.made(plain).requires_grad_(False))
    half = dataclasses.replace(plain, settings={**spec.settings, "width": spec.settings["width"] // 2})
    weak = NetworkVelocity(way.made(half).requires_grad_(False))
    guided = Autoguidance(strong, weak)
    teachers: dict[str, VelocityField] = {"free teacher": FreeVelocity(x), "teacher": strong, "autoguidance": guided}
    network = way.made(spec)
    point = Point(x, *TIMES.sample(StepRandom(0, 0, size, device=device)), batch.condition)
    times = LogitNormalTime(mean=0.0, std=1.0)
    matching = FlowMatching(time_law=times, conditions=spec.conditions, label_dropout=0.0)
    timed: Timed = {
        BASELINE: optimiser_step(spec, matching, batch, way),
        ("forward", ""): torch.no_grad()(lambda: network(*point)),
        ("jvp", ""): torch.no_grad()(
            lambda: value_and_derivative(network, point, eulerian_direction(point, x), "dual")
        ),
    }
    for row in rows:
        kind, backend = METHODS[row]
        for column, teacher in teachers.items():
            law = Autoguided(scale_min=1.0, scale_max=2.0) if teacher is guided else None
            objective = kind(
                teacher=teacher,
                time_law=dataclasses.replace(TIMES, diagonal_fraction=diagonal),
                tangent=dataclasses.replace(TANGENT, backend=backend),
                guidance=law,
                weighting="uniform",
                steps=1000,
            )
            student = dataclasses.replace(spec, guidance=law is not None)
            timed[row, column] = optimiser_step(student, objective, batch, way)
    return timed


def seconds(call: Callable[[], object], device: str) -> float:
    def now() -> float:
        if device == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()

    began = now()
    for _ in range(CALLS):
        call()
    return (now() - began) / CALLS


def peak_memory(call: Callable[[], object], device: str) -> int:
    """Bytes of a call above what was held before it, after a first one that warms up."""
    call()
    return peak_bytes(call, torch.device(device))


def measure(name: str, repeats: int, way: Way, rows: Collection[str], diagonal: float) -> None:
    spec, size = NETWORKS[name]
    device = way.device
    timed = cases(spec, size, way, rows, diagonal)
    peaks = {key: peak_memory(call, device) for key, call in timed.items()}
    runs = [{key: seconds(call, device) for key, call in timed.items()} for _ in range(repeats)]
    base = statistics.median(run[BASELINE] for run in runs)
    print(f"{name}, batch {size}, {way}: a flow-matching step takes {1000 * base:.2f} ms")
    for key in timed:
        low, middle, high = statistics.quantiles([run[key] / run[BASELINE] for run in runs], n=4)
        memory = peaks[key] / peaks[BASELINE]
        print(f"  {key[0]:23}{key[1]:14}{middle:6.2f}  [{low:.2f}, {high:.2f}]  memory {memory:.2f}", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=DEFAULT)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="float32")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--diagonal", type=float, default=0.0)
    parser.add_argument("--rows", nargs="+", choices=list(METHODS), default=list(METHODS))
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for network_name in arguments.networks:
        with matrix_products(arguments.precision):
            way = Way(arguments.device, arguments.precision, arguments.compile)
            measure(network_name, arguments.repeats, way, arguments.rows, arguments.diagonal)

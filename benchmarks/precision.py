"""What bfloat16 costs a network's value and its derivative, whole and by kind of layer.

    python benchmarks/precision.py [--model FOLDER ...]

Baseline: the same network in float64. Errors are relative; the derivative's is |d - d64| / (|d64| + 1e-3 |F|), the
largest of both directions that distillation takes. A layer is fed with exact inputs, so its error is its own. Networks:
the student that ships with the project, a fresh perceptron, a fresh transformer with 256 tokens, and the models named.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from step_cost import NETWORKS, TIMES, Way
from torch import Tensor

from ayf_core.conditions import Condition
from ayf_core.networks.base import MeanVelocityNetwork
from ayf_core.networks.files import load_network
from ayf_core.precision import compute_in
from ayf_core.randomness import StepRandom
from ayf_core.tangents.check import self_check
from ayf_core.tangents.layers import layer_errors
from ayf_core.tangents.points import Point, eulerian_direction, lagrangian_direction

SAMPLES = 16
DEMO = Path(__file__).parents[1] / "pipelines/demo/model"


def point_of(network: MeanVelocityNetwork) -> tuple[Point, Tensor]:
    """Noise at random times, and a random velocity there."""
    random = StepRandom(0, 0, SAMPLES)
    classes = {name: torch.arange(SAMPLES) % kind.num_classes for name, kind in network.spec.conditions.items()}
    scale = 1.0 + random.uniform("scale") if network.spec.guidance else None
    point = Point(random.normal("x", network.spec.shape), *TIMES.sample(random), Condition(classes), scale)
    return point, random.normal("velocity", network.spec.shape)


def measure(name: str, network: MeanVelocityNetwork) -> None:
    point, velocity = point_of(network)
    directions = eulerian_direction(point, velocity), lagrangian_direction(point)
    found = {}
    with torch.no_grad():
        exact = network.double()(*point.double())
        network.float()
    for precision in ("float32", "bfloat16"):
        compute_in(precision, network)
        with torch.no_grad():
            value = float((network(*point).double() - exact).norm() / exact.norm())
        found[precision] = value, max(self_check(network, point, d, "dual", tolerance=1.0) for d in directions)
    compute_in("float32", network)
    errors = [error for d in directions for error in layer_errors(network, point, d, torch.bfloat16)]
    print(name)
    for precision, (value, derivative) in found.items():
        print(f"  whole network, {precision:12} value {value:.1e}   derivative {derivative:.1e}")
    for kind in dict.fromkeys(error.kind for error in errors):
        own = [error for error in errors if error.kind == kind]
        worst = max(e.value for e in own), max(e.tangent for e in own)
        print(f"  {kind:22} value {worst[0]:.1e}   derivative {worst[1]:.1e}   (worst of {len(own) // 2})", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, nargs="*", default=[])
    arguments = parser.parse_args()
    torch.manual_seed(0)
    for folder in (DEMO, *arguments.model):
        measure(str(folder.name), load_network(folder)[0].requires_grad_(True))
    for fresh in ("mlp", "dit_256_tokens"):
        measure(fresh, Way("cpu", "float32", compiled=False).made(NETWORKS[fresh][0]))

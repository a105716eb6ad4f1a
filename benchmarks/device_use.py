"""How much of a device's rate of matrix products a training step uses, and what it holds in memory.

    python benchmarks/device_use.py [--device cuda] [--precision bfloat16] [--compile] [--batch 64] [--network DiT-B/2]

Baseline: the rate of one large matrix product in the same precision on the same device, measured here. A step's
operations are counted by torch while it runs. Rows: a step of flow matching, of EMD with a teacher that costs nothing,
and of EMD under autoguidance. Median and quartiles of --repeats, wall time between synchronisations.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from step_cost import BASELINE, Way, cases
from torch.utils.flop_counter import FlopCounterMode

from ayf_core.conditions import class_labels
from ayf_core.networks.spec import NetworkSpec
from ayf_core.precision import PRECISIONS, matrix_products
from ayf_core.training.memory import peak_bytes


def transformer(width: int, depth: int, heads: int, side: int) -> NetworkSpec:
    settings = {"width": width, "depth": depth, "heads": heads, "patch_size": 2}
    shape = (4, side, side)
    return NetworkSpec(kind="dit", settings=settings, shape=shape, conditions=class_labels(1000), interval=True)


NETWORKS = {  # as the DiT paper calls them, for latents of 32 x 32 (256 x 256 pixels)
    "DiT-S/2": transformer(384, 12, 6, 32),
    "DiT-B/2": transformer(768, 12, 12, 32),
    "DiT-XL/2": transformer(1152, 28, 16, 32),
    "tiny": transformer(64, 2, 4, 8),
}
ROWS = BASELINE, ("EMD dual", "free teacher"), ("EMD dual", "autoguidance")


def seconds(call: Callable[[], object], device: str, repeats: int) -> list[float]:
    found = []
    for _ in range(repeats):
        if device == "cuda":
            torch.cuda.synchronize()
        began = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - began)
    return found


def matrix_rate(device: str, precision: str, repeats: int) -> float:
    """Operations a second of a product of two square matrices."""
    side = 8192 if device == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    a @ b
    return 2 * side**3 / statistics.median(seconds(lambda: a @ b, device, repeats))


def measure(network: str, batch: int, way: Way, repeats: int) -> None:
    rate = matrix_rate(way.device, way.precision, repeats)
    print(f"{network}, batch {batch}, {way}: matrix products at {rate / 1e12:.2f} TFLOP/s")
    steps = cases(NETWORKS[network], batch, way, ["EMD dual"])
    for key in ROWS:
        call = steps[key]
        call()
        with FlopCounterMode(display=False) as counter:
            call()
        low, middle, high = statistics.quantiles(seconds(call, way.device, repeats), n=4)
        used = counter.get_total_flops() / rate
        print(
            f"  {' '.join(key):26}{1000 * middle:9.2f} ms [{1000 * low:.2f}, {1000 * high:.2f}]  "
            f"{batch / middle:9.1f} samples/s  {100 * used / middle:5.1f} % of the rate  "
            f"{peak_bytes(call, torch.device(way.device)) / 2**30:.3f} GiB",
            flush=True,
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=list(NETWORKS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--precision", choices=PRECISIONS, default="bfloat16")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--batch", type=int)
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()
    on_gpu = arguments.device == "cuda"
    name = arguments.network or ("DiT-B/2" if on_gpu else "tiny")
    size = arguments.batch or (64 if on_gpu else 8)
    torch.manual_seed(0)
    with matrix_products(arguments.precision):
        measure(name, size, Way(arguments.device, arguments.precision, arguments.compile), arguments.repeats)

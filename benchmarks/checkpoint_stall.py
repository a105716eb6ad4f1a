"""How long training stands still for a checkpoint that is written in the background, against one that is waited for.

    python benchmarks/checkpoint_stall.py [--million 10] [--saves 8]

Baseline: the same save, then `wait()`. Both are also given in training steps of the same network. A step between two
saves takes as long as it takes: where the disk is slower than the steps between two checkpoints, saving waits.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from ayf_core.training.context import LocalContext

WIDTH, BATCH, STEPS_BETWEEN = 1024, 64, 20


def network_of(million: float) -> torch.nn.Module:
    """A tower of square layers with about so many million parameters."""
    depth = max(1, round(million * 1e6 / WIDTH**2))
    return torch.nn.Sequential(*(torch.nn.Linear(WIDTH, WIDTH) for _ in range(depth)))


def measure(folder: Path, million: float, saves: int, wait: bool, device: torch.device) -> tuple[float, float]:
    """Median seconds of a step, and by which each save holds training up."""
    torch.manual_seed(0)
    network = network_of(million).to(device)
    optimiser = torch.optim.Adam(network.parameters())
    context = LocalContext(folder, device)
    steps, stalls = [], []

    def step() -> None:
        began = time.perf_counter()
        loss = network(torch.randn(BATCH, WIDTH, device=device)).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        steps.append(time.perf_counter() - began)

    for save in range(saves):
        for _ in range(STEPS_BETWEEN):
            step()
        began = time.perf_counter()
        context.save_checkpoint(save, {"network": network.state_dict(), "optimiser": optimiser.state_dict()})
        if wait:
            context.wait()
        stalls.append(time.perf_counter() - began)
    context.wait()
    return statistics.median(steps), statistics.median(stalls)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--million", type=float, default=10, help="parameters, in millions (default: %(default)s)")
    parser.add_argument("--saves", type=int, default=8, help="checkpoints of each kind (default: %(default)s)")
    parser.add_argument("--folder", type=Path, help="where checkpoints are written (default: a temporary folder)")
    arguments = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    found = {}
    for wait in (False, True):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
            found[wait] = measure(Path(place), arguments.million, arguments.saves, wait, device)
    step, (_, background), (_, waited) = found[False][0], found[False], found[True]
    size = 3 * 4 * sum(p.numel() for p in network_of(arguments.million).parameters()) / 2**20
    print(f"{size:.0f} MiB a checkpoint (weights and Adam's moments), on {device.type}; medians of {arguments.saves}")
    print(f"stall of a save in the background: {1000 * background:.1f} ms, {background / step:.1f} steps")
    print(f"stall of a save that is waited for: {1000 * waited:.1f} ms, {waited / step:.1f} steps")
    print(f"background / waited for: {background / waited:.2f}")


if __name__ == "__main__":
    main()

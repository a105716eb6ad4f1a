"""How much memory a pass takes, and how many samples of it fit into what is free."""

import gc
import itertools
from collections.abc import Callable
from pathlib import Path

import torch

SHARE_USED = 0.9
"""Of the free memory: the rest is for what was not measured, such as an allocator's gaps."""


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """The most that a call holds at a time above what was held before it, in bytes."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    gc.collect()  # what is freed meanwhile and was there before would be taken off
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns()))
    return max(held, default=0)


def free_bytes(device: torch.device, processes: int) -> int | None:
    """What a process may still allocate; None where the system does not tell.

    Args:
        processes: on a CPU, so many are taken to share the machine's memory.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    told = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    return 1024 * told["MemAvailable"] // processes


def samples_that_fit(peak_of: Callable[[int], int], few: tuple[int, int], free: int) -> int:
    """The largest micro-batch whose pass fits, by a straight line through two small ones; 0 where none does.

    Args:
        peak_of: bytes of a pass of so many samples.
        few: two numbers of samples, the smaller first, which are tried.
        free: bytes.
    """
    small, larger = (peak_of(count) for count in few)
    each = (larger - small) / (few[1] - few[0])
    fixed = max(0.0, small - each * few[0])
    if each <= 0:
        return few[1] if larger <= SHARE_USED * free else 0
    return max(0, int((SHARE_USED * free - fixed) / each))

"""Power-function averages of the weights, and any other width reconstructed after training.

From EDM2 (Karras et al., arXiv 2312.02696), section 3 and appendix C. The mathematics comes first, as pure functions
that need no trainer; `PowerFunctionEMA` holds the state and calls them. A width is named by `std`, the paper's σ_rel:
the standard deviation of the averaging profile as a fraction of the training so far (0.05 and 0.10 are usual). Steps
count finished optimiser steps, from 1.
"""

import json
import os
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from ayf_core.errors import AyfError
from ayf_core.files import parse_json
from ayf_core.training.sharding import gathered, local, shard_like

METADATA = "ayf_ema"  # the entry of a snapshot file that says what it is
WIDEST_STD = 12**-0.5  # the profile is flat (γ = 0) there


@lru_cache
def std_to_exponent(std: float) -> float:
    """γ of the profile whose relative standard deviation is std (eq. 126, algorithm 2).

    σ_rel² = (γ + 1) / ((γ + 2)² (γ + 3)) (eq. 123) is, with q = σ_rel⁻², the cubic
    γ³ + 7 γ² + (16 - q) γ + (12 - q) = 0, whose largest root is γ.

    Raises:
        AyfError: std outside (0, 1/√12 = 0.288...], where no γ >= 0 exists.
    """
    if not 0 < std <= WIDEST_STD:
        raise AyfError(f"EMA std must lie in (0, {WIDEST_STD:.4f}], got {std}; 0.05 and 0.10 are usual")
    q = std**-2
    return max(0.0, float(np.roots([1.0, 7.0, 16.0 - q, 12.0 - q]).real.max()))


def power_function_beta(std: float, step: int, previous_step: int | None = None) -> float:
    """Decay β of the update at `step` (eq. 127): (1 - 1/t)^(γ + 1).

    When the last update was at an earlier `previous_step` p than t - 1, the decays between multiply to
    (p / t)^(γ + 1). At p = 0 the decay is 0: the first update copies the weights.
    """
    previous = step - 1 if previous_step is None else previous_step
    return (previous / step) ** (std_to_exponent(std) + 1)


def power_function_correlation(step_a: float, std_a: float, step_b: float, std_b: float) -> float:
    """Inner product ∫ p_a p_b dτ of two averaging profiles p(τ) = (γ + 1) τ^γ / t^(γ + 1) on [0, t] (eq. 151).

    With e the profile that ends earlier and l the one that ends later,
    (γ_e + 1)(γ_l + 1) / (γ_e + γ_l + 1) · (t_e / t_l)^γ_l / t_l.
    """
    (early, gamma_early), (late, gamma_late) = sorted(
        [(step_a, std_to_exponent(std_a)), (step_b, std_to_exponent(std_b))]
    )
    shape = (gamma_early + 1) * (gamma_late + 1) / (gamma_early + gamma_late + 1)
    return shape * (early / late) ** gamma_late / late


def solve_posthoc_coefficients(
    in_steps: Sequence[int], in_stds: Sequence[float], out_step: int, out_std: float
) -> np.ndarray:
    """Coefficients [n], float64, of stored averages that come closest to the wanted one (algorithm 3).

    Least squares between profiles: A c = b with A_ij = ⟨p_i, p_j⟩ and b_i = ⟨p_i, p_wanted⟩. The result is scaled to
    sum 1, so that a constant weight is returned unchanged.

    Raises:
        AyfError: nothing stored, or the same (step, std) stored twice.
    """
    profiles = list(zip(in_steps, in_stds, strict=True))
    if not profiles:
        raise AyfError("no EMA snapshots to reconstruct from; save some during training")
    if len(set(profiles)) < len(profiles):
        raise AyfError("two EMA snapshots share one step and std; pass each once")
    gram = np.array([[power_function_correlation(*a, *b) for b in profiles] for a in profiles])
    wanted = np.array([power_function_correlation(*a, out_step, out_std) for a in profiles])
    # Profiles near step 1 are 1e6 times as tall as those near step 1e6: a unit diagonal keeps the solve well scaled.
    scale = 1 / np.sqrt(np.diag(gram))
    coefficients = scale * np.linalg.solve(gram * np.outer(scale, scale), wanted * scale)
    return coefficients / coefficients.sum()


def reconstruction_error(in_steps: Sequence[int], in_stds: Sequence[float], out_step: int, out_std: float) -> float:
    """How far the averaging profile of a reconstruction is from the wanted one: ‖Σ c_i p_i - p‖ / ‖p‖, exactly.

    0 is the wanted average itself, whatever the weights did; 1 is as far as no average at all. The reconstructed
    weights differ from the wanted ones by the same combination of the training's path.

    Raises:
        AyfError: as `solve_posthoc_coefficients` does.
    """
    coefficients = solve_posthoc_coefficients(in_steps, in_stds, out_step, out_std)
    signed = [*zip(coefficients, in_steps, in_stds, strict=True), (-1.0, out_step, out_std)]
    squared = sum(
        float(a * b) * power_function_correlation(step_a, std_a, step_b, std_b)
        for a, step_a, std_a in signed
        for b, step_b, std_b in signed
    )
    wanted = power_function_correlation(out_step, out_std, out_step, out_std)
    return max(0.0, squared / wanted) ** 0.5


class Snapshot(NamedTuple):
    """One stored average: the step, the width, a full state dict, and which of its names are buffers."""

    step: int
    std: float
    weights: dict[str, Tensor]
    buffers: frozenset[str] = frozenset()


class PowerFunctionEMA:
    """Averages of a module's parameters at several widths, tracked together (eq. 127).

    Averages are kept in float32 (float64 for float64 parameters) whatever the precision of the module, and sharded
    as it is: each worker averages its own pieces. Buffers are copied, not averaged. Track two widths or more if
    another one is to be reconstructed later.

    Args:
        module: the module to follow; its parameters are read at each update and never written.
        stds: relative standard deviations, each in (0, 0.288].
    """

    def __init__(self, module: nn.Module, stds: Iterable[float]) -> None:
        self.module = module
        self.stds = [float(std) for std in stds]
        if not self.stds or len(set(self.stds)) < len(self.stds):
            raise AyfError(f"EMA stds must be one or more different numbers, got {self.stds}")
        for std in self.stds:
            std_to_exponent(std)  # refuses a width out of range before any training
        self.step = 0
        self.averages = {std: self._current_parameters(copy=True) for std in self.stds}
        self.buffers = self._current_buffers()

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after optimiser step `step` (from 1). Steps in between may have been left out.

        Raises:
            AyfError: step does not grow.
        """
        if step <= self.step:
            raise AyfError(f"EMA update at step {step} after step {self.step}; steps must grow")
        current = self._current_parameters()
        for std, averages in self.averages.items():
            beta = power_function_beta(std, step, self.step)
            pairs = [(local(average), local(current[name])) for name, average in averages.items()]
            torch._foreach_lerp_([average for average, _ in pairs], [weight for _, weight in pairs], 1 - beta)
        self.buffers = self._current_buffers()
        self.step = step

    def weights(self, std: float) -> dict[str, Tensor]:
        """A state dict for `module.load_state_dict`: averaged parameters and current buffers.

        The tensors are the live ones: clone before changing them.

        Raises:
            AyfError: std is not tracked (reconstruct it from snapshots instead).
        """
        if std not in self.averages:
            raise AyfError(f"EMA std {std} is not tracked, only {self.stds}; use reconstruct() on snapshots")
        return {**self.averages[std], **self.buffers}

    def snapshot(self) -> list[Snapshot]:
        """An independent copy of every average at the present step."""
        names = frozenset(self.buffers)
        return [
            Snapshot(self.step, std, {name: t.clone() for name, t in self.weights(std).items()}, names)
            for std in self.stds
        ]

    def save_snapshot(self, folder: Path, step: int, writes: bool = True) -> list[Path]:
        """Write `ema_<std>_<step>.safetensors` in `folder` for each width; a file is complete or absent.

        Every worker of a sharded training calls it; one of them `writes`.

        Raises:
            AyfError: step is not the step of the last update, so the files would be misnamed.
        """
        if step != self.step:
            raise AyfError(f"EMA snapshot asked at step {step}, but its last update was at {self.step}")
        paths = []
        for std in self.stds:
            weights = gathered(self.weights(std), keep=writes)
            if not writes:
                continue
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"ema_{std!r}_{step:08d}.safetensors"
            beside = path.with_suffix(".partial")
            tensors = {name: t.contiguous().clone() for name, t in weights.items()}
            about = {"step": step, "std": std, "buffers": sorted(self.buffers)}
            # One entry: safetensors writes several in an order that differs from file to file.
            save_file(tensors, beside, metadata={METADATA: json.dumps(about)})
            os.replace(beside, path)
            paths.append(path)
        return paths

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on: plain containers of tensors and numbers."""
        return {
            "step": self.step,
            "stds": list(self.stds),
            "averages": [dict(self.averages[std]) for std in self.stds],
            "buffers": dict(self.buffers),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict()`.

        Raises:
            AyfError: the widths or the parameter names differ from this object's.
        """
        if list(state["stds"]) != self.stds:
            raise AyfError(f"EMA checkpoint has stds {state['stds']}, this run asks for {self.stds}")
        for std, saved in zip(self.stds, state["averages"], strict=True):
            own = self.averages[std]
            if own.keys() != saved.keys():
                raise AyfError("EMA checkpoint belongs to another network: parameter names differ")
            for name, average in own.items():
                average.copy_(shard_like(saved[name], average))
        self.buffers = {name: t.to(self.buffers[name].device).clone() for name, t in state["buffers"].items()}
        self.step = int(state["step"])

    def _current_parameters(self, copy: bool = False) -> dict[str, Tensor]:
        # Tied parameters appear under each of their names, as they do in a state dict.
        named = self.module.named_parameters(remove_duplicate=False)
        return {name: p.detach().to(torch.promote_types(p.dtype, torch.float32), copy=copy) for name, p in named}

    def _current_buffers(self) -> dict[str, Tensor]:
        parameters = {name for name, _ in self.module.named_parameters(remove_duplicate=False)}
        state = self.module.state_dict()
        return {name: t.detach().clone() for name, t in state.items() if name not in parameters}


def load_snapshots(folder: Path) -> list[Snapshot]:
    """Read every `ema_<std>_<step>.safetensors` in `folder`, earliest step first.

    Raises:
        AyfError: the folder holds none, or one that is damaged.
    """
    snapshots = []
    for path in folder.glob("ema_*_*.safetensors"):
        try:
            with safe_open(path, framework="pt") as file:
                about = parse_json((file.metadata() or {})[METADATA])
                weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118, not a dict
            snapshots.append(Snapshot(int(about["step"]), float(about["std"]), weights, frozenset(about["buffers"])))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise AyfError(f"EMA snapshot '{path}' is damaged or foreign ({error}): train the model again") from None
    if not snapshots:
        raise AyfError(f"no EMA snapshots (ema_<std>_<step>.safetensors) in {folder}")
    return sorted(snapshots, key=lambda snapshot: snapshot[:2])


def reconstruct(
    snapshots: Sequence[Snapshot | tuple[int, float, dict[str, Tensor]]], std: float, step: int | None = None
) -> dict[str, Tensor]:
    """The average of width `std` at `step` (default: the last stored), from snapshots of other widths (algorithm 3).

    Sums in float64 and returns the stored dtype. Buffers and whole numbers come from the last snapshot used. More
    snapshots give a closer fit; `reconstruction_error` says how close, `rebuilt` refuses a bad one.

    Raises:
        AyfError: no snapshot at or before `step`, or std out of range.
    """
    stored = [Snapshot(*snapshot) for snapshot in snapshots]
    end = step if step is not None else max((snapshot.step for snapshot in stored), default=0)
    used = sorted((s for s in stored if 0 < s.step <= end), key=lambda snapshot: snapshot[:2])
    coefficients = solve_posthoc_coefficients([s.step for s in used], [s.std for s in used], end, std)
    last = used[-1]

    def combine(name: str) -> Tensor:
        newest = last.weights[name]
        if name in last.buffers or not newest.is_floating_point():
            return newest.clone()
        # Summed as differences from the newest, so that large coefficients of opposite sign lose no digits.
        terms = (
            float(c) * (s.weights[name].double() - newest.double()) for c, s in zip(coefficients, used, strict=True)
        )
        total = newest.double() + sum(terms, torch.zeros_like(newest, dtype=torch.float64))
        return total.to(newest.dtype)

    return {name: combine(name) for name in last.weights}


LARGEST_ERROR = 0.15
"""Of a profile that `rebuilt` accepts, relative: above, the average is visibly another one."""
_WIDTHS = tuple(width / 200 for width in range(2, 58))  # 0.01, 0.015, ..., 0.285: those that a refusal looks through


class Reconstruction(NamedTuple):
    """The weights of an average that was not kept, its width, and how far off its profile is (0.03 = 3 %)."""

    weights: dict[str, Tensor]
    std: float
    error: float

    def __str__(self) -> str:
        return f"EMA width {self.std:g} rebuilt from snapshots, its averaging profile off by {100 * self.error:.2g} %"


def rebuilt(snapshots: Sequence[Snapshot], std: float) -> Reconstruction:
    """The average of width `std` at the last stored step, and how far off it is.

    Raises:
        AyfError: its profile is off by more than `LARGEST_ERROR`: the widths that can be had are named.
    """
    steps, stds = [s.step for s in snapshots], [s.std for s in snapshots]
    error = reconstruction_error(steps, stds, max(steps), std)
    if error > LARGEST_ERROR:
        good = [width for width in _WIDTHS if reconstruction_error(steps, stds, max(steps), width) <= LARGEST_ERROR]
        choose = f"{good[0]:g} to {good[-1]:g}" if good else ", ".join(f"{width:g}" for width in sorted(set(stds)))
        raise AyfError(
            f"EMA width {std:g} cannot be rebuilt from the snapshots of widths "
            f"{', '.join(f'{width:g}' for width in sorted(set(stds)))}: its averaging profile would be off by "
            f"{100 * error:.0f} %, more than {100 * LARGEST_ERROR:.0f} %; choose {choose}, or train with more widths"
        )
    return Reconstruction(reconstruct(snapshots, std), std, error)

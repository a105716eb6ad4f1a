"""Small library objects for tests, every setting said: the library has no defaults for what changes a result."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import nn

from ayf_core.conditions import Condition, ConditionSpec, class_labels
from ayf_core.networks.spec import NetworkSpec
from ayf_core.objectives.eulerian import EulerianDistillation
from ayf_core.objectives.flow_map import FlowMapObjective
from ayf_core.objectives.flow_matching import FlowMatching
from ayf_core.objectives.tangent import TangentSettings
from ayf_core.times import IntervalLaw, LogitNormalTime

Network = TypeVar("Network", bound=nn.Module)


def dit(
    shape: tuple[int, ...] = (1, 4, 4),
    classes: int = 3,
    *,
    width: int = 16,
    depth: int = 1,
    heads: int = 2,
    patch_size: int = 2,
    **told: bool,
) -> NetworkSpec:
    """A transformer; `told` are `interval` and `guidance`."""
    own = {"width": width, "depth": depth, "heads": heads, "patch_size": patch_size}
    return NetworkSpec(kind="dit", settings=own, shape=shape, conditions=class_labels(classes).informative(), **told)


def mlp(
    classes: int = 3, *, width: int = 16, depth: int = 2, activation: str = "silu", dim: int = 2, **told: bool
) -> NetworkSpec:
    """A perceptron; `told` are `interval` and `guidance`."""
    own = {"width": width, "depth": depth, "activation": activation}
    return NetworkSpec(kind="mlp", settings=own, shape=(dim,), conditions=class_labels(classes).informative(), **told)


def without_zeros(network: Network, std: float) -> Network:
    """The network, its layers of zeros moved off zero: a fresh one gives zero, whose derivative tells nothing."""
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=std)
    return network


def labels(values: Any) -> Condition:
    """The condition of these class labels."""
    return Condition(labels=values)


def tangent(**changes: Any) -> TangentSettings:
    """The paper's settings, without a warm-up."""
    values = {
        "backend": "dual",
        "warmup_max": 0.99,
        "warmup_fraction": 0.0,
        "normalise": True,
        "normalisation_constant": 0.1,
        "divide_by_sqrt_dim": False,
        "self_check_tolerance": 0.01,
    }
    return TangentSettings(**(values | changes))


def intervals(**changes: float) -> IntervalLaw:
    """The paper's law of (t, s)."""
    values = {"p_mean": -0.8, "p_std": 1.0, "full_jump_fraction": 0.0, "diagonal_fraction": 0.0}
    return IntervalLaw(**(values | changes))


def matching(kind: type[FlowMatching] = FlowMatching, **changes: Any) -> FlowMatching:
    """Flow matching at the usual times, no condition dropped."""
    values = {"time_law": LogitNormalTime(mean=0.0, std=1.0), "conditions": ConditionSpec(), "label_dropout": 0.0}
    return kind(**(values | changes))


def objective(kind: type[FlowMapObjective] = EulerianDistillation, **changes: Any) -> Any:
    """An objective of flow maps with the paper's settings; one with a teacher needs `teacher`."""
    values: dict[str, Any] = {"time_law": intervals(), "tangent": tangent(), "weighting": "uniform", "steps": 1000}
    if "teacher" in changes:
        values["guidance"] = None
    return kind(**(values | changes))

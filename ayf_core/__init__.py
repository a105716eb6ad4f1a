"""Align Your Flow: flow maps that turn a slow diffusion or flow model into a generator of a few steps.

The library alone needs nothing but torch, numpy, safetensors and jaxtyping; experiments around it (DVC, Ray, MLflow)
are in `pipelines`. After Sabour, Fidler and Kreis, *Align Your Flow*, arXiv 2506.14603.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ayf_core.conditions import Condition as Condition
    from ayf_core.conditions import class_labels as class_labels
    from ayf_core.errors import AyfError as AyfError
    from ayf_core.flow_map import FlowMap as FlowMap
    from ayf_core.networks.build import build_network as build_network
    from ayf_core.networks.spec import NetworkSpec as NetworkSpec
    from ayf_core.sampling.flow_map_chain import sample_flow_map as sample_flow_map
    from ayf_core.sampling.generator import Generator as Generator
    from ayf_core.sampling.grids import uniform_grid as uniform_grid
    from ayf_core.sampling.ode import solve_ode as solve_ode
    from ayf_core.sampling.settings import SamplingSettings as SamplingSettings
    from ayf_core.velocity import Autoguidance as Autoguidance
    from ayf_core.velocity import ClassifierFreeGuidance as ClassifierFreeGuidance
    from ayf_core.velocity import NetworkVelocity as NetworkVelocity
    from ayf_core.velocity import VelocityField as VelocityField

_HOME = {
    "AyfError": "errors",
    "Condition": "conditions",
    "FlowMap": "flow_map",
    "Generator": "sampling.generator",
    "NetworkSpec": "networks.spec",
    "build_network": "networks.build",
    "class_labels": "conditions",
    "SamplingSettings": "sampling.settings",
    "sample_flow_map": "sampling.flow_map_chain",
    "solve_ode": "sampling.ode",
    "uniform_grid": "sampling.grids",
    "Autoguidance": "velocity",
    "ClassifierFreeGuidance": "velocity",
    "NetworkVelocity": "velocity",
    "VelocityField": "velocity",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for: `ayf --help` must not wait for torch."""
    if name not in _HOME:
        raise AttributeError(f"module 'ayf_core' has no attribute '{name}'")
    return getattr(import_module(f"ayf_core.{_HOME[name]}"), name)

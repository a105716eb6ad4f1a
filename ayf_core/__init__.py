"""Align Your Flow: flow maps that turn a slow diffusion or flow model into a generator of a few steps.

The library alone needs nothing but torch, numpy, safetensors and jaxtyping; experiments around it (DVC, Ray, MLflow)
are in `pipelines`. After Sabour, Fidler and Kreis, *Align Your Flow*, arXiv 2506.14603.
"""

from ayf_core.errors import AyfError
from ayf_core.flow_map import FlowMap
from ayf_core.generator import Generator
from ayf_core.networks import NetworkSpec, build_network
from ayf_core.samplers import sample_flow_map, solve_ode, uniform_grid
from ayf_core.velocity import Autoguidance, ClassifierFreeGuidance, NetworkVelocity, VelocityField

__all__ = [
    "Autoguidance",
    "AyfError",
    "ClassifierFreeGuidance",
    "FlowMap",
    "Generator",
    "NetworkSpec",
    "NetworkVelocity",
    "VelocityField",
    "build_network",
    "sample_flow_map",
    "solve_ode",
    "uniform_grid",
]

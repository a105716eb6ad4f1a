"""Training objectives, one file each: flow matching (teachers), Eulerian (AYF-EMD) and Lagrangian (AYF-LMD)."""

from ayf_core.objectives.base import Batch, Loss, Objective
from ayf_core.objectives.eulerian import EulerianDistillation
from ayf_core.objectives.flow_matching import FlowMatching
from ayf_core.objectives.lagrangian import LagrangianDistillation

__all__ = ["Batch", "EulerianDistillation", "FlowMatching", "LagrangianDistillation", "Loss", "Objective"]

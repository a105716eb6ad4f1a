"""Training objectives, one file each: flow matching (teachers), Eulerian (AYF-EMD) and Lagrangian (AYF-LMD)."""

from ayf_core.objectives.adversarial_finish import AdversarialFinish, DiscriminatorObjective
from ayf_core.objectives.base import Batch, Loss, Objective
from ayf_core.objectives.distillation import Distillation, GuidanceLaw, TangentSettings
from ayf_core.objectives.eulerian import EulerianDistillation
from ayf_core.objectives.flow_matching import FlowMatching
from ayf_core.objectives.lagrangian import LagrangianDistillation

__all__ = [
    "AdversarialFinish",
    "Batch",
    "DiscriminatorObjective",
    "Distillation",
    "EulerianDistillation",
    "FlowMatching",
    "GuidanceLaw",
    "LagrangianDistillation",
    "Loss",
    "Objective",
    "TangentSettings",
]

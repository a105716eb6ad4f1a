"""Velocity fields and guidance: what λ means, which labels are asked, what a call costs."""

import pytest
import torch
from torch import nn

from ayf_core.errors import AyfError
from ayf_core.velocity import (
    Autoguidance,
    ClassifierFreeGuidance,
    NetworkVelocity,
    VelocityField,
    guided,
)

X = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
T = torch.full((4,), 0.5, dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 0])


class Recorder(nn.Module):
    """label + 1 + 10 λ (λ 0 where not given), and what it was asked."""

    def forward(self, x, t, s=None, labels=None, guidance_scale=None):
        self.asked = (t, s, labels, guidance_scale)
        answer = torch.zeros_like(x)
        if labels is not None:
            answer = answer + (labels + 1.0)[:, None]
        return answer if guidance_scale is None else answer + 10 * guidance_scale[:, None]


class Constant:
    evaluations_per_call = 1

    def __init__(self, value):
        self.value = value

    def __call__(self, x, t, labels=None, guidance_scale=None):
        return torch.full_like(x, self.value)


def test_network_velocity_asks_on_the_diagonal_and_ignores_the_guidance_scale():
    network = Recorder()
    NetworkVelocity(network)(X, T, LABELS, torch.full((4,), 2.0))
    t, s, labels, scale = network.asked
    assert torch.equal(t, s)
    assert torch.equal(labels, LABELS)
    assert scale is None


def test_autoguidance_at_one_is_the_teacher_and_above_moves_away_from_the_weak_one():
    guided = Autoguidance(Constant(5.0), Constant(4.0))
    scales = torch.tensor([1.0, 2.0, 3.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(guided(X, T, LABELS, scales)[:, 0], torch.tensor([5.0, 6.0, 7.0, 4.0]))
    torch.testing.assert_close(guided(X, T, LABELS), torch.full_like(X, 5.0))
    assert guided(X, T, LABELS, scales).dtype == X.dtype


def test_classifier_free_guidance_moves_away_from_no_label():
    guided = ClassifierFreeGuidance(NetworkVelocity(Recorder()), null_label=10)
    scale = torch.full((4,), 2.0, dtype=torch.float64)
    expected = 2 * (LABELS + 1.0) - 11.0
    torch.testing.assert_close(guided(X, T, LABELS, scale)[:, 0], expected)
    torch.testing.assert_close(guided(X, T, LABELS, torch.ones(4))[:, 0], LABELS + 1.0)


def test_guidance_costs_both_of_its_evaluations():
    teacher = Constant(1.0)
    assert Autoguidance(teacher, Constant(2.0)).evaluations_per_call == 2
    assert ClassifierFreeGuidance(teacher, null_label=1).evaluations_per_call == 2
    assert Autoguidance(Autoguidance(teacher, teacher), teacher).evaluations_per_call == 3


def test_every_field_keeps_the_protocol():
    fields = [NetworkVelocity(Recorder()), NetworkVelocity(Recorder())]
    fields += [Autoguidance(*fields), ClassifierFreeGuidance(fields[0], 3)]
    assert all(isinstance(field, VelocityField) for field in fields)


def test_guided_builds_the_kind_that_is_asked_for():
    teacher, weak = Recorder(), Recorder()
    kinds = {
        "autoguidance": (Autoguidance, 2),
        "classifier_free": (ClassifierFreeGuidance, 2),
        "none": (NetworkVelocity, 1),
    }
    for kind, (expected, cost) in kinds.items():
        field = guided(kind, teacher, weak, null_label=3)
        assert isinstance(field, expected)
        assert field.evaluations_per_call == cost
    with pytest.raises(AyfError, match="unknown guidance 'strong'"):
        guided("strong", teacher, weak, null_label=3)

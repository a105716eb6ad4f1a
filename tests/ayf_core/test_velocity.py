"""Velocity fields and guidance: what λ means, which labels are asked, what a call costs."""

import pytest
import torch
from torch import nn

from ayf_core.conditions import class_labels
from ayf_core.errors import AyfError
from ayf_core.guidance.scale import UNGUIDED, GuidanceRange
from ayf_core.randomness import StepRandom
from ayf_core.registry import Chosen, components, find
from ayf_core.velocity import Autoguidance, ClassifierFreeGuidance, NetworkVelocity, VelocityField
from tests.made import labels as told

X = torch.randn(4, 2, generator=torch.Generator().manual_seed(0))
T = torch.full((4,), 0.5, dtype=torch.float64)
LABELS = torch.tensor([0, 1, 2, 0])
CONDITION = told(LABELS)


class Recorder(nn.Module):
    """label + 1 + 10 λ (λ 0 where not given), and what it was asked."""

    def forward(self, x, t, s=None, condition=None, guidance_scale=None):
        self.asked = (t, s, condition, guidance_scale)
        answer = torch.zeros_like(x)
        if condition:
            answer = answer + (condition["labels"] + 1.0)[:, None]
        return answer if guidance_scale is None else answer + 10 * guidance_scale[:, None]


class Constant:
    evaluations_per_call = 1

    def __init__(self, value):
        self.value = value

    def __call__(self, x, t, condition=None, guidance_scale=None):
        return torch.full_like(x, self.value)


def test_network_velocity_asks_on_the_diagonal_and_ignores_the_guidance_scale():
    network = Recorder()
    NetworkVelocity(network)(X, T, CONDITION, torch.full((4,), 2.0))
    t, s, condition, scale = network.asked
    assert torch.equal(t, s)
    assert torch.equal(condition["labels"], LABELS)
    assert scale is None


def test_autoguidance_at_one_is_the_teacher_and_above_moves_away_from_the_weak_one():
    guided = Autoguidance(Constant(5.0), Constant(4.0))
    scales = torch.tensor([1.0, 2.0, 3.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(guided(X, T, CONDITION, scales)[:, 0], torch.tensor([5.0, 6.0, 7.0, 4.0]))
    torch.testing.assert_close(guided(X, T, CONDITION), torch.full_like(X, 5.0))
    assert guided(X, T, CONDITION, scales).dtype == X.dtype


def test_classifier_free_guidance_moves_away_from_no_label():
    guided = ClassifierFreeGuidance(NetworkVelocity(Recorder()), class_labels(10))
    scale = torch.full((4,), 2.0, dtype=torch.float64)
    expected = 2 * (LABELS + 1.0) - 11.0
    torch.testing.assert_close(guided(X, T, CONDITION, scale)[:, 0], expected)
    torch.testing.assert_close(guided(X, T, CONDITION, torch.ones(4))[:, 0], LABELS + 1.0)


def test_guidance_costs_both_of_its_evaluations():
    teacher = Constant(1.0)
    assert Autoguidance(teacher, Constant(2.0)).evaluations_per_call == 2
    assert ClassifierFreeGuidance(teacher, class_labels(1)).evaluations_per_call == 2
    assert Autoguidance(Autoguidance(teacher, teacher), teacher).evaluations_per_call == 3


def test_every_field_keeps_the_protocol():
    fields = [NetworkVelocity(Recorder()), NetworkVelocity(Recorder())]
    fields += [Autoguidance(*fields), ClassifierFreeGuidance(fields[0], class_labels(3))]
    assert all(isinstance(field, VelocityField) for field in fields)


def test_each_kind_of_guidance_builds_its_field():
    teacher, weak = Recorder(), Recorder()
    expected = {
        "autoguidance": (Autoguidance, 2),
        "classifier_free": (ClassifierFreeGuidance, 2),
        "none": (NetworkVelocity, 1),
    }
    assert set(components("guidance")) == set(expected)
    for kind, (field_class, cost) in expected.items():
        field = find("guidance", kind).load().build(teacher, weak, class_labels(3))
        assert isinstance(field, field_class)
        assert field.evaluations_per_call == cost
    with pytest.raises(AyfError, match="unknown kind of guidance 'strong'"):
        find("guidance", "strong")


def test_a_kind_of_guidance_knows_the_law_and_the_range_of_its_scale():
    random = StepRandom(0, 0, 1000)
    chosen = Chosen(find("guidance", "autoguidance"), {"scale_min": 1.0, "scale_max": 3.0}).build()
    assert chosen.range == GuidanceRange(1.0, 3.0)
    assert 1.0 <= chosen.sample(random).min() < 1.1
    unguided = Chosen(find("guidance", "none")).build()
    assert (unguided.range, unguided.sample(random)) == (None, None)


def test_range_of_the_guidance_scale_has_one_default_and_one_clamp():
    learnt = GuidanceRange(1.5, 3.0)
    assert (learnt.default, learnt.clamp(UNGUIDED), learnt.clamp(2.0), learnt.clamp(9.0)) == (1.5, 1.5, 2.0, 3.0)
    assert learnt.check(None) == 1.5
    assert learnt.check(3.0) == 3.0
    assert GuidanceRange.from_list(learnt.to_list()) == learnt
    assert GuidanceRange.from_list(None) is None
    for scale in (1.49, 3.01, float("nan")):
        with pytest.raises(AyfError, match=r"outside what this student learnt, 1\.5 to 3"):
            learnt.check(scale)
    for limits in ([1.0], [3.0, 1.0], "1 to 3", [None, 2.0], [True, 2.0]):
        with pytest.raises(AyfError, match="train the model again"):
            GuidanceRange.from_list(limits)

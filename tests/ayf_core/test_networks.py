"""Networks: a student starts as its teacher, conditions are heard, time keeps its precision."""

import json
import math
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn

from ayf_core.conditions import ClassLabels, Condition, ConditionSpec
from ayf_core.errors import AyfError
from ayf_core.networks.build import build_network, copy_shared_weights
from ayf_core.networks.embeddings import ScalarEmbedding
from ayf_core.networks.patches import patch_grid, to_image, to_tokens
from ayf_core.networks.spec import NetworkSpec
from ayf_core.registry import find
from ayf_core.settings import settings_of
from tests.made import dit, labels, mlp

SPECS = {
    "mlp": mlp(depth=3),
    "dit": dit((2, 4, 4), depth=2),
    "dit of sounds": dit((2, 8), depth=2),
    "dit of films": dit((1, 2, 4, 2), depth=2),
}
LABELS = labels(torch.tensor([0, 1, 2, 1]))


@pytest.fixture(params=SPECS)
def spec(request):
    return SPECS[request.param]


def built(spec, seed=0, awake=True):
    torch.manual_seed(seed)
    network = build_network(spec)
    for parameter in network.parameters():
        if awake and not parameter.any():
            nn.init.normal_(parameter, std=0.2)
    return network.requires_grad_(False)


def with_settings(spec, **changes):
    return replace(spec, settings={**spec.settings, **changes})


def inputs(spec):
    generator = torch.Generator().manual_seed(1)
    t = torch.tensor([1.0, 0.7, 0.5, 0.2], dtype=torch.float64)
    return torch.randn(4, *spec.shape, generator=generator), t


def test_student_with_the_teachers_weights_is_the_teachers_velocity_at_every_s_and_guidance_scale(spec):
    teacher = built(spec)
    student = built(replace(spec, interval=True, guidance=True), seed=1, awake=False)
    copy_shared_weights(teacher, student)
    x, t = inputs(spec)
    expected = teacher(x, t, t, LABELS)
    assert expected.abs().max() > 0.1
    for share in (0.0, 0.3, 1.0):
        for scale in (None, torch.ones(4), torch.linspace(1, 3, 4)):
            torch.testing.assert_close(student(x, t, share * t, LABELS, scale), expected, rtol=0, atol=0)


def test_student_learns_to_tell_interval_and_guidance_scale_apart_from_the_first_step(spec):
    student = build_network(replace(spec, interval=True, guidance=True))
    copy_shared_weights(built(spec), student)
    x, t = inputs(spec)
    student(x, t, 0.3 * t, LABELS, torch.linspace(1.5, 3, 4)).square().sum().backward()
    for part in (student.interval, student.guidance):
        assert max(p.grad.abs().max() for p in part.parameters()) > 0


def test_every_condition_is_heard(spec):
    network = built(replace(spec, interval=True, guidance=True))
    x, t = inputs(spec)
    s, scale = 0.3 * t, torch.full((4,), 2.0)
    base = network(x, t, s, LABELS, scale)
    assert base.shape == x.shape
    for other in (
        network(x, 0.9 * t, s, LABELS, scale),
        network(x, t, 0.9 * s, LABELS, scale),
        network(x, t, s, LABELS.rows(torch.arange(3, -1, -1)), scale),
        network(x, t, s, None, scale),
        network(x, t, s, LABELS, scale + 1),
    ):
        assert (other - base).abs().max() > 1e-4


def test_no_labels_means_the_null_label_for_all(spec):
    network = built(spec)
    x, t = inputs(spec)
    torch.testing.assert_close(network(x, t), network(x, t, t, labels(torch.full((4,), 3))), rtol=0, atol=0)


def test_samples_of_a_batch_do_not_mix(spec):
    network = built(replace(spec, interval=True))
    x, t = inputs(spec)
    whole = network(x, t, 0.3 * t, LABELS)
    one = network(x[1:2], t[1:2], 0.3 * t[1:2], LABELS.rows(slice(1, 2)))
    torch.testing.assert_close(whole[1:2], one, rtol=1e-5, atol=1e-6)


def test_teacher_cannot_be_copied_into_a_network_of_another_shape(spec):
    with pytest.raises(RuntimeError):
        copy_shared_weights(built(spec), built(with_settings(spec, width=32)))
    with pytest.raises(RuntimeError, match="lacks"):
        copy_shared_weights(built(spec), built(with_settings(spec, depth=spec.settings["depth"] + 1)))
    with pytest.raises(RuntimeError, match="no place"):
        copy_shared_weights(built(replace(spec, interval=True)), built(spec))


def test_spec_survives_the_way_to_json_and_back(spec):
    assert NetworkSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "unet"}, "unknown network 'unet': choose dit, mlp"),
        ({"kind": "mlp", "settings": SPECS["mlp"].settings}, "use network kind 'dit'"),
        ({"shape": (2,)}, "use network kind 'mlp'"),
        ({"settings": SPECS["dit"].settings | {"width": 15}}, "must be a multiple of heads"),
        ({"settings": SPECS["dit"].settings | {"patch_size": 3}}, "does not divide"),
    ],
)
def test_impossible_spec_is_refused_with_a_remedy(changes, message):
    with pytest.raises(AyfError, match=message):
        replace(SPECS["dit"], **changes)


def test_a_network_has_the_settings_of_its_own_kind_only():
    assert set(settings_of(find("network", "mlp").load())) == {"width", "depth", "activation"}
    assert set(settings_of(find("network", "dit").load())) == {"width", "depth", "heads", "patch_size"}


@dataclass(frozen=True)
class Loudness:
    """A condition of one number a sample."""

    name = "loudness"
    is_constant = False

    def null(self, count, device):
        return torch.full((count, 1), -1.0, device=device)


def test_a_condition_without_an_embedder_is_refused_by_name(spec):
    with pytest.raises(AyfError, match="has no embedder for loudness"):
        build_network(replace(spec, conditions=ConditionSpec(loudness=Loudness())))


def test_a_network_is_told_each_condition_of_its_spec_and_the_null_of_what_is_not_given(spec):
    two = replace(spec, conditions=ConditionSpec(labels=ClassLabels(3), genres=ClassLabels(2)))
    network = built(two)
    x, t = inputs(spec)
    genres = torch.tensor([0, 1, 1, 0])
    both = network(x, t, t, Condition(labels=LABELS["labels"], genres=genres))
    assert (network(x, t, t, Condition(labels=LABELS["labels"], genres=1 - genres)) - both).abs().max() > 1e-4
    null = network(x, t, t, Condition(labels=LABELS["labels"], genres=torch.full((4,), 2)))
    torch.testing.assert_close(network(x, t, t, LABELS), null, rtol=0, atol=0)
    with pytest.raises(AyfError, match="a condition cannot be called 'times'"):
        build_network(replace(dit(), conditions=ConditionSpec(times=ClassLabels(3))))


def test_weights_keep_their_names():
    assert "label.table.weight" in build_network(SPECS["dit"]).state_dict()
    assert "label.weight" in build_network(SPECS["mlp"]).state_dict()


@pytest.mark.parametrize("spatial", [(6,), (4, 6), (2, 4, 6)])
def test_patches_put_together_are_the_image_again(spatial):
    x = torch.randn(2, 3, *spatial, generator=torch.Generator().manual_seed(0))
    tokens = to_tokens(x, 2)
    assert tokens.shape == (2, math.prod(spatial) // 2 ** len(spatial), 3 * 2 ** len(spatial))
    assert torch.equal(to_image(tokens, patch_grid(spatial, 2), 2), x)
    # The second token is the patch beside the first along the last axis.
    corner = tuple(slice(0, 2) for _ in spatial[:-1])
    assert torch.equal(tokens[:, 1].reshape(2, 3, -1), x[(..., *corner, slice(2, 4))].reshape(2, 3, -1))


@pytest.mark.parametrize("lower", [lambda m: m.to(torch.bfloat16), lambda m: m.half(), lambda m: m.float()])
def test_phases_stay_in_float64_whatever_the_precision_of_the_network(lower):
    embedding = ScalarEmbedding(8)
    expected = embedding.phases.clone()
    lowered = lower(embedding)
    assert lowered.phases.dtype == torch.float64
    torch.testing.assert_close(lowered.phases, expected, rtol=0, atol=0)
    network = lower(built(SPECS["dit"]))
    assert network.time.phases.dtype == torch.float64
    assert network.time.expand.weight.dtype == lowered.expand.weight.dtype


def test_times_a_billionth_apart_have_different_phases():
    embedding = ScalarEmbedding(8).double()
    t = torch.tensor([0.7, 0.7 + 1e-9], dtype=torch.float64)
    near, moved = embedding(t)
    change = (moved - near).abs().max()
    # Rounded to float32 on the way, the two times would be one.
    assert 1e-12 < change < 1e-6
    assert torch.equal(*embedding(t.float()))


def test_low_precision_network_gets_features_of_the_exact_phase():
    embedding = ScalarEmbedding(8)
    seen = []
    embedding.expand.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    embedding.to(torch.bfloat16)
    t = torch.linspace(0, 1, 33, dtype=torch.float64)
    embedding(t)
    phase = t[:, None] * embedding.phases
    exact = torch.cat([phase.cos(), phase.sin()], dim=1)
    assert seen[0].dtype == torch.bfloat16
    assert (seen[0].double() - exact).abs().max() < 2**-8


def test_phases_are_not_part_of_the_weights():
    assert not any("phases" in name for name in build_network(SPECS["dit"]).state_dict())

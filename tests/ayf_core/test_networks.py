"""Networks: a student starts as its teacher, conditions are heard, time keeps its precision."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from ayf_core.errors import AyfError
from ayf_core.networks import NetworkSpec, build_network, copy_shared_weights
from ayf_core.networks.embeddings import ScalarEmbedding

SPECS = {
    "mlp": NetworkSpec(kind="mlp", shape=(2,), num_classes=3, width=16, depth=3),
    "dit": NetworkSpec(kind="dit", shape=(2, 4, 4), num_classes=3, width=16, depth=2, heads=2, patch_size=2),
}
LABELS = torch.tensor([0, 1, 2, 1])


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
        network(x, t, s, LABELS.flip(0), scale),
        network(x, t, s, None, scale),
        network(x, t, s, LABELS, scale + 1),
    ):
        assert (other - base).abs().max() > 1e-4


def test_no_labels_means_the_null_label_for_all(spec):
    network = built(spec)
    x, t = inputs(spec)
    torch.testing.assert_close(network(x, t), network(x, t, t, torch.full((4,), 3)), rtol=0, atol=0)


def test_samples_of_a_batch_do_not_mix(spec):
    network = built(replace(spec, interval=True))
    x, t = inputs(spec)
    whole = network(x, t, 0.3 * t, LABELS)
    one = network(x[1:2], t[1:2], 0.3 * t[1:2], LABELS[1:2])
    torch.testing.assert_close(whole[1:2], one, rtol=1e-5, atol=1e-6)


def test_teacher_cannot_be_copied_into_a_network_of_another_shape(spec):
    with pytest.raises(RuntimeError):
        copy_shared_weights(built(spec), built(replace(spec, width=32)))
    with pytest.raises(RuntimeError, match="lacks"):
        copy_shared_weights(built(spec), built(replace(spec, depth=spec.depth + 1)))
    with pytest.raises(RuntimeError, match="no place"):
        copy_shared_weights(built(replace(spec, interval=True)), built(spec))


def test_spec_survives_the_way_to_json_and_back(spec):
    assert NetworkSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "unet"}, "unknown network kind"),
        ({"kind": "mlp"}, "use network kind 'dit'"),
        ({"shape": (2,)}, "use network kind 'mlp'"),
        ({"width": 15}, "not a multiple of heads"),
        ({"patch_size": 3}, "does not divide"),
    ],
)
def test_impossible_spec_is_refused_with_a_remedy(changes, message):
    with pytest.raises(AyfError, match=message):
        replace(SPECS["dit"], **changes)


def test_patches_put_together_are_the_image_again():
    network = built(SPECS["dit"])
    x, _ = inputs(SPECS["dit"])
    torch.testing.assert_close(network.to_image(network.to_tokens(x)), x, rtol=0, atol=0)


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

"""A model folder makes data again: same samples, honest costs, and a clear line where it cannot."""

import json
import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from ayf_core.conditions import Condition
from ayf_core.data.codecs.identity import IdentityCodec
from ayf_core.data.latents import LatentSpace
from ayf_core.errors import AyfError
from ayf_core.flow_map import FlowMap
from ayf_core.guidance.scale import GuidanceRange
from ayf_core.networks.build import build_network
from ayf_core.sampling.flow_map_chain import sample_flow_map
from ayf_core.sampling.generator import Generator
from ayf_core.sampling.grids import uniform_grid
from ayf_core.sampling.samplers import sampler_of
from ayf_core.sampling.settings import SamplingSettings
from ayf_core.sampling.stored import read_sampling, write_sampling
from ayf_core.training.artefact import save_model
from ayf_core.training.ema import PowerFunctionEMA, load_snapshots, reconstruct
from ayf_core.velocity import Autoguidance, NetworkVelocity
from tests.made import dit, without_zeros

SHAPE = (1, 4, 4)
SPACE = LatentSpace(torch.tensor([0.25]), torch.tensor([2.0]))
STEPS = 20


class Counted(nn.Module):
    """A network that counts how often it is evaluated."""

    def __init__(self, network):
        super().__init__()
        self.network, self.spec, self.calls = network, network.spec, 0

    def forward(self, *arguments):
        self.calls += 1
        return self.network(*arguments)


def network_of(guidance=True, interval=True, seed=0):
    torch.manual_seed(seed)
    network = build_network(dit(SHAPE, width=8, interval=interval, guidance=guidance))
    return without_zeros(network, 0.3)


def save(folder, network=None, role="flow_map", **details):
    """A trained model: its average after some steps of a random walk, with snapshots of two widths."""
    network = network or network_of()
    IdentityCodec().save(folder / "codec-source")
    averages = PowerFunctionEMA(network, [0.05, 0.1])
    generator = torch.Generator().manual_seed(0)
    for step in range(1, STEPS + 1):
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
        averages.update(step)
        if step % 5 == 0:
            averages.save_snapshot(folder / "snapshots", step)
    save_model(
        folder / "model",
        network,
        averages.weights(0.05),
        role=role,
        codec=folder / "codec-source",
        space=SPACE,
        snapshots=folder / "snapshots",
        **details,
    )
    return averages


LABELS = Condition(labels=torch.tensor([0, 1, 2, 0]))
LEARNT = GuidanceRange(1.0, 3.0)


def counted(generator):
    network = Counted(generator.network)
    sampler = replace(generator.sampler, network=network)
    return replace(generator, sampler=sampler), network


def test_saved_generator_makes_the_same_samples_when_loaded(tmp_path):
    averages = save(tmp_path, guidance=LEARNT)
    loaded = Generator.load(tmp_path / "model")
    noise = loaded.draw_noise(4, seed=1)
    drawn = loaded.sample(noise, 2, LABELS, guidance_scale=2.0)

    network = network_of()
    network.load_state_dict(averages.weights(0.05))
    expected = sample_flow_map(FlowMap(network), noise, uniform_grid(2), LABELS, torch.full((4,), 2.0)).x
    torch.testing.assert_close(drawn.x, expected * 2.0 + 0.25)
    assert loaded.guidance_range == LEARNT
    assert loaded.spec == network.spec
    assert not loaded.network.training


def test_a_saved_model_is_the_same_bytes_every_time(tmp_path):
    for name in ("a", "b"):
        save(tmp_path / name, guidance=LEARNT)
    files = sorted(path.relative_to(tmp_path / "a") for path in (tmp_path / "a" / "model").rglob("*.*"))
    assert len(files) > 8
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_model_written_again_keeps_nothing_of_the_one_before(tmp_path):
    save(tmp_path)
    expected = sorted(path.name for path in (tmp_path / "model").rglob("*"))
    for stray in ("ema/ema_0.3_00000001.safetensors", "codec/weights.safetensors", "other.txt"):
        (tmp_path / "model" / stray).write_bytes(b"old")
    save(tmp_path)
    assert sorted(path.name for path in (tmp_path / "model").rglob("*")) == expected


def test_noise_depends_on_its_seed_alone(tmp_path):
    save(tmp_path)
    generator = Generator.load(tmp_path / "model")
    noise = generator.draw_noise(4, seed=1)
    torch.rand(3)
    assert torch.equal(generator.draw_noise(4, seed=1), noise)
    assert not torch.equal(generator.draw_noise(4, seed=2), noise)
    assert noise.shape == (4, *SHAPE)


def test_another_ema_width_is_reconstructed_from_the_snapshots(tmp_path):
    averages = save(tmp_path)
    folder = tmp_path / "model"
    other = Generator.load(folder, ema_std=0.15)
    expected = reconstruct(load_snapshots(folder / "ema"), 0.15)
    assert {name: p.shape for name, p in expected.items()} == {
        name: p.shape for name, p in other.network.state_dict().items()
    }
    torch.testing.assert_close(other.network.state_dict(), expected, rtol=0, atol=0)
    published = Generator.load(folder).network.output.weight
    assert not torch.equal(other.network.output.weight, published)
    tracked = Generator.load(folder, ema_std=0.1).network.output.weight
    torch.testing.assert_close(tracked, averages.weights(0.1)["output.weight"], rtol=1e-5, atol=1e-6)


def test_ema_width_that_cannot_be_had_is_refused(tmp_path):
    save(tmp_path)
    with pytest.raises(AyfError, match="EMA std"):
        Generator.load(tmp_path / "model", ema_std=0.5)
    for snapshot in (tmp_path / "model" / "ema").iterdir():
        snapshot.unlink()
    with pytest.raises(AyfError, match="no EMA snapshots"):
        Generator.load(tmp_path / "model", ema_std=0.1)


def test_damaged_ema_snapshot_is_refused_by_name(tmp_path):
    save(tmp_path)
    snapshot = min((tmp_path / "model" / "ema").iterdir())
    snapshot.write_bytes(snapshot.read_bytes()[:-9])
    with pytest.raises(AyfError, match=f"{snapshot.name}.*damaged"):
        Generator.load(tmp_path / "model", ema_std=0.1)


@pytest.mark.parametrize("evaluations", [1, 2, 4])
def test_student_costs_one_evaluation_a_step(tmp_path, evaluations):
    save(tmp_path, guidance=LEARNT)
    generator, network = counted(Generator.load(tmp_path / "model"))
    drawn = generator.sample(torch.randn(4, *SHAPE), evaluations, LABELS, guidance_scale=2.0)
    assert drawn.nfe == network.calls == evaluations


@pytest.mark.parametrize("evaluations", [63, 4, 1, 2])
def test_teacher_costs_what_was_asked_by_heun_where_odd_and_euler_where_even(tmp_path, evaluations):
    save(tmp_path, network_of(guidance=False, interval=False), role="velocity")
    generator, network = counted(Generator.load(tmp_path / "model"))
    drawn = generator.sample(torch.randn(4, *SHAPE), evaluations, LABELS)
    assert drawn.nfe == network.calls == evaluations


def test_guided_teacher_costs_the_evaluations_of_both_its_networks(tmp_path):
    save(tmp_path, network_of(guidance=False, interval=False), role="velocity")
    generator, network = counted(Generator.load(tmp_path / "model"))
    weak = Counted(network_of(guidance=False, interval=False, seed=1))
    guided = Autoguidance(NetworkVelocity(network), NetworkVelocity(weak))
    noise = torch.randn(4, *SHAPE)
    helped = generator.guided_by(guided)
    drawn = helped.sample(noise, 63, LABELS, guidance_scale=2.0)
    assert drawn.nfe == network.calls + weak.calls == 126
    plain = generator.sample(noise, 63, LABELS)
    assert helped.sample(noise, 63, LABELS).nfe == 63
    torch.testing.assert_close(helped.sample(noise, 63, LABELS, guidance_scale=1.0).x, plain.x, rtol=1e-5, atol=1e-5)
    assert (drawn.x - plain.x).abs().max() > 1e-2


def test_student_without_a_scale_is_asked_at_the_lower_end_of_its_range(tmp_path):
    save(tmp_path, guidance=GuidanceRange(1.5, 3.0))
    generator = Generator.load(tmp_path / "model")
    noise = generator.draw_noise(4, seed=0)
    lowest = generator.sample(noise, 1, LABELS, guidance_scale=1.5).x
    assert torch.equal(generator.sample(noise, 1, LABELS).x, lowest)
    assert not torch.equal(generator.sample(noise, 1, LABELS, guidance_scale=3.0).x, lowest)


@pytest.mark.parametrize("scale", [0.99, 3.01, -1.0, float("nan"), float("inf")])
def test_guidance_scale_outside_what_the_student_learnt_is_refused(tmp_path, scale):
    save(tmp_path, guidance=LEARNT)
    with pytest.raises(AyfError, match="outside what this student learnt, 1 to 3"):
        Generator.load(tmp_path / "model").sample(torch.randn(4, *SHAPE), 1, LABELS, guidance_scale=scale)


@pytest.mark.parametrize(("role", "message"), [("flow_map", "without guidance"), ("velocity", "no guidance by itself")])
def test_model_without_guidance_refuses_a_scale_but_takes_one(tmp_path, role, message):
    save(tmp_path, network_of(guidance=False), role=role)
    generator = Generator.load(tmp_path / "model")
    generator.sample(torch.randn(4, *SHAPE), 1, LABELS, guidance_scale=1.0)
    with pytest.raises(AyfError, match=message):
        generator.sample(torch.randn(4, *SHAPE), 1, LABELS, guidance_scale=2.0)


def test_gamma_sampling_draws_from_the_given_generator(tmp_path):
    save(tmp_path)
    model = Generator.load(tmp_path / "model")
    noise = model.draw_noise(4, seed=0)
    first, again, other = (
        model.sample(noise, 4, LABELS, gamma=0.5, generator=torch.Generator().manual_seed(seed)).x for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


TUNED = SamplingSettings("shifted", 1.7, 0.3, 2.5)


def test_stored_sampling_settings_are_those_of_their_number_of_steps(tmp_path):
    save(tmp_path, guidance=GuidanceRange(1.5, 3.0))
    folder = tmp_path / "model"
    untuned = SamplingSettings(guidance_scale=1.5)
    assert Generator.load(folder).sampling(2) == untuned
    file = write_sampling(folder, {2: TUNED.to_dict() | {"metric": "fd", "gain": 0.1}})
    model = Generator.load(folder)
    assert (model.sampling(2), model.sampling(4), model.untuned) == (TUNED, untuned, untuned)
    assert read_sampling(folder)[2]["gain"] == 0.1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["codec-source", "model", "snapshots"]
    assert json.loads(file.read_text())["model_sha256"] == model.card["sha256"]


def test_stored_sampling_settings_make_the_samples_of_the_same_explicit_arguments(tmp_path):
    save(tmp_path, guidance=LEARNT)
    write_sampling(tmp_path / "model", {2: TUNED.to_dict()})
    model = Generator.load(tmp_path / "model")
    noise = model.draw_noise(4, seed=0)
    times = torch.tensor([1.0, 1.7 * 0.5 / (1 + 0.7 * 0.5), 0.0], dtype=torch.float64)

    def draw(**how):
        return model.sample(noise, 2, LABELS, generator=torch.Generator().manual_seed(1), **how).x

    stored = draw(**model.sampling(2).arguments(2))
    torch.testing.assert_close(stored, draw(times=times, gamma=0.3, guidance_scale=2.5), rtol=0, atol=1e-6)
    assert not torch.allclose(stored, draw(gamma=0.3, guidance_scale=2.5), atol=1e-3)


def test_other_weights_than_the_published_ones_are_sampled_untuned(tmp_path):
    save(tmp_path, guidance=LEARNT)
    write_sampling(tmp_path / "model", {2: TUNED.to_dict()})
    assert Generator.load(tmp_path / "model", ema_std=0.1).sampling(2) == SamplingSettings(guidance_scale=1.0)


def test_times_that_do_not_fit_are_refused(tmp_path):
    save(tmp_path / "student")
    save(tmp_path / "teacher", network_of(guidance=False, interval=False), role="velocity")
    student, teacher = (Generator.load(tmp_path / name / "model") for name in ("student", "teacher"))
    with pytest.raises(AyfError, match="2 steps need 3 times, got 5"):
        student.sample(torch.randn(4, *SHAPE), 2, LABELS, times=uniform_grid(4))
    with pytest.raises(AyfError, match="leave the times out"):
        teacher.sample(torch.randn(4, *SHAPE), 2, LABELS, times=uniform_grid(2))


def change_sampling(file, **changes):
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


SPOILT_SAMPLING = {
    "truncated": (truncate, "damaged"),
    "foreign": (lambda f: f.write_text('{"steps": {}}'), "no sampling settings of this library"),
    "newer": (lambda f: change_sampling(f, version=2), "version 2, this library reads 1"),
    "of other weights": (lambda f: change_sampling(f, model_sha256="0" * 64), "for other weights"),
    "without version": (lambda f: f.write_text('{"format": "ayf-sampling"}'), "damaged"),
    "out of range": (lambda f: change_sampling(f, steps={"2": TUNED.to_dict() | {"gamma": 2}}), "gamma must lie"),
    "incomplete": (lambda f: change_sampling(f, steps={"2": {"gamma": 0.5}}), "lack grid, grid_parameter"),
    "not steps": (lambda f: change_sampling(f, steps={"two": TUNED.to_dict()}), "damaged"),
}


@pytest.mark.parametrize("spoil", SPOILT_SAMPLING)
def test_spoilt_sampling_settings_are_refused_in_one_line_when_they_are_asked_for(tmp_path, spoil):
    save(tmp_path)
    file = write_sampling(tmp_path / "model", {2: TUNED.to_dict()})
    change, message = SPOILT_SAMPLING[spoil]
    change(file)
    model = Generator.load(tmp_path / "model")
    model.sample(torch.randn(4, *SHAPE), 2, LABELS)
    with pytest.raises(AyfError, match=message) as caught:
        model.sampling(2)
    assert str(file) in str(caught.value)
    assert "tune-sampling" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_retrained_model_has_lost_the_settings_of_the_one_before(tmp_path):
    save(tmp_path)
    write_sampling(tmp_path / "model", {2: TUNED.to_dict()})
    save(tmp_path)
    assert read_sampling(tmp_path / "model") == {}


def rewrite(folder, **changes):
    card = json.loads((folder / "model.json").read_text()) | changes
    (folder / "model.json").write_text(json.dumps({name: v for name, v in card.items() if v is not None}))


DAMAGES = {
    "weights truncated": (lambda f: truncate(f / "model.safetensors"), "truncated or altered"),
    "card truncated": (lambda f: truncate(f / "model.json"), "damaged"),
    "card foreign": (lambda f: (f / "model.json").write_text('{"format": "pt"}'), "not a model of this library"),
    "card newer": (lambda f: rewrite(f, version=3), "newer than this library reads"),
    "card older": (lambda f: rewrite(f, version=1), "older than this library reads"),
    "role unknown": (lambda f: rewrite(f, role="score"), "role is 'score'"),
    "guidance range no pair": (lambda f: rewrite(f, guidance_range=[3.0, 1.0]), "train the model again"),
    "card of a bare network": (lambda f: rewrite(f, latent_space=None), "bare network"),
    "codec missing": (lambda f: (f / "codec" / "codec.json").unlink(), "codec"),
    "nothing there": (lambda f: (f / "model.json").unlink(), "no model in"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_or_foreign_model_is_refused_in_one_line(tmp_path, damage):
    save(tmp_path)
    spoil, message = DAMAGES[damage]
    spoil(tmp_path / "model")
    with pytest.raises(AyfError, match=message) as caught:
        Generator.load(tmp_path / "model")
    assert str(tmp_path / "model") in str(caught.value)
    assert "\n" not in str(caught.value)


def student(tmp_path, **details):
    save(tmp_path, **({"guidance": LEARNT} | details))
    return Generator.load(tmp_path / "model")


def test_a_condition_may_be_given_by_name_as_a_list(tmp_path):
    model = student(tmp_path)
    noise = model.draw_noise(4, seed=0)
    expected = model.sample(noise, 1, LABELS).x
    for given in (
        {"labels": [0, 1, 2, 0]},
        {"condition": {"labels": (0, 1, 2, 0)}},
        {"labels": LABELS["labels"].int()},
    ):
        assert torch.equal(model.sample(noise, 1, **given).x, expected)
    nothing = model.sample(noise, 1).x
    assert torch.equal(model.sample(noise, 1, Condition(labels=torch.full((4,), 3))).x, nothing)
    assert not torch.equal(nothing, expected)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"labels": [3, 99, 0, 1]}, "label 99 is not one of the model's classes: choose 0 to 2"),
        ({"labels": [0, -1, 0, 1]}, "label -1 is not one of the model's classes"),
        ({"labels": [1]}, "1 labels for 4 samples: give one for each"),
        ({"labels": 1}, "labels must be a list of whole numbers"),
        ({"labels": [0.5, 1, 1, 1]}, "labels must be a list of whole numbers"),
        ({"labels": ["cat", "dog", "cat", "dog"]}, "labels must be a list of whole numbers"),
        ({"labels": [[0, 1, 2, 0]]}, "labels must be a list of whole numbers"),
        ({"label": [0, 1, 2, 0]}, "not conditioned on 'label': it takes labels"),
        ({"condition": [0, 1, 2, 0]}, "a condition has names"),
        ({"noise": torch.randn(4, 4, 4)}, re.escape("noise must have shape [samples, 1, 4, 4], got [4, 4, 4]")),
        ({"noise": torch.randn(4, 1, 8, 8)}, re.escape("got [4, 1, 8, 8]: see draw_noise()")),
        ({"evaluations": 0}, "at least 1 evaluation, got 0"),
    ],
)
@pytest.mark.parametrize("role", ["flow_map", "velocity"])
def test_what_a_model_cannot_take_is_said_in_one_line(tmp_path, role, given, message):
    told = role == "flow_map"
    save(tmp_path, network_of(guidance=told, interval=told), role=role)
    model = Generator.load(tmp_path / "model")
    arguments = {"noise": torch.randn(4, *SHAPE), "evaluations": 1} | given
    with pytest.raises(AyfError, match=message) as caught:
        model.sample(**arguments)
    assert "\n" not in str(caught.value)


def test_a_model_without_conditions_refuses_labels(tmp_path):
    torch.manual_seed(0)
    save(tmp_path, build_network(dit(SHAPE, classes=1, width=8, interval=True)))
    model = Generator.load(tmp_path / "model")
    noise = model.draw_noise(2, seed=0)
    assert torch.equal(model.sample(noise, 1, Condition()).x, model.sample(noise, 1).x)
    with pytest.raises(AyfError, match="not conditioned on 'labels': it takes no condition"):
        model.sample(noise, 1, labels=[0, 0])


def test_another_ema_width_says_how_far_off_it_is(tmp_path):
    model = student(tmp_path)
    assert model.rebuilt is None
    exact, near = (Generator.load(tmp_path / "model", ema_std=std).rebuilt for std in (0.05, 0.12))
    assert exact.error < 1e-6
    assert near.error == pytest.approx(0.041, abs=0.001)
    assert str(near) == "EMA width 0.12 rebuilt from snapshots, its averaging profile off by 4.1 %"


@pytest.mark.parametrize(("std", "off"), [(0.2, 22), (0.02, 36)])
def test_an_ema_width_that_would_be_far_off_is_refused_with_those_that_can_be_had(tmp_path, std, off):
    save(tmp_path)
    with pytest.raises(AyfError, match=rf"off by {off} %, more than 15 %; choose 0\.035 to 0\.165") as caught:
        Generator.load(tmp_path / "model", ema_std=std)
    for width in (0.035, 0.165):
        Generator.load(tmp_path / "model", ema_std=width)
    assert "snapshots of widths 0.05, 0.1" in str(caught.value)


class Plan:
    steps = (1, 2, 4)
    teacher_evaluations = (63, 4, 15)
    guidance_scales = (0.5, 1.0, 2.0, 4.0)
    guidance_steps = 2
    gammas = (0.0, 1.0)


def test_a_student_is_measured_at_its_steps_and_the_scales_it_learnt():
    sampler = sampler_of("flow_map", network_of(), LEARNT)
    assert sampler.takes_settings
    assert sampler.evaluations(Plan) == [1, 2, 4]
    assert sampler.guidance_curve(Plan) == [(2, 1.0), (2, 2.0)]
    assert sampler.gamma_curve(Plan) == [(2, 0.0), (2, 1.0)]
    assert sampler.scales(Plan.guidance_scales) == [1.0, 2.0]
    assert sampler.guided_by(NetworkVelocity(network_of())) is sampler
    unguided = sampler_of("flow_map", network_of(guidance=False))
    assert (unguided.guidance_curve(Plan), unguided.scales(Plan.guidance_scales)) == ([], [None])


def test_a_teacher_is_measured_at_its_evaluations_and_at_every_scale_where_it_is_guided():
    sampler = sampler_of("velocity", network_of(guidance=False, interval=False))
    assert not sampler.takes_settings
    assert sampler.evaluations(Plan) == [63, 4, 15]
    assert (sampler.guidance_curve(Plan), sampler.gamma_curve(Plan)) == ([], [])
    guided = sampler.guided_by(NetworkVelocity(sampler.network))
    assert guided.guidance_curve(Plan) == [(15, scale) for scale in Plan.guidance_scales]
    with pytest.raises(AyfError, match="leave gamma out"):
        guided.sample(torch.randn(1, *SHAPE), 4, gamma=0.5)

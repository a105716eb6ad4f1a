"""From settings to the library's objects: each stage hands each object what belongs to it."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from ayf_core.analytic import Gaussian
from ayf_core.conditions import Condition, class_labels
from ayf_core.data.codecs.identity import IdentityCodec
from ayf_core.data.latents import LatentSpace
from ayf_core.errors import AyfError
from ayf_core.guidance.scale import GuidanceRange
from ayf_core.networks.build import build_network
from ayf_core.networks.files import save_network
from ayf_core.objectives.base import Batch
from ayf_core.objectives.flow_map import FlowMapObjective
from ayf_core.randomness import StepRandom
from ayf_core.registry import Chosen, find
from ayf_core.sampling.generator import Generator
from ayf_core.training.artefact import save_model
from ayf_core.training.context import LocalContext
from ayf_core.velocity import Autoguidance
from pipelines.settings import params_file as params
from pipelines.settings.experiment import Config
from pipelines.settings.reading import load_config
from pipelines.stages import bench, distill, evaluate, finetune_adversarial, report, train_teacher
from pipelines.stages.assembly import network_spec
from pipelines.stages.pictures import preview_inputs
from pipelines.stages.sampling import sample_grid
from tests.made import mlp

REPOSITORY = Path(__file__).resolve().parents[2]
LATENTS: Any = SimpleNamespace(shape=(4, 4, 4), num_classes=10)
VELOCITY = Gaussian(torch.zeros(2), torch.eye(2))


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, list[str]], Config]:
    root = tmp_path_factory.mktemp("settings")
    shutil.copytree(REPOSITORY / "conf", root / "conf")

    def of(preset: str, changes: list[str]) -> Config:
        params.write(root, params.from_preset(root, preset, changes), preset)
        return load_config(root)

    return of


@pytest.fixture(scope="module")
def config(configs: Callable[[str, list[str]], Config]) -> Config:
    changes = [
        "distill.emd.training.steps=20",
        "distill.lmd.training.steps=40",
        "distill.guidance.scale_min=1.25",
        "distill.guidance.scale_max=1.5",
    ]
    return configs("smoke", [*changes, "evaluation.guidance_scales=[1.25,1.5]"])


class Listener(nn.Module):
    def forward(self, x: Any, t: Any, s: Any = None, condition: Any = None, guidance_scale: Any = None) -> Any:
        self.told = condition
        return x


def test_a_dropped_label_is_the_teachers_index_of_no_label(config: Config) -> None:
    spec = network_spec(config.teacher.network, LATENTS)
    objective = train_teacher.flow_matching(config.teacher, spec)
    assert objective.label_dropout == config.teacher.label_dropout
    batch = Batch(torch.zeros(4, 4, 4, 4), Condition(labels=torch.arange(4)))
    listener = Listener()
    dataclasses.replace(objective, label_dropout=1.0)(listener, batch, StepRandom(0, 0, 4), 0)
    assert listener.told["labels"].tolist() == [10] * 4
    null = spec.conditions.null(4)["labels"]
    assert torch.equal(listener.told["labels"], null), "the network must read it as 'nothing given'"


def test_a_network_has_the_settings_of_its_kind_and_is_told_what_distinguishes_the_data(config: Config) -> None:
    spec = network_spec(config.weak_teacher.network, LATENTS)
    assert dict(spec.settings) == {"width": 16, "depth": 1, "heads": 2, "patch_size": 1}
    assert spec.conditions == class_labels(10)
    one_class: Any = SimpleNamespace(shape=(4, 4, 4), num_classes=1)
    assert not network_spec(config.weak_teacher.network, one_class).conditions


class Fitted(Exception):
    """In place of a training: the phases that would be trained."""


def fitted(monkeypatch: pytest.MonkeyPatch, stage: Any, settings: dict[str, Any], folder: Path) -> Any:
    def fit(phases: Any, *rest: Any) -> None:
        raise Fitted(phases)

    monkeypatch.setattr(stage, "fit", fit)
    monkeypatch.setattr(stage, "LatentData", lambda latents: None)
    monkeypatch.setattr(stage, "teacher_velocity", lambda *told: nullcontext(VELOCITY))
    job = SimpleNamespace(seed=0, latent_dataset=lambda: LATENTS)
    with pytest.raises(Fitted) as caught:
        stage.train({"job": job, **settings}, LocalContext(folder))
    return caught.value.args[0]


@pytest.mark.parametrize("name", ["emd", "lmd"])
def test_the_tangents_warmup_is_a_share_of_this_students_own_steps(
    config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    monkeypatch.setattr(distill, "start", lambda settings, guided: nn.Linear(1, 1))
    monkeypatch.setattr(distill, "checked", lambda *told: 0.0)
    (phase,) = fitted(monkeypatch, distill, {"distill": config.distill, "name": name}, tmp_path)
    objective: Any = phase.objective
    steps = config.distill.students[name].training.steps
    grown = round(config.distill.tangent.warmup_fraction * steps)
    assert grown != config.distill.students[name].training.warmup_steps
    rising = [objective.tangent.warmup(step, objective.steps) for step in (0, grown - 1, grown)]
    assert rising[0] == 0
    assert rising[1] < rising[2] == config.distill.tangent.warmup_max
    assert objective.guidance.range == GuidanceRange(1.25, 1.5)
    assert objective.teacher is VELOCITY


def test_an_objective_without_a_teacher_starts_from_fresh_weights_and_is_told_no_scale(config: Config) -> None:
    student = dataclasses.replace(config.distill.students["emd"], component=Chosen(find("objective", "mean_flow")))
    settings = dataclasses.replace(config.distill, students={"mean_flow": student})
    objective = distill.distillation(settings, "mean_flow", None, 40)
    assert isinstance(objective, FlowMapObjective)
    assert distill.guidance_of(settings, "mean_flow").range is None
    assert not distill.needs_teacher("mean_flow")
    job = SimpleNamespace(seed=0, latent_dataset=lambda: LATENTS)
    network = distill.start({"job": job, "network": config.teacher.network}, guided=False)
    assert (network.spec.interval, network.spec.guidance) == (True, False)


def test_the_finish_has_the_derivative_at_full_weight_and_asks_for_the_least_guided_law(
    config: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = dataclasses.replace(network_spec(config.teacher.network, LATENTS), interval=True, guidance=True)
    save_network(
        tmp_path / "student", build_network(spec), role="flow_map", objective="emd", guidance_range=[1.25, 1.5]
    )
    settings = {"distill": config.distill, "adversarial": config.adversarial, "student": tmp_path / "student"}
    student, discriminator = fitted(monkeypatch, finetune_adversarial, settings, tmp_path)
    objective: Any = student.objective
    distillation = objective.distillation
    assert distillation.tangent.warmup(0, distillation.steps) == config.distill.tangent.warmup_max
    assert objective.guidance_scale == discriminator.objective.guidance_scale == 1.25  # 1 lies below what it learnt
    assert (discriminator.objective.r1, discriminator.objective.r2) == (config.adversarial.r1, config.adversarial.r2)
    assert discriminator.learning_rate == config.adversarial.discriminator_learning_rate


# --- measuring and showing -----------------------------------------------------------------------------


def write_points_model(folder: Path, role: str, seed: int = 0) -> None:
    torch.manual_seed(seed)
    student = role == "flow_map"
    network = build_network(mlp(classes=1, interval=student))
    IdentityCodec().save(folder.parent / "codec")
    space = LatentSpace(torch.zeros(2), torch.ones(2))
    save_model(folder, network, network.state_dict(), role=role, codec=folder.parent / "codec", space=space)


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for seed, (name, role) in enumerate(
        {"adversarial": "flow_map", "teacher": "velocity", "weak_teacher": "velocity"}.items()
    ):
        write_points_model(tmp_path / "models" / name, role, seed)
    return tmp_path


class Asked:
    """A model that notes the noise it is asked for."""

    spec = mlp(classes=1)

    def __init__(self) -> None:
        self.noises: list[torch.Tensor] = []
        self.renoised: list[torch.Tensor] = []

    def draw_noise(self, count: int, seed: int) -> torch.Tensor:
        return torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))

    def sample(self, noise: Any, evaluations: int, condition: Any, generator: torch.Generator, **how: Any) -> Any:
        assert not condition
        self.noises.append(noise)
        self.renoised.append(torch.randn(3, generator=generator))
        return SimpleNamespace(x=noise, nfe=evaluations)


def test_each_sampling_seed_draws_noise_of_its_own(configs: Callable[[str, list[str]], Config]) -> None:
    model: Any = Asked()
    measured = bench.Bench(configs("checkerboard", ["data.size=600"]), Path("nowhere"))
    for seed in (0, 1, 0):
        measured.draw(model, 1, seed)
    first, second, again = model.noises
    assert torch.equal(first, again)
    assert not torch.equal(first, second)
    assert torch.equal(model.renoised[0], model.renoised[2])
    assert not torch.equal(model.renoised[0], model.renoised[1])


def test_images_are_drawn_on_a_cpu_in_small_batches_unless_the_batches_decide_the_result(
    configs: Callable[[str, list[str]], Config],
) -> None:
    measured = bench.Bench(configs("checkerboard", ["data.size=600"]), Path("nowhere"))
    images, points = torch.zeros(600, 1, 4, 4), torch.zeros(600, 2)
    asked = measured._batch_size
    assert asked > bench.ROWS_ON_CPU
    assert measured._rows_at_once(images, guidance_scale=1.5) == bench.ROWS_ON_CPU
    assert measured._rows_at_once(images, gamma=0.5) == asked
    assert measured._rows_at_once(points) == asked


def test_only_the_teacher_that_was_distilled_is_measured_guided(config: Config, models: Path) -> None:
    stage: Any = SimpleNamespace(input=lambda name: models / name, device="cpu")
    found = {}
    for name in ("teacher", "weak_teacher", "adversarial"):
        model = evaluate.guided(Generator.load(models / "models" / name), config, stage)
        found[name] = model.sampler.guidance_curve(config.evaluation)
        if name == "teacher":
            assert isinstance(getattr(model.sampler, "guided", None), Autoguidance)
    assert found == {"teacher": [(7, 1.25), (7, 1.5)], "weak_teacher": [], "adversarial": []}


def test_the_reports_picture_shows_the_steps_and_evaluations_of_the_settings(
    config: Config, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "labelled_columns", lambda pictures: list(pictures))
    stage: Any = SimpleNamespace(input=lambda name: models / name)
    titles: Any = report.samples_picture(stage, config)
    assert titles == ["1 step", "2 steps", "teacher, 7 evaluations"]


def test_a_picture_shows_a_class_a_row_or_a_density(models: Path) -> None:
    points = Generator.load(models / "models/adversarial")
    noise, condition = preview_inputs(points, columns=10, seed=0)
    assert noise.shape == (20_000, 2)
    assert not condition
    with pytest.raises(AyfError, match="label 0 is not one of the model's classes: it has none"):
        preview_inputs(points, columns=10, seed=0, labels=[0])


@pytest.mark.parametrize(("name", "message"), [("x.npz", r"the ending '\.npz'"), ("x", "the ending ''")])
def test_a_file_that_holds_no_picture_is_refused_before_anything_is_sampled(
    models: Path, name: str, message: str
) -> None:
    with pytest.raises(AyfError, match=message):
        sample_grid("there/is/no/model", models, steps=1, out=models / name)


def test_a_picture_says_how_far_off_a_rebuilt_width_is(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Generator.load(models / "models/adversarial")
    words = "EMA width 0.12 rebuilt from snapshots, its averaging profile off by 4.1 %"
    monkeypatch.setattr(Generator, "load", lambda *told, **named: dataclasses.replace(model, rebuilt=words))
    said = sample_grid(models / "models/adversarial", models, steps=1, out=models / "grid.png")
    assert said == f"uniform grid, γ 0, {words}"
    assert (models / "grid.png").exists()

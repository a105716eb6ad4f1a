"""params.yaml and conf/runtime are read with types, ranges and agreement; refusals say what to do."""

import dataclasses
import re
from pathlib import Path

import pytest

from ayf_core.errors import AyfError
from pipelines.settings import tree
from pipelines.settings.agreement import trainings
from pipelines.settings.experiment import Config
from pipelines.settings.params_file import from_preset, presets, render, write
from pipelines.settings.places import project_root
from pipelines.settings.reading import load_config, read_config
from pipelines.settings.runtime import RuntimeConfig, load_runtime

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def valid_params() -> str:
    """The text of a valid params.yaml."""
    return render(REPOSITORY, from_preset(REPOSITORY, "digits"), "digits")


@pytest.fixture
def project(tmp_path: Path, valid_params: str) -> Path:
    """A folder that holds nothing but a valid params.yaml."""
    (tmp_path / "params.yaml").write_text(valid_params)
    return tmp_path


def edit(project: Path, line: str, replacement: str, count: int = 1) -> None:
    path = project / "params.yaml"
    text, done = re.subn(rf"^( *){line}.*$", rf"\g<1>{replacement}", path.read_text(), count=count, flags=re.M)
    assert done, f"no line {line}"
    path.write_text(text)


def test_the_committed_params_are_valid() -> None:
    assert isinstance(load_config(REPOSITORY), Config)


@pytest.mark.parametrize("preset", ["digits", "checkerboard", "smoke"])
def test_every_preset_composes_and_is_valid(preset: str, tmp_path: Path) -> None:
    assert preset in presets(REPOSITORY)
    config = from_preset(REPOSITORY, preset)
    write(tmp_path, config, preset)
    assert load_config(tmp_path) == config


def test_there_is_no_default_for_anything_that_changes_a_result() -> None:
    keys = from_preset(REPOSITORY, "digits").keys()
    assert all(setting.required for setting in keys.settings.values())
    assert not keys.optional


def test_values_arrive_with_their_declared_types(project: Path) -> None:
    edit(project, "kl_weight: ", "kl_weight: 1")
    config = load_config(project)
    assert isinstance(config.codec["kl_weight"], float)
    assert isinstance(config.codec["channels"], list)
    assert isinstance(config.distill.students["emd"].training.ema_stds[0], float)
    assert config.distill.tangent.normalise is True


@pytest.mark.parametrize("text", ["1e-4", "1.0e-4", "0.0001"])
def test_every_spelling_of_a_small_number_is_a_number(project: Path, text: str) -> None:
    edit(project, "kl_weight: ", f"kl_weight: {text}")
    assert load_config(project).codec["kl_weight"] == 1e-4


@pytest.mark.parametrize(
    ("line", "replacement", "named"),
    [
        (
            "learning_rate:",
            "learnin_rate: 0.1",
            "codec.training.learnin_rate: did you mean codec.training.learning_rate?",
        ),
        ("distill:", "distil:", "distil: did you mean distill?"),
        ("p_mean:", "mean: 0", "distill.time_law.mean: did you mean distill.time_law.p_mean?"),
        ("label_dropout:", "dropout: 0", "teacher.dropout: did you mean teacher.label_dropout?"),
        ("weighting:", "wating: uniform", "distill.wating: did you mean distill.weighting?"),
    ],
)
def test_an_unknown_key_is_named_in_full_with_the_nearest(
    project: Path, line: str, replacement: str, named: str
) -> None:
    edit(project, line, replacement)
    with pytest.raises(AyfError, match=re.escape(f"unknown setting {named}")):
        load_config(project)


@pytest.mark.parametrize(
    ("line", "replacement", "words"),
    [
        ("seed:", "seed: zero", "seed = zero: must be a whole number"),
        ("seed:", "seed: -1", "seed = -1: must be a whole number at least 0"),
        ("steps:", "steps: 6.5", "codec.training.steps = 6.5: must be a whole number at least 1"),
        ("steps:", "steps: true", "codec.training.steps = true: must be a whole number"),
        ("kl_weight:", "kl_weight: .nan", "codec.kl_weight = .nan: must be a number at least 0"),
        (
            "learning_rate:",
            "learning_rate: .inf",
            "codec.training.learning_rate = .inf: must be a number above 0",
        ),
        (
            "test_fraction:",
            "test_fraction: 1.0",
            "data.test_fraction = 1.0: must be a number above 0 and at most 0.5",
        ),
        ("normalise:", "normalise: maybe", "distill.tangent.normalise = maybe: must be true or false"),
        ("backend:", "backend: spilt", "one of dual, finite_difference, split (did you mean split?)"),
        ("channels:", "channels: 32", "codec.channels = 32: must be a list"),
        ("channels:", "channels: []", "codec.channels = []: must be a list of at least one"),
        ("channels:", "channels: [32, x]", "codec.channels holds x: must be a list"),
        ("gammas:", "gammas: [0.0, 2.0]", "evaluation.gammas = [0.0, 2.0]: must be a list of at least one"),
        ("gammas:", "gammas: [0.5, 0.5]", "none twice"),
        ("seed:", "seed: null", "seed has no value"),
        ("seed:", "", "seed is missing"),
        ("seed:", "seed: ${data.size}", "write the value out"),
        ("seed:", "seed: 0\nseed: 1", "seed stands twice: delete one"),
        ("seed:", "seed: {a: 1}", "seed must be a single value"),
        ("beta1:", "beta1: 0.9\n    beta1: 0.8", "beta1 stands twice"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(project: Path, line: str, replacement: str, words: str) -> None:
    edit(project, line, replacement)
    with pytest.raises(AyfError, match=re.escape(words)) as caught:
        load_config(project)
    assert "\n" not in str(caught.value)


def test_a_problem_names_the_line_of_the_file(project: Path) -> None:
    lines = (project / "params.yaml").read_text().splitlines()
    number = next(index for index, line in enumerate(lines, 1) if line.strip().startswith("p_std:"))
    edit(project, "p_std:", "p_std: 0")
    with pytest.raises(AyfError, match=rf"^params\.yaml:{number}: distill\.time_law\.p_std = 0"):
        load_config(project)


def test_a_missing_group_is_named_once_with_what_belongs_in_it(project: Path) -> None:
    text = (project / "params.yaml").read_text()
    start, end = text.index("adversarial:"), text.index("evaluation:")
    (project / "params.yaml").write_text(text[:start] + text[end:])
    _, problems = read_config(project)
    assert len(problems) == 1
    assert "the group adversarial is missing (student, discriminator, weight" in problems[0]


def test_several_problems_are_all_found_and_counted(project: Path) -> None:
    edit(project, "seed:", "seed: -1")
    edit(project, "p_std:", "p_std: 0")
    _, problems = read_config(project)
    assert len(problems) == 2
    with pytest.raises(AyfError, match="1 more: see `ayf params check`"):
        load_config(project)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed: 0\ndata: [1,\n", r"params\.yaml, line \d: not valid YAML"),
        ("- 1\n", r"params\.yaml, line 1: must hold"),
        ("", r"plugins is missing.*9 more"),
    ],
)
def test_a_file_that_is_not_settings_is_refused(project: Path, text: str, words: str) -> None:
    (project / "params.yaml").write_text(text)
    with pytest.raises(AyfError, match=words):
        load_config(project)


def test_bytes_that_are_not_text_are_refused(project: Path) -> None:
    (project / "params.yaml").write_bytes(b"seed: \xff")
    with pytest.raises(AyfError, match="not UTF-8"):
        load_config(project)


def test_a_missing_file_says_how_to_write_one(tmp_path: Path) -> None:
    with pytest.raises(AyfError, match="ayf params use preset=digits"):
        load_config(tmp_path)


def test_a_project_whose_path_has_spaces_and_commas_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "a b, [c] = 'd'"
    folder.mkdir()
    write(folder, from_preset(REPOSITORY, "smoke"), "smoke")
    assert load_config(folder) == from_preset(REPOSITORY, "smoke")


@pytest.mark.parametrize(
    ("preset", "overrides", "words"),
    [
        ("digits", ["distill.guidance.scale_min=3.0"], "distill.guidance.scale_min = 3: must be at most scale_max = "),
        ("digits", ["evaluation.guidance_scales=[1.0,4.0]"], "drop [4.0] or widen distill.guidance"),
        (
            "digits",
            ["teacher.training.ema_std=0.07"],
            "must be one of teacher.training.ema_stds = [0.05, 0.1]",
        ),
        ("digits", ["teacher.network.heads=5"], "teacher.network.width = 96: must be a multiple of heads = 5"),
        (
            "digits",
            ["teacher.network.kind=mlp", "teacher.network.activation=relu"],
            "teacher.network.kind = mlp: an 'mlp' takes samples of shape [D], got [1, 4, 4]",
        ),
        ("digits", ["teacher.network.kind=mlp"], "name them too: teacher.network.activation=..."),
        ("digits", ["weak_teacher.network.patch_size=3"], "patch_size 3 does not divide the sample's sides [4, 4]"),
        ("digits", ["codec.channels=[32,32,32,32,32]"], "halves the side 8 4 times"),
        ("digits", ["codec.channels=[32,32,32]"], "latents of 2 x 2 are too small"),
        ("digits", ["codec.channels=[12,32]"], "codec.channels = [12, 32]: each must be a multiple of 8"),
        ("digits", ["features.width=18"], "features.width = 18: must be a multiple of 4"),
        ("digits", ["features.training.warmup_steps=9999"], "must be below features.training.steps"),
        ("digits", ["codec.training.ema_std=0.07"], "must be one of codec.training.ema_stds"),
        ("digits", ["data.size=100"], "data.size belongs to data.name = checkerboard"),
        ("digits", ["data.folder=x"], "data.folder belongs to data.name = folder"),
        ("digits", ["data.name=folder", "data.image_size=16"], "name them too: data.folder=..."),
        ("digits", ["data.name=folder", "data.folder=nowhere", "data.image_size=16"], "there is no such folder"),
        ("digits", ["codec.kind=identity", "codec.source=x"], "codec.source belongs to codec.kind = pretrained"),
        (
            "digits",
            ["distill.guidance.kind=classifier_free", "teacher.label_dropout=0.0"],
            "set it to about 0.1",
        ),
        (
            "digits",
            ["distill.time_law.full_jump_fraction=0.6", "distill.time_law.diagonal_fraction=0.6"],
            "lower either",
        ),
        ("digits", ["adversarial.student=mean_flow"], "must be one of distill.objectives = [emd, lmd]"),
        ("digits", ["evaluation.models=[teacher,emdd]"], "evaluation.models holds emdd, which nothing makes"),
        ("checkerboard", ["features.kind=inception", "features.weights=null"], "images"),
        ("checkerboard", ["codec.kind=pretrained", "codec.source=x"], "has no images; choose identity"),
        (
            "checkerboard",
            [f"weak_teacher.network.{one}" for one in ("kind=dit", "heads=4", "patch_size=1")],
            "weak_teacher.network.kind = dit: a 'dit' takes samples of shape [C, *spatial]",
        ),
        ("checkerboard", ["data.size=null"], "data.size has no value"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(preset: str, overrides: list[str], words: str) -> None:
    with pytest.raises(AyfError, match=re.escape(words)) as caught:
        from_preset(REPOSITORY, preset, overrides)
    assert "\n" not in str(caught.value)


def test_a_pretrained_codec_leaves_the_side_of_its_latents_open() -> None:
    codec = ["codec.kind=pretrained", "codec.source=somewhere"]
    config = from_preset(REPOSITORY, "digits", [*codec, "teacher.network.patch_size=3"])
    assert config.teacher.network["patch_size"] == 3


def test_every_training_group_is_found() -> None:
    assert set(trainings(from_preset(REPOSITORY, "digits"))) == {
        "codec.training",
        "features.training",
        "teacher.training",
        "weak_teacher.training",
        "distill.emd.training",
        "distill.lmd.training",
        "adversarial.training",
    }


def test_the_project_is_found_from_a_folder_inside_it(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    assert project_root(inside) == tmp_path


def test_a_folder_outside_any_project_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AyfError, match="change into the project's folder"):
        project_root(tmp_path)


# --- runtime ------------------------------------------------------------------------------------------


def test_the_runtime_is_local_ray_unless_the_environment_names_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AYF_RUNTIME", raising=False)
    assert load_runtime(REPOSITORY).mode == "ray"
    monkeypatch.setenv("AYF_RUNTIME", "inline")
    assert load_runtime(REPOSITORY).mode == "inline"


def test_a_runtime_may_be_any_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("workers: 2\nthreads_per_worker: 1\n")
    runtime = load_runtime(REPOSITORY, str(path))
    assert runtime == dataclasses.replace(RuntimeConfig(), workers=2, threads_per_worker=1)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("worker: 2", "mine.yaml:1: unknown setting worker: did you mean workers?"),
        ("mode: inline\nworkers: 0", "mine.yaml:2: workers = 0: must be a whole number at least 1"),
        ("workers: two", "mine.yaml:1: workers = two: must be a whole number"),
        ("mode: rya", "(did you mean ray?)"),
    ],
)
def test_a_wrong_runtime_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(AyfError, match=re.escape(words)):
        load_runtime(REPOSITORY, str(path))


def test_an_unknown_runtime_offers_the_nearest() -> None:
    with pytest.raises(AyfError, match=r"no runtime inlin .*did you mean inline"):
        load_runtime(REPOSITORY, "inlin")


def test_no_runtime_setting_is_a_science_setting() -> None:
    science = {key.rpartition(".")[2] for key in from_preset(REPOSITORY, "digits").keys().settings}
    assert not science & set(tree.keys_of(RuntimeConfig, {}).settings)

"""A sweep's file: what it may say, and the one line that names what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from ayf_core.errors import AyfError
from pipelines.settings import params_file as params
from pipelines.settings.experiment import Config
from pipelines.settings.params_file import from_preset
from pipelines.settings.reading import load_config, with_values
from pipelines.settings.runtime import RuntimeConfig
from sweeps import resources
from sweeps.definition import Sweep, read_sweep, sweep_names
from sweeps.runner import run_sweep
from sweeps.space import Choice, Range

REPOSITORY = Path(__file__).resolve().parents[2]
RATE = "distill.emd.training.learning_rate"
FILE = f"""
question: Which is best?
stages: [distill@emd]
metrics: [fd/nfe_2]
space:
  {RATE}: {{low: 1.0e-4, high: 1.0e-2, log: true}}
search: optuna
trials: 4
scheduler: asha
measure_every: 200
"""


@pytest.fixture(scope="module")
def config() -> Config:
    return from_preset(REPOSITORY, "digits")


def read(tmp_path: Path, config: Config, text: str) -> Sweep:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    return read_sweep(REPOSITORY, path, config)


@pytest.mark.parametrize("name", [name for name in sweep_names(REPOSITORY) if name != "sampling"])
def test_every_shipped_sweep_is_valid(name: str, config: Config) -> None:
    sweep = read_sweep(REPOSITORY, REPOSITORY / f"sweeps/{name}.yaml", config)
    assert sweep.trials >= 4
    assert sweep.model == "models/emd"


def test_a_grid_has_every_combination_once_a_training_seed(tmp_path: Path, config: Config) -> None:
    text = FILE.replace("search: optuna\ntrials: 4", "search: grid\ntraining_seeds: [3, 4]")
    text = text.replace("{low: 1.0e-4, high: 1.0e-2, log: true}", "[0.001, 0.002]")
    points = read(tmp_path, config, text).points()
    assert [(point[RATE], point["seed"]) for point in points] == [(0.001, 3), (0.001, 4), (0.002, 3), (0.002, 4)]


def test_numbers_take_the_type_of_their_setting(tmp_path: Path, config: Config) -> None:
    text = FILE.replace("  distill", "  distill.tangent.warmup_fraction: [0, 1]\n  distill")
    space = read(tmp_path, config, text).space
    assert space["distill.tangent.warmup_fraction"] == Choice((0.0, 1.0))
    assert space[RATE] == Range(1e-4, 1e-2, log=True, whole=False)


def test_a_trial_differs_from_the_experiment_in_its_point_alone(tmp_path: Path, config: Config) -> None:
    trial = read(tmp_path, config, FILE).trial_config({RATE: 0.004})
    assert trial.distill.students["emd"].training.learning_rate == 0.004
    assert with_values(trial, {RATE: config.distill.students["emd"].training.learning_rate}) == config


WRONG = {
    "an unknown key": ("learning_rate:", "learning_rat:", r"unknown setting .*did you mean"),
    "a value out of range": ("low: 1.0e-4", "low: -1.0", r"learning_rate = -1.0: must be a number above 0"),
    "a range upside down": ("low: 1.0e-4", "low: 1.0", "low below high"),
    "a metric that no stage reports": ("fd/nfe_2", "fid/nfe_2", "no stage reports fid/nfe_2"),
    "a count that is not evaluated": ("fd/nfe_2", "fd/nfe_3", "no stage reports fd/nfe_3"),
    "a stage that is none": ("distill@emd", "distill@edm", "no stage distill@edm: did you mean distill@emd"),
    "a stage without a model": ("distill@emd", "evaluate@emd", "makes no model"),
    "a setting of another stage": (RATE, "adversarial.weight", "has no effect on distill@emd"),
    "a setting of a stage before": (
        "space:",
        "fixed: {teacher.training.steps: 5000}\nspace:",
        "also changes train_teacher",
    ),
    "a seed": (f"{RATE}: {{low: 1.0e-4, high: 1.0e-2, log: true}}", "seed: [1, 2]", "training_seeds"),
    "no number of trials": ("trials: 4\n", "", "trials is missing"),
    "two metrics and a scheduler": ("[fd/nfe_2]", "[fd/nfe_2, recall/nfe_2]", "no one order"),
    "a scheduler's option without it": ("scheduler: asha", "scheduler: none\nasha_first: 100", "scheduler: asha only"),
    "rarer measurements than steps": ("measure_every: 200", "measure_every: 20000", "above the 2000 steps"),
    "a range in a grid": ("search: optuna\ntrials: 4", "search: grid", "cannot enumerate"),
    "a scale that the student does not learn": ("search:", "guidance_scale: 9.0\nsearch:", "learns 1 to 1.5 only"),
    "a misspelt key of the file": ("scheduler:", "schedular:", "did you mean scheduler"),
    "settings that do not agree": (
        "space:",
        "space:\n  distill.guidance.scale_max: [1.1, 2.0]",
        "guidance_scales.*narrow the space",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_one_line_that_names_it(case: str, tmp_path: Path, config: Config) -> None:
    old, new, message = WRONG[case]
    assert old in FILE
    with pytest.raises(AyfError, match=message) as error:
        read(tmp_path, config, FILE.replace(old, new))
    assert "\n" not in str(error.value)
    assert "mine.yaml" in str(error.value)


def test_a_grid_takes_no_other_number_of_trials_than_it_has_points(tmp_path: Path, config: Config) -> None:
    text = FILE.replace("search: optuna", "search: grid").replace(
        "{low: 1.0e-4, high: 1.0e-2, log: true}", "[0.1, 0.2]"
    )
    with pytest.raises(AyfError, match="trials = 4, but the grid has 2 points"):
        read(tmp_path, config, text)


def test_what_does_not_fit_the_machine_is_refused_with_the_arithmetic(
    tmp_path: Path, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resources, "core_count", lambda: 4)
    sweep = read(tmp_path, config, FILE)
    assert resources.resources_of(sweep, RuntimeConfig(device="cpu")).at_once == 4
    assert resources.resources_of(sweep, RuntimeConfig(device="cpu", trial_threads=2)).at_once == 2
    with pytest.raises(AyfError, match=r"3 workers x trial_threads 2 = 6 CPUs, this machine has 4"):
        resources.resources_of(sweep, RuntimeConfig(device="cpu", workers=3, trial_threads=2))
    with pytest.raises(AyfError, match=r"3 trials at once x 2 CPUs are above the 4 here: 2 fit"):
        resources.resources_of(sweep, RuntimeConfig(device="cpu", trial_threads=2, trials_at_once=3))
    assert resources.resources_of(sweep, RuntimeConfig(device="cpu", workers=3)).workers == 3
    monkeypatch.setattr(resources, "core_count", lambda: 100)
    with pytest.raises(AyfError, match="65 workers cannot share a batch of 32"):
        resources.resources_of(sweep, RuntimeConfig(device="cpu", workers=65))


def test_how_long_it_may_take_is_known_from_earlier_runs(tmp_path: Path, config: Config) -> None:
    sweep = read(tmp_path, config, FILE)
    assert resources.longest_seconds(sweep, {}, at_once=2) is None
    assert resources.longest_seconds(sweep, {"distill@emd": 100.0}, at_once=3) == 200.0


@pytest.fixture
def project(tmp_path: Path) -> Path:
    for name in ("ayf_core", "pipelines", "conf", "dvc.yaml"):
        (tmp_path / name).symlink_to(REPOSITORY / name)
    (tmp_path / "data/images").mkdir(parents=True)
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps/mine.yaml").write_text(FILE)
    params.write(tmp_path, from_preset(tmp_path, "digits"), "digits")
    return tmp_path


def refused(project: Path, name: str = "mine", *, resume: bool = False) -> str:
    with pytest.raises(AyfError) as error:
        run_sweep(project, name, RuntimeConfig(device="cpu"), resume=resume)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_sweep_that_is_not_there_is_named(project: Path) -> None:
    assert "no sweep mien: did you mean mine?" in refused(project, "mien")


def test_missing_inputs_stop_it_before_anything_starts(project: Path) -> None:
    assert "dvc repro" in refused(project)
    assert not (project / "runs/sweeps/mine/001").exists()


def test_nothing_to_resume_is_said(project: Path) -> None:
    assert "no sweep mine to resume" in refused(project, resume=True)


@pytest.mark.parametrize("damage", ["torn", "missing", "foreign"])
def test_a_damaged_sweep_folder_is_one_line(project: Path, damage: str) -> None:
    folder = project / "runs/sweeps/mine/001"
    folder.mkdir(parents=True)
    if damage != "missing":
        text = {"torn": '{"began": 17', "foreign": '{"trial": 1}'}[damage]
        (folder / "sweep.json").write_text(text)
    assert "sweep folder damaged: " in refused(project, resume=True)


def test_the_present_settings_are_the_first_trial(project: Path) -> None:
    sweep = read_sweep(project, project / "sweeps/mine.yaml", load_config(project))
    assert sweep.present == {RATE: load_config(project).distill.students["emd"].training.learning_rate}

"""The real chain on real data, at its smallest (`smoke`), without Ray processes; CI also runs it on Ray."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from PIL import Image

from ayf_core.errors import AyfError
from ayf_core.files import found_below
from ayf_core.sampling.generator import Generator
from pipelines.execution.accepting import accept_changes
from pipelines.execution.run import run_stage
from pipelines.project.code import write_code
from pipelines.project.declarations import fingerprint, read_declarations
from pipelines.settings.reading import load_config
from pipelines.stages.sampling import sample_grid
from pipelines.tracking.store import tracking_uri
from tests.chain import CHAIN, REPOSITORY, copy_outputs, inline, make_project

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def own_store(monkeypatch: pytest.MonkeyPatch, no_foreign_settings: None) -> None:
    """Each project of this module keeps its runs in its own store."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI")


@pytest.fixture(scope="module")
def project(smoke_chain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished chain, to change."""
    return Path(shutil.copytree(smoke_chain, tmp_path_factory.mktemp("smoke") / "project", symlinks=True))


def runs_of(root: Path) -> dict[str, object]:
    client = MlflowClient(tracking_uri(root))
    experiment = client.get_experiment_by_name("align-your-flow")
    assert experiment is not None
    return {run.data.tags["dvc.stage"]: run for run in client.search_runs([experiment.experiment_id])}


def test_the_chain_covers_every_declared_stage() -> None:
    assert sorted([*CHAIN, "code"]) == sorted(read_declarations(REPOSITORY))


def test_every_declared_output_is_published(project: Path) -> None:
    declared = read_declarations(project)
    assert all((project / out).exists() for declaration in declared.values() for out in declaration.outputs)


def test_every_stage_has_one_finished_run_that_names_its_upstream(project: Path) -> None:
    runs = runs_of(project)
    assert set(runs) == set(CHAIN)
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    student = runs["distill@emd"].data.tags
    assert student["ayf.upstream.models/teacher"] == runs["train_teacher"].info.run_id
    assert student["ayf.upstream.data/latents"] == runs["encode_latents"].info.run_id


def test_students_are_registered_and_can_be_sampled_from_the_registry(project: Path) -> None:
    for model in ("models/emd", "models:/digits-emd@current"):
        out = project / "grid.png"
        sample_grid(model, project, steps=2, labels=[3, 7], guidance_scale=1.5, out=out, count=4)
        assert Image.open(out).size == (4 * 42 + 2, 2 * 42 + 2)


def test_another_ema_width_is_rebuilt_from_the_snapshots(project: Path) -> None:
    published = Generator.load(project / "models/emd").network.state_dict()
    other = Generator.load(project / "models/emd", ema_std=0.07).network.state_dict()
    assert any(not torch.equal(published[name], other[name]) for name in published)


def test_evaluation_counts_every_network_call(project: Path) -> None:
    rows = json.loads((project / "reports/evaluation/teacher.json").read_text())["rows"]
    assert [row["nfe"] for row in rows if row["sweep"] == "quality"] == [4, 7]
    assert {row["nfe"] for row in rows if row["sweep"] == "guidance"} == {14}  # both networks, 7 times


def test_the_report_says_that_models_of_a_few_steps_are_not_trained(project: Path) -> None:
    said = (project / "reports" / "results.md").read_text()
    assert said.startswith("**These models are barely trained: the teacher's best fd_test, ")
    assert "These models are barely trained" in (project / "reports" / "dashboard.html").read_text()


def test_a_finished_stage_is_published_again_without_work(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(project / "models/emd")
    shutil.rmtree(project / "models/emd")
    monkeypatch.setattr("pipelines.stages.distill.run", lambda *_: pytest.fail("done again"))
    run_stage(project, "distill@emd", runtime=inline())
    assert fingerprint(project / "models/emd") == before


def test_a_forced_stage_is_computed_anew(project: Path) -> None:
    """DVC has committed the result (it is in dvc.lock) and runs the stage all the same: `dvc repro --force`."""
    before = fingerprint(project / "models/features")
    lock = project / "dvc.lock"
    lock.write_text("stages: {train_features: {}}\n")
    later = time.time() + 5
    os.utime(lock, (later, later))
    note = Path("mlflow_run_id")
    scratch = next((project / "runs/train_features").glob(f"*/{note}")).parent
    known = (scratch / note).read_text()
    run_stage(project, "train_features", runtime=inline())
    lock.unlink()
    assert (scratch / note).read_text() != known
    assert fingerprint(project / "models/features") == before


def test_unknown_label_and_unlearnt_guidance_are_refused(project: Path) -> None:
    with pytest.raises(AyfError, match="label 12"):
        sample_grid("models/emd", project, steps=1, labels=[12], out=project / "no.png")
    with pytest.raises(AyfError, match="guidance scale 9"):
        sample_grid("models/emd", project, steps=1, guidance_scale=9.0, out=project / "no.png")
    assert not (project / "no.png").exists()


def test_damaged_latents_stop_training_before_it_starts(project: Path, tmp_path: Path) -> None:
    root = make_project(tmp_path / "damaged")
    copy_outputs(project, root)
    shard = root / "data/latents/train/shard_00000.safetensors"
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    with pytest.raises(AyfError, match=r"shard_00000\.safetensors"):
        run_stage(root, "train_teacher", runtime=inline())
    assert not (root / "models/teacher.partial").exists()


def test_truncated_teacher_stops_distillation_before_it_starts(project: Path, tmp_path: Path) -> None:
    root = make_project(tmp_path / "truncated")
    copy_outputs(project, root)
    weights = root / "models/teacher/model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(AyfError, match=r"model\.safetensors.*truncated"):
        run_stage(root, "distill@lmd", runtime=inline())


def start(root: Path, stage: str) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "AYF_RUNTIME": str(root / "runtime.yaml"), "OMP_NUM_THREADS": "1"}
    environment.pop("MLFLOW_TRACKING_URI", None)
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines", stage],
        cwd=root,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def test_stage_killed_at_three_moments_gives_the_bytes_of_one_never_killed(project: Path, tmp_path: Path) -> None:
    steps = 60  # so many that none is done before it is killed
    settings = [f"distill.emd.training.steps={steps}", "distill.emd.training.batch_size=8"]
    quiet, killed = (make_project(tmp_path / name, *settings) for name in ("quiet", "killed"))
    for root in (quiet, killed):
        copy_outputs(project, root)
        shutil.rmtree(root / "models/emd")
    run_stage(quiet, "distill@emd", runtime=inline())
    for wanted in (3, 11, 25):
        process = start(killed, "distill@emd")
        deadline = time.monotonic() + 300
        while logged_steps(killed) < wanted:
            assert process.poll() is None, (process.stderr.read() if process.stderr else b"").decode()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (killed / "models/emd").exists()
    assert start(killed, "distill@emd").wait() == 0
    assert fingerprint(killed / "models/emd") == fingerprint(quiet / "models/emd")
    assert points(killed, "distill@emd") == points(quiet, "distill@emd") == list(range(1, steps + 1))


def test_a_killed_training_goes_on_after_a_docstring_was_edited_and_not_after_a_constant(
    project: Path, tmp_path: Path
) -> None:
    settings = ["teacher.training.steps=4000", "teacher.training.batch_size=8"]
    root = make_project(tmp_path / "edited", *settings, to_edit=True)
    copy_outputs(project, root)
    code = root / "ayf_core/training/trainer.py"
    first = killed_at(root, 11, "train_teacher")
    code.write_text(code.read_text().replace('"""', '"""Said otherwise. ', 1) + "# a comment\n")
    write_code(root)
    second = killed_at(root, first + 10, "train_teacher")
    assert second > first
    (log,) = found_below(root / "runs/train_teacher", "metrics.jsonl")  # one scratch folder: the same training
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert steps == list(range(1, len(steps) + 1))
    code.write_text(code.read_text() + "LIMIT = 3\n")
    assert "run `dvc repro --force code`" in (said(start(root, "train_teacher")))
    write_code(root)
    killed_at(root, 3, "train_teacher", folders=2)
    lines = list(accept_changes(root, ["train_teacher"], "nobody reads LIMIT"))
    assert lines[0] == "train_teacher: its interrupted training goes on: ayf_core.training.trainer"


def said(process: subprocess.Popen[bytes]) -> str:
    return process.communicate()[1].decode()


def killed_at(root: Path, step: int, stage: str, folders: int = 1) -> int:
    """Run a stage until the newest of its trainings has logged so many steps, and kill it; the steps logged."""
    process = start(root, stage)
    deadline = time.monotonic() + 300
    while True:
        logs = sorted(found_below(root / "runs" / stage, "metrics.jsonl"), key=lambda log: log.stat().st_mtime)
        if len(logs) == folders and len(logs[-1].read_text().splitlines()) >= step:
            break
        assert process.poll() is None, said(process)
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.kill()
    process.communicate()
    return len(logs[-1].read_text().splitlines())


def logged_steps(root: Path) -> int:
    logs = found_below(root / "runs/distill@emd", "metrics.jsonl")
    return sum(len(log.read_text().splitlines()) for log in logs)


def points(root: Path, stage: str) -> list[int]:
    """The steps at which MLflow holds a loss."""
    run = runs_of(root)[stage]
    client = MlflowClient(tracking_uri(root))
    return [point.step for point in client.get_metric_history(run.info.run_id, "loss")]  # type: ignore[attr-defined]


def test_checkerboard_preset_runs_through_the_same_code(tmp_path: Path) -> None:
    tiny = [
        f"{part}.training.steps=6" for part in ("teacher", "weak_teacher", "distill.emd", "distill.lmd", "adversarial")
    ]
    tiny += [key.replace("steps=6", "warmup_steps=1") for key in tiny]
    tiny += ["data.size=400", "evaluation.seeds=2", "evaluation.teacher_evaluations=[4,7]"]
    root = make_project(tmp_path / "board", *tiny, preset="checkerboard")
    for name in CHAIN:
        run_stage(root, name, runtime=inline())
    measured = json.loads((root / "reports/metrics.json").read_text())
    assert measured["models"]["emd"]["nfe_1"]["distance"] > 0
    assert load_config(root).data.kind == "checkerboard"

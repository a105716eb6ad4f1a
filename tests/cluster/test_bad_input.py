"""What cannot work gets one clear line within a minute, and exit status 1."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from ayf_core.errors import AyfError
from pipelines.commands.main import main
from pipelines.execution.run import run_stage
from pipelines.settings.runtime import load_runtime
from pipelines.slurm.ray_node import RayNode
from tests.cluster.cluster_project import Project
from tests.cluster.slurm_cluster import SlurmCluster

PATIENCE = 60


@pytest.fixture
def refused(project: Project) -> Callable[..., str]:
    """The line `ayf` ends with, here in this process; it must fail, in one line, within a minute."""

    def run(*words: str, **environment: str) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(project.root)
            for name, value in {**project.slurm.environment(), **environment}.items():
                patch.setenv(name, value)
            began = time.monotonic()
            done = CliRunner().invoke(main, list(words))
        assert time.monotonic() - began < PATIENCE
        assert done.exit_code == 1, done.output
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 1, done.stderr
        assert lines[0].startswith("error: ")
        return lines[0]

    return run


@pytest.mark.slurm
@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("slurm.partition=mian", "no partition mian with nodes that are up: did you mean main?"),
        ("slurm.gpus_per_node=8", "slurm.gpus_per_node = 8 GPUs: the largest node of partition main has 1"),
        ("slurm.nodes=3", "slurm.nodes = 3, but partition main has 2"),
        ("slurm.memory_gb=900", "slurm.memory_gb = 900 GB: the largest node of partition main has 7"),
        ("workers=9", "9 workers of 1 CPU each do not fit 2 nodes of 1 CPUs (2 fit)"),
        ("slurm.nods=2", "unknown setting slurm.nods"),
        ("slurm.nodes=two", "slurm.nodes = two: must be a whole number"),
        ("teacher.training.steps=many", "teacher.training.steps"),
    ],
)
def test_what_slurm_cannot_give_is_refused_before_submission(
    project: Project, refused: Callable[..., str], word: str, says: str
):
    assert says in refused("submit", "repro", "runtime=slurm", word)
    assert not list(project.root.glob("runs/jobs/*/job.json"))


@pytest.mark.slurm
def test_a_misspelt_target_is_refused_and_params_stay(project: Project, refused: Callable[..., str]):
    before = (project.root / "params.yaml").read_text()
    line = refused("submit", "train_techer", "runtime=slurm", "preset=digits")
    assert "cannot submit train_techer" in line
    assert (project.root / "params.yaml").read_text() == before


@pytest.mark.slurm
def test_without_slurm_programs_the_line_says_where_to_go(refused: Callable[..., str], tmp_path: Path):
    line = refused("submit", "repro", "runtime=slurm", PATH=str(tmp_path))
    assert "no Slurm here (sinfo not found): submit from a login node" in line


@pytest.mark.slurm
def test_without_a_configured_slurm_too(refused: Callable[..., str], tmp_path: Path):
    line = refused("submit", "repro", "runtime=slurm", SLURM_CONF=str(tmp_path / "none.conf"))
    assert "no Slurm here" in line or "Slurm" in line


@pytest.mark.slurm
@pytest.mark.slow
def test_a_folder_that_the_nodes_do_not_share_ends_the_job_with_one_line(project: Project, slurm: SlurmCluster):
    if os.getuid() != 0:
        pytest.skip("a node with a file system of its own needs root")
    slurm.stop_node("node2")
    private = f'mount -t tmpfs none {project.root / "runs"} && exec "$@"'
    (project.root / "runs").mkdir(exist_ok=True)
    slurm.start_node("node2", ("unshare", "--mount", "sh", "-c", private, "sh"))
    job_code = project.root / "pipelines/slurm/job.py"  # the project has copies of the code
    whole = job_code.read_text()
    job_code.write_text(whole.replace("_HOSTS_SECONDS = 45.0", "_HOSTS_SECONDS = 15.0"))
    assert job_code.read_text() != whole
    try:
        job = project.submit("train_teacher", "runtime=slurm")
        assert project.wait_for_end(job) == "FAILED"
        assert "2 nodes were asked for, 1 came within 15 s (missing: task 1)" in project.log(job)
        assert "is not a folder that all nodes share" in project.log(job)
    finally:
        slurm.stop_node("node2")
        slurm.start_node("node2")


# ------------------------------------------------------------------------------------------ a Ray by its address


@pytest.fixture(scope="module")
def ray_head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RayNode, Path]]:
    """A Ray of two CPUs with a token, and the token's file."""
    folder = tmp_path_factory.mktemp("ray")
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    head = RayNode(token_file=token, own_address="127.0.1.1", cpus=2, gpus=0, log=folder / "log")
    head.wait_until_up()
    yield head, token
    head.stop()


def stage(root: Path, **environment: str) -> subprocess.CompletedProcess:
    """`python -m pipelines walk@up` in a toy project."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "AYF_"))}
    return subprocess.run(
        [sys.executable, "-m", "pipelines", "train_codec"],
        cwd=root,
        env=inherited | {"RAY_AUTH_MODE": "token", "PYTHONPATH": str(root)} | environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE + 30,
        check=False,
    )


@pytest.fixture
def on_ray(tmp_path: Path, repository: Path) -> Path:
    """A project whose runtime is an existing Ray."""
    from pipelines.project.code import write_code
    from pipelines.settings import params_file as params

    for name in ("ayf_core", "dashboards", "pipelines", "conf", "dvc.yaml"):
        (tmp_path / name).symlink_to(repository / name)
    (tmp_path / "data/images").mkdir(parents=True)
    params.write(tmp_path, params.from_preset(tmp_path, "smoke", []), "smoke")
    write_code(tmp_path)
    (tmp_path / "runtime.yaml").write_text("mode: ray\naddress: auto\nworkers: 2\nthreads_per_worker: 1\ndevice: cpu\n")
    return tmp_path


@pytest.mark.ray
@pytest.mark.slow
def test_a_stage_trains_on_an_existing_ray(on_ray: Path, ray_head: tuple[RayNode, Path]):
    head, token = ray_head
    done = stage(on_ray, AYF_RUNTIME="./runtime.yaml", RAY_ADDRESS=head.address, RAY_AUTH_TOKEN_PATH=str(token))
    assert done.returncode == 0, done.stdout + done.stderr
    assert (on_ray / "models/codec").is_dir()
    assert head.alive()


@pytest.mark.ray
@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("127.0.0.1:9", "no Ray answers at 127.0.0.1:9 (Connection refused)"),
        ("", "the runtime's address is auto, but RAY_ADDRESS is not set"),
        ("somewhere", "the Ray address somewhere is not HOST:PORT"),
        ("ray://127.0.0.1:10001", "is the address of a Ray client server"),
    ],
)
def test_an_address_without_a_ray_is_named(
    on_ray: Path,
    address: str,
    says: str,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(AyfError) as refused:
        run_stage(on_ray, "train_codec", runtime=load_runtime(on_ray, str(on_ray / "runtime.yaml")))
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.ray
@pytest.mark.slow
def test_a_wrong_token_is_named_within_a_minute(on_ray: Path, ray_head: tuple[RayNode, Path], tmp_path: Path):
    wrong = tmp_path / "wrong"
    wrong.write_text(secrets.token_hex(32))
    began = time.monotonic()
    done = stage(on_ray, AYF_RUNTIME="./runtime.yaml", RAY_ADDRESS=ray_head[0].address, RAY_AUTH_TOKEN_PATH=str(wrong))
    assert time.monotonic() - began < PATIENCE
    assert done.returncode == 1
    assert f"its token is another than the one in {wrong} (RAY_AUTH_TOKEN_PATH)" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_workers_that_do_not_fit_the_ray_are_counted(on_ray: Path, ray_head: tuple[RayNode, Path]):
    head, token = ray_head
    (on_ray / "runtime.yaml").write_text("mode: ray\naddress: auto\nworkers: 8\nthreads_per_worker: 1\ndevice: cpu\n")
    done = stage(on_ray, AYF_RUNTIME="./runtime.yaml", RAY_ADDRESS=head.address, RAY_AUTH_TOKEN_PATH=str(token))
    assert done.returncode == 1
    assert "8 workers of 1 CPU each do not fit the Ray cluster: its 1 nodes have 2 CPU, so 2 fit" in done.stderr


@pytest.mark.ray
@pytest.mark.slow
def test_a_ray_node_that_does_not_see_the_folder_is_named(on_ray: Path, tmp_path_factory: pytest.TempPathFactory):
    if os.getuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("a node with a file system of its own needs root and unshare")
    folder = tmp_path_factory.mktemp("ray")
    token = folder / "token"
    token.write_text(secrets.token_hex(32))
    (on_ray / "runs").mkdir()
    blind = ("unshare", "--mount", "sh", "-c", f'mount -t tmpfs none {on_ray / "runs"} && exec "$@"', "sh")
    head = RayNode(token_file=token, own_address="127.0.1.1", cpus=2, gpus=0, log=folder / "log", wrapper=blind)
    try:
        head.wait_until_up()
        done = stage(on_ray, AYF_RUNTIME="./runtime.yaml", RAY_ADDRESS=head.address, RAY_AUTH_TOKEN_PATH=str(token))
    finally:
        head.stop()
    assert done.returncode == 1
    assert "is not shared: node" in done.stderr

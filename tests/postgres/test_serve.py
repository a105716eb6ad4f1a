"""`ayf serve` on a real PostgreSQL: the schema once, artefacts over the server, models, no password to be seen."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

from ayf_core.errors import AyfError
from pipelines.settings.runtime import RuntimeConfig
from pipelines.tracking import server as serving
from pipelines.tracking.registry import resolve_model
from pipelines.tracking.runs import StageRun, open_run
from tests.postgres.conftest import REPOSITORY, SECRET, Postgres, Server

pytestmark = [pytest.mark.postgres, pytest.mark.slow]


def opened(uri: str, scratch: Path, **tags: str) -> StageRun:
    runtime = RuntimeConfig(mode="inline", tracking_uri=uri)
    place = {"root": scratch, "scratch": scratch, "runtime": runtime}
    return open_run("distill@emd", run_name="distill emd", params={"seed": 1}, tags=tags, **place)


def test_a_run_with_points_pictures_and_a_model_is_kept_and_read_again(running: Server, tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "weights.txt").write_text("1")
    run = opened(running.uri, tmp_path)
    run.log_metrics([{"step": s, "time": 1000.0 + s, "metrics": {"loss": 1 / s}} for s in range(1, 1501)])
    run.log_step_image("samples", 2, Image.new("L", (8, 8)))
    run.log_text("note.txt", "kept")
    assert run.register_model(model, "student", "best") == "1"
    run.finish()
    client = MlflowClient(running.uri)
    assert len(client.get_metric_history(run.id, "loss")) == 1500
    assert client.get_run(run.id).info.artifact_uri.startswith("mlflow-artifacts:/")
    (kept,) = (running.root / "mlruns/served").rglob(f"{run.id}/artifacts/note.txt")
    assert kept.read_text() == "kept"
    runtime = RuntimeConfig(tracking_uri=running.uri)
    for uri in ("models:/student@best", "models:/student/1", f"runs:/{run.id}/models/student"):
        assert (resolve_model(uri, tmp_path, runtime) / "weights.txt").read_text() == "1"


def test_no_command_line_and_no_log_of_the_server_shows_the_password(running: Server) -> None:
    assert running.process is not None
    family = [psutil.Process(running.process.pid), *psutil.Process(running.process.pid).children(recursive=True)]
    told = [" ".join(process.cmdline()) for process in family] + [running.log.read_text()]
    assert not any(secret in text for text in told for secret in (SECRET, quote(SECRET), quote(SECRET, safe="")))
    log = running.log.read_text()
    assert "tracking_uri: http://127.0.0.1:" in log


def test_it_listens_on_this_machine_alone(running: Server) -> None:
    assert running.process is not None
    family = [psutil.Process(running.process.pid), *psutil.Process(running.process.pid).children(recursive=True)]
    listening = {c.laddr.ip for p in family for c in p.net_connections() if c.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}


@pytest.fixture
def empty(postgres: Postgres) -> Iterator[str]:
    postgres.create("fresh")
    yield postgres.address("fresh", SECRET)
    postgres.query("postgres", "DROP DATABASE fresh")


def test_servers_that_meet_an_empty_database_change_its_schema_one_at_a_time(empty: str, postgres: Postgres) -> None:
    command = [
        sys.executable,
        "-c",
        "import sys; from pipelines.tracking.server import migrate; migrate(sys.stdin.read())",
    ]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}

    def migrated(_: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, input=empty, env=environment, capture_output=True, text=True, check=False)

    with ThreadPoolExecutor(3) as pool:
        done = list(pool.map(migrated, range(3)))
    assert [each.returncode for each in done] == [0, 0, 0], done
    assert postgres.query("fresh", "SELECT count(*) FROM alembic_version") == "1"


def test_a_database_that_is_not_there_is_named_without_the_password(postgres: Postgres) -> None:
    with pytest.raises(AyfError, match=r"cannot reach postgresql://ayf@127.0.0.1:\d+/nowhere") as caught:
        serving.migrate(postgres.address("nowhere", SECRET))
    assert "battery" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_password_is_not_shown_either(postgres: Postgres) -> None:
    with pytest.raises(AyfError, match="password authentication failed") as caught:
        serving.migrate(postgres.address("postgres", "wrong-" + SECRET))
    assert "battery" not in str(caught.value)


def test_a_restart_of_the_database_is_survived(running: Server, postgres: Postgres, tmp_path: Path) -> None:
    run = opened(running.uri, tmp_path)
    run.log_values({"fd/nfe_1": 1.0})
    postgres.stop()
    postgres.start()
    run.log_values({"fd/nfe_2": 2.0})
    assert run.read()[1] == {"fd/nfe_1": 1.0, "fd/nfe_2": 2.0}


def test_another_host_name_is_answered_only_where_it_was_named(postgres: Postgres, tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    made = Server(tmp_path, postgres.address("runs"), "--name", "runs.example", "--workers", "1", PGPASSWORD=SECRET)
    made.start()
    try:
        answers = {}
        for name in ("runs.example", "evil.example"):
            request = urllib.request.Request(f"{made.uri}/api/2.0/mlflow/experiments/search?max_results=1")
            request.add_header("Host", f"{name}:{made.port}")
            try:
                with urllib.request.urlopen(request, timeout=10) as answer:
                    answers[name] = answer.status
            except urllib.error.HTTPError as error:
                answers[name] = error.code
    finally:
        made.kill()
    assert answers == {"runs.example": 200, "evil.example": 403}

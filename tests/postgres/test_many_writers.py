"""Sixteen writers at once, as nodes of a cluster are, write runs of their own to one server on PostgreSQL.

Four processes have four threads each: to the server, sixteen connections are sixteen writers.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from tests.postgres.conftest import REPOSITORY, Server

pytestmark = [pytest.mark.postgres, pytest.mark.slow]

PROCESSES, THREADS, POINTS = 4, 4, 50
WRITERS = PROCESSES * THREADS
WRITER = f"""
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from pipelines.settings.runtime import RuntimeConfig
from pipelines.tracking.runs import open_run

uri, folder, first = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
runtime = RuntimeConfig(mode="inline", tracking_uri=uri)

def write(number):
    place = {{"root": folder, "scratch": folder / str(number), "runtime": runtime}}
    about = {{"run_name": f"writer {{number}}", "params": {{"number": number}}, "tags": {{}}, "code": {{}}}}
    run = open_run("distill@emd", **about, **place)
    for step in range(1, {POINTS} + 1):
        run.offer_metrics([{{"step": step, "time": 1000.0 + step, "metrics": {{"loss": number / step, "rate": step}}}}])
    run.log_text("note.txt", str(number))
    run.finish()

print("ready", flush=True)
sys.stdin.readline()
with ThreadPoolExecutor({THREADS}) as pool:
    list(pool.map(write, range(first, first + {THREADS})))
"""


def test_sixteen_writers_at_once_lose_nothing(running: Server, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    commands = [
        [sys.executable, "-c", WRITER, running.uri, str(tmp_path), str(first)] for first in range(0, WRITERS, THREADS)
    ]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    writers = [subprocess.Popen(command, env=environment, **pipes) for command in commands]  # type: ignore[call-overload]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    began = time.monotonic()
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    ends = [writer.communicate(timeout=300) for writer in writers]
    seconds = time.monotonic() - began
    assert [writer.returncode for writer in writers] == [0] * PROCESSES, ends
    assert all(errors == "" for _, errors in ends), ends
    client = MlflowClient(running.uri)
    for number in range(WRITERS):
        run = client.get_run((tmp_path / str(number) / "mlflow_run_id").read_text().strip())
        assert (run.info.status, run.data.params) == ("FINISHED", {"number": str(number)})
        for metric, value in (("loss", lambda step, n=number: n / step), ("rate", float)):
            history = client.get_metric_history(run.info.run_id, metric)
            assert [(p.step, p.value) for p in history] == [(s, value(s)) for s in range(1, POINTS + 1)]
        assert [file.path for file in client.list_artifacts(run.info.run_id)] == ["note.txt"]
    print(f"{WRITERS} writers, {WRITERS * POINTS} calls: {seconds:.1f} s, {WRITERS * POINTS / seconds:.0f} calls/s")

"""Nothing secret reaches an MLflow store, a screen or an error line."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from ayf_core.errors import AyfError
from pipelines.commands import doctor
from pipelines.execution.run import run_stage
from pipelines.execution.stage import Stage
from pipelines.redaction import apart, without_secrets
from pipelines.settings.runtime import RuntimeConfig, with_runtime_values
from pipelines.tracking.runs import open_run
from pipelines.tracking.server import database_address, shown
from pipelines.tracking.store import tracking_uri

_spec = importlib.util.spec_from_file_location("toy_project", Path(__file__).parents[1] / "pipelines/toy_project.py")
toy: Any = importlib.util.module_from_spec(_spec)  # type: ignore[arg-type]
_spec.loader.exec_module(toy)  # type: ignore[union-attr]

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "wJalrXUtnFEMI-of-aws",
    "HF_TOKEN": "hf_qwertyuiopasdf",
    "GITHUB_TOKEN": "ghp_0123456789abcdef",
    "PGPASSWORD": "battery-of-postgres",
    "RAY_AUTH_TOKEN": "ray-0f0f0f0f0f0f",
    "MLFLOW_TRACKING_PASSWORD": "stapler-of-mlflow",
    "OPENAI_API_KEY": "sk-zxcvbnmasdfgh",
    "SOME_SERVICE_URL": "https://robot:robots-password@service.example/",
}
IN_URL, IN_QUERY, IN_REMOTE, IN_COMMAND = "url-word-7731", "query-word-7732", "remote-word-7733", "command-word-7734"
HIDDEN = [*(value for name, value in SECRETS.items() if name != "SOME_SERVICE_URL"), "robots-password"]
HIDDEN += [IN_URL, IN_QUERY, IN_REMOTE, IN_COMMAND]


def everything(folder: Path) -> bytes:
    return b"".join(file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file())


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a git remote that has a token in it, in an environment full of secrets."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "argv", ["stage", f"--token={IN_COMMAND}"])
    leaky = f"https://user:{IN_URL}@hub.example/model?token={IN_QUERY}"
    root = Path(
        toy.write_project(tmp_path / "p", f"make: {{size: 3}}\nwalk: {{steps: 5, sleep: 0.0, from: '{leaky}'}}\n")
    )
    commands = (["init"], ["add", "."], ["commit", "-m", "first"])
    for command in (*commands, ["remote", "add", "origin", f"https://me:{IN_REMOTE}@git.example/ayf.git"]):
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        subprocess.run(["git", *identity, *command], cwd=root, check=True, capture_output=True)
    return root


def test_a_stage_tells_mlflow_no_secret(project: Path) -> None:
    def telling(config: object, stage: Stage) -> None:
        """A stage whose settings, messages and notes hold what an error of a library may hold."""
        toy.walk(config, stage)
        message = f"403 for https://user:{IN_URL}@hub.example/model?revision=1&token={IN_QUERY}: {SECRETS['HF_TOKEN']}"
        stage.run.set_tags({"ayf.trial.message": message, "plain": "plain-word-7735"})
        stage.run.log_text("message.txt", message)

    toy.run(project, "make")
    stage = run_stage(project, "walk@up", config=object(), runtime=toy.runtime(), body=telling)
    kept = everything(project / "mlruns")
    assert b"plain-word-7735" in kept
    assert b"https://***@hub.example/model?token=***" in kept
    assert [secret for secret in HIDDEN if secret.encode() in kept] == []
    assert stage.run.read()[0]["ayf.trial.message"].startswith(
        "403 for https://***@hub.example/model?revision=1&token=***"
    )


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("postgresql://ayf:word@db/runs", "postgresql://***@db/runs"),
        ("two: http://a:b@c and ssh://d:e@f/g", "two: http://***@c and ssh://***@f/g"),
        ("https://x.example/?api_key=abc&page=2", "https://x.example/?api_key=***&page=2"),
        ("mail someone@example.org about models:/emd@current", "mail someone@example.org about models:/emd@current"),
        ("http://127.0.0.1:5000/#/experiments/1", "http://127.0.0.1:5000/#/experiments/1"),
    ],
)
def test_credentials_in_addresses_are_hidden_and_the_rest_is_kept(text: str, told: str) -> None:
    assert without_secrets(text) == told


def test_values_of_secret_variables_are_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_TOKEN", "abc123def")
    monkeypatch.setenv("TOKEN_FILE", "/etc/keys/token")  # where it is, not what it is
    monkeypatch.setenv("SHORT_TOKEN", "on")
    assert without_secrets("on /etc/keys/token: abc123def") == "on /etc/keys/token: ***"


# ------------------------------------------------------------------------------------------- addresses of servers


@pytest.fixture
def guarded_server() -> Iterator[tuple[str, list[str | None]]]:
    """A server that refuses everybody and notes the credentials it was given; its address with a password."""
    given: list[str | None] = []

    class Refuse(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            given.append(self.headers.get("Authorization"))
            body = b'{"error_code": "UNAUTHENTICATED", "message": "who are you?"}'
            self.send_response(401)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_GET

        def log_message(self, format: str, *args: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Refuse)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://ayf:pass-word-7736@127.0.0.1:{server.server_port}", given
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, "")  # and so what a test sets is taken back
        monkeypatch.delenv(name)


def test_a_password_in_tracking_uri_is_used_and_not_shown(
    guarded_server: tuple[str, list[str | None]], tmp_path: Path
) -> None:
    uri, given = guarded_server
    runtime = RuntimeConfig(mode="inline", tracking_uri=uri, tracking_retry_seconds=0.0)
    assert "@" not in tracking_uri(tmp_path, runtime)
    assert "7736" not in f"{doctor.store_state(tmp_path, runtime)}"
    with pytest.raises(AyfError, match=r"refuses to open a run.*who are you") as caught:
        open_run("walk@up", run_name="walk", root=tmp_path, scratch=tmp_path, params={}, tags={}, runtime=runtime)
    assert "7736" not in str(caught.value)
    assert given[-1] == "Basic YXlmOnBhc3Mtd29yZC03NzM2"


def test_a_server_with_a_password_that_is_away_is_named_without_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = "http://ayf:pass-word-7736@127.0.0.1:9"
    runtime = RuntimeConfig(mode="inline", tracking_uri=uri, tracking_retry_seconds=0.5)
    for ask in (
        lambda: tracking_uri(tmp_path, runtime),
        lambda: open_run("w", run_name="w", root=tmp_path, scratch=tmp_path, params={}, tags={}, runtime=runtime),
    ):
        with pytest.raises(AyfError, match=r"http://127\.0\.0\.1:9") as caught:
            ask()
        assert "7736" not in str(caught.value)
        assert "\n" not in str(caught.value)
    assert "7736" not in "".join(capsys.readouterr())


def test_a_database_is_no_place_to_send_runs_to(tmp_path: Path) -> None:
    runtime = RuntimeConfig(tracking_uri="postgresql://ayf:pass-word-7736@db.example/runs")
    with pytest.raises(AyfError, match="serve it") as caught:
        tracking_uri(tmp_path, runtime)
    assert "7736" not in str(caught.value)


def test_a_password_on_the_command_line_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AyfError, match=r"can be seen by everyone.*pgpass") as caught:
        database_address("postgresql://ayf:pass-word-7736@db.example/runs")
    assert "7736" not in str(caught.value)
    monkeypatch.setenv("AYF_DATABASE", "postgresql://ayf:pass-word-7736@db.example/runs")
    address = database_address(None)
    assert shown(address) == "postgresql://ayf@db.example/runs"
    assert apart(address) == ("postgresql://db.example/runs", "ayf", "pass-word-7736")


def test_a_password_in_a_submitted_address_is_refused() -> None:
    words = {"tracking_uri": "http://ayf:pass-word-7736@runs.example"}
    with pytest.raises(AyfError, match=r"can be seen by everyone.*MLFLOW_TRACKING_PASSWORD") as caught:
        with_runtime_values(RuntimeConfig(), words)
    assert "7736" not in str(caught.value)
    runtime, _ = with_runtime_values(RuntimeConfig(), {"tracking_uri": "http://runs.example"})
    assert runtime.tracking_uri == "http://runs.example"


@pytest.mark.parametrize("address", ["sqlite:///runs.db", "mysql://u@h/d", "runs"])
def test_only_postgresql_is_served(address: str) -> None:
    with pytest.raises(AyfError, match="is no PostgreSQL"):
        database_address(address)

"""What `ayf serve` and `ayf ui` start and say; on a real database in tests/postgres."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ayf_core.errors import AyfError
from pipelines import machine as ports
from pipelines.commands.main import main
from pipelines.tracking import server

ADDRESS = "postgresql://ayf:word@db.example/runs"


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[list[str], dict[str, str]]]:
    """Commands that would have been started, with their environments, in a project of its own."""
    commands: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(
        "pipelines.tracking.ui.replace_process", lambda command, environment: commands.append((command, environment))
    )
    monkeypatch.setattr("pipelines.tracking.server.migrate", lambda address: None)
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    (tmp_path / "dvc.yaml").write_text("stages: {}\n")
    (tmp_path / "conf/runtime").mkdir(parents=True)
    (tmp_path / "conf/runtime/local.yaml").write_text("mode: inline\n")
    monkeypatch.chdir(tmp_path)
    return commands


def ayf(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_the_address_of_the_database_is_in_the_environment_alone(
    started: list, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AYF_DATABASE", ADDRESS)
    result = ayf("serve", "--port", str(ports.next_free_port("127.0.0.1", 40000)))
    assert result.exit_code == 0, result.output
    ((command, environment),) = started
    assert "word" not in " ".join(command) + result.output
    assert "postgresql://ayf@db.example/runs" in result.output
    assert environment["MLFLOW_BACKEND_STORE_URI"] == "postgresql+psycopg2://ayf:word@db.example/runs"
    assert "AYF_DATABASE" not in environment
    assert command[command.index("--host") + 1] == "127.0.0.1"
    assert "--allowed-hosts" not in command
    assert "warning" not in result.output


@pytest.mark.parametrize(
    ("arguments", "can"),
    [(("serve", "--database", "postgresql://ayf@db.example/runs"), "and its artefacts"), (("ui",), "every run")],
)
def test_what_it_means_that_others_can_reach_a_server_is_said(started: list, arguments: tuple, can: str) -> None:
    free = ports.next_free_port("0.0.0.0", 40000)
    result = ayf(*arguments, "--host", "0.0.0.0", "--port", str(free))
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("warning")]
    assert f"whoever can reach 0.0.0.0:{free} can read, change and delete every run" in line
    assert can in line
    assert "there is no password" in line
    assert len(started) == 1


def test_a_reachable_server_answers_to_this_machines_names_and_those_given() -> None:
    command, _ = server.command(ADDRESS, "/srv", "0.0.0.0", 5000, 2, ["runs.example"])
    hosts = command[command.index("--allowed-hosts") + 1].split(",")
    origins = command[command.index("--cors-allowed-origins") + 1].split(",")
    assert {"runs.example", "runs.example:*", socket.gethostname(), "127.0.0.1:*"} <= set(hosts)
    assert "https://runs.example:5000" in origins
    assert not any("*" in origin for origin in origins)
    assert "*" not in hosts


def test_serve_without_a_database_says_how_to_name_one(started: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AYF_DATABASE", raising=False)
    result = ayf("serve")
    assert result.exit_code == 1
    assert result.stderr == (
        "error: which database? Give --database postgresql://USER@HOST/NAME, or set AYF_DATABASE\n"
    )
    assert not started


def test_artefacts_lie_in_a_folder_or_behind_an_address(tmp_path: Path) -> None:
    assert server.artefact_place(tmp_path, None) == str(tmp_path / "mlruns/served")
    assert server.artefact_place(tmp_path, str(tmp_path / "a/b")) == str(tmp_path / "a/b")
    assert (tmp_path / "a/b").is_dir()
    assert server.artefact_place(tmp_path, "s3://bucket/ayf") == "s3://bucket/ayf"
    (tmp_path / "file").write_text("")
    with pytest.raises(AyfError, match="name another"):
        server.artefact_place(tmp_path, str(tmp_path / "file/folder"))

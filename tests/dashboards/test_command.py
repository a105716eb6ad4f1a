"""`ayf dashboard`: what it writes, where it listens, and its one-line errors."""

import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import dashboards.app
from pipelines import machine as ports
from pipelines.commands.main import main


def ayf(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


@pytest.fixture
def project(repository: Path, store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with settings and runs of its own, entered."""
    shutil.copytree(repository / "conf", tmp_path / "conf")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AYF_DEBUG", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
    assert ayf("params", "use", "preset=smoke").exit_code == 0
    return tmp_path


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The addresses that would have been served; nothing listens."""
    addresses: list[tuple[str, int]] = []
    monkeypatch.setattr(dashboards.app, "serve", lambda app, host, port: addresses.append((host, port)))
    return addresses


@pytest.fixture
def busy_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_export_writes_one_page_of_the_projects_runs(project: Path, served: list, store) -> None:
    result = ayf("dashboard", "--export", "out/page.html")
    assert (result.exit_code, result.stdout) == (0, "wrote out/page.html\n")
    assert store.new["evaluate@emd"] in (project / "out/page.html").read_text()
    assert not served


def test_only_this_machine_can_open_it_unless_asked_otherwise(project: Path, served: list) -> None:
    free = ports.next_free_port("127.0.0.1", 8050)
    result = ayf("dashboard", "--port", str(free))
    assert served == [("127.0.0.1", free)]
    assert "warning" not in result.stderr


def test_another_host_is_served_with_a_warning_of_what_that_means(project: Path, served: list) -> None:
    free = ports.next_free_port("0.0.0.0", 8050)
    result = ayf("dashboard", "--host", "0.0.0.0", "--port", str(free))
    assert served == [("0.0.0.0", free)]
    assert f"whoever can reach 0.0.0.0:{free} can read every run" in result.stderr


def test_a_busy_port_names_the_next_free_one(project: Path, served: list, busy_port: int) -> None:
    result = ayf("dashboard", "--port", str(busy_port))
    assert result.exit_code == 1
    assert f"error: port {busy_port} on 127.0.0.1 is in use: try `ayf dashboard --port " in result.stderr
    assert not served


def test_a_store_that_cannot_be_shown_is_one_line(project: Path, served: list, monkeypatch) -> None:
    def damaged(uri: str) -> None:
        raise dashboards.app.frames.StoreError(f"the MLflow store {uri} cannot be read (disk): check it")

    monkeypatch.setattr(dashboards.app, "build", damaged)
    result = ayf("dashboard", "--port", str(ports.next_free_port("127.0.0.1", 8050)))
    assert result.exit_code == 1
    assert result.stderr.startswith("error: the MLflow store sqlite:///")
    assert result.stderr.count("\n") == 1

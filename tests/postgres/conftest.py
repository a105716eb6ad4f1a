"""A PostgreSQL of the tests' own, and `ayf serve` over it, each in a process that a test may kill and start again."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from pipelines.machine import free_ports

REPOSITORY = Path(__file__).resolve().parents[2]
SECRET = "horse@100%battery"
"""With what an address has to spell otherwise."""


def programs() -> Path | None:
    """The folder of PostgreSQL's programs: Debian does not put them on the path."""
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if (place / "postgres").exists()), None)


class Postgres:
    """A cluster of databases in a folder, on a port of 127.0.0.1 and with a password; it refuses to run as root."""

    user = "ayf"

    def __init__(self, folder: Path, bin_folder: Path) -> None:
        self.folder, self._bin = folder, bin_folder
        (self.port,) = free_ports(1)
        self._as = "postgres" if os.getuid() == 0 else None
        if self._as:
            folder.chmod(0o755)
            shutil.chown(folder, self._as)
        secret = folder / "secret"
        secret.write_text(SECRET + "\n")
        if self._as:
            shutil.chown(secret, self._as)
        options = ["-D", str(folder / "data"), "-U", self.user, "--auth=scram-sha-256", f"--pwfile={secret}", "-N"]
        self._run(["initdb", *options])
        self.start()

    def start(self) -> None:
        options = f"-p {self.port} -k {self.folder} -c listen_addresses=127.0.0.1 -c fsync=off"
        self._run(
            ["pg_ctl", "-D", str(self.folder / "data"), "-w", "-l", str(self.folder / "log"), "-o", options, "start"]
        )

    def stop(self) -> None:
        self._run(["pg_ctl", "-D", str(self.folder / "data"), "-m", "immediate", "stop"])

    def address(self, database: str, password: str | None = None) -> str:
        secret = f":{quote(password, safe='')}" if password else ""
        return f"postgresql://{self.user}{secret}@127.0.0.1:{self.port}/{database}"

    def create(self, database: str) -> None:
        self.query("postgres", f"CREATE DATABASE {database}")

    def query(self, database: str, text: str) -> str:
        psql = [str(self._bin / "psql"), "-At", "-c", text, self.address(database)]
        environment = {**os.environ, "PGPASSWORD": SECRET}
        return subprocess.run(psql, env=environment, check=True, capture_output=True, text=True).stdout.strip()

    def _run(self, command: list[str]) -> None:
        home = pwd.getpwnam(self._as).pw_dir if self._as else None
        done = subprocess.run(
            [str(self._bin / command[0]), *command[1:]],
            user=self._as,
            cwd=home or self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
        )
        assert done.returncode == 0, done.stderr.decode()


class Server:
    """`ayf serve` in a process group of its own."""

    def __init__(self, root: Path, database: str, *options: str, **environment: str) -> None:
        self.root = root
        (self.port,) = free_ports(1)
        self.uri = f"http://127.0.0.1:{self.port}"
        self._command = [
            sys.executable,
            "-c",
            "from pipelines.commands.main import main; main()",
            "serve",
            "--database",
            database,
        ]
        self._command += ["--port", str(self.port), *options]
        self._environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), **environment}
        self._environment.pop("MLFLOW_TRACKING_URI", None)
        self.log = root / "server.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, seconds: float = 180.0) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self._command, cwd=self.root, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
        until = time.monotonic() + seconds
        while time.monotonic() < until and self.process.poll() is None:
            try:
                urllib.request.urlopen(f"{self.uri}/health", timeout=5).close()
                return
            except OSError:
                time.sleep(0.1)
        pytest.fail(f"ayf serve does not answer:\n{self.log.read_text()}")

    def kill(self) -> None:
        """End every process of it, as a power cut would."""
        if self.process is not None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    bin_folder = programs()
    if bin_folder is None:
        pytest.skip("no PostgreSQL here (initdb not found)")
    pytest.importorskip("psycopg2")
    folder = Path(tempfile.mkdtemp(prefix="ayf-pg-"))
    cluster = Postgres(folder, bin_folder)
    yield cluster
    cluster.stop()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def server(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`ayf serve` over an empty database; its password is in a password file, as a person would have it."""
    root = tmp_path_factory.mktemp("team")
    (root / "dvc.yaml").write_text("stages: {}\n")
    postgres.create("runs")
    passwords = root / "pgpass"
    passwords.write_text(f"127.0.0.1:{postgres.port}:*:{postgres.user}:{SECRET}\n")
    passwords.chmod(0o600)
    made = Server(root, postgres.address("runs"), "--workers", "1", PGPASSFILE=str(passwords))
    made.start()
    yield made
    made.kill()


@pytest.fixture
def running(server: Server) -> Server:
    """The server, up: a test before may have left it down."""
    if server.process is None:
        server.start()
    return server

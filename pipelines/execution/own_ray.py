"""A Ray of a process's own on this machine, and what Ray reads from the environment before it is imported.

No worker is started ahead: those of a stage end with it, so a chain would pay for each that is not used, and three
warm ones cost 11 CPU seconds. `benchmarks/ray_overhead.py` prints what a start takes.
"""

from __future__ import annotations

import logging
import os
import secrets
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ayf_core.errors import AyfError
from dashboards.network import reach_local_servers_directly
from pipelines.paths import require_path_for_ray

RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
    "RAY_TRAIN_ENABLE_CONTROLLER_STRUCTURED_LOGGING": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_gcs_server_port_wait_time_s": "120",
}
"""Ray reads these when it is imported. Its workers are polite (nice 15) by default: beside any other work they would
starve. A report waits for the next health check: 2 s unless set."""


def prepare_environment() -> None:
    """Set what Ray reads when it is imported, unless it is set already."""
    reach_local_servers_directly()
    for variable, value in RAY_SETTINGS.items():
        os.environ.setdefault(variable, value)


def interpreter_of_workers() -> dict[str, str]:
    """The part of a runtime environment that names the workers' Python, where its path needs quotes.

    Ray hands the path to a shell as it is: a space or a bracket in it, as in a project's folder, ends every worker
    before it has begun.
    """
    quoted = shlex.quote(sys.executable)
    return {} if quoted == sys.executable else {"py_executable": quoted}


_TOKEN = secrets.token_hex(32)
"""One a process: Ray reads the token once, so the next Ray of the same process has to take the same."""


@contextmanager
def token_in_use(token: str) -> Iterator[None]:
    """The environment of a process that speaks to the Ray of this token; RAY_ADDRESS does not matter to it."""
    saved = {name: os.environ.pop(name, None) for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN")}
    os.environ["RAY_AUTH_TOKEN"] = token
    try:
        yield
    finally:
        for name, value in saved.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


class OwnRay:
    """A Ray of this process's own, on this machine, gone when it ends.

    Its files lie in a folder of its own, so other people's Ray on the same machine and left-overs of killed
    ones do not matter; nor does RAY_ADDRESS.

    Attributes:
        logs: where it writes.
        address: of the head, HOST:PORT, once it runs.
        token: lets a process in.

    Raises:
        AyfError: this Python lies where Ray cannot start it.
    """

    def __init__(self, cpus: int) -> None:
        require_path_for_ray()
        self._cpus = cpus
        self.token = _TOKEN
        self.address: str
        # Unix socket paths are limited to 107 bytes: TMPDIR may be too long, /tmp is not.
        base = "/tmp" if os.access("/tmp", os.W_OK) else None
        self._sweep(Path(base or tempfile.gettempdir()))
        self._folder = Path(tempfile.mkdtemp(prefix=f"ayf-ray-{os.getpid()}-", dir=base))
        self.logs = self._folder / "session_latest" / "logs"

    def __enter__(self) -> OwnRay:
        self._environment = token_in_use(self.token)
        self._environment.__enter__()
        import ray

        if ray.is_initialized():
            raise AyfError("Ray is already running in this process; run_training starts its own")
        try:
            try:
                self._start()
            except Exception:  # beside other work Ray may have timed out on a process of its own
                ray.shutdown()
                self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        import ray

        ray.init(
            address="local",
            num_cpus=self._cpus,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=100 * 2**20,  # nothing but a few small dicts passes through it
            _temp_dir=str(self._folder),
            runtime_env=interpreter_of_workers(),
        )
        self.address = ray.get_runtime_context().gcs_address

    @staticmethod
    def _sweep(base: Path) -> None:
        """Remove what drivers that were killed left behind; folders of other users stay, they cannot be removed."""
        for left_over in base.glob("ayf-ray-*-*"):
            driver = left_over.name.split("-")[2]
            if driver.isdigit() and not Path("/proc", driver).exists() and Path("/proc/self").exists():
                shutil.rmtree(left_over, ignore_errors=True)

    def __exit__(self, *_: object) -> None:
        import ray

        ray.shutdown()
        self._environment.__exit__(None, None, None)
        shutil.rmtree(self._folder, ignore_errors=True)

"""What this machine has and what is missing, before anything is started: the checks behind ``ayf doctor``.

Each check is a function that returns one :class:`Check`; a check that itself fails is reported, never raised.
"""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from rich.markup import escape

from ayf_core.errors import AyfError
from ayf_core.files import first_line
from pipelines.git import git
from pipelines.machine import core_count, next_free_port, port_is_free
from pipelines.paths import require_path_for_ray, require_path_for_slurm
from pipelines.settings.params_file import named_preset
from pipelines.settings.places import project_root
from pipelines.settings.reading import read_config
from pipelines.settings.runtime import RuntimeConfig, load_runtime
from pipelines.slurm import scheduler as slurm

GIB = 2**30
UI_PORT = 5000
# Distribution names, and what each is for.
REQUIRED = {
    "numpy": "arrays",
    "safetensors": "weights on disk",
    "hydra-core": "presets",
    "dvc": "the pipeline",
    "mlflow": "tracking",
    "diffusers": "the codec",
    "scikit-learn": "the digits",
    "scipy": "distances",
    "psutil": "system metrics",
}
OPTIONAL = {
    "torchdiffeq": "adaptive ODE solver for teachers",
    "torch-fidelity": "Inception-v3 features (FID)",
    "plotly": "figures of the report",
}


@dataclass(frozen=True)
class Check:
    """One row of the table. ``state``: ``ok``, ``note`` (works without it) or ``missing`` (required)."""

    name: str
    state: str
    found: str
    remedy: str = ""


def examine(start: Path | None = None) -> list[Check]:
    """Every check, for the project that ``start`` (default: the working directory) lies in."""
    checks = [_guarded("python", python), _guarded("torch", torch_installed)]
    checks += [_guarded("packages", packages), _guarded("optional packages", optional_packages)]
    try:
        root = project_root(start)
    except AyfError as error:
        return [*checks, Check("project", "missing", *_split(str(error)))]
    try:
        runtime = load_runtime(root)
        checks.append(Check("runtime", "ok", runtime_in_words(runtime)))
    except AyfError as error:
        runtime = RuntimeConfig()
        checks.append(Check("runtime", "missing", *_split(str(error))))
    rows: list[tuple[str, Callable[[], Check]]] = [
        ("devices", lambda: devices(runtime)),
        ("cores", lambda: cores(runtime)),
        ("memory", memory),
        ("disk", lambda: disk(root)),
        ("ray", lambda: ray_installed(runtime)),
        ("slurm", lambda: slurm_there(root, runtime)),
        ("git", lambda: git_state(root)),
        ("dvc", lambda: dvc_state(root)),
        ("params.yaml", lambda: params_state(root)),
        ("mlflow store", lambda: store_state(root, runtime)),
        ("port", ui_port),
    ]
    return checks + [_guarded(name, check) for name, check in rows]


def something_required_is_missing(checks: list[Check]) -> bool:
    return any(check.state == "missing" for check in checks)


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    try:
        return check()
    except AyfError as error:
        return Check(name, "missing", *_split(str(error)))
    except Exception as error:  # a doctor that dies of what it looks for tells nothing
        return Check(name, "missing", f"{type(error).__name__}: {first_line(error)}", "see the message")


def _split(line: str) -> tuple[str, str]:
    # Messages of AyfError read "what is wrong: what to do".
    what, separator, remedy = line.rpartition(": ")
    return (what, remedy) if separator else (line, "")


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def python() -> Check:
    found = ".".join(map(str, sys.version_info[:3]))
    return Check("python", "ok", f"{found} ({sys.executable})")


def torch_installed() -> Check:
    version = _version("torch")
    if version is None:
        return Check("torch", "missing", "not installed", "pip install torch")
    return Check("torch", "ok", version)


def packages() -> Check:
    absent = [name for name in REQUIRED if _version(name) is None]
    if absent:
        return Check("packages", "missing", f"without {', '.join(absent)}", f"pip install {' '.join(absent)}")
    return Check("packages", "ok", ", ".join(f"{name} {_version(name)}" for name in ("dvc", "mlflow", "diffusers")))


def optional_packages() -> Check:
    absent = [name for name in OPTIONAL if _version(name) is None]
    if absent:
        without = ", ".join(f"{name} ({OPTIONAL[name]})" for name in absent)
        return Check("optional packages", "note", f"without {without}", "install them when you need them")
    return Check("optional packages", "ok", ", ".join(OPTIONAL))


def runtime_in_words(runtime: RuntimeConfig) -> str:
    workers = f"{runtime.workers} worker{'s' if runtime.workers > 1 else ''}"
    return f"{runtime.mode}, {workers}, device {runtime.device}"


def devices(runtime: RuntimeConfig) -> Check:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        return Check("devices", "ok", ", ".join(f"{gpu.name} {gpu.total_memory / GIB:.0f} GiB" for gpu in names))
    if runtime.device == "cuda":
        return Check("devices", "missing", "no CUDA device", "set device: auto in the runtime, or add a GPU")
    return Check("devices", "ok", "CPU (no CUDA device: not needed for the presets here)")


def cores(runtime: RuntimeConfig) -> Check:
    usable = core_count()
    wanted = runtime.workers * (runtime.threads_per_worker or 1)
    if wanted > usable:
        return Check("cores", "note", f"{usable}, while the runtime asks for {wanted}", "expect slow training")
    return Check("cores", "ok", str(usable))


def memory() -> Check:
    import psutil

    state = psutil.virtual_memory()
    found = f"{state.available / GIB:.1f} of {state.total / GIB:.1f} GiB free"
    if state.available < 4 * GIB:
        return Check("memory", "note", found, "the default pipeline wants 4 GiB")
    return Check("memory", "ok", found)


def disk(root: Path) -> Check:
    free = shutil.disk_usage(root).free
    found = f"{free / GIB:.1f} GiB free in {root}"
    if free < GIB:
        return Check("disk", "missing", found, "free at least 1 GiB")
    return Check("disk", "ok", found)


def ray_installed(runtime: RuntimeConfig) -> Check:
    version = _version("ray")
    if version is None:
        state = "missing" if runtime.mode == "ray" else "note"
        return Check("ray", state, "not installed", "pip install 'ray[default,train,tune]'")
    if runtime.mode == "ray":
        require_path_for_ray()
    return Check("ray", "ok", version)


def slurm_there(root: Path, runtime: RuntimeConfig) -> Check:
    """The partitions with their nodes; without a Slurm only a runtime that needs one lacks something."""
    wanted = runtime.mode == "slurm"
    try:
        nodes = slurm.nodes()
        if wanted:
            require_path_for_slurm(root)
            slurm.check(runtime)
    except AyfError as error:
        return Check("slurm", *("missing", *_split(str(error))) if wanted else ("note", "none here"))
    counted = Counter(node.partition for node in nodes)
    return Check("slurm", "ok", ", ".join(f"{name} ({count} nodes)" for name, count in counted.items()))


def git_state(root: Path) -> Check:
    if shutil.which("git") is None:
        return Check("git", "missing", "no git command", "install git")
    head = git(root, "rev-parse", "--short", "HEAD")
    if head is None:
        return Check("git", "missing", "no commit here", "git init, then commit: runs are tagged with it")
    changed = len((git(root, "status", "--porcelain") or "").splitlines())
    state = f"{changed} changed or new paths" if changed else "clean"
    return Check("git", "ok", f"commit {head}, {state}")


def dvc_state(root: Path) -> Check:
    if not (root / ".dvc").is_dir():
        return Check("dvc", "missing", f"no .dvc folder in {root}", "dvc init")
    if not (root / "dvc.yaml").is_file():
        return Check("dvc", "missing", f"no dvc.yaml in {root}", "restore it: git checkout dvc.yaml")
    built = "pipeline has run" if (root / "dvc.lock").is_file() else "pipeline has not run yet (dvc repro)"
    return Check("dvc", "ok", built)


def params_state(root: Path) -> Check:
    _, problems = read_config(root)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        return Check("params.yaml", "missing", problems[0] + more, "ayf params check")
    return Check("params.yaml", "ok", f"valid, from preset {named_preset(root)}")


def store_state(root: Path, runtime: RuntimeConfig) -> Check:
    """Asks the store itself; the project's own is created if there is none, as the first run would."""
    from pipelines.tracking.store import tracking_uri

    return Check("mlflow store", "ok", f"ready: {tracking_uri(root, runtime)}")


def ui_port() -> Check:
    if port_is_free("127.0.0.1", UI_PORT):
        return Check("port", "ok", f"{UI_PORT} is free for `ayf ui`")
    free = next_free_port("127.0.0.1", UI_PORT)
    return Check("port", "note", f"{UI_PORT} is in use", f"ayf ui --port {free}")


def table_rows(checks: list[Check]) -> Iterator[tuple[str, str, str]]:
    """The rows as the table shows them: a mark, the name, what was found and below it what to do."""
    marks = {"ok": "[green]ok[/]", "note": "[yellow]note[/]", "missing": "[red]missing[/]"}
    for check in checks:
        yield (
            marks[check.state],
            check.name,
            escape(check.found) + (f"\n-> {escape(check.remedy)}" if check.remedy else ""),
        )

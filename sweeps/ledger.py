"""The memory of a sweep, in its folder: what was proposed, what each trial reported, how it ended.

Plain JSON, each file written beside and renamed. Whatever is killed, the ledger says which trials there are; a resumed
sweep reads it and nothing else. Ray Tune's own state is thrown away: it is pickled, and lags behind.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ayf_core import files
from ayf_core.errors import AyfError
from sweeps.space import Point

FINISHED, STOPPED, FAILED = "finished", "stopped", "failed"


@dataclass(frozen=True)
class Report:
    """What was measured at a training step."""

    step: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class Trial:
    """One trial as the ledger knows it; `status` None: not ended."""

    number: int
    point: Point
    folder: Path
    status: str | None = None
    reports: tuple[Report, ...] = ()
    message: str = ""
    seconds: float = 0.0

    @property
    def step(self) -> int:
        return self.reports[-1].step if self.reports else 0

    @property
    def metrics(self) -> Mapping[str, float]:
        """What was measured last."""
        return self.reports[-1].metrics if self.reports else {}


@dataclass
class Ledger:
    """The trials of one search (or of one confirmation), in `folder`, by number from 1.

    Raises:
        AyfError: a file of the folder is damaged.
    """

    folder: Path
    trials: dict[int, Trial] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        for place in sorted(self.folder.iterdir()):
            if place.name.isdigit() and (place / "trial.json").exists():
                trial = _read(place)
                self.trials[trial.number] = trial

    def propose(self, point: Point) -> Trial:
        """Note a new trial before it starts."""
        number = max(self.trials, default=0) + 1
        trial = Trial(number, dict(point), self.folder / f"{number:04d}")
        trial.folder.mkdir(exist_ok=True)  # a kill may have come before the note
        self.move(number, point, trial=trial)
        return trial

    def move(self, number: int, point: Point, *, trial: Trial | None = None) -> None:
        """Note the settings a trial now has: a member of a population changes them while it trains."""
        known = trial or self.trials[number]
        write_json(known.folder / "trial.json", {"number": number, "point": point})
        self.trials[number] = Trial(number, dict(point), known.folder, known.status, known.reports)

    def report(self, number: int, report: Report) -> bool:
        """Note a measurement; False if it was known, as after a resume. Later ones of an abandoned path are dropped."""
        known = self.trials[number]
        if any(other.step == report.step and other.metrics == report.metrics for other in known.reports):
            return False
        kept = tuple(other for other in known.reports if other.step < report.step)
        self.trials[number] = Trial(known.number, known.point, known.folder, None, (*kept, report))
        _write_result(self.trials[number])
        return True

    def end(self, number: int, status: str, seconds: float, message: str = "") -> Trial:
        """Note how a trial ended."""
        known = self.trials[number]
        ended = Trial(known.number, known.point, known.folder, status, known.reports, message, seconds)
        self.trials[number] = ended
        _write_result(ended)
        return ended

    @property
    def waiting(self) -> list[Trial]:
        """Proposed and not ended, in order."""
        # A copy: another thread may be proposing.
        return [trial for trial in list(self.trials.values()) if trial.status is None]

    @property
    def ended(self) -> list[Trial]:
        return [trial for trial in self.trials.values() if trial.status is not None]


def write_json(path: Path, content: Any, *, to_disk: bool = True) -> None:
    """Write beside, bring to the disk, rename: whole or not at all.

    Without `to_disk` only a power failure could lose it: enough for what stands elsewhere too.

    Raises:
        AyfError: the disk is full, or the folder may not be written.
    """
    try:
        files.write_whole(path, json.dumps(content) + "\n", to_disk=to_disk)
    except OSError as error:
        raise AyfError(f"cannot write {path} ({error.strerror}): make room, then go on with --resume") from error


def read_json(path: Path, keys: set[str]) -> dict[str, Any]:
    """A JSON object that has these keys.

    Raises:
        AyfError: the file is damaged or not a sweep's.
    """
    try:
        content = files.read_json(path)
        if not isinstance(content, dict) or not keys <= content.keys():
            raise ValueError(f"it lacks {', '.join(sorted(keys - set(content if isinstance(content, dict) else ())))}")
    except (OSError, ValueError) as error:
        raise AyfError(
            f"sweep folder damaged: {path} ({' '.join(str(error).split())}): restore that file, or delete its folder "
            "to lose this trial alone"
        ) from error
    return content


def _read(place: Path) -> Trial:
    noted = read_json(place / "trial.json", {"number", "point"})
    if not isinstance(noted["number"], int) or f"{noted['number']:04d}" != place.name:
        raise AyfError(
            f"sweep folder damaged: {place / 'trial.json'} is of trial {noted['number']}: delete that folder"
        )
    result = place / "result.json"
    if not result.exists():
        return Trial(noted["number"], noted["point"], place)
    known = read_json(result, {"status", "reports", "message", "seconds"})
    reports = tuple(Report(entry["step"], entry["metrics"]) for entry in known["reports"])
    return Trial(noted["number"], noted["point"], place, known["status"], reports, known["message"], known["seconds"])


def _write_result(trial: Trial) -> None:
    content = {
        "status": trial.status,
        "reports": [{"step": report.step, "metrics": dict(report.metrics)} for report in trial.reports],
        "message": trial.message,
        "seconds": trial.seconds,
        "written": time.time(),
    }
    # A measurement also stands in the trial's own log; how it ended stands here alone.
    write_json(trial.folder / "result.json", content, to_disk=trial.status is not None)

"""Puts the tables and the picture of a finished run into docs/results.md and README.md.

    make repro
    python docs/results.py [--project FOLDER]

A table stands between `<!-- table: NAME -->` and `<!-- end -->`; README has the columns and rows that `SHORT` names.
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_TABLE = re.compile(r"(<!-- table: (?P<name>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

COLUMNS = {
    "model": "Model",
    "evaluations": "network calls",
    "fd": "FD",
    "ratio to best teacher": "ratio to best teacher",
    "fd_test": "FD to test images",
    "precision": "precision",
    "recall": "recall",
    "copy_ratio": "copy ratio",
}
"""README's columns, and what they are called there."""
WITH_INTERVAL = ("fd",)
SHORT = {
    "Teacher": ("4", "31"),
    "Student, AYF-EMD": ("1", "2", "4"),
    "Student, AYF-LMD": ("4",),
    "Student, adversarial finish": ("1", "2", "4"),
}
"""README's rows: of each model, at so many network calls."""


def parts_of(report: str) -> dict[str, str]:
    """The report's two tables and the line between them, as they stand there."""
    quality, floor, guidance, *_ = [part.strip() for part in report.split("\n\n") if part.strip()]
    return {"quality": quality, "floor": floor, "guidance": guidance, "short": short(quality)}


def short(quality: str) -> str:
    """README's part of the first table."""
    header, _, *lines = (_cells(line) for line in quality.splitlines())
    rows = [dict(zip(header, line, strict=True)) for line in lines]
    chosen = [row for row in rows if row["evaluations"] in SHORT.get(row["model"], ())]
    made = [list(COLUMNS.values()), ["---"] * len(COLUMNS)]
    for row in chosen:
        made.append([row[name] if name in WITH_INTERVAL else row[name].split(" ± ")[0] for name in COLUMNS])
    return "\n".join("| " + " | ".join(cells) + " |" for cells in made)


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--project", type=Path, default=ROOT, help="the clone in which it ran")
    reports = parser.parse_args().project / "reports"
    parts = parts_of((reports / "results.md").read_text(encoding="utf-8"))
    for page in (ROOT / "README.md", ROOT / "docs" / "results.md"):
        text = page.read_text(encoding="utf-8")
        page.write_text(_TABLE.sub(lambda m: f"{m[1]}{parts[m['name']]}\n{m[3]}", text), encoding="utf-8")
    shutil.copyfile(reports / "samples.png", ROOT / "docs" / "samples.png")


if __name__ == "__main__":
    main()

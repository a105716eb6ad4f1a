"""The table of docs/reliability.md, from what the tests of faults recorded while they ran.

    python -m pytest tests/reliability tests/cluster --junitxml=faults.xml
    python docs/reliability.py faults.xml

prints it; with `--write` it takes the place of the table in docs/reliability.md. A row stands there only for a test
that ran and passed.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from xml.etree import ElementTree

PAGE = Path(__file__).with_name("reliability.md")
BEGIN, END = "<!-- table of faults -->", "<!-- end of the table -->"
HEADER = ["fault", "what goes on", "steps lost", "seconds to go on", "bytes of an undisturbed run"]


def rows(reports: Iterable[Path]) -> Iterator[dict]:
    """What the passed tests of JUnit reports noted as `fault`."""
    for report in reports:
        for case in ElementTree.parse(report).iter("testcase"):
            if case.find("failure") is None and case.find("error") is None:
                for noted in case.iter("property"):
                    if noted.get("name") == "fault":
                        yield json.loads(noted.get("value") or "{}")


def table(found: Iterable[dict]) -> str:
    """In Markdown, one row a fault."""
    lines = ["| " + " | ".join(HEADER) + " |", "|---|---|--:|--:|---|"]
    for row in found:
        same = "the same" if row["same_bytes"] else "equal to rounding"
        lines.append(f"| {row['fault']} | {row['then']} | {row['lost_steps']} | {row['seconds']} | {same} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reports", nargs="+", type=Path, help="what pytest --junitxml wrote")
    parser.add_argument("--write", action="store_true", help="put the table into docs/reliability.md")
    arguments = parser.parse_args()
    made = table(rows(arguments.reports))
    print(made)
    if arguments.write:
        between = re.compile(f"{BEGIN}.*{END}", re.DOTALL)
        PAGE.write_text(between.sub(lambda _: f"{BEGIN}\n{made}\n{END}", PAGE.read_text()))


if __name__ == "__main__":
    main()

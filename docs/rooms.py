"""Writes the tables of docs/files.md from the modules' own first sentences.

    python docs/rooms.py            writes them
    python docs/rooms.py --check    exit status 1 where they are not up to date

A table stands between `<!-- rooms: FOLDER -->` and `<!-- end -->`.
"""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "files.md"
_TABLE = re.compile(r"(<!-- rooms: (?P<folder>[\w/]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def first_sentence(file: Path) -> str:
    """The first sentence of a module's docstring, on one line."""
    text = " ".join((ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or "").split("\n\n")[0].split())
    return re.split(r"(?<=\.) (?=[A-Z])", text)[0].rstrip(".").replace("|", "\\|")


def table(folder: str) -> str:
    """A row for each module of a folder, and one for each folder in it."""
    rows = ["| | |", "|---|---|"]
    for place in sorted((ROOT / folder).iterdir(), key=lambda path: (path.is_dir(), path.name)):
        if place.is_dir() and (place / "__init__.py").exists():
            rows.append(f"| `{place.name}/` | {first_sentence(place / '__init__.py')} |")
        elif place.suffix == ".py" and place.name != "__init__.py":
            rows.append(f"| `{place.name}` | {first_sentence(place)} |")
    return "\n".join(rows) + "\n"


def with_tables(page: str) -> str:
    """The page with every table as it should be."""
    return _TABLE.sub(lambda match: match[1] + table(match["folder"]) + match[3], page)


def main(arguments: list[str]) -> int:
    page = PAGE.read_text(encoding="utf-8")
    written = with_tables(page)
    if arguments == ["--check"]:
        return int(page != written)
    PAGE.write_text(written, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Changes one line of the code at a time and sees whether the fast tests notice: `make mutants`.

    python -m tests.mutants [--count 20] [--seed 0] [--limit 120] [--list] [FILE ...]

Each mutant is a copy of the code in a temporary folder with one expression or statement changed: a comparison or an
operator replaced, a number moved by one, a condition turned round, a setting taken from its sibling, a statement left
out. The tests that know the changed file run on it until the first fails; past the time limit it counts as noticed (it
hangs). Which tests know a file: those that name its module. They must pass on the code as it is. A survivor
is a test that is missing, or a change that alters nothing.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CODE = ("ayf_core", "pipelines/stages")
COPIED = ("ayf_core", "pipelines", "dashboards", "sweeps", "conf", "plugins", "tests", "benchmarks")
COPIED_FILES = ("dvc.yaml", "params.yaml", "pyproject.toml", "constraints.txt")
MOST_TESTS = 6
"""Test files that one mutant is run against."""

SWAPS: dict[type, type] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.And: ast.Or, ast.Or: ast.And,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip


@dataclass(frozen=True)
class Mutant:
    """One change: the text of a file from `start` to `end`, and what takes its place."""

    path: str
    line: int
    start: int
    end: int
    old: str
    new: str

    def apply(self, source: bytes) -> bytes:
        return source[: self.start] + self.new.encode() + source[self.end :]

    def __str__(self) -> str:
        differs = next((i for i, (a, b) in enumerate(zip(self.old, self.new, strict=False)) if a != b), 0)
        begin = max(0, differs - 20) if len(self.old) > 100 else 0
        return f"{self.path}:{self.line}: {self.old[begin : begin + 100]}  ->  {self.new[begin : begin + 100]}"


def mutants_of(path: Path) -> Iterator[Mutant]:
    """Every change that this tool can make to a file."""
    source = path.read_bytes()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))

    def changed(node: ast.expr | ast.stmt, new: str) -> Mutant:
        start = starts[node.lineno - 1] + node.col_offset
        end = starts[(node.end_lineno or node.lineno) - 1] + (node.end_col_offset or 0)
        return Mutant(str(path.relative_to(ROOT)), node.lineno, start, end, ast.unparse(node), new)

    tree = ast.parse(source)
    ignored = set(_not_run(tree))
    for node in ast.walk(tree):
        if node in ignored:
            continue
        if isinstance(node, ast.expr):
            yield from (changed(node, new) for new in _expressions(node))
        elif isinstance(node, ast.Expr | ast.AugAssign) and not isinstance(node.value, ast.Constant | ast.Yield):
            yield changed(node, "pass")


def _not_run(tree: ast.AST) -> Iterator[ast.AST]:
    """Annotations, what a message says and the like: a change there is no change of behaviour."""
    for node in ast.walk(tree):
        parts: list[ast.AST | None] = []
        if isinstance(node, ast.FunctionDef):
            arguments = [*node.args.args, *node.args.kwonlyargs, node.args.vararg, node.args.kwarg]
            parts += [node.returns, *(each.annotation for each in arguments if each), *node.decorator_list]
        elif isinstance(node, ast.AnnAssign):
            parts += [node.annotation]
        elif isinstance(node, ast.ClassDef):
            parts += node.decorator_list
        elif isinstance(node, ast.keyword) and node.arg == "strict":  # of zip: the lengths are equal
            parts += [node.value]
        elif isinstance(node, ast.Raise | ast.JoinedStr) or (isinstance(node, ast.If) and _for_types(node)):
            parts += [node]
        for part in parts:
            yield from ast.walk(part) if part else ()


def _for_types(node: ast.If) -> bool:
    return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def _is_text(node: ast.BinOp) -> bool:
    return any(isinstance(side, ast.JoinedStr | ast.Constant) and not _is_number(side) for side in ast.walk(node))


def _is_number(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, int | float)


def _expressions(node: ast.expr) -> Iterator[str]:
    """What may stand in place of an expression, as text."""
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        yield ast.unparse(ast.Compare(node.left, [SWAPS[type(node.ops[0])](), *node.ops[1:]], node.comparators))
    elif isinstance(node, ast.BinOp) and type(node.op) in SWAPS and not _is_text(node):  # not the / of paths
        yield f"({ast.unparse(ast.BinOp(node.left, SWAPS[type(node.op)](), node.right))})"
    elif isinstance(node, ast.BoolOp):
        yield f"({ast.unparse(ast.BoolOp(SWAPS[type(node.op)](), node.values))})"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield f"({ast.unparse(node.operand)})"
    elif isinstance(node, ast.IfExp):
        yield f"({ast.unparse(ast.IfExp(node.test, node.orelse, node.body))})"
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield str(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield repr(node.value + 1)
    elif isinstance(node, ast.Call) and len(node.keywords) > 1 and all(each.arg for each in node.keywords):
        for i, (first, second) in enumerate(pairwise(node.keywords)):  # crossed wires: two settings exchanged
            if ast.dump(first.value) == ast.dump(second.value):
                continue
            crossed = [ast.keyword(first.arg, second.value), ast.keyword(second.arg, first.value)]
            yield ast.unparse(ast.Call(node.func, node.args, [*node.keywords[:i], *crossed, *node.keywords[i + 2 :]]))


def sample(files: list[Path], count: int, seed: int) -> list[Mutant]:
    """So many mutants, from as many files as there are; the same for the same code and seed."""
    chance = random.Random(seed)
    by_file = {file: sorted(mutants_of(file), key=lambda each: (each.start, each.new)) for file in sorted(files)}
    chosen: list[Mutant] = []
    while len(chosen) < count and any(by_file.values()):
        sizes = [len(mutants) for mutants in by_file.values()]
        (file,) = chance.choices(list(by_file), weights=sizes)
        chosen.append(by_file[file].pop(chance.randrange(len(by_file[file]))))
    return chosen


def tests_of(path: str) -> list[str]:
    """Test files that name a module, or else others of its folder: those about little else first."""
    module = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    folder, _, name = module.rpartition(".")
    room = folder.rpartition(".")[2]
    scored = []
    for file in sorted(ROOT.glob("tests/**/test_*.py")):
        text = file.read_text()
        found = 1000 * (file.stem == f"test_{name}") + 300 * (module in text) + 200 * file.stem.endswith(f"_{room}")
        found += len(re.findall(rf"\b{name}\b", text)) + text.count(f"{folder}.")
        if found:
            scored.append((-found, str(file.relative_to(ROOT))))
    return [file for _, file in sorted(scored)[:MOST_TESTS]]


def outcome(place: Path, mutant: Mutant, limit: float) -> str:
    """`killed` or `SURVIVED`; `untold` where the tests do not pass on the code as it is."""
    source, tests = (ROOT / mutant.path).read_bytes(), tuple(tests_of(mutant.path))
    if not pass_as_it_is(place, tests, 3 * limit):
        return "untold"
    (place / mutant.path).write_bytes(mutant.apply(source))
    survived = passes(place, tests, limit)
    (place / mutant.path).write_bytes(source)
    return "SURVIVED" if survived else "killed"


@cache
def pass_as_it_is(place: Path, tests: tuple[str, ...], limit: float) -> bool:
    return bool(tests) and passes(place, tests, limit)


def passes(place: Path, tests: tuple[str, ...], limit: float) -> bool:
    """Whether the fast tests of these files pass on the code in `place` within the limit."""
    environment = {**os.environ, "PYTHONPATH": str(place), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", "-p", "no:cacheprovider", *tests]
    # In a session of its own: what hangs is ended with all that it started.
    with subprocess.Popen(
        command, cwd=place, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as process:  # fmt: skip
        try:
            return process.wait(timeout=limit) == 0
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            return False


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="change these only")
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=120, help="seconds a mutant may take")
    parser.add_argument("--list", action="store_true", help="show the mutants and run nothing")
    arguments = parser.parse_args()
    files = [file.resolve() for file in arguments.files] or [f for code in CODE for f in (ROOT / code).rglob("*.py")]
    mutants = sample(files, arguments.count, arguments.seed)
    if arguments.list:
        print("\n".join(map(str, mutants)))
        return
    with tempfile.TemporaryDirectory(prefix="ayf-mutants-") as folder:
        place = Path(folder)
        for name in COPIED:
            shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in COPIED_FILES:
            shutil.copyfile(ROOT / name, place / name)
        found: dict[str, list[str]] = {"killed": [], "SURVIVED": [], "untold": []}
        for mutant in mutants:
            began, word = time.monotonic(), outcome(place, mutant, arguments.limit)
            found[word].append(str(mutant))
            print(f"{word:9} {time.monotonic() - began:4.0f} s  {mutant}", flush=True)
    killed, survived = len(found["killed"]), found["SURVIVED"]
    print("\n".join([f"killed {killed} of {killed + len(survived)}; survivors:", *survived]))
    if found["untold"]:
        print(f"{len(found['untold'])} more: their tests fail, or there are none, as the code is")


if __name__ == "__main__":
    main()

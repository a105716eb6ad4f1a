"""The code that can change a stage's result: what counts, for which stages, and changes that a person accepts."""

import ast
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ayf_core.errors import AyfError
from pipelines.project.accepted import Accepted, accept, as_accepted
from pipelines.project.choices import ROOMS
from pipelines.project.code import Sources, as_text, check_code, code_file, stage_code, write_code
from pipelines.project.declarations import read_declarations
from pipelines.project.syntax import read_source
from pipelines.settings.params_file import from_preset

REPOSITORY = Path(__file__).resolve().parents[2]
PLAIN = "import math\n\nLIMIT = 3\n\n\ndef area(radius):\n    return math.pi * radius**2\n"


@pytest.fixture
def digest(tmp_path: Path) -> Callable[[str], str]:
    def of(text: str) -> str:
        path = tmp_path / "module.py"
        path.write_text(text)
        return read_source(path, "package.module").digest

    return of


@pytest.mark.parametrize(
    "same",
    [
        PLAIN.replace("LIMIT = 3", "LIMIT = 3  # a comment"),
        PLAIN.replace("LIMIT = 3", "LIMIT = (\n    3\n)"),
        PLAIN.replace("LIMIT = 3", 'LIMIT = 3\n"""What the limit is for."""'),
        '"""A docstring."""\n' + PLAIN,
        PLAIN.replace("    return", '    """Of a disc."""\n    return'),
        PLAIN.replace("import math", "from __future__ import annotations\n\nimport math"),
        PLAIN.replace("LIMIT", "if TYPE_CHECKING:\n    import os\n\nLIMIT"),
        PLAIN.replace("    return", "    pass\n    return"),
    ],
)
def test_what_cannot_change_a_result_changes_no_digest(digest: Callable[[str], str], same: str) -> None:
    assert digest(same) == digest(PLAIN)


@pytest.mark.parametrize(
    "other",
    [
        PLAIN.replace("3", "4"),
        PLAIN.replace("3", "3.0"),
        PLAIN.replace("3", "'3'"),
        PLAIN.replace("*", "/", 1),
        PLAIN.replace("def area", "@cache\ndef area"),
        PLAIN.replace("area(radius)", "area(radius=1)"),
        PLAIN.replace("return math.pi", "yield math.pi"),
        PLAIN.replace("LIMIT = 3\n", ""),
        PLAIN + "LIMIT = 4\n",
    ],
)
def test_what_can_change_a_result_changes_the_digest(digest: Callable[[str], str], other: str) -> None:
    assert digest(other) != digest(PLAIN)


def test_the_meaning_of_a_setting_is_documentation_and_its_range_is_not(digest: Callable[[str], str]) -> None:
    text = 'from ayf_core.settings import setting\n\nwidth: int = setting("width", at_least=1)\n'
    assert digest(text) == digest(text.replace('"width"', '"hidden width"'))
    assert digest(text) != digest(text.replace("at_least=1", "at_least=2"))
    own = text.replace("ayf_core.settings", "elsewhere")
    assert digest(own) != digest(own.replace('"width"', '"hidden width"'))


def test_fields_that_another_python_adds_or_leaves_empty_do_not_count(
    digest: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = PLAIN + 'class A: x = f"a{LIMIT}b"\n'
    before, parse = digest(text), ast.parse

    def parse_as_a_later_python(source: bytes) -> ast.Module:
        tree = parse(source)
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                node._fields = (*node._fields, "new_parts", "new_part")  # type: ignore[assignment]
                node.new_parts, node.new_part = [], None  # type: ignore[union-attr]
            if isinstance(node, ast.JoinedStr):  # as Python 3.12 may split it
                node.values[:1] = [ast.Constant(value=""), ast.Constant(value="a")]
        return tree

    monkeypatch.setattr("pipelines.project.syntax.ast.parse", parse_as_a_later_python)
    assert digest(text + "\n") == before  # another file for the cache of `read_source`


# -------------------------------------------------------------------------------------------------- the closure


def closure(root: Path, *modules: str) -> set[str]:
    return set(Sources(root, ["lib"]).closure(modules))


@pytest.fixture
def lib(tmp_path: Path) -> Callable[..., Path]:
    def write(**files: str) -> Path:
        for name, text in {"__init__": "", **files}.items():
            path = tmp_path / "lib" / f"{name.replace('.', '/')}.py"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    return write


def test_a_closure_holds_packages_above_and_imports_inside_functions(lib: Callable[..., Path]) -> None:
    root = lib(
        a="def f():\n    from lib.deep import b\n",
        unused="",
        **{"deep.__init__": "from . import c", "deep.b": "", "deep.c": "import os"},
    )
    assert closure(root, "lib.a") == {"lib", "lib.a", "lib.deep", "lib.deep.b", "lib.deep.c"}


def test_imports_for_type_checkers_are_no_imports(lib: Callable[..., Path]) -> None:
    root = lib(
        a="from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import lib.b\nelse:\n    import lib.c\n", b="", c=""
    )
    assert closure(root, "lib.a") == {"lib", "lib.a", "lib.c"}


def test_a_name_that_a_package_imports_when_asked_is_followed_alone(lib: Callable[..., Path]) -> None:
    lazy = "if TYPE_CHECKING:\n    from lib.b import B\n    from lib.c import C\n\ndef __getattr__(name): ...\n"
    root = lib(__init__=lazy, a="from lib import B\n", whole="import lib\n", b="", c="")
    assert closure(root, "lib.a") == {"lib", "lib.a", "lib.b"}
    assert closure(root, "lib.whole") == {"lib", "lib.whole", "lib.b", "lib.c"}


def test_a_component_asked_for_by_name_belongs_to_the_closure(
    lib: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = lib(
        a='from ayf_core.registry import find\nfind("network", "dot")\n',
        b='from ayf_core.registry import components\ncomponents("measure")\n',
        c='find("network", "dot")\n',
        net='@register("network", "dot", title="Dot")\nclass Dot: ...\n',
        m1='@register("measure", "one_thing", title="1")\nclass M: ...\n',
        m2='@register("measure", "another", title="2")\nclass M: ...\n',
    )
    from ayf_core.registry import plugins, use_plugins

    before = plugins()
    monkeypatch.syspath_prepend(root)
    use_plugins(["lib"])
    try:
        assert closure(root, "lib.a") == {"lib", "lib.a", "lib.net"}
        assert {"lib.m1", "lib.m2"} <= closure(root, "lib.b")
        assert closure(root, "lib.c") == {"lib", "lib.c"}
    finally:
        use_plugins(before)


def test_code_that_is_not_python_is_named_with_its_line(lib: Callable[..., Path]) -> None:
    with pytest.raises(AyfError, match=r"a\.py, line 2: this is not Python"):
        closure(lib(a="x = 1\nx =\n"), "lib.a")


# ------------------------------------------------------------------------------------------- which stages rebuild


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This repository's code and dvc.yaml, to edit."""
    root = tmp_path_factory.mktemp("copy")
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("ayf_core", "dashboards", "pipelines"):
        shutil.copytree(REPOSITORY / name, root / name, ignore=ignored)
    for name in ("dvc.yaml", "params.yaml"):
        shutil.copy(REPOSITORY / name, root / name)
    write_code(root)
    return root


TRAININGS = {"train_codec", "train_features", "train_teacher", "train_weak_teacher", "distill", "finetune_adversarial"}
PLACES = {
    "ayf_core/training/trainer.py": TRAININGS,
    "pipelines/stages/train_features.py": {"train_features"},
    "pipelines/stages/distill.py": {"distill", "finetune_adversarial"},
    "pipelines/execution/ray_train.py": set(),
    "pipelines/tracking/runs.py": set(),
}
EDITS: dict[str, Callable[[str], str]] = {
    "comment": lambda text: text + "\n# a comment\n",
    "docstring": lambda text: text.replace('"""', '"""Said otherwise. ', 1),
    "constant": lambda text: text + "\nANOTHER_LIMIT = 3\n",
    "code": lambda text: text + "\n\ndef other() -> int:\n    return 3\n",
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("place", PLACES)
def test_an_edit_rebuilds_the_stages_whose_result_it_can_change(copy: Path, place: str, edit: str) -> None:
    path = copy / place
    text = path.read_text()
    try:
        path.write_text(EDITS[edit](text))
        now = stage_code(copy)
    finally:
        path.write_text(text)
    rebuilt = {
        name.partition("@")[0] for name, modules in now.items() if as_text(modules) != code_file(copy, name).read_text()
    }
    assert rebuilt == (PLACES[place] if edit in ("constant", "code") else set())


@pytest.mark.parametrize(
    "folder", ["ayf_core/objectives", "ayf_core/networks", "ayf_core/training", "pipelines/stages"]
)
def test_a_new_file_that_nothing_imports_rebuilds_nothing(copy: Path, folder: str) -> None:
    path = copy / folder / "brand_new.py"
    try:
        path.write_text("LIMIT = 3\n")
        assert {n: as_text(m) for n, m in stage_code(copy).items()} == {
            n: code_file(copy, n).read_text() for n in stage_code(copy)
        }
    finally:
        path.unlink()


def test_a_stage_whose_code_was_edited_since_it_was_written_down_does_not_start(copy: Path) -> None:
    path = copy / "pipelines/stages/report.py"
    report = read_declarations(copy)["report"]
    text = path.read_text()
    check_code(copy, report)
    try:
        path.write_text(text + "\nLIMIT = 3\n")
        with pytest.raises(AyfError, match=r"\(pipelines\.stages\.report\): run `dvc repro --force code`"):
            check_code(copy, report)
        check_code(copy, read_declarations(copy)["train_codec"])
    finally:
        path.write_text(text)


# ------------------------------------------------------------------------------------------- changes accepted


def test_an_accepted_change_counts_as_before_for_its_stages_alone() -> None:
    changes = [
        Accepted("a", "new", "old", ("x",), "why", "today"),
        Accepted("b", "added", None, ("x",), "why", "today"),
    ]
    changes += [Accepted("c", None, "gone", ("x",), "why", "today")]
    now = {"a": "new", "b": "added", "d": "d"}
    assert as_accepted(now, "x", changes) == {"a": "old", "c": "gone", "d": "d"}
    assert as_accepted(now, "y", changes) == now
    assert as_accepted({**now, "a": "newer"}, "x", changes)["a"] == "newer"  # edited again


def test_the_later_of_two_claims_counts(tmp_path: Path) -> None:
    accept(tmp_path, [Accepted("a", "new", "old", ("x",), "first", "today")])
    accept(tmp_path, [Accepted("a", "new", "older", ("x",), "second", "today")])
    from pipelines.project.accepted import accepted_changes

    assert as_accepted({"a": "new"}, "x", accepted_changes(tmp_path)) == {"a": "older"}


def test_a_code_file_says_what_the_code_is(copy: Path) -> None:
    modules = json.loads(code_file(copy, "train_teacher").read_text())
    assert (
        modules["pipelines.stages.train_teacher"] == stage_code(copy)["train_teacher"]["pipelines.stages.train_teacher"]
    )


def test_every_setting_that_names_a_component_is_known_to_the_choices() -> None:
    keys = from_preset(REPOSITORY, "digits").keys().settings
    rooms = {key: setting.room for key, setting in keys.items() if setting.room and not setting.is_list}
    known = {key: {room for pattern, room in ROOMS.items() if re.fullmatch(pattern, key)} for key in rooms}
    assert known == {key: {room} for key, room in rooms.items()}

"""The tree of settings: keys that follow the chosen component, complaints, and the way to an object and back."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ayf_core import registry
from ayf_core.errors import AyfError
from ayf_core.registry import Chosen
from ayf_core.settings import chosen, each, group, setting
from pipelines.settings import tree
from pipelines.settings.words import nearest_key, unknown_key
from pipelines.settings.yaml_file import YamlFile

COMPONENTS = """
from dataclasses import dataclass

from ayf_core.registry import register
from ayf_core.settings import setting


@register("grid", "toy_wide", title="Wide")
@dataclass(frozen=True, kw_only=True)
class Wide:
    width: int = setting("how wide", at_least=1)
    given: str = "nothing"


@register("grid", "toy_deep", title="Deep")
@dataclass(frozen=True, kw_only=True)
class Deep:
    depth: int = setting("how deep", at_least=1)
    share: float = setting("a share", above=0.0, at_most=1.0)
"""


@dataclass(frozen=True, kw_only=True)
class Training:
    steps: int = setting("optimiser steps", at_least=1)
    rates: list[float] = setting("one or more rates", above=0.0)


@dataclass(frozen=True, kw_only=True)
class Student:
    component: Chosen
    training: Training = group("how it is trained")


@dataclass(frozen=True, kw_only=True)
class Schema:
    seed: int = setting("of every choice", at_least=0)
    note: str | None = setting("a text")
    grid: Chosen = chosen("grid", "which grid")
    students: list[str] = setting("which students", room="grid", may_be_empty=True)
    each_student: Mapping[str, Student] = each("grid", "a student", by=("students",), schema=Student)


@pytest.fixture(autouse=True)
def toy_components(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "toy_components.py").write_text(COMPONENTS)
    monkeypatch.syspath_prepend(tmp_path)
    before = registry.plugins()
    registry.use_plugins(["toy_components"])
    yield
    registry.use_plugins(before)
    sys.modules.pop("toy_components", None)
    registry._registered.cache_clear()


def values(**changes: Any) -> dict[str, Any]:
    training = {"steps": 4, "rates": [1, 0.5]}
    student = {"depth": 2, "share": 0.5, "training": training}
    return {
        "seed": 0,
        "note": None,
        "grid": {"kind": "toy_wide", "width": 3},
        "students": ["toy_deep"],
        "toy_deep": student,
    } | changes


def test_values_become_an_object_and_come_back_the_same() -> None:
    built = tree.build(Schema, values())
    assert built.grid.build(given="something").width == 3
    assert built.grid.build().given == "nothing"
    assert built.each_student["toy_deep"].component["depth"] == 2
    assert built.each_student["toy_deep"].training.rates == [1.0, 0.5]
    assert all(type(rate) is float for rate in built.each_student["toy_deep"].training.rates)
    assert tree.plain(Schema, built) == values()


def test_the_keys_are_those_of_the_chosen_component() -> None:
    keys = tree.keys_of(Schema, values())
    assert "grid.width" in keys.settings
    assert "grid.depth" not in keys.settings
    assert {"toy_deep.depth", "toy_deep.training.steps"} <= keys.settings.keys()
    assert {"toy_deep", "toy_wide"} <= set(keys.settings["grid.kind"].words())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"grid": {"kind": "toy_wide", "depth": 3, "width": 1}}, "grid.depth belongs to grid.kind = toy_deep"),
        ({"grid": {"kind": "toy_wide"}}, "grid.width is missing: add it, a whole number at least 1"),
        ({"grid": {"kind": "toy_wid", "width": 3}}, "grid.kind = toy_wid: must be one of"),
        ({"grid": 3}, "grid must be a group of settings (kind"),
        ({"seed": True}, "seed = true: must be a whole number at least 0"),
        ({"seed": 1.0}, "seed = 1.0: must be a whole number"),
        ({"seed": "${note}"}, "seed refers to another value"),
        ({"seed": None}, "seed has no value: give it a whole number"),
        ({"seed": {"a": 1}}, "seed must be a single value"),
        ({"seeds": 1}, "unknown setting seeds: did you mean seed?"),
        ({"students": ["toy_wide"], "toy_wide": {"width": 1}}, "the group toy_wide.training is missing (steps, rates)"),
        ({"students": ["elsewhere"]}, "toy_deep belongs to toy_deep in students"),
    ],
)
def test_what_is_wrong_is_named_by_its_key(changes: dict[str, Any], words: str) -> None:
    problems = tree.problems_of(Schema, values(**changes))
    assert any(words in problem for problem in problems), problems


def test_a_wrong_item_of_a_list_is_named() -> None:
    training = {"steps": 4, "rates": [1.0, "x"]}
    wrong = values(toy_deep={"depth": 2, "share": 0.5, "training": training})
    assert tree.problems_of(Schema, wrong) == [
        "toy_deep.training.rates holds x: must be a list of at least one, each a number above 0, none twice; "
        "choose such a value"
    ]


def test_a_missing_group_is_named_once() -> None:
    lacking = values()
    del lacking["grid"]
    assert tree.problems_of(Schema, lacking) == ["the group grid is missing (kind): add it"]


def test_settings_of_a_component_that_is_no_longer_chosen_are_dropped() -> None:
    changed = values(grid={"kind": "toy_deep", "width": 3, "depth": 1, "share": 1.0})
    assert tree.without_foreign(Schema, changed)["grid"] == {"kind": "toy_deep", "depth": 1, "share": 1.0}


KEYS = ["seed", "features.width", "teacher.network.width", "distill.emd.training.steps", "distill.time_law.p_mean"]


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("distil.emd.training.steps", "distill.emd.training.steps"),
        ("distill.emd.training.stps", "distill.emd.training.steps"),
        ("teacher.netwrk.width", "teacher.network.width"),
        ("student.width", None),
        ("distill.emd.network.width", None),
        ("width", None),
    ],
)
def test_a_key_is_offered_only_where_it_was_likely_meant(key: str, meant: str | None) -> None:
    assert nearest_key(key, KEYS) == meant


def test_where_nothing_is_near_the_line_says_what_the_group_holds() -> None:
    assert unknown_key("distill.emd.network.width", KEYS) == (
        "unknown setting distill.emd.network.width: distill.emd holds training"
    )
    assert unknown_key("student.width", KEYS) == (
        "unknown setting student.width: there are seed, features, teacher, distill"
    )


TEXT = """# my experiment
seed: 0  # chosen by dice

# the grid I like
grid:
  kind: toy_wide   # wide is fine
  width: 3
students: [toy_deep]
"""


def test_a_change_in_place_keeps_comments_and_everything_else() -> None:
    file = YamlFile(TEXT, "params.yaml")
    file.set("grid.width", 12)
    file.set("seed", 7)
    assert file.text() == TEXT.replace("width: 3", "width: 12").replace("seed: 0", "seed: 7")
    file.remove("students")
    assert "students" not in file.text()


def test_numbers_and_nothing_are_written_as_both_yaml_versions_read_them() -> None:
    file = YamlFile(TEXT, "params.yaml")
    for key, value in {"a": 1e-5, "b": None, "c": [0.5, 1.0], "d": "a: b", "e": True}.items():
        file.set(key, value)
    tail = file.text().splitlines()[-5:]
    assert tail == ["a: 1.0e-5", "b: null", "c: [0.5, 1.0]", "d: 'a: b'", "e: true"]
    assert YamlFile(file.text(), "params.yaml").values["a"] == 1e-5


def test_a_line_is_named_by_file_and_number() -> None:
    file = YamlFile(TEXT, "params.yaml")
    assert file.located("grid.width = 0: must be more") == "params.yaml:7: grid.width = 0: must be more"
    assert file.located("unknown setting grid.kind: no") == "params.yaml:6: unknown setting grid.kind: no"
    assert file.located("nowhere is missing") == "params.yaml: nowhere is missing"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1,\n", r"params.yaml, line \d+: not valid YAML"),
        ("- 1\n", "must hold `key: value` lines"),
        ("a: 1\nb: 2\na: 3\n", "params.yaml:3: a stands twice"),
    ],
)
def test_what_is_no_file_of_settings_is_refused(text: str, words: str) -> None:
    with pytest.raises(AyfError, match=words):
        YamlFile(text, "params.yaml")

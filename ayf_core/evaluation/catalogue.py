"""Which measures of quality there are for a data set, read without torch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ayf_core.errors import AyfError
from ayf_core.registry import Component, components, find


def measures() -> dict[str, Component]:
    """Every measure, in the order of tables."""
    return dict(sorted(components("measure").items(), key=lambda item: (item[1].facts.get("order", 100), item[0])))


def applicable(gives: Iterable[str]) -> dict[str, Component]:
    """The measures that compare nothing but what is given ("features", "points", "half_width")."""
    given = set(gives)
    return {name: measure for name, measure in measures().items() if given.issuperset(measure.facts["needs"])}


def measures_of(data_set: str) -> dict[str, Component]:
    """The measures of a data set, by its registered name."""
    return applicable(find("data set", data_set).facts["gives"])


def directions(data_set: str) -> Mapping[str, str]:
    """`min` or `max` for every measure of a data set that can be searched for."""
    words = {"lower": "min", "higher": "max"}
    return {
        name: words[measure.facts["better"]]
        for name, measure in measures_of(data_set).items()
        if "better" in measure.facts
    }


def headline(data_set: str) -> str:
    """The measure that models of a data set are compared by first.

    Raises:
        AyfError: no measure of it is a headline.
    """
    for name, measure in measures_of(data_set).items():
        if measure.facts.get("headline"):
            return name
    raise AyfError(f"no measure of the data set {data_set} is registered with headline=True: register one")

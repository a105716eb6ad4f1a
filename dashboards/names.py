"""What things are called and how they are coloured: one place for tables, figures and pages.

What measures of quality and students are called stands where they are registered, and is read there.
"""

from __future__ import annotations

from ayf_core.registry import Component, components

_FIRST = {"teacher": ("Teacher", "#000000"), "weak_teacher": ("Weak teacher", "#999999")}
_LAST = {"adversarial": ("Student, adversarial finish", "#009E73")}
SPARE_COLOURS = ["#D55E00", "#CC79A7", "#56B4E9", "#F0E442"]
"""The rest of Okabe and Ito's palette, whose colours colour-blind readers tell apart too: for models that have none."""
STATUS_COLOURS = {"finished": "#009E73", "stopped": "#56B4E9", "failed": "#D55E00", "running": "#E69F00"}
STATUS_WORDS = {
    "finished": "ran to the end",
    "stopped": "stopped early by the scheduler",
    "failed": "failed",
    "running": "still running, or interrupted",
}
QUANTITIES = {
    "loss": "Loss",
    "tangent_norm": "Norm of the tangent",
    "derivative_norm": "Norm of the network's time derivative",
    "velocity_residual": "Residual of the velocity",
    "velocity_error": "Error of the velocity",
}
VARIABLES = {"interval": "t − s", "t": "t"}
"""What the bins of a training metric are of; `interval` is the length of the jump."""
COSTS = {"seconds_per_image": "Seconds per image"}
"""What is measured of a model and is no quality; lower is better."""


def titles() -> dict[str, str]:
    """Models in the order of tables, and their names in words."""
    return {model: words for model, (words, _) in _models().items()}


def _models() -> dict[str, tuple[str, str]]:
    """Title and colour of each model; students are called like their objectives, which bring both."""
    registered = {
        name: (objective.title, str(objective.facts["colour"]))
        for name, objective in components("objective").items()
        if "colour" in objective.facts
    }
    return {**_FIRST, **registered, **_LAST}


def measures() -> dict[str, Component]:
    """Every registered measure of quality, in the order of tables."""
    return dict(sorted(components("measure").items(), key=lambda item: (item[1].facts.get("order", 100), item[0])))


def in_tables(distance: str) -> list[str]:
    """The measures of a table for a first look: the distance, then those that are registered for tables."""
    shown = (name for name, about in measures().items() if about.facts.get("table") and not about.facts.get("headline"))
    return list(dict.fromkeys([distance, *shown]))


def lower_is_better(measure: str) -> bool:
    about = measures().get(measure)
    return measure in COSTS or (about is not None and about.facts.get("better") == "lower")


def title(model: str) -> str:
    """A model's name in words; one this file does not know keeps its own."""
    return titles().get(model, model.replace("_", " "))


def colour(model: str) -> str:
    """A model's colour; of an unknown one always the same spare colour."""
    _, known = _models().get(model, ("", ""))
    return known or SPARE_COLOURS[sum(model.encode()) % len(SPARE_COLOURS)]


def measure(name: str) -> str:
    """A measure in words, `fd/nfe_2` too."""
    base, _, calls = name.partition("/nfe_")
    about = measures().get(base)
    known = about.title if about else COSTS.get(base) or QUANTITIES.get(base)
    words = known or base.replace("_", " ").replace("/", ", ").capitalize()
    return f"{words} at {network_calls(int(calls))}" if calls.isdigit() else words


def network_calls(count: int) -> str:
    return f"{count} network call{'' if count == 1 else 's'}"


def setting(key: str) -> str:
    """A dotted setting as read aloud: `distill.emd.tangent_warmup` is `distill › emd › tangent warmup`."""
    return key.replace(".", " › ").replace("_", " ")

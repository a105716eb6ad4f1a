"""What things are called and how they are coloured: one place for tables, figures and pages."""

from __future__ import annotations

TITLES = {
    "teacher": "Teacher",
    "weak_teacher": "Weak teacher",
    "emd": "Student, AYF-EMD",
    "lmd": "Student, AYF-LMD",
    "adversarial": "Student, adversarial finish",
}
COLOURS = {  # Okabe and Ito's palette, told apart by colour-blind readers too
    "teacher": "#000000",
    "weak_teacher": "#999999",
    "emd": "#0072B2",
    "lmd": "#E69F00",
    "adversarial": "#009E73",
}
SPARE_COLOURS = ["#D55E00", "#CC79A7", "#56B4E9", "#F0E442"]
"""The rest of the palette, for models that have no colour of their own."""
STATUS_COLOURS = {"finished": "#009E73", "stopped": "#56B4E9", "failed": "#D55E00", "running": "#E69F00"}
STATUS_WORDS = {
    "finished": "ran to the end",
    "stopped": "stopped early by the scheduler",
    "failed": "failed",
    "running": "still running, or interrupted",
}
MEASURES = {
    "fd": "Fréchet distance to training data",
    "fd_test": "Fréchet distance to test data",
    "jsd": "Jensen-Shannon divergence",
    "sliced_wasserstein": "Sliced Wasserstein distance",
    "kernel_distance": "Kernel distance to test data",
    "precision": "Precision",
    "recall": "Recall",
    "density": "Density",
    "coverage": "Coverage",
    "copy_ratio": "Copy ratio",
    "authenticity": "Authenticity",
    "seconds_per_image": "Seconds per image",
}
LOWER_IS_BETTER = {"fd", "fd_test", "jsd", "sliced_wasserstein", "kernel_distance", "seconds_per_image"}
QUANTITIES = {
    "loss": "Loss",
    "tangent_norm": "Norm of the tangent",
    "derivative_norm": "Norm of the network's time derivative",
    "velocity_residual": "Residual of the velocity",
    "velocity_error": "Error of the velocity",
}
VARIABLES = {"interval": "t − s", "dt": "t − s", "t": "t"}
"""What the bins of a training metric are of; `interval` and `dt` both mean the length of the jump."""


def title(model: str) -> str:
    """A model's name in words; one this file does not know keeps its own."""
    return TITLES.get(model, model.replace("_", " "))


def colour(model: str) -> str:
    """A model's colour; of an unknown one always the same spare colour."""
    return COLOURS.get(model) or SPARE_COLOURS[sum(model.encode()) % len(SPARE_COLOURS)]


def measure(name: str) -> str:
    """A measure in words, `fd/nfe_2` too."""
    base, _, calls = name.partition("/nfe_")
    words = MEASURES.get(base) or QUANTITIES.get(base) or base.replace("_", " ").replace("/", ", ").capitalize()
    return f"{words} at {network_calls(int(calls))}" if calls.isdigit() else words


def network_calls(count: int) -> str:
    return f"{count} network call{'' if count == 1 else 's'}"


def setting(key: str) -> str:
    """A dotted setting as read aloud: `distill.emd.tangent_warmup` is `distill › emd › tangent warmup`."""
    return key.replace(".", " › ").replace("_", " ")

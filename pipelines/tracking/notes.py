"""What a person reads of a run in MLflow's pages: its name, and a note that says what it made, from what and how.

Names and notes are functions of what is known of a run, so a run that is continued gets the same ones again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ayf_core.errors import AyfError
from ayf_core.evaluation.catalogue import measures
from pipelines.settings.words import literal
from pipelines.tracking.tags import ACCEPTED_TAG, OUTPUT_TAG, UPSTREAM_TAG

if TYPE_CHECKING:
    from pipelines.project.declarations import Declaration
    from pipelines.tracking.runs import StageRun

NAMED_DIFFERENCES = 3
HEADLINES = ("reconstruction_rmse", "test_accuracy", "best_teacher", "train_latents", "loss")
"""What tells most of a stage that measures no distance: the first of these that it has."""


# ------------------------------------------------------------------------------------------------------- names


def run_name(words: str, differences: Mapping[str, Any]) -> str:
    """What a run is and what sets it apart: `distill emd · scale_max=2.0, steps=500`.

    Args:
        words: the stage, or the trial, in words.
        differences: settings by dotted key, the most telling first; three are named, the others counted.
    """
    named = list(differences.items())[:NAMED_DIFFERENCES]
    keys = short_keys(list(differences))
    told = ", ".join(f"{keys[key]}={literal(value)}" for key, value in named)
    more = len(differences) - len(named)
    return words + (f" · {told}" if told else "") + (f" +{more}" if more else "")


def short_keys(keys: Sequence[str]) -> dict[str, str]:
    """Each dotted key's last words: as few as tell it from the other keys."""

    def end(key: str, words: int) -> str:
        return ".".join(key.split(".")[-words:])

    short = {}
    for key in keys:
        others = [other for other in keys if other != key]
        lengths = range(1, key.count(".") + 2)
        short[key] = next((end(key, n) for n in lengths if all(end(o, n) != end(key, n) for o in others)), key)
    return short


def differences(params: Mapping[str, Any], preset: Mapping[str, Any]) -> dict[str, Any]:
    """Of settings by dotted key (values may be groups), the leaves that a preset, as nested mappings, has otherwise."""
    found: dict[str, Any] = {}
    for key, value in params.items():
        usual: Any = preset
        for part in key.split("."):
            usual = usual.get(part, value) if isinstance(usual, Mapping) else value
        if isinstance(value, Mapping) and isinstance(usual, Mapping):
            found |= {f"{key}.{leaf}": changed for leaf, changed in differences(value, usual).items()}
        elif value != usual:
            found[key] = value
    return found


def stage_name(stage: Declaration, params: Mapping[str, Any], root: Path) -> str:
    """A stage's run: its words, and what its settings change of the preset that params.yaml comes from."""
    words = " ".join([stage.base, *(str(value) for value in stage.item.values())]).replace("_", " ")
    return run_name(words, differences(params, _preset(root)))


def _preset(root: Path) -> dict[str, Any]:
    """The preset's settings; none where it cannot be read: a name is no reason to stop a stage."""
    from pipelines.settings.params_file import from_preset, named_preset

    try:
        return from_preset(root, named_preset(root)).to_dict()
    except AyfError:
        return {}


# ------------------------------------------------------------------------------------------------------- notes


def run_link(words: str, experiment: str, run_id: str) -> str:
    """Markdown that leads to a run's page; relative, so it holds at whatever address MLflow is served."""
    return f"[{words}](#/experiments/{experiment}/runs/{run_id})"


def stage_note(stage: Declaration, run: StageRun) -> str:
    """The note of a stage's run, from what its run has: tags of lineage and commit, last metrics."""
    tags, metrics = run.read()
    return note(
        outputs=stage.outputs,
        made=any(tag.startswith(OUTPUT_TAG) for tag in tags),
        metrics=metrics,
        upstream={t.removeprefix(UPSTREAM_TAG): i for t, i in tags.items() if t.startswith(UPSTREAM_TAG)},
        experiment=run.experiment,
        command=f"dvc repro {stage.name}",
        commit=tags.get("mlflow.source.git.commit"),
        dirty=tags.get("ayf.git_dirty") == "true",
        accepted=tags.get(ACCEPTED_TAG, "").splitlines(),
    )


def note(
    *,
    outputs: Sequence[str],
    made: bool,
    metrics: Mapping[str, float],
    upstream: Mapping[str, str],
    experiment: str,
    command: str,
    commit: str | None,
    dirty: bool,
    accepted: Sequence[str] = (),
) -> str:
    """Markdown: what was made and how good it is, links to the runs that made the inputs, command and commit.

    Args:
        made: whether the outputs are finished; before that nothing is said of quality.
        upstream: ids of runs by the path each of them made.
        accepted: changes of code that were said to be harmless.
    """
    what = " and ".join(f"`{out}`" for out in outputs) or "nothing that DVC keeps"
    quality = headline(metrics) if made else ""
    lines = [f"{'Made' if made else 'Makes'} {what}" + (f": **{quality}**" if quality else "") + "."]
    if upstream:
        lines.append("Made from " + ", ".join(run_link(dep, experiment, i) for dep, i in upstream.items()) + ".")
    changed = ", with changes that are not committed" if dirty else ""
    at = f", at commit `{commit[:12]}`{changed}" if commit else ""
    lines.append(f"Again: `{command}`{at}.")
    lines += [f"Code: {words}." for words in accepted]
    return "\n\n".join(lines) + "\n"


def headline(metrics: Mapping[str, float]) -> str:
    """The one line that tells how good a result is: its distance at each number of network calls, or a figure."""
    for distance, measure in measures().items():
        if not measure.facts.get("headline"):
            continue
        by_calls = {int(k.rpartition("_")[2]): v for k, v in metrics.items() if k.startswith(f"{distance}/nfe_")}
        if by_calls:
            figures = (f"{format(value, measure.facts['format'])} at {n}" for n, value in sorted(by_calls.items()))
            return f"{distance} {', '.join(figures)} calls"
    name = next((name for name in HEADLINES if name in metrics), None)
    return f"{name.replace('_', ' ')} {metrics[name]:.4g}" if name else ""


def sweep_note(sentences: Sequence[str], trials: Sequence[Mapping[str, Any]], experiment: str) -> str:
    """The note of a sweep: what it found, and a table of its best trials with links.

    Args:
        sentences: the answer, a sentence each.
        trials: the best first; each `{"name", "run_id", "metrics": {name: value}}`.
    """
    columns = list(dict.fromkeys(name for trial in trials for name in trial["metrics"]))
    rows = ["| trial | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for trial in trials:
        figures = [f"{trial['metrics'][name]:.4g}" if name in trial["metrics"] else "" for name in columns]
        link = run_link(str(trial["name"]).replace("|", "/"), experiment, trial["run_id"])
        rows.append(f"| {link} | " + " | ".join(figures) + " |")
    told = "\n".join(f"- {sentence}" for sentence in sentences)
    return "\n\n".join(part for part in (told, "\n".join(rows) if trials else "") if part) + "\n"

"""Gather what the evaluations measured into tables and one picture of samples; export the dashboard beside them.

The dashboard shows measured seconds and run ids, so it is no output that DVC tracks: it is written to the
project's reports and kept with the run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
from PIL import Image

from ayf_core.evaluation.catalogue import measures
from ayf_core.registry import Component
from ayf_core.sampling.generator import Generator
from dashboards.names import in_tables, titles
from dashboards.verdict import untrained
from pipelines.stages.pictures import grid, labelled_columns, preview_inputs

if TYPE_CHECKING:
    from pipelines.execution.stage import Stage
    from pipelines.settings.experiment import Config


def run(config: Config, stage: Stage) -> None:
    results = read_results(stage.input("reports/evaluation"))
    table = results_table(results)
    table[table["sweep"] == "quality"].to_csv(stage.output("reports/quality.csv"), index=False)
    table[table["sweep"] == "guidance"].to_csv(stage.output("reports/guidance.csv"), index=False)
    summary = headline(results, table)
    stage.output("reports/metrics.json").write_text(json.dumps(summary, indent=2) + "\n")
    stage.output("reports/results.md").write_text(markdown(results, table, summary))
    picture = samples_picture(stage, config)
    picture.save(stage.output("reports/samples.png"))
    # The distances are in the evaluations' runs: a metric logged twice is a column too many.
    stage.run.log_values({key: value for key, value in flat(summary).items() if not key.endswith("/distance")})
    for path in ("reports/samples.png", "reports/quality.csv", "reports/guidance.csv"):
        stage.run.log_artifact(stage.output(path))
    stage.publish_dashboard("reports/dashboard.html")


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """The evaluation of each model that was evaluated, by its name, in the order of `titles`."""
    files = {name: folder / f"{name}.json" for name in titles()}
    return {name: json.loads(file.read_text()) for name, file in files.items() if file.is_file()}


def results_table(results: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """A row for each model and setting; `distance` is the headline measure of the data."""
    rows = [
        {"model": name, **row, "distance": row[result["distance"]]}
        for name, result in results.items()
        for row in result["rows"]
    ]
    return pd.DataFrame(rows)


def headline(results: dict[str, dict[str, Any]], table: pd.DataFrame) -> dict[str, Any]:
    """Each model's distance at each number of evaluations, and as a ratio to the teacher's best."""
    quality = table[table["sweep"] == "quality"]
    best = quality[quality["model"] == "teacher"]["distance"].min()
    models = {
        name: {
            f"nfe_{int(row.nfe)}": {"distance": row.distance, "ratio_to_best_teacher": row.distance / best}
            for row in quality[quality["model"] == name].itertuples()
        }
        for name in results
    }
    return {"best_teacher": float(best), "models": models, "floor": results["teacher"]["floor"]}


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, float]:
    values: dict[str, float] = {}
    for key, value in tree.items():
        values |= flat(value, f"{prefix}{key}/") if isinstance(value, dict) else {prefix + key: float(value)}
    return values


def samples_picture(stage: Stage, config: Config) -> Image.Image:
    """The same noise through the finished student at each number of steps, and once through the teacher."""
    columns = 6
    student = Generator.load(stage.input("models/adversarial"))
    teacher = Generator.load(stage.input("models/teacher"))
    noise, condition = preview_inputs(student, columns, config.seed)
    pictures = {
        f"{steps} step{'' if steps == 1 else 's'}": grid(student.sample(noise, steps, condition).x, columns)
        for steps in student.sampler.evaluations(config.evaluation)
    }
    calls = max(teacher.sampler.evaluations(config.evaluation))
    pictures[f"teacher, {calls} evaluation{'' if calls == 1 else 's'}"] = grid(
        teacher.sample(noise, calls, condition).x, columns
    )
    return labelled_columns(pictures)


def cells(rows: pd.DataFrame, best: float, distance: str) -> pd.DataFrame:
    """The rows as a person reads them: figures with the half width of their 95 % interval."""
    table = pd.DataFrame({"model": rows["model"].map(titles()), "evaluations": rows["nfe"].astype(int)})
    if rows["guidance_scale"].notna().any():
        table["guidance scale"] = rows["guidance_scale"]
    for name, measure in shown(rows, distance).items():
        pairs = zip(rows[name], rows[f"{name}_ci95"], strict=True)
        table[name] = [
            format(value, measure.facts["format"]) + ("" if pd.isna(ci) else f" ± {ci:.1g}") for value, ci in pairs
        ]
        if name == distance:
            table["ratio to best teacher"] = [f"{value / best:.2f}" for value in rows[name]]
    return table


def shown(rows: pd.DataFrame, distance: str) -> dict[str, Component]:
    """The measures of a table: the distance first, then those that are registered for tables."""
    return {name: measures()[name] for name in in_tables(distance) if name in rows}


def markdown(results: dict[str, dict[str, Any]], table: pd.DataFrame, summary: dict[str, Any]) -> str:
    """Both tables and the floor, for a README."""
    best, distance = summary["best_teacher"], results["teacher"]["distance"]
    known = measures()
    floor = ", ".join(
        f"{name} {format(value, known[name].facts['format'])}" for name, value in results["teacher"]["floor"].items()
    )
    quality = table[table["sweep"] == "quality"]
    teacher = quality[quality["model"] == "teacher"].select_dtypes("number").min().to_dict()
    warning = untrained(teacher, results["teacher"]["floor"])
    parts = [f"**{warning}**"] if warning else []
    parts += [markdown_table(cells(quality, best, distance))]
    parts += [f"Real training data against real test data, at the same counts: {floor}."]
    if (table["sweep"] == "guidance").any():
        parts += [markdown_table(cells(table[table["sweep"] == "guidance"], best, distance))]
    return "\n\n".join(parts) + "\n"


def markdown_table(table: pd.DataFrame) -> str:
    lines = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)

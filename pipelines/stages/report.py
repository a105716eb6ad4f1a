"""Gather what the evaluations measured into tables, one picture of samples and one page that opens offline."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from PIL import Image

from ayf_core.generator import Generator
from pipelines.config import Config
from pipelines.pictures import POINTS_SHOWN, class_rows, grid, labelled_columns
from pipelines.stage import Stage

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
    write_page(stage.output("reports/index.html"), results, table, summary)
    stage.run.log_values(flat(summary))
    for path in ("reports/samples.png", "reports/index.html", "reports/quality.csv", "reports/guidance.csv"):
        stage.run.log_artifact(stage.output(path))


def read_results(folder: Path) -> dict[str, dict[str, Any]]:
    """The evaluation of each model, by its name, in the order of `TITLES`."""
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in TITLES}


def results_table(results: dict[str, dict[str, Any]]) -> pd.DataFrame:
    """A row for each model and setting; `distance` is fd of images, jsd of points."""
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
    """The same noise through the finished student at 1, 2 and 4 steps, and through the teacher."""
    student = Generator.load(stage.input("models/adversarial"))
    teacher = Generator.load(stage.input("models/teacher"))
    columns = 6
    labels = class_rows(student.spec.num_classes, columns)
    noise = student.draw_noise(POINTS_SHOWN if student.makes_points else len(labels), config.seed)
    conditions = labels if student.spec.num_classes > 1 else None
    pictures = {
        f"{steps} step{'s' if steps > 1 else ''}": grid(student.sample(noise, steps, conditions).x, columns)
        for steps in (1, 2, 4)
    }
    pictures["teacher, 63 evaluations"] = grid(teacher.sample(noise, 63, conditions).x, columns)
    return labelled_columns(pictures)


def write_page(path: Path, results: dict[str, dict[str, Any]], table: pd.DataFrame, summary: dict[str, Any]) -> None:
    """One file with everything in it, Plotly too: it opens without a network."""
    distance = results["teacher"]["distance"]
    figures = [quality_figure(table, distance)]
    if (table["sweep"] == "guidance").any():
        measures = [distance] + [name for name in ("precision", "recall") if name in table]
        figures += [guidance_figure(table, measure) for measure in measures]
    parts = [
        figure.to_html(full_html=False, include_plotlyjs="inline" if i == 0 else False, div_id=f"figure-{i}")
        for i, figure in enumerate(figures)
    ]
    quality = cells(table[table["sweep"] == "quality"], summary["best_teacher"], distance)
    path.write_text(PAGE.format(figures="\n".join(parts), table=quality.to_html(index=False, border=0)))


def quality_figure(table: pd.DataFrame, distance: str) -> go.Figure:
    """Distance against network evaluations, with the interval over sampling seeds."""
    figure = go.Figure()
    quality = table[table["sweep"] == "quality"]
    for name, rows in quality.groupby("model", sort=False):
        rows = rows.sort_values("nfe")
        figure.add_scatter(
            x=rows["nfe"],
            y=rows["distance"],
            error_y={"array": rows[f"{distance}_ci95"]},
            name=TITLES[str(name)],
            line={"color": COLOURS[str(name)]},
            hovertemplate="%{x} network evaluations: distance %{y:.4g}",
        )
    figure.update_layout(
        title="Quality against cost",
        xaxis_title="network evaluations",
        yaxis_title=f"{distance} (lower is better)",
    )
    figure.update_xaxes(type="log")
    figure.update_yaxes(type="log")
    return figure


def guidance_figure(table: pd.DataFrame, measure: str) -> go.Figure:
    """One measure against the guidance scale λ."""
    figure = go.Figure()
    guidance = table[(table["sweep"] == "guidance") & (table["model"] != "weak_teacher")]
    for name, rows in guidance.groupby("model", sort=False):
        rows = rows.sort_values("guidance_scale")
        figure.add_scatter(
            x=rows["guidance_scale"],
            y=rows[measure],
            error_y={"array": rows[f"{measure}_ci95"]},
            name=f"{TITLES[str(name)]}, {int(rows['nfe'].iloc[0])} evaluations",
            line={"color": COLOURS[str(name)]},
            hovertemplate="guidance scale %{x}: %{y:.4g}",
        )
    figure.update_layout(
        title=f"{measure} against the guidance scale", xaxis_title="guidance scale λ", yaxis_title=measure
    )
    return figure


def cells(rows: pd.DataFrame, best: float, distance: str) -> pd.DataFrame:
    """The rows as a person reads them: figures with the half width of their 95 % interval."""
    measures = [distance, "fd_test", "sliced_wasserstein", "precision", "recall", "coverage", "copy_ratio"]
    table = pd.DataFrame({"model": rows["model"].map(TITLES), "evaluations": rows["nfe"].astype(int)})
    if rows["guidance_scale"].notna().any():
        table["guidance scale"] = rows["guidance_scale"]
    for name in [measure for measure in measures if measure in rows]:
        pairs = zip(rows[name], rows[f"{name}_ci95"], strict=True)
        table[name] = [f"{value:.3g}" + ("" if pd.isna(ci) else f" ± {ci:.1g}") for value, ci in pairs]
        if name == distance:
            table["ratio to best teacher"] = [f"{value / best:.2f}" for value in rows[name]]
    return table


def markdown(results: dict[str, dict[str, Any]], table: pd.DataFrame, summary: dict[str, Any]) -> str:
    """Both tables and the floor, for a README."""
    best, distance = summary["best_teacher"], results["teacher"]["distance"]
    floor = ", ".join(f"{name} {value:.3g}" for name, value in results["teacher"]["floor"].items())
    parts = [markdown_table(cells(table[table["sweep"] == "quality"], best, distance))]
    parts += [f"Real training data against real test data, at the same counts: {floor}."]
    if (table["sweep"] == "guidance").any():
        parts += [markdown_table(cells(table[table["sweep"] == "guidance"], best, distance))]
    return "\n\n".join(parts) + "\n"


def markdown_table(table: pd.DataFrame) -> str:
    lines = [list(table.columns), ["---"] * len(table.columns), *table.astype(str).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Align Your Flow: report</title>
<style>body {{ font: 16px system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222 }}
table {{ border-collapse: collapse }} td, th {{ padding: .2rem .8rem .2rem 0; text-align: left; white-space: nowrap }}
tr:nth-child(even) {{ background: #f4f4f4 }} div.wide {{ overflow-x: auto }}</style></head>
<body><h1>Quality of teacher and students</h1>
<div class="wide">{table}</div>
{figures}
</body></html>
"""

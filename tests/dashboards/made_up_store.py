"""A small MLflow store of made-up runs with the tags, metrics and artefacts that the pipeline and sweeps write.

Tests and `benchmarks/dashboard_open.py` load this file by its path.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

from mlflow.entities import Metric, Param, RunTag
from mlflow.tracking import MlflowClient
from PIL import Image

EXPERIMENT = "align-your-flow"
START = 1_795_000_000_000  # milliseconds
MINUTE = 60_000
COMMIT = "d1113411111111111111111111111111111111aa"
MODELS = {"teacher": 0.45, "weak_teacher": 2.0, "emd": 0.5, "lmd": 0.55, "adversarial": 0.4}
SWEEP_SETTINGS = ("distill.emd.training.learning_rate", "distill.emd.tangent_warmup", "distill.emd.time_law")


class MadeUpStore:
    """Writes runs by the contract; every `add_...` returns the id of the run.

    Args:
        padding: so many more settings and metrics for each stage's run, as real ones have.
    """

    def __init__(self, folder: Path, padding: int = 0) -> None:
        self.padding = padding
        folder.mkdir(parents=True, exist_ok=True)
        self.uri = f"sqlite:///{folder / 'mlflow.db'}"
        (folder / "mlflow.db").write_bytes(blank_database())
        self.client = MlflowClient(self.uri, registry_uri=self.uri)
        location = (folder / "artifacts").as_uri()
        self.experiment = self.client.create_experiment(EXPERIMENT, artifact_location=location)
        self.minute = 0

    def add_run(
        self,
        name: str,
        *,
        tags: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        curves: Mapping[str, Sequence[tuple[int, float]]] | None = None,
        status: str = "FINISHED",
        minutes: int = 3,
    ) -> str:
        start = START + self.minute * MINUTE
        self.minute += 1
        every = {"mlflow.source.git.commit": COMMIT, "ayf.git_dirty": "false", **(tags or {})}
        run = self.client.create_run(self.experiment, start_time=start, run_name=name, tags=every)
        points = [Metric(key, value, start, step) for key, line in (curves or {}).items() for step, value in line]
        parameters = [Param(key, value) for key, value in (params or {}).items()]
        self.client.log_batch(run.info.run_id, metrics=points, params=parameters, tags=[RunTag("made", "up")])
        if status != "RUNNING":
            self.client.set_terminated(run.info.run_id, status, end_time=start + minutes * MINUTE)
        return run.info.run_id

    def add_stage(
        self,
        stage: str,
        *,
        inputs: Mapping[str, str] | None = None,
        params: Mapping[str, str] | None = None,
        curves: Mapping[str, Sequence[tuple[int, float]]] | None = None,
    ) -> str:
        tags = {"ayf.kind": "stage", "dvc.stage": stage}
        tags |= {f"ayf.upstream.{path}": run_id for path, run_id in (inputs or {}).items()}
        params = {f"made.up.setting_{k}": str(k) for k in range(self.padding)} | dict(params or {})
        curves = {f"made_up_{k}": [(0, float(k))] for k in range(self.padding)} | dict(curves or {})
        return self.add_run(stage.replace("_", " ").replace("@", " "), tags=tags, params=params, curves=curves)

    def add_training(self, stage: str, *, bins: Mapping[str, str], inputs: Mapping[str, str]) -> str:
        """A training with its loss and quantities in four bins: `{"tangent_norm": "interval"}`."""
        steps = range(0, 1001, 100)
        curves = {"loss": [(step, math.exp(-step / 500)) for step in steps]}
        for quantity, variable in bins.items():
            for low in (0.0, 0.25, 0.5, 0.75):
                line = [(step, (1 + low) * math.exp(-step / 400)) for step in steps]
                curves[f"{quantity}/{variable}_{low:.2f}"] = line
        return self.add_stage(stage, inputs=inputs, curves=curves, params={"seed": "0"})

    def add_evaluation(self, model: str, *, inputs: Mapping[str, str], scale: float = 1.0) -> str:
        student = model not in ("teacher", "weak_teacher")
        calls = (1, 2, 4, 8) if student else (4, 15, 63)
        best = MODELS.get(model, 1.0) * scale
        rows = [row_of("quality", nfe, None, 0.0, best * (1 + 2 / nfe)) for nfe in calls]
        if model != "weak_teacher":
            rows += [row_of("guidance", 4, at, 0.0, best * (1 + (at - 1.25) ** 2)) for at in (1.0, 1.25, 1.5)]
        if student:
            rows += [row_of("gamma", 4, None, gamma, best * (1 + gamma)) for gamma in (0.0, 0.5, 1.0)]
        curves = {f"fd/nfe_{nfe}": [(0, best * (1 + 2 / nfe))] for nfe in calls}
        curves |= {f"seconds_per_image/nfe_{nfe}": [(0, nfe * 2e-4)] for nfe in calls}
        run_id = self.add_stage(f"evaluate@{model}", inputs=inputs, curves=curves)
        self.client.set_tag(run_id, "ayf.model", model)
        document = {"model": model, "distance": "fd", "floor": {"fd_test": 1.37}, "rows": rows}
        self.client.log_dict(run_id, document, "evaluation.json")
        for nfe in calls:
            for at in (1.0, 1.5) if student else (None,):
                word = "" if at is None else f"_scale_{at:g}"
                self.client.log_image(run_id, picture(nfe, at), artifact_file=f"samples/nfe_{nfe:03d}{word}.png")
        return run_id

    def add_pipeline(self, scale: float = 1.0) -> dict[str, str]:
        """Every stage once, with the lineage between them; ids by stage."""
        ids = {"train_codec": self.add_stage("train_codec", params={"data.name": "digits", "seed": "0"})}
        ids["encode_latents"] = self.add_stage("encode_latents", inputs={"models/codec": ids["train_codec"]})
        latents = {"data/latents": ids["encode_latents"], "models/codec": ids["train_codec"]}
        for teacher in ("teacher", "weak_teacher"):
            ids[teacher] = self.add_training(f"train_{teacher}", bins={"velocity_error": "t"}, inputs=latents)
        read = {**latents, "models/teacher": ids["teacher"], "models/weak_teacher": ids["weak_teacher"]}
        bins = {"tangent_norm": "interval", "derivative_norm": "interval", "velocity_residual": "t"}
        ids["emd"] = self.add_training("distill@emd", bins=bins, inputs=read)
        ids["lmd"] = self.add_training("distill@lmd", bins=bins, inputs=read)
        more = {**read, "models/emd": ids["emd"]}
        ids["adversarial"] = self.add_training("finetune_adversarial", bins=bins, inputs=more)
        ids["features"] = self.add_stage("train_features", params={"data.name": "digits"})
        for model in MODELS:
            inputs = {f"models/{model}": ids[model], "models/features": ids["features"]}
            ids[f"evaluate@{model}"] = self.add_evaluation(model, inputs=inputs, scale=scale)
        return ids

    def add_sweep(self, name: str = "distill", trials: int = 12, metrics: Sequence[str] = ("fd/nfe_2",)) -> str:
        """A sweep whose metric depends on its first setting alone: the best learning rate is 1e-3."""
        tags = {"ayf.kind": "sweep", "ayf.sweep": name, "ayf.metric": ",".join(metrics)}
        parent = self.add_run(f"sweep {name}", tags={**tags, "ayf.mode": ",".join(map(mode_of, metrics))}, minutes=40)
        child = {"mlflow.parentRunId": parent, "ayf.sweep": name}
        for number in range(trials):
            status = ("finished", "stopped", "stopped", "failed", "finished")[number % 5]
            rate = 10 ** (-4 + 2 * ((number * 5) % trials) / max(1, trials - 1))
            values = (f"{rate:.3g}", str(100 * (number % 3)), ("uniform", "logit_normal")[number % 2])
            steps = () if status == "failed" else range(200, 1001 if status == "finished" else 401, 200)
            reached = 0.5 * (1 + abs(math.log10(rate) + 3))
            curves = {
                metric: [(step, value_of(metric, reached * (1 + 200 / step), number)) for step in steps]
                for metric in metrics
            }
            curves["trained_steps"] = [(0, float(max(steps, default=0)))]
            self.add_run(
                f"trial {number}",
                tags={**child, "ayf.kind": "trial", "ayf.trial": str(number), "ayf.trial.status": status},
                params=dict(zip(SWEEP_SETTINGS, values, strict=True)),
                curves=curves,
                status="FAILED" if status == "failed" else "FINISHED",
                minutes=1 if status == "stopped" else 4,
            )
        for settings, value in (("best", 0.5), ("current", 0.6)):
            for seed in (101, 102, 103):
                self.add_run(
                    f"{settings}, seed {seed}",
                    tags={**child, "ayf.kind": "confirmation", "ayf.settings": settings},
                    params={"seed": str(seed)},
                    curves={metric: [(0, value + 0.01 * (seed - 102))] for metric in metrics},
                )
        return parent


@cache
def blank_database() -> bytes:
    """A store's SQLite file without runs: MLflow takes seconds to make its tables, so they are made once."""
    with tempfile.TemporaryDirectory() as folder:
        uri = f"sqlite:///{folder}/mlflow.db"
        MlflowClient(uri, registry_uri=uri).search_registered_models(max_results=1)
        return Path(folder, "mlflow.db").read_bytes()


def mode_of(metric: str) -> str:
    return "max" if metric.startswith("recall") else "min"


def value_of(metric: str, distance: float, number: int) -> float:
    """What a trial reports; recall is best in other trials than the distance."""
    return 0.5 + 0.03 * number if metric.startswith("recall") else distance


def row_of(sweep: str, nfe: int, scale: float | None, gamma: float, distance: float) -> dict:
    """A row of evaluation.json."""
    row = {"sweep": sweep, "nfe": nfe, "guidance_scale": scale, "gamma": gamma}
    values = {
        "fd": distance,
        "fd_test": distance + 1,
        "precision": 0.97 - 0.01 * nfe / 63,
        "recall": 0.9,
        "copy_ratio": 1,
    }
    for name, value in values.items():
        row |= {name: value, f"{name}_ci95": value * 0.08}
    return row


def picture(nfe: int, scale: float | None) -> Image.Image:
    """A chequered picture whose shades tell the pair it belongs to."""
    small = Image.new("RGB", (8, 8), (20 * nfe % 256, int(100 * (scale or 0)), 128))
    for x in range(8):
        for y in range(x % 2, 8, 2):
            small.putpixel((x, y), (255, 255, 255))
    return small.resize((160, 160), Image.Resampling.NEAREST)

"""MLflow's pages as a person sees them: the server of `ayf ui`, a real browser, runs made by the project's code."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from PIL import Image

from pipelines.machine import free_ports
from pipelines.tracking.runs import StageRun, open_run
from pipelines.tracking.store import ensure_store

pytestmark = [pytest.mark.browser, pytest.mark.slow]
CHROMIUM = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
QUIETLY = """
localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false');
localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');
"""
HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
_spec = importlib.util.spec_from_file_location("toy_project", HERE / "toy_project.py")
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)
PATIENCE = 120_000  # milliseconds; the pages' code is 30 MB


def evaluated(root: Path, model: str, colour: str, two_calls: float) -> StageRun:
    run = opened(root, f"evaluate {model}", f"evaluate@{model}", **{"ayf.model": model})
    run.log_values({"fd/nfe_1": two_calls * 2, "fd/nfe_2": two_calls})
    for calls in (1, 2):
        run.log_step_image("samples", calls, Image.new("RGB", (64, 64), colour))
    run.finish()
    return run


def opened(root: Path, name: str, stage: str, kind: str = "stage", parent: str | None = None, **tags: str) -> StageRun:
    place = {"root": root, "scratch": root / "scratch" / name, "runtime": toy.runtime()}
    params = {"rate": float(name[0])} if kind == "trial" else {}
    return open_run(stage, run_name=name, params=params, tags=tags, kind=kind, parent=parent, **place)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A project with two stages run as they are, two evaluations and a sweep of two trials; ids by name."""
    root = toy.write_project(tmp_path_factory.mktemp("project"), "make: {size: 3}\nwalk: {steps: 3}\n")
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("MLFLOW_TRACKING_URI", raising=False)
        ensure_store(root)
        for stage in ("make", "walk@up"):
            toy.run(root, stage)
        evaluated(root, "emd", "red", 0.5)
        evaluated(root, "lmd", "blue", 0.25)
        tags = {"ayf.sweep": "narrow", "ayf.metric": "fd/nfe_2", "ayf.mode": "min"}
        sweep = opened(root, "sweep narrow", "distill@emd", "sweep", **tags)
        for number, value in ((1, 0.75), (2, 0.125)):
            trial = opened(root, f"{number}: rate={number}", "distill@emd", "trial", sweep.id)
            trial.log_values({"fd/nfe_2": value})
            trial.finish()
        sweep.finish()
        found = MlflowClient(ensure_store(root)).search_runs(["1"])
    return root, {run.info.run_name: run.info.run_id for run in found}


@pytest.fixture(scope="module")
def pages(runs: tuple[Path, dict[str, str]]) -> Iterator[dict[str, str]]:
    """The links that `ayf ui` prints, its server up; and under "" the plain address."""
    port = str(free_ports(1)[0])
    ui = [sys.executable, "-c", "from pipelines.commands.main import main; main()", "ui", "--port", port]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    with subprocess.Popen(
        ui, cwd=runs[0], env=environment | {"PYTHONPATH": str(REPOSITORY)}, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            told = [server.stdout.readline() for _ in range(6)]
            answers(f"http://127.0.0.1:{port}/health")
            yield {"": f"http://127.0.0.1:{port}"} | dict(
                re.findall(r"^  (.*?): (http\S+)$", "".join(told), re.MULTILINE)
            )
        finally:
            server.terminate()


def answers(address: str) -> None:
    for _ in range(720):
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.25)
    pytest.fail(f"{address} does not answer")


@pytest.fixture
def page(pages: dict[str, str]) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=shutil.which("chromium"), args=CHROMIUM)
        opened_page = browser.new_page(viewport={"width": 1400, "height": 900})
        opened_page.set_default_timeout(PATIENCE)
        opened_page.add_init_script(QUIETLY)
        yield opened_page
        browser.close()


def names(page: Any, runs: dict[str, str]) -> list[str]:
    """The names of runs in the table, from its top; they are links to the runs."""
    by_id = {run_id: name for name, run_id in runs.items()}
    page.wait_for_selector("[role=row] a[href*='/runs/']")
    rows = page.eval_on_selector_all(
        "[role=row] a[href*='/runs/']", "all => all.map(a => [a.getBoundingClientRect().top, a.href])"
    )
    return [by_id[href.split("/runs/")[1][:32]] for _, href in sorted(rows)]


def test_all_runs_are_a_tree_with_distances_first(page: Any, pages: dict[str, str], runs: Any) -> None:
    page.goto(pages["All runs"])
    top = names(page, runs[1])
    assert top == ["sweep narrow", "evaluate lmd", "evaluate emd", "walk up", "make"]
    wanted = ["fd/nfe_1", "fd/nfe_2", "ayf.kind", "ayf.model"]
    headers = [text.strip() for text in page.locator("[role=columnheader]").all_inner_texts()]
    assert [text for text in dict.fromkeys(headers) if text in wanted] == wanted
    page.locator("[role=row]", has_text="sweep narrow").locator("button").first.click()
    page.get_by_text("2: rate=2").first.wait_for()
    assert names(page, runs[1])[:3] == ["sweep narrow", "2: rate=2", "1: rate=1"]


def test_evaluations_are_listed_best_first(page: Any, pages: dict[str, str], runs: Any) -> None:
    page.goto(pages["Evaluations, best first"])
    assert names(page, runs[1]) == ["evaluate lmd", "evaluate emd"]


def test_a_sweeps_trials_are_listed_best_first_with_their_settings(page: Any, pages: Any, runs: Any) -> None:
    page.goto(pages["Sweep narrow, best first"])
    assert [name for name in names(page, runs[1]) if name[0].isdigit()] == ["2: rate=2", "1: rate=1"]
    page.get_by_text("rate", exact=True).first.wait_for()


def test_a_note_leads_to_the_run_that_made_the_input(page: Any, pages: dict[str, str], runs: Any) -> None:
    page.goto(f"{pages['']}/#/experiments/1/runs/{runs[1]['walk up']}")
    page.get_by_text(re.compile(r"^Made .*models/up")).first.wait_for()
    with page.expect_popup() as opened_beside:
        page.get_by_role("link", name="data/made").click()
    made = opened_beside.value
    made.wait_for_url(re.compile(runs[1]["make"]))
    made.get_by_text(re.compile(r"^Made .*data/made")).first.wait_for(timeout=PATIENCE)


def test_samples_of_several_models_stand_side_by_side(page: Any, pages: dict[str, str]) -> None:
    page.goto(pages["Charts and samples side by side"])
    page.get_by_text("Samples, by network calls").first.wait_for()
    pictures = "[...document.images].filter(image => /samples/.test(image.src) && image.naturalWidth > 0)"
    page.wait_for_function(f"{pictures}.length === 2")
    lefts = page.evaluate(f"{pictures}.map(image => Math.round(image.getBoundingClientRect().left))")
    tops = page.evaluate(f"{pictures}.map(image => Math.round(image.getBoundingClientRect().top))")
    assert lefts[0] != lefts[1]
    assert tops[0] == tops[1]


def test_the_comparison_names_runs_and_figures(page: Any, pages: dict[str, str]) -> None:
    page.goto(pages["Evaluations compared"])
    for text in ("evaluate emd", "evaluate lmd", "fd/nfe_2"):
        found = page.get_by_text(text).first
        found.wait_for()
        assert found.is_visible()

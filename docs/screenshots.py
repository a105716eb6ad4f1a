"""The pictures of the documentation, taken in a headless Chromium from a store with the project's own runs.

    python docs/screenshots.py [--store sqlite:///mlruns/mlflow.db] [--only NAME ...]

`PAGES` is the table: the file's name, the server whose page it shows, the width, and what is done on the page before
the picture is taken. A new picture is a new line. The servers are started here, on free ports, and stopped again.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.machine import free_ports

DOCS = Path(__file__).resolve().parent
DESK, PHONE = 1400, 390
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]
SECONDS_TO_START = 60

QUIETLY = """
localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false');
localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');
"""


def mlflow_command(store: str, port: int) -> list[str]:
    """As `ayf ui`: the views are saved first."""
    from pipelines.tracking.saved_views import links
    from pipelines.tracking.ui import server_command

    links(store, f"http://127.0.0.1:{port}")
    command, environment = server_command(store, "127.0.0.1", port)
    os.environ.update(environment)
    return command


SERVERS: dict[str, Callable[[str, int], list[str]]] = {
    "dashboard": lambda store, port: [
        sys.executable,
        "-c",
        f"from dashboards import app; app.serve(app.build({store!r}), '127.0.0.1', {port})",
    ],
    "mlflow": mlflow_command,
}
"""The command that serves a store on a port, by the name that `PAGES` uses."""


@dataclass(frozen=True)
class Picture:
    """A page to photograph.

    Attributes:
        server: a key of `SERVERS`.
        prepare: brings the opened page to what is shown; it waits for that to be drawn.
        width: of the window.
        height: of the picture; None takes the whole page.
    """

    server: str
    prepare: Callable[[Any], None]
    width: int = DESK
    height: int | None = None


def dashboard_tab(tab: str, sign: str) -> Callable[[Any], None]:
    """Opens a tab of the dashboard and waits for the figure with these words on it."""

    def prepare(page: Any) -> None:
        page.locator(".tab", has_text=tab).click()
        page.locator(".js-plotly-plot", has_text=sign).first.wait_for()

    return prepare


def mlflow_view(key: str, sign: str, charts: bool = False) -> Callable[[Any], None]:
    """Opens a saved view of MLflow's runs and waits for these words."""

    def prepare(page: Any) -> None:
        from pipelines.tracking.saved_views import view_address
        from pipelines.tracking.tags import EXPERIMENT

        address = page.url.split("#")[0].rstrip("/")
        by_name = f"{address}/api/2.0/mlflow/experiments/get-by-name?experiment_name={EXPERIMENT}"
        experiment = page.request.get(by_name).json()["experiment"]["experiment_id"]
        page.evaluate(QUIETLY)
        page.goto(view_address(address, experiment, key) + ("&compareRunsMode=CHART" if charts else ""))
        page.reload()
        page.get_by_text(sign).first.wait_for()
        page.wait_for_timeout(5000)  # charts and pictures come one by one, without a sign of the last

    return prepare


PAGES: dict[str, Picture] = {
    "dashboard.png": Picture("dashboard", dashboard_tab("Quality", "network calls for one sample"), height=860),
    "dashboard_samples.png": Picture("dashboard", dashboard_tab("Samples", "Samples: "), height=1350),
    "dashboard_sweep.png": Picture("dashboard", dashboard_tab("Sweeps", "What was tried")),
    "dashboard_lineage.png": Picture("dashboard", dashboard_tab("Lineage", "came from")),
    "mlflow_runs.png": Picture("mlflow", mlflow_view("ayf-all-runs", "matching runs"), height=820),
    "mlflow_compare.png": Picture(
        "mlflow", mlflow_view("ayf-evaluations", "Samples, by network", charts=True), height=1300
    ),
    "dashboard_phone.png": Picture("dashboard", dashboard_tab("Quality", "network calls for one sample"), PHONE, 1200),
}


@contextmanager
def served(server: str, store: str) -> Iterator[str]:
    """The address of a server that runs inside the block."""
    (port,) = free_ports(1)
    process = subprocess.Popen(SERVERS[server](store, port), cwd=DOCS.parent)
    try:
        for _ in range(SECONDS_TO_START * 10):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None:
                raise SystemExit(f"error: the {server} ended before it answered; is {store} a store?")
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.terminate()
        process.wait()


def take(browser: Any, name: str, picture: Picture, address: str, folder: Path) -> None:
    """Photograph one page."""
    page = browser.new_page(viewport={"width": picture.width, "height": picture.height or 900})
    page.goto(address)
    picture.prepare(page)
    page.wait_for_timeout(600)  # the last fading in
    page.screenshot(path=folder / name, full_page=picture.height is None)
    page.close()
    print(f"wrote {folder / name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", default=f"sqlite:///{DOCS.parent / 'mlruns/mlflow.db'}", help="URI of the runs")
    parser.add_argument("--out", type=Path, default=DOCS, help="folder of the pictures")
    parser.add_argument("--only", nargs="+", choices=PAGES, default=list(PAGES), help="names of pictures")
    arguments = parser.parse_args()
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        raise SystemExit("error: no Chromium here: install one (Debian, Ubuntu: apt-get install chromium)")
    arguments.out.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        for server in dict.fromkeys(PAGES[name].server for name in arguments.only):
            with served(server, arguments.store) as address:
                for name in arguments.only:
                    if PAGES[name].server == server:
                        take(browser, name, PAGES[name], address, arguments.out)
        browser.close()


if __name__ == "__main__":
    main()

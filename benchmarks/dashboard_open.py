"""How long the dashboard takes to open over a store of many runs: from the request to the figures drawn.

    python benchmarks/dashboard_open.py [--runs 500] [--repeats 5]

Baseline: the same page over a store of the five evaluations of one pipeline. The server is a process of its own and
the browser a headless Chromium with a fresh cache each time. "New" is an opening right after a run was written, when
everything is read anew; "known" is one when nothing was written since. The two stores alternate, so that a machine that
gets busy slows both.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from pipelines.machine import free_ports

ROOT = Path(__file__).resolve().parent.parent
SETTINGS_A_RUN = 40  # about what the stages of this project note
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]
SERVE = "import sys; from dashboards import app; app.serve(app.build(sys.argv[1]), '127.0.0.1', int(sys.argv[2]))"


def made_up_store(folder: Path) -> Any:
    """A writer of made-up runs by the tags and artefacts of the pipeline."""
    spec = importlib.util.spec_from_file_location("made_up_store", ROOT / "tests/dashboards/made_up_store.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.MadeUpStore(folder, padding=SETTINGS_A_RUN)


def fill(store: Any, runs: int) -> None:
    """Pipelines of 13 runs and sweeps of 19, in turn, up to `runs` runs; below 13 evaluations alone."""
    if runs < 13:
        for model in ("teacher", "weak_teacher", "emd", "lmd", "adversarial")[:runs]:
            store.add_evaluation(model, inputs={})
        return
    left = runs
    while left >= 13 + 19:
        store.add_pipeline()
        store.add_sweep(f"sweep {left}")
        left -= 13 + 19
    for number in range(left):
        store.add_stage("train_codec", params={"seed": str(number)})


class Server:
    """The dashboard over a store in a process of its own."""

    def __init__(self, store: Any) -> None:
        self.store = store
        (port,) = free_ports(1)
        self.url = f"http://127.0.0.1:{port}"
        began = time.perf_counter()
        self.process = subprocess.Popen([sys.executable, "-c", SERVE, store.uri, str(port)], cwd=ROOT)
        while not self._answers(port):
            if self.process.poll() is not None:
                raise SystemExit("the dashboard's process ended before it answered")
            time.sleep(0.02)
        self.seconds_to_start = time.perf_counter() - began

    @staticmethod
    def _answers(port: int) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0


def open_once(chromium: Any, url: str) -> float:
    """Seconds from the request to both figures of the first view drawn, in a fresh browser context."""
    context = chromium.new_context(viewport={"width": 1400, "height": 900})
    page = context.new_page()
    began = time.perf_counter()
    page.goto(url)
    page.wait_for_function("document.querySelectorAll('.figure .main-svg .scatterlayer .trace').length >= 10")
    seconds = time.perf_counter() - began
    context.close()
    return seconds


def measure(servers: dict[str, Server], repeats: int) -> dict[str, dict[str, list[float]]]:
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        raise SystemExit("no Chromium here: install one (Debian, Ubuntu: apt-get install chromium)")
    seconds: dict[str, dict[str, list[float]]] = {name: {"new": [], "known": []} for name in servers}
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=ARGUMENTS)
        for _ in range(repeats):
            for name, server in servers.items():
                server.store.add_run("one more", tags={"dvc.stage": "train_codec"})
                seconds[name]["new"].append(open_once(chromium, server.url))
                seconds[name]["known"].append(open_once(chromium, server.url))
        chromium.close()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    servers: dict[str, Server] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for runs in (5, arguments.runs):
                store = made_up_store(Path(folder) / str(runs))
                fill(store, runs)
                servers[f"{runs} runs"] = Server(store)
            seconds = measure(servers, arguments.repeats)
        finally:
            for server in servers.values():
                server.process.terminate()
                server.process.wait()
    baseline = {kind: statistics.median(seconds["5 runs"][kind]) for kind in ("new", "known")}
    print("| store | server up | opened, new | ratio | opened, known | ratio |\n|---|---|---|---|---|---|")
    for name, server in servers.items():
        cells = [f"{server.seconds_to_start:.1f} s"]
        for kind in ("new", "known"):
            times = seconds[name][kind]
            middle = statistics.median(times)
            cells += [f"{middle:.2f} s [{min(times):.2f}, {max(times):.2f}]", f"{middle / baseline[kind]:.2f}"]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()

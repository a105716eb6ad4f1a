"""Both pages in a headless Chromium: they draw, obey their controls, ask no other machine and fit a phone."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from dashboards import frames, page
from dashboards.app import build
from dashboards.names import measure

pytestmark = [pytest.mark.browser, pytest.mark.slow]
DESK, PHONE = {"width": 1400, "height": 900}, {"width": 390, "height": 844}
DRAWN = ".figure .main-svg"


@dataclass
class Watched:
    """An open page with all it said and asked for."""

    page: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def watch(browser: Any) -> Iterator[Any]:
    opened = []

    def open_page(url: str, size: dict[str, int] = DESK) -> Watched:
        watched = Watched(browser.new_page(viewport=size))
        opened.append(watched.page)
        watched.page.on("console", lambda message: watched.said.append(message.text))
        watched.page.on("pageerror", lambda error: watched.said.append(str(error)))
        watched.page.on("request", lambda request: watched.asked.append(request.url))
        watched.page.goto(url)
        watched.page.wait_for_selector(DRAWN)
        return watched

    yield open_page
    for one in opened:
        one.close()


@pytest.fixture(scope="module")
def file_url(store: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("page") / "dashboard.html"
    page.write(path, page.store_page(store.uri))
    return path.as_uri()


@pytest.fixture(scope="module")
def served(store: Any) -> Iterator[str]:
    from werkzeug.serving import make_server

    server = make_server("127.0.0.1", 0, build(store.uri).server, threaded=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()


def overflow(watched: Watched) -> int:
    return watched.page.evaluate("document.documentElement.scrollWidth - window.innerWidth")


def plot_of(watched: Watched, title: str, script: str) -> Any:
    """`script(plot)` of the visible figure whose title begins so."""
    return watched.page.evaluate(
        """([title, script]) => {
          const plots = [...document.querySelectorAll('.js-plotly-plot')].filter(p => p.offsetParent)
          const plot = plots.find(p => p.layout.title.text.replaceAll('<br>', ' ').startsWith(title))
          return plot ? eval(script)(plot) : null
        }""",
        [title, script],
    )


def pull_slider(watched: Watched, title: str, slider: int) -> None:
    """Click a figure's slider at its far end."""
    plot = watched.page.locator(".js-plotly-plot", has_text=title).first
    plot.scroll_into_view_if_needed()
    rail = plot.locator(".slider-rail-touch-rect").nth(slider).bounding_box()
    watched.page.mouse.click(rail["x"] + rail["width"] - 2, rail["y"] + rail["height"] / 2)


# --------------------------------------------------------------------------------------------------- the one file


def test_the_file_draws_everything_without_network_or_complaint(watch, file_url):
    watched = watch(file_url)
    watched.page.wait_for_selector("body[data-ready=yes]")
    drawn = watched.page.locator(".panel:not([hidden]) .figure .main-svg").count()
    assert drawn >= watched.page.locator(".panel:not([hidden]) .figure").count() > 15
    assert watched.said == []
    assert [url for url in watched.asked if not url.startswith(("data:", "blob:"))] == [file_url]


def test_the_files_sliders_move_independently(watch, file_url):
    watched = watch(file_url)
    ranges = "plot => [plot.layout.xaxis.range, plot.layout.yaxis.range]"
    title = "Samples: Student, AYF-EMD"
    assert plot_of(watched, title, ranges) == [[0, 1], [0, 1]]
    pull_slider(watched, title, 0)
    watched.page.wait_for_timeout(400)
    assert plot_of(watched, title, ranges) == [[3, 4], [0, 1]]
    pull_slider(watched, title, 1)
    watched.page.wait_for_timeout(400)
    assert plot_of(watched, title, ranges) == [[3, 4], [1, 2]]
    assert watched.said == []


def test_pictures_are_not_smoothed(watch, file_url):
    watched = watch(file_url)
    image = watched.page.locator(".js-plotly-plot", has_text="Samples: Student, AYF-EMD").locator("image").first
    assert image.evaluate("element => getComputedStyle(element).imageRendering") == "pixelated"


def test_the_files_choices_swap_figures(watch, file_url):
    watched = watch(file_url)
    words = "plot => plot.layout.title.text"
    assert plot_of(watched, "Recall against network calls", words) is None
    watched.page.locator("section", has_text="Quality and cost").locator("select").first.select_option("Recall")
    assert plot_of(watched, "Recall against network calls", words)
    assert plot_of(watched, "Fréchet distance to training data against network calls", words) is None
    assert watched.said == []


def test_hovering_a_box_of_the_lineage_tells_settings_and_commit(watch, file_url):
    watched = watch(file_url)
    plot = watched.page.locator(".js-plotly-plot", has_text="Where “evaluate teacher” came from")
    plot.scroll_into_view_if_needed()
    box = plot.locator(".annotation", has_text="train codec").bounding_box()
    watched.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    label = plot.locator(".hoverlayer .hovertext").first
    label.wait_for()
    assert "commit d11134111111" in label.text_content()
    assert "data.name = digits" in label.text_content()


def test_the_file_fits_a_phone(watch, file_url):
    watched = watch(file_url, PHONE)
    watched.page.wait_for_selector("body[data-ready=yes]")
    assert overflow(watched) <= 0
    assert watched.page.evaluate(
        "[...document.querySelectorAll('.js-plotly-plot .main-svg')].every(s => s.getBoundingClientRect().width <= 390)"
    )


def test_a_sweeps_page_draws(watch, store, tmp_path):
    trials = frames.trials(store.uri, "pair")
    path = tmp_path / "sweep.html"
    page.write(path, page.sweep_page(trials, frames.trial_curves(store.uri, trials)))
    watched = watch(path.as_uri())
    second = measure("recall/nfe_2")
    watched.page.locator("select").select_option(second)
    assert plot_of(watched, f"{second}, by step", "plot => plot.data.length") > 5
    assert watched.said == []


# ----------------------------------------------------------------------------------------------------- the server


def test_the_served_page_asks_its_own_server_only(watch, served):
    watched = watch(served)
    assert watched.said == []
    assert [url for url in watched.asked if not url.startswith((served, "data:", "blob:"))] == []


def test_every_tab_of_the_served_page_draws_and_fits_a_phone(watch, served):
    for size in (DESK, PHONE):
        watched = watch(served, size)
        for tab, sign in [
            ("Guidance", "Against the guidance scale"),
            ("Samples", "Samples: Teacher"),
            ("Training", "Training, in bins of the length"),
            ("Sweeps", "What was tried"),
            ("Lineage", "Where “evaluate adversarial”"),
        ]:
            watched.page.locator(".tab", has_text=tab).click()
            watched.page.locator(".js-plotly-plot", has_text=sign).first.wait_for()
            assert overflow(watched) <= 0, tab
        watched.page.locator(".tab", has_text="Runs").click()
        watched.page.locator("td", has_text="train codec").first.wait_for()
        assert overflow(watched) <= 0
        assert watched.said == []


def test_choosing_a_measure_and_an_older_version_redraws(watch, served, store):
    watched = watch(served)
    lines = "plot => plot.data.filter(t => t.mode === 'lines+markers').length"
    assert plot_of(watched, "Fréchet distance to training data against network", lines) == 5
    watched.page.locator("#choice").click()
    watched.page.locator("[role=option], .dash-dropdown-option", has_text="Student, AYF-EMD").last.click()
    watched.page.keyboard.press("Escape")
    watched.page.wait_for_function(
        "document.querySelector('.js-plotly-plot').data.filter(t => t.mode === 'lines+markers').length === 6"
    )
    watched.page.locator("#panel").click()
    watched.page.locator("[role=option], .dash-dropdown-option", has_text="Recall").first.click()
    watched.page.locator(".js-plotly-plot", has_text="Recall against network calls").wait_for()
    assert plot_of(watched, "Recall against network calls", lines) == 6
    assert watched.said == []


def test_sliders_of_the_served_page_move(watch, served):
    watched = watch(served)
    watched.page.locator(".tab", has_text="Samples").click()
    watched.page.locator(".js-plotly-plot", has_text="Samples: Student, AYF-EMD").locator(
        ".slider-group"
    ).first.wait_for()
    pull_slider(watched, "Samples: Student, AYF-EMD", 0)
    watched.page.wait_for_timeout(400)
    assert plot_of(watched, "Samples: Student, AYF-EMD", "plot => plot.layout.xaxis.range") == [3, 4]

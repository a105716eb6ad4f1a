"""The page as text: everything in it, nothing fetched, nothing from a run's name taken for markup."""

import json
import re

import pandas as pd
import pytest

from dashboards import frames, page, views


def figures_of(text: str) -> list[dict]:
    found = re.findall(r'<script type="application/json" id="figure-\d+-data">(.*?)</script>', text, re.DOTALL)
    return [json.loads(part) for part in found]


@pytest.fixture(scope="module")
def whole(store):
    return page.store_page(store.uri)


def test_the_page_holds_every_part_and_its_data(whole):
    parts = ["Quality and cost", "Guidance and γ", "Samples", "Training", "Sweep distill", "Sweep pair", "Lineage"]
    assert all(f"<h2>{part}</h2>" in whole for part in parts)
    titles = [figure["layout"]["title"]["text"].replace("<br>", " ") for figure in figures_of(whole)]
    assert "Fréchet distance to training data against network calls" in titles
    assert "Samples: Student, AYF-EMD" in titles
    assert any(title.startswith("Trade-off: Recall at 2 network calls against Fréchet") for title in titles)


def test_the_page_names_the_runs_it_shows(whole, store):
    for model in ("teacher", "emd", "adversarial"):
        assert store.new[f"evaluate@{model}"] in whole
        assert store.old[f"evaluate@{model}"] not in whole
    assert "<td>d111341</td>" in whole


def test_the_page_asks_no_network(whole):
    assert "default-src 'none'" in whole
    assert whole.count("<script>") == 2  # plotly.js once, and the page's own
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=\"https?:", whole)


def test_a_run_cannot_write_markup_into_the_page(made_up, tmp_path):
    store = made_up.MadeUpStore(tmp_path)
    run_id = store.add_training("distill@emd", bins={"tangent_norm": "interval"}, inputs={})
    store.client.update_run(run_id, name="</script><script>alert(1)</script>")
    assert "<script>alert" not in page.store_page(store.uri)


def test_an_empty_store_says_what_makes_its_figures(made_up, tmp_path):
    text = page.store_page(made_up.MadeUpStore(tmp_path).uri)
    notes = [note["text"] for figure in figures_of(text) for note in figure["layout"]["annotations"]]
    assert len(notes) >= 5
    assert all("dvc repro" in note for note in notes)


def test_a_sweeps_page_needs_its_trials_only(store):
    trials = frames.trials(store.uri, "distill")
    text = page.sweep_page(trials)
    assert "12 trials: 5 ran to the end, 5 stopped early by the scheduler, 2 failed." in text.replace("\n", " ")
    assert not any("by step" in figure["layout"]["title"]["text"] for figure in figures_of(text))
    curves = frames.trial_curves(store.uri, trials)
    assert len(figures_of(page.sweep_page(trials, curves))) == len(figures_of(text)) + 1


def test_a_sweep_without_trials_has_a_page(made_up, tmp_path):
    store = made_up.MadeUpStore(tmp_path)
    store.add_sweep("fresh", trials=0)
    trials = frames.trials(store.uri, "fresh")
    assert "0 trials" in page.sweep_page(trials[trials["kind"] == "trial"])


def test_the_table_of_trials_begins_with_the_best(store):
    table = views.sweep(frames.trials(store.uri, "distill")).panels[0].table
    assert isinstance(table, pd.DataFrame)
    distances = pd.to_numeric(table.iloc[:, 1], errors="coerce").dropna()
    assert distances.is_monotonic_increasing


def test_a_page_is_written_whole_or_not_at_all(tmp_path):
    page.write(tmp_path / "new" / "page.html", "äöü")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["page.html"]
    assert (tmp_path / "new/page.html").read_text(encoding="utf-8") == "äöü"

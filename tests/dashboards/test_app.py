"""What the served dashboard offers to choose, what it then shows, and how seldom it reads."""

import pytest

from dashboards import app, frames
from dashboards.store import StoreError


@pytest.fixture
def reader(store):
    return app.Reader(store.uri)


def test_evaluations_offer_every_version_and_begin_with_the_newest(store, reader):
    options, chosen, several = app.choices(reader.runs(frames.EXPERIMENT), "Quality")
    assert several
    assert len(options) == 10
    assert set(chosen) == {store.new[f"evaluate@{m}"] for m in ("teacher", "weak_teacher", "emd", "lmd", "adversarial")}
    assert any(o["value"] == store.old["evaluate@emd"] and "Student, AYF-EMD" in o["label"] for o in options)


def test_trainings_sweeps_and_lineage_begin_with_the_newest(store, reader):
    table = reader.runs(frames.EXPERIMENT)
    assert app.choices(table, "Training")[1] == store.new["adversarial"]
    assert app.choices(table, "Sweeps")[1] == store.pair
    assert app.choices(table, "Lineage")[1] == store.new["evaluate@adversarial"]


@pytest.mark.parametrize("tab", app.TABS)
def test_every_tab_has_something_to_show(store, reader, tab):
    _, chosen, several = app.choices(reader.runs(frames.EXPERIMENT), tab)
    view = app.view_of(reader, frames.EXPERIMENT, tab, chosen if several else [chosen])
    panel = view.panels[0]
    assert panel.draw() or panel.table is not None


@pytest.mark.parametrize("tab", app.TABS)
def test_every_tab_can_show_nothing(reader, tab):
    view = app.view_of(reader, frames.EXPERIMENT, tab, [])
    assert view.panels[0].draw() is not None


def test_a_second_look_reads_nothing_until_a_run_is_written(made_up, tmp_path):
    store = made_up.MadeUpStore(tmp_path)
    reader, reads = app.Reader(store.uri), []

    def read(uri: str, ids: list[str]) -> int:
        reads.append((uri, ids))
        return len(reads)

    assert [reader.read(read, ("a", "b")), reader.read(read, ("a", "b"))] == [1, 1]
    assert reads == [(store.uri, ["a", "b"])]
    assert reader.read(read, ("a",)) == 2
    store.add_run("one more")
    assert reader.read(read, ("a", "b")) == 3


def test_a_store_that_cannot_be_read_is_told_before_the_server_starts(tmp_path):
    with pytest.raises(StoreError, match="there is no MLflow store"):
        app.build(f"sqlite:///{tmp_path / 'none.db'}")

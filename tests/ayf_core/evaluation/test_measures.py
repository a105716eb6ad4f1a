"""Measures are said once: the registry tells which apply, in which direction, and how they read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from ayf_core.errors import AyfError
from ayf_core.evaluation.catalogue import applicable, directions, headline, measures
from ayf_core.evaluation.counts import check_counts
from ayf_core.evaluation.quality import PointReference
from ayf_core.registry import find, use_plugins

PLUGIN = """
from ayf_core.registry import register


@register("measure", "spread", title="Spread of points", needs=["points"], better="higher", format=".2f")
def spread(compared):
    return compared.generated.std().item()
"""


def test_measures_of_images_stand_in_the_order_of_tables() -> None:
    assert directions("digits") == {
        "fd": "min",
        "fd_test": "min",
        "kernel_distance": "min",
        "precision": "max",
        "recall": "max",
        "density": "max",
        "coverage": "max",
        "authenticity": "max",
    }
    assert list(applicable(["features"])) == [*list(directions("digits"))[:7], "copy_ratio", "authenticity"]
    assert directions("checkerboard") == {"jsd": "min", "sliced_wasserstein": "min"}
    assert (headline("digits"), headline("folder"), headline("checkerboard")) == ("fd", "fd", "jsd")


def test_every_measure_says_all_that_tables_and_searches_ask() -> None:
    for name, measure in measures().items():
        assert measure.facts["needs"], name
        assert measure.facts.get("better") in ("lower", "higher", None), name
        assert format(0.123456, measure.facts["format"]) == "0.123", name
        assert measure.title[0].isupper(), name


def test_points_without_a_known_square_have_no_density_on_it() -> None:
    points = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
    reference = PointReference(points[:20], points[20:], half_width=None)
    assert reference.measure(points[:20], seed=0).keys() == {"sliced_wasserstein"}


def test_a_measure_of_a_plug_in_is_measured_listed_and_searched_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_measures.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    use_plugins(["my_measures"])
    try:
        points = torch.randn(40, 2, generator=torch.Generator().manual_seed(0))
        found = PointReference(points[:20], points[20:], half_width=4.0).measure(points[:20], seed=0)
        assert found["spread"] == points[:20].std().item()
        assert list(directions("checkerboard")) == ["jsd", "sliced_wasserstein", "spread"]
        assert find("measure", "spread").title == "Spread of points"
    finally:
        use_plugins([])


def test_the_catalogue_is_read_without_torch() -> None:
    code = "import sys; from ayf_core.evaluation import catalogue as c; c.directions('digits'); "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# ------------------------------------------------------------------------------------------- before anything is trained


def images(count: int, seed: int) -> torch.Tensor:
    return torch.rand(count, 1, 3, 3, generator=torch.Generator().manual_seed(seed))


def test_too_few_test_images_for_the_neighbours_name_both_settings() -> None:
    check_counts(images(12, 0), images(6, 1), neighbours=5)
    with pytest.raises(AyfError, match=r"evaluation\.neighbours = 5: data\.test_fraction leaves 4 .* can be 3 at most"):
        check_counts(images(12, 0), images(4, 1), neighbours=5)
    with pytest.raises(AyfError, match="can be 4 at most"):
        check_counts(images(5, 0), images(6, 1), neighbours=5)


def test_a_test_split_of_one_is_refused_for_points_too() -> None:
    with pytest.raises(AyfError, match="needs 2 of each"):
        check_counts(torch.zeros(15, 2), torch.zeros(1, 2), neighbours=1)
    check_counts(torch.zeros(15, 2), torch.zeros(2, 2), neighbours=50)


def test_test_images_that_are_mostly_training_images_are_refused() -> None:
    train, fresh = images(20, 0), images(3, 1)
    check_counts(train, torch.cat([fresh, train[:3]]), neighbours=2)
    with pytest.raises(AyfError, match="4 of 7 test images are exact copies"):
        check_counts(train, torch.cat([fresh, train[:4]]), neighbours=2)

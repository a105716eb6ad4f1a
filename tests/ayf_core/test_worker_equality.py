"""After 200 steps two workers differ from one by rounding alone: as does another order of additions in one process."""

import importlib.util
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

_path = Path(__file__).resolve().parents[2] / "benchmarks" / "worker_equality.py"
_spec = importlib.util.spec_from_file_location("worker_equality", _path)
benchmark = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = benchmark  # spawned processes look their function up by this name
_spec.loader.exec_module(benchmark)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(_path.parent))
        return dict(benchmark.distances([2], 200, "mlp"))


@pytest.mark.parametrize("row", ["2 workers, DDP", "2 workers, FSDP2"])
def test_distance_is_that_of_another_order_of_additions(rows, row):
    for case, distance in rows[row].items():
        yardstick = max(found[case] for name, found in rows.items() if name.startswith("one process"))
        assert 0 < distance <= 4 * yardstick, case


@pytest.mark.parametrize("objective", ["flow matching", "EMD"])
def test_distance_shrinks_with_the_rounding(rows, objective):
    for row in ("2 workers, DDP", "2 workers, FSDP2"):
        single, double = (rows[row][objective, dtype] for dtype in ("float32", "float64"))
        assert single < 1e-4
        assert double < 100 * 2**-29 * single

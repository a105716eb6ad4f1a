"""After 40 steps two workers differ from one by rounding alone: as does another order of additions in one process.

benchmarks/worker_equality.py shows it in float32 too, over 200 steps and with more workers.
"""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

_path = Path(__file__).resolve().parents[2] / "benchmarks" / "worker_equality.py"
_spec = importlib.util.spec_from_file_location("worker_equality", _path)
benchmark = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = benchmark  # spawned processes look their function up by this name
_spec.loader.exec_module(benchmark)


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """In float64, where the steps are few enough for rounding to stay rounding."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(_path.parent))
        patch.setattr(benchmark, "DTYPES", {"float64": torch.float64})
        return dict(benchmark.distances([2], 40, "mlp"))


@pytest.mark.parametrize("row", ["2 workers, DDP", "2 workers, FSDP2"])
def test_distance_is_that_of_another_order_of_additions(rows, row):
    assert len(rows[row]) == 2
    for case, distance in rows[row].items():
        yardstick = max(found[case] for name, found in rows.items() if name.startswith("one process"))
        assert 0 < distance <= 4 * yardstick, case
        assert distance < 1e-12, case

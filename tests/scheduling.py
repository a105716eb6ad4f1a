"""How `make test` shares the tests out to its processes: units that cannot be cut, the longest first.

A unit is a file, since its tests share what its fixtures made. A file that is longer than a process should be kept
busy at the end is cut into its tests: what these share is made once for all processes (tests/made_once.py).
"""

from __future__ import annotations

import pytest

LONGEST_FIRST = (
    "tests/cluster/test_faults.py",
    "tests/reliability/test_faults.py",
    "tests/reliability/test_shared_ray.py",
    "tests/sweeps/test_sweep.py",
    "tests/pipelines/test_pipeline.py",
    "tests/pipelines/test_many_workers.py",
    "tests/cluster",
    "tests/reliability",
    "tests/postgres",
    "tests/ayf_core/test_data_parallel.py",
    "tests/dashboards/test_browser.py",
    "tests/pipelines/test_mlflow_pages.py",
    "tests/sweeps",
    "tests/pipelines",
    "tests/ayf_core",
)
"""The order in which units begin; what no line names comes last. `--durations=40` shows when to change it."""

CUT = ("tests/reliability/test_faults.py", "tests/reliability/test_shared_ray.py")
"""Files whose tests are units of their own."""


def turn(node_id: str) -> int:
    """When a test's unit begins: the place of the first line that names it."""
    return next((i for i, name in enumerate(LONGEST_FIRST) if node_id.startswith(name)), len(LONGEST_FIRST))


def units_longest_first(config: pytest.Config, log: object) -> object:
    """Hands the next unit to the process that is free first. The order is that of collection: see `turn`."""
    from xdist.scheduler.loadscope import LoadScopeScheduling

    class Units(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::", 1)[0]
            return nodeid if file in CUT else file

    config.option.loadscopereorder = False
    return Units(config, log)

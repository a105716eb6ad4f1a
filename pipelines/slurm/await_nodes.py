"""`python -m pipelines.slurm.await_nodes COUNT SECONDS`: wait until the Ray at RAY_ADDRESS has COUNT nodes."""

from __future__ import annotations

import os
import sys
import time

from ayf_core.errors import AyfError
from pipelines.execution.existing_ray import ExistingRay
from pipelines.execution.own_ray import prepare_environment


def main(count: int, seconds: float) -> str:
    """How many nodes there are, in words.

    Raises:
        AyfError: fewer than `count` have joined after `seconds`; with the arithmetic.
    """
    prepare_environment()
    import ray

    with ExistingRay(os.environ["RAY_ADDRESS"]):
        deadline = time.monotonic() + seconds
        while True:
            alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            cpus, gpus = (int(sum(node.get(kind, 0) for node in alive)) for kind in ("CPU", "GPU"))
            if len(alive) >= count:
                return f"Ray is up: {len(alive)} node{'s' if len(alive) > 1 else ''}, {cpus} CPUs, {gpus} GPUs"
            if time.monotonic() > deadline:
                raise AyfError(
                    f"{count} nodes were asked for, {len(alive)} of them ({cpus} CPUs, {gpus} GPUs) joined Ray within "
                    f"{seconds:.0f} s: look into the ray-*.log files of the job, or raise slurm.wait_seconds"
                )
            time.sleep(0.2)


if __name__ == "__main__":
    try:
        print(main(int(sys.argv[1]), float(sys.argv[2])))
    except AyfError as error:
        print(error, file=sys.stderr)
        sys.exit(1)

"""Ray Train without the helpers that have no use here, each a process that takes seconds of CPU time to start.

Of 26 CPU seconds of a run of 50 steps with one worker (ray 2.60), the controller's process took 5.1 and the coordinator
of autoscaling 1.8; without them it was 17 (once each). `benchmarks/ray_overhead.py` prints what a start takes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

UNUSED_CALLBACKS = ("DatasetsCallback", "PlacementGroupCleanerCallback")
"""One hands out Ray Data sets (there are none); one outlives the controller to free its workers (they end with the
connection of the driver, and a sweep frees those of its trials by `release_workers`)."""

LOG = "ray_train.log"
"""In the training's folder: what Ray Train's controller says."""


def light_trainer(folder: Path) -> type:
    """`TorchTrainer` whose controller runs in this process, in the thread that calls `fit`; it notes in `folder`.

    Its `abandon` ends a `fit` that nobody waits for any more.
    """
    import ray
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.execution.controller import TrainController
    from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
    from ray.train.v2._internal.execution.worker_group import WorkerGroup

    class Group(WorkerGroup):
        def _init_train_context_on_workers(self, workers: Any, sync_actor: Any, train_context_args: Any) -> None:
            """As Ray's, without a handle of the controller: only `ray.train.report` would ask for it."""
            shared = {
                "train_run_context": self._train_run_context,
                "synchronization_actor": sync_actor,
                "storage_context": self._storage_context,
                "worker_callbacks": self._worker_callbacks_to_propagate,
                "controller_actor": None,
            }
            begun = [
                worker.actor.init_train_context.remote(
                    distributed_context=worker.distributed_context,
                    **shared,
                    **{name: values[rank] for name, values in train_context_args.items()},
                )
                for rank, worker in enumerate(workers)
            ]
            ray.get(begun)
            self._decorate_worker_log_file_paths(workers)

    class Controller(TrainController):
        worker_group_cls = Group

    class Fixed(FixedScalingPolicy):
        """So many workers, and no autoscaler that wants to know."""

        def _send_resource_request(self) -> None: ...

        def _maybe_send_resource_request(self) -> None: ...

        def _cancel_resource_request(self) -> None: ...

    class LightTrainer(TorchTrainer):
        _cancel: Callable[[], object] | None = None

        def abandon(self) -> None:
            """From another thread: have `fit` end soon. A controller that calls a Ray that is gone ends the process."""
            if self._cancel is not None:
                with suppress(RuntimeError):  # it has just ended by itself
                    self._cancel()

        def _create_default_callbacks(self) -> list:
            made = super()._create_default_callbacks()  # type: ignore[misc]
            return [c for c in made if type(c).__name__ not in UNUSED_CALLBACKS]

        def _initialize_and_run_controller(self, *, scaling_policy: Any, **given: Any) -> Any:
            if type(scaling_policy) is FixedScalingPolicy:  # an elastic one asks the coordinator what there is
                scaling_policy = Fixed(scaling_policy.scaling_config)
            with _said_in(folder / LOG):
                controller = Controller(scaling_policy=scaling_policy, **given)
                asyncio.run(self._followed(controller))
                return controller.get_result()

        async def _followed(self, controller: TrainController) -> None:
            running = asyncio.ensure_future(controller.run())
            loop = asyncio.get_running_loop()
            self._cancel = lambda: loop.call_soon_threadsafe(running.cancel)
            await running

    return LightTrainer


@contextmanager
def _said_in(path: Path) -> Iterator[None]:
    """While the controller works, what it says goes to a file, not to the terminal of the stage."""
    logger = logging.getLogger("ray.train")
    before, told = logger.propagate, logger.level
    file = logging.FileHandler(path, mode="w")
    file.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logger.addHandler(file)
    logger.propagate = False
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(file)
        logger.propagate = before
        logger.setLevel(told)
        file.close()

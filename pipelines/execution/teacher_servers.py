"""Frozen teachers on Ray processes of their own, for teachers that do not fit beside the student on one GPU.

Rank 0 of the students reserves a placement group, one bundle a server, and every student asks one of the servers for
velocities. A server holds nothing but frozen weights: one that dies is started again and the question put again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ayf_core.conditions import Condition
from ayf_core.errors import AyfError
from ayf_core.training.context import TrainingContext
from ayf_core.velocity import VelocityField

RESTARTS = 5
ROOM_SECONDS = 60.0
_NOTE = "teachers"

LoadVelocity = Callable[[torch.device], VelocityField]
"""Makes the field on a device; travels to the servers."""


class TeacherServer:
    """A Ray actor: one velocity field, asked from other processes.

    Args:
        load: makes the field on a device.
        gpu: whether a GPU was reserved for it.
        threads: of this process, without a GPU.
    """

    def __init__(self, load: LoadVelocity, gpu: bool, threads: int) -> None:
        torch.set_num_threads(threads)
        self._device = torch.device("cuda" if gpu else "cpu")
        self._field = load(self._device)

    def evaluations_per_call(self) -> int:
        return self._field.evaluations_per_call

    @torch.no_grad()
    def velocity(self, x: Tensor, t: Tensor, condition: Condition | None, guidance_scale: Tensor | None) -> Tensor:
        """v(x, t | condition, λ) [B, *D], from and to the host's memory."""
        told = None if condition is None else condition.to(self._device)
        scale = None if guidance_scale is None else guidance_scale.to(self._device)
        return self._field(x.to(self._device), t.to(self._device), told, scale).cpu()


class ServedVelocity:
    """A `VelocityField` that asks a `TeacherServer`; the same numbers as the field itself on the same device."""

    def __init__(self, server: Any) -> None:
        import ray

        self._server = server
        self.evaluations_per_call: int = ray.get(server.evaluations_per_call.remote())

    def __call__(
        self, x: Tensor, t: Tensor, condition: Condition | None = None, guidance_scale: Tensor | None = None
    ) -> Tensor:
        import ray

        told = None if condition is None else condition.to("cpu")
        scale = None if guidance_scale is None else guidance_scale.detach().cpu()
        asked = (x.detach().cpu(), t.detach().cpu(), told, scale)
        try:
            return ray.get(self._server.velocity.remote(*asked)).to(x.device)
        except ray.exceptions.ActorDiedError as error:
            # No AyfError: the workers are replaced, and with them the servers, from the last checkpoint.
            raise RuntimeError(f"a teacher server died {RESTARTS + 1} times: see the logs of Ray") from error


@contextmanager
def served(
    load: LoadVelocity, context: TrainingContext, *, count: int, threads: int, spread: bool = False
) -> Iterator[VelocityField]:
    """The field of `load`, held by `count` servers as long as the context lasts; every student enters it.

    Raises:
        AyfError: there is no Ray here, or no room for the servers.
    """
    import ray

    if not ray.is_initialized():
        raise AyfError("teacher_workers needs processes of Ray: set mode: ray in the runtime, or teacher_workers: 0")
    names: list[Any] = [None]
    note = context.folder / _NOTE
    if context.rank == 0:
        names = [_start(load, note, count, threads, gpu=context.device.type == "cuda", spread=spread)]
    if context.world_size > 1:
        torch.distributed.broadcast_object_list(names, src=0)
    try:
        try:
            velocity = ServedVelocity(ray.get_actor(names[0][context.rank % count]))
        except (ValueError, ray.exceptions.RayActorError) as error:
            # They went with rank 0. No AyfError: all workers are replaced.
            raise RuntimeError("the teacher servers are gone: see the logs of Ray") from error
        yield velocity
        if context.world_size > 1:
            torch.distributed.barrier()  # without servers, a student that still waits for its answer would for ever
    finally:
        if context.rank == 0:
            _remove(note)


def _start(load: LoadVelocity, note: Path, count: int, threads: int, *, gpu: bool, spread: bool) -> list[str]:
    import ray
    from ray.util.placement_group import placement_group
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    _remove(note)  # those of an attempt that was killed
    bundle = {"CPU": float(threads)} | ({"GPU": 1.0} if gpu else {})
    group = placement_group([bundle] * count, strategy="SPREAD" if spread else "PACK")
    note.write_text(group.id.hex())
    try:
        ray.get(group.ready(), timeout=ROOM_SECONDS)
    except ray.exceptions.GetTimeoutError as error:
        _remove(note)
        each = " and ".join(f"{amount:g} {kind}" for kind, amount in bundle.items())
        free = ", ".join(f"{ray.available_resources().get(kind, 0):g} {kind}" for kind in bundle)
        raise AyfError(
            f"no room for {count} teacher servers of {each} each (free: {free}): lower teacher_workers or workers"
        ) from error
    names = [f"teacher-{group.id.hex()}-{number}" for number in range(count)]
    for number, name in enumerate(names):
        ray.remote(TeacherServer).options(
            name=name,
            num_cpus=threads,
            num_gpus=1 if gpu else 0,
            max_restarts=RESTARTS,
            max_task_retries=RESTARTS,
            lifetime="detached",  # ended with its placement group, by the next attempt if not by this one
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number),
        ).remote(load, gpu, threads)
    return names


def _remove(note: Path) -> None:
    from ray import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    if note.exists():
        remove_placement_group(PlacementGroup(PlacementGroupID.from_hex(note.read_text())))
        note.unlink()

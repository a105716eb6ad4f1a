"""Teachers on processes of their own give the numbers that a teacher beside the student gives."""

from __future__ import annotations

import dataclasses
import importlib.util
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from ayf_core.conditions import Condition, class_labels
from ayf_core.errors import AyfError
from ayf_core.networks.build import build_network
from ayf_core.networks.spec import NetworkSpec
from ayf_core.registry import find
from ayf_core.velocity import VelocityField
from pipelines.execution.ray_train import run_training
from pipelines.execution.teacher_servers import served

HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("toy_project", HERE / "toy_project.py")
assert _spec is not None
assert _spec.loader is not None
toy = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(toy)


def field(device: torch.device) -> VelocityField:
    """Autoguidance of two small networks with weights of a seed."""
    torch.manual_seed(3)
    own = {"width": 16, "depth": 2, "activation": "silu"}
    spec = NetworkSpec(kind="mlp", settings=own, shape=(2,), conditions=class_labels(3))
    guidance = find("guidance", "autoguidance").load()
    return guidance.build(*(build_network(spec).to(device) for _ in range(2)), spec.conditions)


def question(rank: int) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(rank)
    x, t, scale = (torch.rand(shape, generator=generator) for shape in ((5, 2), (5,), (5,)))
    return x, t, Condition(labels=torch.arange(5) % 3), 1 + scale


def ask(config: dict, context) -> dict:
    """A training function: one question before the server is killed, one after."""
    import ray

    from pipelines.execution import teacher_servers

    teacher_servers.ROOM_SECONDS = config.get("room_seconds", teacher_servers.ROOM_SECONDS)
    with served(field, context, count=1, threads=1) as velocity:
        before = velocity(*question(context.rank))
        if context.world_size > 1:
            torch.distributed.barrier()
        if context.rank == 0:
            ray.kill(velocity._server, no_restart=False)
        else:
            time.sleep(8.0)  # rank 0 is done by then, and has to leave the servers to this one
        after = velocity(*question(context.rank))
    everyone = [torch.empty_like(after) for _ in range(context.world_size)]
    if context.world_size > 1:
        torch.distributed.all_gather(everyone, after)
    return {
        "answers": [each.tolist() for each in everyone],
        "same": torch.equal(before, after),
        "evaluations": velocity.evaluations_per_call,
    }


def runtime(**changes: object):
    return dataclasses.replace(toy.runtime("ray", workers=2), **changes)


@pytest.mark.ray
@pytest.mark.slow
def test_students_get_from_a_server_what_the_teacher_itself_gives_also_after_it_died(tmp_path: Path):
    told = run_training(
        ask, {}, folder=tmp_path, name="ask", runtime=runtime(teacher_workers=1), on_log=lambda records: None
    )
    here = field(torch.device("cpu"))
    for rank, answer in enumerate(told["answers"]):
        with torch.no_grad():
            assert torch.equal(torch.tensor(answer), here(*question(rank)))
    assert told["same"]
    assert told["evaluations"] == here.evaluations_per_call == 2
    assert not (tmp_path / "teachers").exists()


@pytest.mark.ray
@pytest.mark.slow
def test_servers_without_room_are_refused_with_the_arithmetic(tmp_path: Path):
    short = {"room_seconds": 2.0}
    with pytest.raises(AyfError, match=r"no room for 1 teacher servers of 1 CPU each \(free: .*CPU\)"):
        run_training(ask, short, folder=tmp_path, name="ask", runtime=runtime(workers=1), on_log=lambda records: None)


def test_without_ray_they_are_refused(tmp_path: Path):
    with pytest.raises(AyfError, match="teacher_workers needs processes of Ray"):
        run_training(
            ask, {}, folder=tmp_path, name="ask", runtime=runtime(mode="inline", workers=1), on_log=lambda records: None
        )

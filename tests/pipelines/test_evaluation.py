"""What an evaluation draws: the same samples once, however many figures need them, side by side or not."""

import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from ayf_core.guidance.scale import GuidanceRange
from ayf_core.networks.build import build_network
from ayf_core.networks.spec import NetworkSpec
from ayf_core.sampling.samplers import StudentSampler, TeacherSampler
from ayf_core.velocity import Autoguidance, NetworkVelocity
from pipelines.stages.evaluate import Evaluation, Place

POINTS = NetworkSpec(kind="mlp", settings={"width": 8, "depth": 1, "activation": "silu"}, shape=(2,))


class CountingBench:
    """Draws nothing and counts how it is asked to."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, float | None, float, int]] = []
        self._lock = threading.Lock()

    def draw(self, model: Any, evaluations: int, seed: int, check: Any, **how: Any) -> tuple[Tensor, int, float]:
        check()
        with self._lock:
            self.asked.append((evaluations, how["guidance_scale"], how["gamma"], seed))
        return torch.full((4, 2), float(evaluations)), evaluations, 1.0

    def measure(self, x: Tensor, seed: int) -> dict[str, float]:
        return {"fd": x.mean().item() + seed}


def network(seed: int = 0, **facts: Any) -> Any:
    torch.manual_seed(seed)
    built = build_network(NetworkSpec(**{**POINTS.__dict__, **facts}))
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return built


def evaluation(sampler: Any, memory: Path, bench: Any) -> Evaluation:
    plan: Any = SimpleNamespace(
        seeds=2, steps=[1, 4], teacher_evaluations=[4, 15], guidance_scales=[1.0, 1.5], guidance_steps=4, gammas=[0.0]
    )
    return Evaluation(plan, SimpleNamespace(sampler=sampler), bench, memory)  # type: ignore[arg-type]


@pytest.mark.parametrize("at_once", [1, 3])
def test_samples_that_several_figures_need_are_drawn_once(tmp_path: Path, at_once: int) -> None:
    bench = CountingBench()
    student = StudentSampler(network(interval=True, guidance=True), GuidanceRange(1.0, 1.5))
    evaluated = evaluation(student, tmp_path / "measured.json", bench)
    places = [Place("quality", 1), Place("quality", 4), Place("guidance", 4, scale=1.0), Place("gamma", 4, gamma=0.0)]
    evaluated.measure([*places, Place("guidance", 4, scale=1.5)], at_once)
    assert sorted(bench.asked) == [(n, s, 0.0, seed) for n, s in ((1, 1.0), (4, 1.0), (4, 1.5)) for seed in (0, 1)]
    quality, guidance = evaluated.row(places[1]), evaluated.row(places[2])
    assert (quality["fd"], quality["guidance_scale"]) == (4.5, None)
    assert (guidance["fd"], guidance["guidance_scale"]) == (4.5, 1.0)


def test_what_an_earlier_attempt_measured_is_not_drawn_again(tmp_path: Path) -> None:
    student = StudentSampler(network(interval=True))
    evaluation(student, tmp_path / "measured.json", CountingBench()).measure([Place("quality", 1)])
    bench = CountingBench()
    evaluation(student, tmp_path / "measured.json", bench).measure([Place("quality", 1), Place("quality", 4)])
    assert [evaluations for evaluations, *_ in bench.asked] == [4, 4]


@pytest.mark.parametrize("evaluations", [4, 7])
@pytest.mark.parametrize("scale", [None, 1.0, 1.5])
def test_a_teacher_told_lambda_1_draws_what_it_draws_unguided_and_counts_honestly(
    evaluations: int, scale: float | None
) -> None:
    strong, weak = NetworkVelocity(network(0)), NetworkVelocity(network(1))
    teacher = TeacherSampler(strong.network, guided=Autoguidance(strong, weak))
    noise = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    drawn = teacher.sample(noise, evaluations, guidance_scale=scale)
    same = teacher.sample(noise, evaluations, guidance_scale=teacher.effective_scale(scale))
    assert torch.equal(drawn.x, same.x)
    assert drawn.nfe == teacher.nfe(evaluations, scale)
    unguided = teacher.sample(noise, evaluations)
    assert torch.equal(drawn.x, unguided.x) == (scale != 1.5)


@pytest.mark.parametrize("scale", [None, 1.25])
def test_a_student_costs_a_network_evaluation_a_step(scale: float | None) -> None:
    student = StudentSampler(network(interval=True, guidance=True), GuidanceRange(1.25, 2.0))
    drawn = student.sample(torch.zeros(3, 2), 3, guidance_scale=scale)
    assert drawn.nfe == student.nfe(3, scale)
    assert student.effective_scale(scale) == 1.25

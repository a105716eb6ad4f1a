"""`ayf plan`: the costs of the chain before it starts, and a warning where a stage will not fit."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner, Result

from ayf_core import registry
from ayf_core.networks.files import load_network
from ayf_core.planning.hardware import HARDWARE, RESERVED_BYTES
from pipelines.commands.main import main
from pipelines.planning import fit
from pipelines.planning.chain import Chain
from pipelines.planning.estimate import Device, TrainingEstimate, estimate
from pipelines.settings.params_file import from_preset
from pipelines.settings.reading import load_config
from pipelines.settings.runtime import RuntimeConfig
from tests.chain import CHAIN, REPOSITORY, inline

TRAININGS = [name for name in CHAIN if name.startswith(("train", "distill", "finetune"))]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The presets and the runtimes, params.yaml from `smoke`, entered."""
    shutil.copytree(REPOSITORY / "conf", tmp_path / "conf")
    monkeypatch.chdir(tmp_path)
    assert ayf("params", "use", "preset=smoke").exit_code == 0
    return tmp_path


def ayf(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def planned(*words: str) -> dict[str, Any]:
    result = ayf("plan", "--json", *words)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def by_stage(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["stage"]: each for each in (*document["trainings"], *document["passes"])}


def chain(*overrides: str, remote_teachers: bool = False) -> Chain:
    config = from_preset(REPOSITORY, "smoke", list(overrides))
    return Chain.of(config, config.data.build().outline(config.seed), remote_teachers)


CARD = Device("a card", 2.0**50, "cuda", HARDWARE["h100"])
"""An h100 with memory for anything."""


def estimated(stage: str, *overrides: str, device: Device = CARD, **runtime: Any) -> TrainingEstimate:
    """One stage of the smoke chain, on a card."""
    made = chain(*overrides, remote_teachers=runtime.get("teacher_workers", 0) > 0)
    return estimate(stage, made.trainings()[stage], RuntimeConfig(**runtime), device, measure=False)


@pytest.fixture
def tiny_card(monkeypatch: pytest.MonkeyPatch) -> float:
    """The A10 has a few MiB of memory."""
    memory = 3 * 2**20
    monkeypatch.setitem(HARDWARE, "a10", dataclasses.replace(HARDWARE["a10"], memory=RESERVED_BYTES + memory))
    return memory


def test_every_stage_of_the_chain_has_its_costs(project: Path) -> None:
    document = planned("hardware=h100")
    stages = by_stage(document)
    assert set(stages) == set(CHAIN) - {"report"}
    for name in TRAININGS:
        each = stages[name]
        assert each["peak"] == pytest.approx(sum(each["memory"].values()))
        assert each["memory"]["weights"] >= 4 * each["parameters"]
        assert each["flops"] > 6 * each["parameters"]  # a forward and a backward pass, of many samples
        assert each["hours"] == pytest.approx(each["steps"] * each["seconds"] / 3600)
        assert each["fits"]
        assert each["exact"]
    assert stages["distill@emd"]["frozen_parameters"] == sum(
        stages[name]["parameters"] for name in ("train_teacher", "train_weak_teacher")
    )
    assert document["problems"] == []
    assert not (project / "models").exists()


def test_a_wider_teacher_has_more_parameters() -> None:
    small, large = (estimated("train_teacher", f"teacher.network.width={width}") for width in (32, 64))
    assert 3 < large.parameters / small.parameters < 4


def test_workers_and_micro_batches_share_the_batch() -> None:
    one = estimated("train_teacher")
    two = estimated("train_teacher", workers=2, micro_batch=4)
    assert (one.micro_batch, one.micro_batches, one.workers) == (16, 1, 1)
    assert (two.micro_batch, two.micro_batches, two.workers) == (4, 2, 2)
    assert two.flops == pytest.approx(one.flops)
    assert two.hours is not None
    assert two.device_hours == pytest.approx(2 * two.hours)
    assert two.memory["activations"] < 0.5 * one.memory["activations"]


def test_teachers_of_their_own_leave_the_worker() -> None:
    beside, apart = (estimated("distill@emd", teacher_workers=count) for count in (0, 1))
    assert "frozen" in beside.memory
    assert "frozen" not in apart.memory
    assert apart.devices == 2
    assert estimated("train_teacher", teacher_workers=1).devices == 1


def test_this_machine_is_measured() -> None:
    runtime = RuntimeConfig(threads_per_worker=1, device="cpu")
    here = Device.of(runtime)
    assert here.title == "this machine's CPU, 1 thread a worker"
    assert here.memory > 2**28
    training = chain().trainings()["train_teacher"]
    measured = estimate("train_teacher", training, runtime, here, measure=True)
    assert measured.seconds is not None
    assert 0 < measured.seconds < 10
    assert measured.source.startswith("measured with")
    assert estimate("train_teacher", training, runtime, here, measure=False).seconds is None
    small = dataclasses.replace(here, memory=2.0**20)
    assert estimate("train_teacher", training, runtime, small, measure=True).source.endswith("does not fit here")


def test_the_tables_name_stages_parts_and_what_was_assumed(project: Path) -> None:
    before = (project / "params.yaml").read_text()
    result = ayf("plan", "hardware=a100-80gb", "teacher.training.steps=12345")
    assert result.exit_code == 0
    for word in (*TRAININGS, "activations", "optimiser", "NVIDIA A100 SXM, 80 GB", "seconds assume 50%", "12,345"):
        assert word in result.stdout
    assert (project / "params.yaml").read_text() == before


def test_what_does_not_fit_is_one_line_and_params_check_repeats_it(project: Path, tiny_card: float) -> None:
    (project / "conf/runtime/local.yaml").write_text("mode: ray\nhardware: a10\n")
    assert "will not fit" not in ayf("params", "check").output
    result = ayf("plan")
    assert result.exit_code == 1
    line = next(line for line in result.stderr.splitlines() if "train_codec" in line)
    assert line.startswith("warning: train_codec will not fit: a worker needs ")
    assert "optimiser" in line
    assert "NVIDIA A10 has 3 MiB" in line
    assert "train_features will not fit" not in result.stderr
    checked = ayf("params", "check")
    assert checked.exit_code == 0
    assert line in checked.stderr
    assert ayf("params", "set", "teacher.training.steps=9").exit_code == 0
    assert "will not fit" not in ayf("params", "check").output


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["digits"], "error: 'digits' sets nothing: write KEY=VALUE"),
        (["hardware=h1000"], "hardware"),
        (["preset=digitz"], "no preset digitz: did you mean digits?"),
        (["workers=17", "hardware=h100"], "17 workers cannot share a global batch of 16"),
        (["teacher.network.widht=3"], "teacher.network.widht"),
    ],
)
def test_bad_input_is_one_line(project: Path, words: list[str], complaint: str) -> None:
    result = ayf("plan", *words)
    assert result.exit_code == 1
    assert result.stderr.startswith("error: ")
    assert complaint in result.stderr
    assert result.stderr.count("\n") == 1


def test_a_smaller_micro_batch_that_is_named_fits() -> None:
    larger = "teacher.training.batch_size=256"
    whole = estimated("train_teacher", larger)
    card = dataclasses.replace(CARD, memory=whole.peak / 2)
    line = fit.memory_complaint(estimated("train_teacher", larger, device=card), card.title)
    assert line is not None
    named = int(line.partition("micro_batch=")[2].split()[0])
    again = estimated("train_teacher", larger, device=card, micro_batch=named)
    assert named >= 32
    assert fit.memory_complaint(again, card.title) is None


def test_sharding_is_named_with_workers_on_which_the_state_fits() -> None:
    whole = estimated("train_teacher", "teacher.network.width=128", micro_batch=1)
    line = fit.memory_complaint(dataclasses.replace(whole, memory_available=whole.peak * 0.6), "a card")
    assert line is not None
    assert "sharding=full on about 2 workers" in line
    assert "micro_batch" not in line


def test_a_full_disk_is_foreseen() -> None:
    kept = SimpleNamespace(disk_kept=3 * 2**30, trainings=[SimpleNamespace(disk_running=2**30)])
    assert fit.disk_complaint(kept, 5 * 2**30) is None  # type: ignore[arg-type]
    line = fit.disk_complaint(kept, 2**31)  # type: ignore[arg-type]
    assert line is not None
    assert "3 GiB + checkpoints 1 GiB, free are 2 GiB" in line


def test_sizes_are_read_at_a_glance() -> None:
    assert [fit.size(b) for b in (2048, 1.5 * 2**30, 2**20, 2000 * 2**30)] == ["2 KiB", "1.5 GiB", "1 MiB", "2,000 GiB"]


def test_a_network_of_a_plugin_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY / "tests/plugin"))
    before = registry.plugins()
    registry.use_plugins(["ayf_example"])
    try:
        networks = [
            f"{name}.network.{one}"
            for name in ("teacher", "weak_teacher")
            for one in ("kind=convolutions", "layers=1", "width=8")
        ]
        each = estimated("distill@emd", "plugins=[ayf_example]", *networks)
        parameters = sum(p.numel() for p in chain("plugins=[ayf_example]", *networks).network("emd").parameters())
    finally:
        registry.use_plugins(before)
    assert each.exact
    assert each.parameters == parameters


@pytest.mark.slow
def test_parameters_and_disk_are_those_of_the_finished_chain(smoke_chain: Path) -> None:
    config = load_config(smoke_chain)
    made = Chain.of(config, config.data.build().outline(config.seed))
    for model, stage in (("teacher", "train_teacher"), ("emd", "distill@emd"), ("adversarial", "finetune_adversarial")):
        each = estimate(stage, made.trainings()[stage], inline(), CARD, measure=False)
        folder = smoke_chain / "models" / model
        network, _ = load_network(folder)
        assert each.parameters == sum(p.numel() for p in network.parameters())
        written = [*folder.glob("*.safetensors"), *(folder / "ema").iterdir()]
        snapshots = 8 * 4 * each.parameters  # four of each of two widths
        # Headers and buffers, which are small beside a network that is not as small as this one.
        assert (each.disk_kept - snapshots) / 3 == pytest.approx(sum(f.stat().st_size for f in written), rel=0.15)


@pytest.mark.slow
def test_a_stage_that_will_not_fit_says_so_before_it_trains(smoke_chain: Path, tiny_card: float) -> None:
    config = load_config(smoke_chain)
    stage: Any = SimpleNamespace(
        name="distill@emd",
        runtime=dataclasses.replace(inline(), hardware="a10"),
        inputs={"data/latents": smoke_chain / "data/latents"},
        input=lambda path: smoke_chain / path,
    )
    assert fit.forecast(config, stage) == []
    stage.runtime = dataclasses.replace(inline(), hardware="h100")
    assert fit.forecast(config, stage) == []
    HARDWARE["a10"] = dataclasses.replace(HARDWARE["a10"], memory=RESERVED_BYTES + 2**20)
    stage.runtime = dataclasses.replace(inline(), hardware="a10")
    (line,) = fit.forecast(config, stage)
    assert line.startswith("distill@emd will not fit: a worker needs")

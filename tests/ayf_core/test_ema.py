"""Power-function averages: the paper's relations, tracking, storage, and reconstruction of other widths."""

import numpy as np
import pytest
import torch
from torch import nn

from ayf_core.errors import AyfError
from ayf_core.training.ema import (
    PowerFunctionEMA,
    load_snapshots,
    power_function_beta,
    power_function_correlation,
    reconstruct,
    solve_posthoc_coefficients,
    std_to_exponent,
)


class Walker(nn.Module):
    """A random-walk parameter, a constant one, a float buffer and a counter."""

    def __init__(self):
        super().__init__()
        self.walk = nn.Parameter(torch.zeros(50))
        self.constant = nn.Parameter(torch.full((2,), 7.0))
        self.register_buffer("running", torch.zeros(1))
        self.register_buffer("count", torch.tensor(0))

    def step(self, generator):
        with torch.no_grad():
            self.walk += 0.1 * torch.randn(50, generator=generator) + 0.02
            self.running += 1
            self.count += 1


def tracked(stds, steps=400, every=None, folder=None):
    module, generator = Walker(), torch.Generator().manual_seed(0)
    ema = PowerFunctionEMA(module, stds)
    snapshots = []
    for step in range(1, steps + 1):
        module.step(generator)
        ema.update(step)
        if every and step % every == 0:
            snapshots += ema.snapshot()
            if folder:
                ema.save_snapshot(folder, step)
    return module, ema, snapshots


@pytest.mark.parametrize("std", [0.01, 0.05, 0.10, 0.25])
def test_exponent_gives_back_the_standard_deviation_of_its_profile(std):
    gamma = std_to_exponent(std)
    tau = (np.arange(2_000_000) + 0.5) / 2_000_000
    profile = (gamma + 1) * tau**gamma / len(tau)
    mean = (profile * tau).sum()
    assert np.sqrt((profile * (tau - mean) ** 2).sum()) == pytest.approx(std, rel=1e-6)


def test_exponent_of_the_width_the_paper_names():
    # EDM2 section 3.1: γ = 6.94 and 16.97 for σ_rel = 0.10 and 0.05.
    assert std_to_exponent(0.10) == pytest.approx(6.94, abs=0.005)
    assert std_to_exponent(0.05) == pytest.approx(16.97, abs=0.005)


@pytest.mark.parametrize("std", [0.0, -0.1, 0.3, float("nan")])
def test_widths_without_a_profile_are_refused(std):
    with pytest.raises(AyfError, match="EMA std"):
        std_to_exponent(std)


def test_decay_starts_at_zero_and_skipped_steps_multiply():
    assert power_function_beta(0.1, 1) == 0
    product = power_function_beta(0.1, 8) * power_function_beta(0.1, 9) * power_function_beta(0.1, 10)
    assert power_function_beta(0.1, 10, previous_step=7) == pytest.approx(product, rel=1e-12)


def test_correlation_is_the_integral_of_the_product_of_profiles():
    def profile(tau, step, std):
        gamma = std_to_exponent(std)
        return np.where(tau <= step, (gamma + 1) * np.minimum(tau / step, 1) ** gamma / step, 0.0)

    tau = (np.arange(1_000_000) + 0.5) * 1e-4
    for a, b in [((60.0, 0.05), (100.0, 0.1)), ((100.0, 0.05), (60.0, 0.1)), ((80.0, 0.1), (80.0, 0.2))]:
        integral = (profile(tau, *a) * profile(tau, *b)).sum() * 1e-4
        assert power_function_correlation(*a, *b) == pytest.approx(integral, rel=1e-3)
        assert power_function_correlation(*a, *b) == pytest.approx(power_function_correlation(*b, *a), rel=1e-14)


def test_tracked_average_is_the_power_weighted_mean_of_the_past():
    module, generator, std, steps = Walker(), torch.Generator().manual_seed(0), 0.1, 60
    ema, history = PowerFunctionEMA(module, [std]), []
    for step in range(1, steps + 1):
        module.step(generator)
        ema.update(step)
        history.append(module.walk.detach().clone().double())
    # The discrete updates weigh θ_i by the integral of the profile over [i - 1, i].
    edges = (torch.arange(steps + 1, dtype=torch.float64) / steps) ** (std_to_exponent(std) + 1)
    expected = (edges.diff()[:, None] * torch.stack(history)).sum(0)
    torch.testing.assert_close(ema.weights(std)["walk"].double(), expected, rtol=1e-5, atol=1e-5)


def test_average_created_late_starts_from_the_weights_it_finds():
    module = Walker()
    module.step(torch.Generator().manual_seed(3))
    ema = PowerFunctionEMA(module, [0.1])
    torch.testing.assert_close(ema.weights(0.1)["walk"], module.walk.detach())
    module.step(torch.Generator().manual_seed(4))
    ema.update(1000)
    torch.testing.assert_close(ema.weights(0.1)["walk"], module.walk.detach())


def test_buffers_are_copied_and_constant_weights_stay_constant():
    module, ema, _ = tracked([0.05, 0.1], steps=30)
    weights = ema.weights(0.05)
    assert weights["running"].item() == 30
    assert weights["count"].item() == 30
    torch.testing.assert_close(weights["constant"], torch.full((2,), 7.0))
    assert weights.keys() == module.state_dict().keys()


def test_averages_stay_float32_when_the_module_is_bfloat16():
    module = nn.Linear(2, 2, dtype=torch.bfloat16)
    ema = PowerFunctionEMA(module, [0.1])
    ema.update(1)
    before = ema.weights(0.1)["weight"].clone()
    with torch.no_grad():
        module.weight += 1
    for step in range(2, 20):
        ema.update(step)
    assert ema.weights(0.1)["weight"].dtype == torch.float32
    assert bool((ema.weights(0.1)["weight"] > before).all())


def test_tracked_width_at_the_last_step_is_returned_exactly():
    _, ema, snapshots = tracked([0.05, 0.10], every=50)
    rebuilt = reconstruct(snapshots, 0.10)
    for name, value in ema.weights(0.10).items():
        torch.testing.assert_close(rebuilt[name], value, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("std", [0.06, 0.08, 0.15])
def test_reconstructed_width_is_close_to_the_one_tracked_at_that_width(std):
    _, direct, _ = tracked([std])
    _, nearest, snapshots = tracked([0.05, 0.10], every=50)
    truth = direct.weights(std)["walk"]
    error = (reconstruct(snapshots, std)["walk"] - truth).norm() / truth.norm()
    distances = [(nearest.weights(other)["walk"] - truth).norm() / truth.norm() for other in (0.05, 0.10)]
    assert error < 5e-3
    assert error < min(distances) / 10


def test_reconstruction_at_an_earlier_step_uses_no_later_snapshot():
    _, direct, _ = tracked([0.08], steps=300)
    _, _, snapshots = tracked([0.05, 0.10], steps=400, every=50)
    truth = direct.weights(0.08)
    rebuilt = reconstruct(snapshots, 0.08, step=300)
    assert (rebuilt["walk"] - truth["walk"]).norm() / truth["walk"].norm() < 5e-3
    assert rebuilt["count"].item() == 300


def test_many_snapshots_do_not_spoil_the_reconstruction():
    _, direct, _ = tracked([0.08])
    _, _, snapshots = tracked([0.05, 0.10], every=4)
    truth = direct.weights(0.08)["walk"]
    assert (reconstruct(snapshots, 0.08)["walk"] - truth).norm() / truth.norm() < 5e-3


def test_reconstruction_keeps_constants_and_takes_the_last_buffers():
    _, _, snapshots = tracked([0.05, 0.10], every=100)
    rebuilt = reconstruct(snapshots, 0.07)
    torch.testing.assert_close(rebuilt["constant"], torch.full((2,), 7.0))
    assert rebuilt["running"].item() == 400
    assert rebuilt["count"].item() == 400


def test_plain_tuples_serve_as_snapshots():
    rebuilt = reconstruct([(10, 0.05, {"w": torch.ones(2)}), (10, 0.1, {"w": torch.zeros(2)})], 0.05)
    torch.testing.assert_close(rebuilt["w"], torch.ones(2))


def test_coefficients_sum_to_one_in_float64():
    coefficients = solve_posthoc_coefficients([50, 50, 100, 100], [0.05, 0.1, 0.05, 0.1], 100, 0.07)
    assert coefficients.dtype == np.float64
    assert coefficients.sum() == pytest.approx(1.0, rel=1e-12)


def test_snapshot_files_read_back_as_they_were(tmp_path):
    _, _, snapshots = tracked([0.05, 0.10], steps=20, every=10, folder=tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "ema_0.05_00000010.safetensors",
        "ema_0.05_00000020.safetensors",
        "ema_0.1_00000010.safetensors",
        "ema_0.1_00000020.safetensors",
    ]
    loaded = load_snapshots(tmp_path)
    for read, written in zip(loaded, snapshots, strict=True):
        assert (read.step, read.std, read.buffers) == (written.step, written.std, written.buffers)
        assert all(torch.equal(read.weights[name], value) for name, value in written.weights.items())


def test_state_survives_a_checkpoint_and_goes_on_to_the_same_bytes(tmp_path):
    def run(steps, ema, module, generator, start=1):
        for step in range(start, steps + 1):
            module.step(generator)
            ema.update(step)

    module, generator = Walker(), torch.Generator().manual_seed(0)
    ema = PowerFunctionEMA(module, [0.05, 0.1])
    run(10, ema, module, generator)
    torch.save({"ema": ema.state_dict(), "module": module.state_dict()}, tmp_path / "checkpoint.pt")
    resumed_generator = torch.Generator()
    resumed_generator.set_state(generator.get_state())
    run(20, ema, module, generator, start=11)

    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    other = Walker()
    other.load_state_dict(saved["module"])
    resumed = PowerFunctionEMA(other, [0.05, 0.1])
    resumed.load_state_dict(saved["ema"])
    run(20, resumed, other, resumed_generator, start=11)
    for std in (0.05, 0.1):
        assert all(torch.equal(resumed.weights(std)[name], value) for name, value in ema.weights(std).items())


def test_snapshots_do_not_change_when_training_goes_on():
    module, ema, _ = tracked([0.1], steps=5)
    snapshot = ema.snapshot()[0]
    before = snapshot.weights["walk"].clone()
    module.step(torch.Generator().manual_seed(9))
    ema.update(6)
    assert torch.equal(snapshot.weights["walk"], before)
    assert not torch.equal(ema.weights(0.1)["walk"], before)


def test_mistakes_are_named(tmp_path):
    _, ema, snapshots = tracked([0.05, 0.1], steps=5, every=5)
    with pytest.raises(AyfError, match="steps must grow"):
        ema.update(5)
    with pytest.raises(AyfError, match="not tracked"):
        ema.weights(0.2)
    with pytest.raises(AyfError, match="stds"):
        PowerFunctionEMA(Walker(), [0.1, 0.1])
    with pytest.raises(AyfError, match="stds"):
        PowerFunctionEMA(Walker(), [0.1]).load_state_dict(ema.state_dict())
    with pytest.raises(AyfError, match="parameter names"):
        PowerFunctionEMA(nn.Linear(1, 1), [0.05, 0.1]).load_state_dict(ema.state_dict())
    with pytest.raises(AyfError, match="last update"):
        ema.save_snapshot(tmp_path, 7)
    with pytest.raises(AyfError, match="no EMA snapshots"):
        load_snapshots(tmp_path)
    with pytest.raises(AyfError, match="no EMA snapshots"):
        reconstruct(snapshots, 0.05, step=2)
    with pytest.raises(AyfError, match="pass each once"):
        reconstruct(snapshots * 2, 0.05)

"""The linear path: its ends, its derivative, and the precision it keeps."""

import torch

from ayf_core.interpolants import LinearInterpolant, expand


def test_path_starts_at_data_and_ends_at_noise():
    x0, x1 = torch.randn(2, 3, 1, 4, 4)
    path = LinearInterpolant()
    assert torch.equal(path.interpolate(x0, x1, torch.zeros(3, dtype=torch.float64)), x0)
    assert torch.equal(path.interpolate(x0, x1, torch.ones(3, dtype=torch.float64)), x1)


def test_each_sample_uses_its_own_time():
    x0, x1 = torch.zeros(3, 2), torch.ones(3, 2)
    t = torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)
    assert torch.equal(LinearInterpolant.interpolate(x0, x1, t), t.float()[:, None].expand(3, 2))


def test_velocity_is_the_time_derivative_of_the_path():
    x0, x1 = torch.randn(2, 4, 3, dtype=torch.float64)
    t = torch.rand(4, dtype=torch.float64)
    _, derivative = torch.func.jvp(
        lambda time: LinearInterpolant.interpolate(x0, x1, time), (t,), (torch.ones_like(t),)
    )
    torch.testing.assert_close(LinearInterpolant.velocity(x0, x1), derivative)


def test_float64_time_does_not_widen_the_data():
    x0, x1 = torch.randn(2, 4, 3)
    t = torch.rand(4, dtype=torch.float64)
    assert LinearInterpolant.interpolate(x0, x1, t).dtype == torch.float32


def test_expand_broadcasts_over_every_data_dimension_in_the_dtype_of_the_data():
    t = torch.rand(5, dtype=torch.float64)
    expanded = expand(t, torch.zeros(5, 3, 8, 8))
    assert expanded.shape == (5, 1, 1, 1)
    assert torch.equal(expanded.flatten(), t.float())

"""Random numbers as a function of seed, step, purpose and position in the global batch."""

import pytest
import torch

from ayf_core.randomness import StepRandom, derive_seed
from ayf_core.training.data import ShuffledOrder

DRAWS = {
    "normal": lambda random, name: random.normal(name, (2, 3)),
    "uniform": lambda random, name: random.uniform(name),
    "integers": lambda random, name: random.integers(name, 1000),
}


@pytest.fixture(params=DRAWS)
def draw(request):
    return DRAWS[request.param]


def test_rows_of_a_slice_are_those_rows_of_the_whole_batch(draw):
    whole = draw(StepRandom(7, 3, 12), "noise")
    assert len(whole) == 12
    for rows in (slice(0, 4), slice(4, 12), slice(11, 12)):
        torch.testing.assert_close(draw(StepRandom(7, 3, 12, rows), "noise"), whole[rows], rtol=0, atol=0)


def test_same_seed_step_and_name_give_the_same_numbers_whatever_was_drawn_between(draw):
    random = StepRandom(7, 3, 12)
    first = draw(random, "noise")
    draw(random, "other")
    torch.rand(5)
    assert torch.equal(draw(random, "noise"), first)
    assert torch.equal(draw(StepRandom(7, 3, 12), "noise"), first)


def test_another_seed_step_or_name_gives_other_numbers(draw):
    base = draw(StepRandom(7, 3, 12), "noise")
    for other in (
        draw(StepRandom(8, 3, 12), "noise"),
        draw(StepRandom(7, 4, 12), "noise"),
        draw(StepRandom(7, 3, 12), "more noise"),
    ):
        assert not torch.equal(other, base)


def test_draws_leave_the_global_generator_alone(draw):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    draw(StepRandom(7, 3, 12), "noise")
    assert torch.equal(torch.rand(1), expected)


def test_seeds_are_63_bits_and_do_not_run_their_parts_together():
    assert derive_seed(1, 23) != derive_seed(12, 3)
    assert all(0 <= derive_seed("x", i) < 2**63 for i in range(100))


@pytest.mark.parametrize(("size", "batch"), [(10, 5), (10, 3), (7, 7), (3, 10), (1, 4)])
def test_each_epoch_visits_every_sample_once(size, batch):
    order = ShuffledOrder(size, batch, seed=0)
    visited = torch.cat([order.indices(step) for step in range(4 * size)])
    epochs = visited[: len(visited) // size * size].view(-1, size)
    assert (epochs.sort(dim=1).values == torch.arange(size)).all()
    if size > 3:
        assert not torch.equal(epochs[0], epochs[1])


def test_order_is_a_function_of_the_step_alone():
    steps = [ShuffledOrder(50, 8, seed=1).indices(step) for step in range(20)]
    walker = ShuffledOrder(50, 8, seed=1)
    for step in (19, 0, 6, 7, 3, 18):
        assert torch.equal(walker.indices(step), steps[step])
    assert not torch.equal(ShuffledOrder(50, 8, seed=2).indices(0), steps[0])

"""Random numbers as a function of seed, step, purpose, row of the global batch and element."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy import stats

from ayf_core.philox import MASK, philox
from ayf_core.randomness import StepRandom, derive_seed
from ayf_core.times import IntervalLaw
from ayf_core.training.data import ShuffledOrder

DRAWS = {
    "normal": lambda random, name: random.normal(name, (2, 3)),
    "one normal a row": lambda random, name: random.normal(name),
    "normal in float64": lambda random, name: random.normal(name, (5,), torch.float64),
    "uniform": lambda random, name: random.uniform(name),
}


@pytest.fixture(params=DRAWS)
def draw(request):
    return DRAWS[request.param]


# Of Random123's own list (kat_vectors of the release 1.09): counter, key, words.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((MASK, MASK, MASK, MASK), (MASK, MASK), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize("array", [lambda word: np.array([word]), lambda word: torch.tensor([word])])
@pytest.mark.parametrize(("counter", "key", "words"), KNOWN_ANSWERS)
def test_philox_gives_the_published_words(array, counter, key, words):
    assert tuple(int(word[0]) for word in philox(tuple(map(array, counter)), key)) == words


def test_philox_is_what_its_definition_says_one_word_after_the_other():
    """Against plain integers of Python, which know no overflow."""
    generator = np.random.default_rng(0)
    for _ in range(50):
        *counter, k0, k1 = (int(word) for word in generator.integers(0, 2**32, 6))
        found = philox(tuple(np.array([word]) for word in counter), (k0, k1))
        c0, c1, c2, c3 = counter
        for _ in range(10):
            p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
            c0, c1, c2, c3 = p1 >> 32 ^ c1 ^ k0, p1 % 2**32, p0 >> 32 ^ c3 ^ k1, p0 % 2**32
            k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
        assert [int(word[0]) for word in found] == [c0, c1, c2, c3]


def test_rows_of_a_slice_are_those_rows_of_the_whole_batch(draw):
    whole = draw(StepRandom(7, 3, 12), "noise")
    assert len(whole) == 12
    for rows in (slice(0, 4), slice(4, 12), slice(11, 12)):
        torch.testing.assert_close(draw(StepRandom(7, 3, rows), "noise"), whole[rows], rtol=0, atol=0)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (2,), (3, 5, 7), (4, 8, 8), (1023,)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_a_row_is_the_same_however_the_batch_is_cut(shape, dtype):
    whole = StepRandom(1, 2, 37).normal("noise", shape, dtype)
    assert whole.shape == (37, *shape)
    assert whole.dtype == dtype
    for parts in (37, 5, 2):
        cuts = [round(37 * i / parts) for i in range(parts + 1)]
        pieces = [
            StepRandom(1, 2, slice(start, stop)).normal("noise", shape, dtype)
            for start, stop in itertools.pairwise(cuts)
        ]
        assert torch.equal(torch.cat(pieces), whole)


def test_cost_does_not_grow_with_the_global_batch(monkeypatch):
    """Only the rows asked for are computed, wherever they lie."""
    from ayf_core import randomness

    counted = []

    def counting(counter, key):
        counted.append(counter[0].size)
        return philox(counter, key)

    monkeypatch.setattr(randomness, "philox", counting)
    for start in (0, 10**6):
        StepRandom(0, 0, slice(start, start + 32)).normal("noise", (4, 8, 8))
    assert counted == [32 * 64] * 2


def test_every_device_draws_the_same_bits(monkeypatch):
    """The way of other devices, walked on this one."""
    here, there = StepRandom(7, 3, slice(5, 20)), StepRandom(7, 3, slice(5, 20))

    class Elsewhere:
        type = "elsewhere"

    expected = here._words("noise", 6)
    arange = torch.arange
    monkeypatch.setattr(torch, "arange", lambda *range, device: arange(*range))
    there.device = Elsewhere()
    assert all(torch.equal(a, b) for a, b in zip(there._words("noise", 6), expected, strict=True))


@pytest.mark.gpu
def test_a_gpu_draws_what_the_cpu_draws():
    cpu, gpu = StepRandom(7, 3, 20), StepRandom(7, 3, 20, "cuda")
    assert all(torch.equal(a, b.cpu()) for a, b in zip(cpu._words("noise", 6), gpu._words("noise", 6), strict=True))
    torch.testing.assert_close(
        gpu.normal("noise", (3, 8, 8)).cpu(), cpu.normal("noise", (3, 8, 8)), rtol=1e-4, atol=1e-5
    )


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


def test_draws_leave_the_global_generators_alone(draw):
    torch.manual_seed(0)
    np.random.seed(0)
    expected = torch.rand(1), np.random.rand()
    torch.manual_seed(0)
    np.random.seed(0)
    draw(StepRandom(7, 3, 12), "noise")
    assert (torch.rand(1), np.random.rand()) == expected


COUNT = 100_000


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_normal_numbers_follow_the_normal_law(dtype):
    drawn = StepRandom(0, 0, COUNT // 50).normal("noise", (50,), dtype).flatten().double()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(float((drawn**power).mean()) - moment) < 4 * math.sqrt(variance / COUNT)
    assert stats.kstest(drawn.numpy(), "norm").pvalue > 1e-3
    assert drawn.isfinite().all()


def test_uniform_numbers_follow_the_uniform_law_and_fill_53_bits():
    drawn = StepRandom(0, 0, COUNT).uniform("time")
    assert drawn.dtype == torch.float64
    assert ((drawn >= 0) & (drawn < 1)).all()
    assert stats.kstest(drawn.numpy(), "uniform").pvalue > 1e-3
    bits = (drawn * 2**53).long()
    assert (bits.double() / 2**53 == drawn).all()
    for bit in range(53):
        assert abs(float((bits >> bit & 1).double().mean()) - 0.5) < 5 * 0.5 / math.sqrt(COUNT)


def test_the_smallest_and_largest_words_give_finite_normal_numbers(monkeypatch):
    from ayf_core import randomness

    for word in (0, MASK):
        monkeypatch.setattr(randomness, "philox", lambda counter, key, word=word: (np.full_like(counter[0], word),) * 4)
        for dtype in (torch.float32, torch.float64):
            drawn = StepRandom(0, 0, 3).normal("noise", (4,), dtype)
            assert drawn.isfinite().all()
            assert (drawn.abs() < 9).all()


NEIGHBOURS = {
    "name": lambda: (StepRandom(0, 0, 1), "noise", StepRandom(0, 0, 1), "posterior"),
    "step": lambda: (StepRandom(0, 0, 1), "noise", StepRandom(0, 1, 1), "noise"),
    "seed": lambda: (StepRandom(0, 0, 1), "noise", StepRandom(1, 0, 1), "noise"),
    "row": lambda: (StepRandom(0, 0, slice(0, 1)), "noise", StepRandom(0, 0, slice(1, 2)), "noise"),
}


@pytest.mark.parametrize("neighbours", NEIGHBOURS)
def test_numbers_of_another_name_step_seed_or_row_are_independent(neighbours):
    random_a, name_a, random_b, name_b = NEIGHBOURS[neighbours]()
    a, b = random_a.normal(name_a, (COUNT,))[0], random_b.normal(name_b, (COUNT,))[0]
    for left, right in ((a, b), (a**2, b**2), (a[1:], b[:-1]), (a, b**2)):
        assert abs(float(torch.corrcoef(torch.stack([left, right]))[0, 1])) < 4.5 / math.sqrt(COUNT)


def test_neighbouring_elements_and_rows_are_independent():
    x = StepRandom(0, 0, 400).normal("noise", (250,))
    for left, right in ((x[:, 1:], x[:, :-1]), (x[:, 2:], x[:, :-2]), (x[:, 4:], x[:, :-4]), (x[1:], x[:-1])):
        for f in (lambda v: v, torch.square):
            pair = torch.stack([f(left).flatten(), f(right).flatten()])
            assert abs(float(torch.corrcoef(pair)[0, 1])) < 4.5 / math.sqrt(pair.shape[1])


def test_draws_of_a_time_pair_are_independent_of_each_other():
    """Which bucket, how long and where it ends: none of the three tells of the others."""
    random = StepRandom(0, 0, COUNT)
    t, s = IntervalLaw(p_mean=-0.8, p_std=1.0, full_jump_fraction=0.0, diagonal_fraction=0.0).sample(random)
    interval = t - s
    end = s / (1 - interval)
    bucket = random.uniform("time bucket")
    for left, right in ((end, bucket), (end, interval), (interval, bucket)):
        assert abs(float(torch.corrcoef(torch.stack([left, right]))[0, 1])) < 4.5 / math.sqrt(COUNT)
    assert stats.kstest(end.numpy(), "uniform").pvalue > 1e-3


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

"""Any number of workers and micro-batches covers the global batch once, with weights that give its mean."""

import pytest

from ayf_core.errors import AyfError
from ayf_core.training.micro_batches import MicroBatch, even_parts, micro_batches_of


def everyone(global_batch, workers, largest=None):
    return [micro_batches_of(global_batch, workers, rank, largest) for rank in range(workers)]


def test_one_worker_without_limit_takes_the_whole_batch_with_weight_one():
    assert micro_batches_of(8, 1, 0, None) == [MicroBatch(slice(0, 8), 1.0)]


def test_workers_that_divide_the_batch_take_equal_shares():
    assert micro_batches_of(8, 2, 1, 3) == [MicroBatch(slice(4, 6), 0.5), MicroBatch(slice(6, 8), 0.5)]


@pytest.mark.parametrize("global_batch", [5, 8, 24, 63, 64])
@pytest.mark.parametrize("workers", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("largest", [None, 1, 3, 7])
def test_shares_cover_the_batch_once_and_their_weighted_means_average_to_its_mean(global_batch, workers, largest):
    shares = everyone(global_batch, workers, largest)
    rows = [row for share in shares for part in share if part.weight for row in range(global_batch)[part.rows]]
    assert rows == list(range(global_batch))
    values = [row**2 for row in range(global_batch)]
    means = [
        part.weight * sum(values[part.rows]) / len(values[part.rows]) / workers for share in shares for part in share
    ]
    assert sum(means) == pytest.approx(sum(values) / global_batch, rel=1e-12)


@pytest.mark.parametrize(("global_batch", "workers", "largest"), [(8, 3, 1), (64, 3, 5), (7, 2, 2), (64, 5, 1)])
def test_all_workers_meet_equally_often_and_within_the_limit(global_batch, workers, largest):
    shares = everyone(global_batch, workers, largest)
    assert len({len(share) for share in shares}) == 1
    for part in (part for share in shares for part in share):
        assert 1 <= part.rows.stop - part.rows.start <= largest


def test_neighbours_stay_together_where_the_batch_allows_it():
    starts = [share[0].rows.start for share in everyone(64, 3)]
    assert starts == [0, 24, 44]
    assert [share[0].rows.start for share in everyone(8, 3)] == [0, 3, 6]


def test_more_workers_than_rows_are_refused():
    with pytest.raises(AyfError, match="5 workers cannot share a global batch of 4: lower workers"):
        micro_batches_of(4, 5, 0, None)


def test_even_parts_differ_by_one_at_most():
    assert even_parts(2, 9, 3) == [slice(2, 5), slice(5, 7), slice(7, 9)]
    assert even_parts(0, 1, 2) == [slice(0, 1), slice(1, 1)]

"""How workers and micro-batches share the rows of a global batch: any number of them train on the same loss."""

from typing import NamedTuple

from ayf_core.errors import AyfError

NEIGHBOURS = 4
"""Rows that stay together where the batch allows it: a discriminator compares this many neighbours."""


class MicroBatch(NamedTuple):
    """Rows of the global batch, and the weight of their mean loss: weights x losses, averaged over the workers, sum
    to the mean over the global batch."""

    rows: slice
    weight: float


def micro_batches_of(global_batch: int, workers: int, rank: int, largest: int | None) -> list[MicroBatch]:
    """One worker's share of the global batch, cut into micro-batches as equal as can be.

    All workers get the same number of micro-batches, because they meet at each: a worker whose rows do not suffice
    sees its last one again, with weight zero.

    Args:
        largest: most rows of a micro-batch.

    Raises:
        AyfError: there are more workers than rows.
    """
    if workers > global_batch:
        raise AyfError(f"{workers} workers cannot share a global batch of {global_batch}: lower workers or raise it")
    unit = NEIGHBOURS if global_batch % NEIGHBOURS == 0 and global_batch // NEIGHBOURS >= workers else 1
    shares = [slice(unit * part.start, unit * part.stop) for part in even_parts(0, global_batch // unit, workers)]
    widest = max(share.stop - share.start for share in shares)
    pieces = -(-widest // largest) if largest else 1
    own = shares[rank]
    found = []
    for rows in even_parts(own.start, own.stop, pieces):
        count = rows.stop - rows.start
        shown = rows if count else slice(own.stop - 1, own.stop)
        found.append(MicroBatch(shown, count * workers / global_batch))
    return found


def even_parts(start: int, stop: int, parts: int) -> list[slice]:
    """[start, stop) cut into so many pieces whose lengths differ by one at most, the longer ones first."""
    length, longer = divmod(stop - start, parts)
    ends = [start + (i + 1) * length + min(i + 1, longer) for i in range(parts)]
    return [slice(begin, end) for begin, end in zip([start, *ends[:-1]], ends, strict=True)]

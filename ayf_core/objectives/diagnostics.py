"""Averages by bins of time: a normalised loss is constant by construction, these are what tells."""

import torch
from jaxtyping import Float
from torch import Tensor

BINS = 4


def mean_by_bins(
    quantity: str, variable: str, values: Float[Tensor, " batch"], positions: Float[Tensor, " batch"]
) -> dict[str, Tensor]:
    """Mean of `values` in each quarter of [0, 1]: {'quantity/variable_0.25': ...} named by the bin's lower end.

    Values that are not finite are left out; an empty bin gives NaN, which a log leaves out.
    """
    index = (positions * BINS).long().clamp(0, BINS - 1)
    known = values.isfinite()
    zeros = torch.zeros(BINS, dtype=torch.float64, device=values.device)
    totals = zeros.index_add(0, index, torch.where(known, values.double(), 0.0))
    counts = zeros.index_add(0, index, known.double())
    return {f"{quantity}/{variable}_{i / BINS:.2f}": totals[i] / counts[i] for i in range(BINS)}

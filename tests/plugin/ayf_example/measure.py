"""How far the mean features of a model are from those of the test data."""

from ayf_core.evaluation.measures import Compared
from ayf_core.registry import register


@register(
    "measure", "mean_gap", title="Gap of mean features", needs=["features"], better="lower", order=10, format=".2g"
)
def mean_gap(compared: Compared) -> float:
    return float((compared.generated.mean(dim=0) - compared.test.mean(dim=0)).norm())

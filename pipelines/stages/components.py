"""From the experiment's settings to the registered data set, codec and features that they name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ayf_core.data.sets.base import DataSet
from ayf_core.evaluation.counts import check_counts
from ayf_core.registry import Chosen, find
from ayf_core.settings import settings_of

if TYPE_CHECKING:
    from pipelines.settings import experiment as schema


def data_set(data: schema.Data) -> Chosen:
    return _chosen("data set", data.name, data)


def codec(settings: schema.Codec) -> Chosen:
    if settings.pretrained is not None:
        return Chosen(find("codec", "pretrained"), {"source": settings.pretrained})
    return _chosen("codec", settings.kind, settings)


def features(settings: schema.Features) -> Chosen:
    return _chosen("features", settings.kind, settings)


def load(data: Chosen, seed: int, features: Chosen, neighbours: int) -> DataSet:
    """The data set, of which evaluation will be able to measure samples.

    Whatever reads the data first stops here, before any training, with what evaluation would say at the end.

    Raises:
        AyfError: as the data set does, or because features or counts do not suit the data.
    """
    dataset: DataSet = data.build().load(seed)
    features.build().check(dataset.shape, dataset.num_classes)
    check_counts(dataset.train.x, dataset.test.x, neighbours)
    return dataset


def _chosen(room: str, name: str, settings: Any) -> Chosen:
    component = find(room, name)
    return Chosen(component, {key: getattr(settings, key, None) for key in settings_of(component.load())})

"""How good samples are: features, distances between sets, copying of training data, intervals."""

from ayf_core.evaluation.distances import (
    PRDC,
    checkerboard_divergence,
    frechet_distance,
    jensen_shannon_divergence,
    kernel_distance,
    precision_recall_density_coverage,
    sliced_wasserstein,
)
from ayf_core.evaluation.features import (
    ClassifierFeatures,
    FeatureExtractor,
    InceptionFeatures,
    PixelFeatures,
    SmallClassifier,
)
from ayf_core.evaluation.intervals import Interval, confidence_interval
from ayf_core.evaluation.memorisation import Memorisation, nearest_neighbour_check

__all__ = [
    "PRDC",
    "ClassifierFeatures",
    "FeatureExtractor",
    "InceptionFeatures",
    "Interval",
    "Memorisation",
    "PixelFeatures",
    "SmallClassifier",
    "checkerboard_divergence",
    "confidence_interval",
    "frechet_distance",
    "jensen_shannon_divergence",
    "kernel_distance",
    "nearest_neighbour_check",
    "precision_recall_density_coverage",
    "sliced_wasserstein",
]

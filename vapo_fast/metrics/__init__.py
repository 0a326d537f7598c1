"""How far samples are from real data. Start with `sliced_wasserstein`, or `evaluate` for a whole report."""

from vapo_fast.metrics.classes import ModeShares, class_shares, mode_shares
from vapo_fast.metrics.extractors import (
    CNNExtractor,
    EfficientNetLite0Extractor,
    Extractor,
    InceptionExtractor,
    PixelExtractor,
    extractor,
    features_of,
)
from vapo_fast.metrics.frechet import frechet_distance, gaussian_frechet_distance
from vapo_fast.metrics.kernel import kernel_distance
from vapo_fast.metrics.neighbours import prdc
from vapo_fast.metrics.report import evaluate
from vapo_fast.metrics.wasserstein import sliced_wasserstein, sliced_wasserstein_floor

__all__ = [
    "CNNExtractor",
    "EfficientNetLite0Extractor",
    "Extractor",
    "InceptionExtractor",
    "ModeShares",
    "PixelExtractor",
    "class_shares",
    "evaluate",
    "extractor",
    "features_of",
    "frechet_distance",
    "gaussian_frechet_distance",
    "kernel_distance",
    "mode_shares",
    "prdc",
    "sliced_wasserstein",
    "sliced_wasserstein_floor",
]

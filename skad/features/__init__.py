"""From images to patch features, the currency between transformers and detectors."""

from skad.features._base import PatchFeatureTransformer, SkippedImageWarning
from skad.features._network import PatchFeatures
from skad.features._pcanet import PCANetFeatures

__all__ = [
    "PCANetFeatures",
    "PatchFeatureTransformer",
    "PatchFeatures",
    "SkippedImageWarning",
]

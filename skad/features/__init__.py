"""From images to patch features, the currency between transformers and detectors."""

from skad._patch_array import PatchArray
from skad.base._image_input import SkippedImageWarning
from skad.features._base import PatchFeatureTransformer
from skad.features._fused import FusedFeatures
from skad.features._network import PatchFeatures
from skad.features._patchwise import Patchwise
from skad.features._pcanet import PCANetFeatures
from skad.features._spd import SPDPatchFeatures
from skad.features._tiled import TiledFeatures

__all__ = [
    "FusedFeatures",
    "PCANetFeatures",
    "PatchArray",
    "PatchFeatureTransformer",
    "PatchFeatures",
    "Patchwise",
    "SPDPatchFeatures",
    "SkippedImageWarning",
    "TiledFeatures",
]

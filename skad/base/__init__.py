"""Base classes of the detectors: what all of them share, by what they take."""

from skad.base._detector import BaseDetector, NotHeldOutError, decide
from skad.base._hooks import check_scores
from skad.base._image_detector import ImageDetector
from skad.base._patch_detector import PatchDetector
from skad.base._trained import TrainedDetector

__all__ = [
    "BaseDetector",
    "ImageDetector",
    "NotHeldOutError",
    "PatchDetector",
    "TrainedDetector",
    "check_scores",
    "decide",
]

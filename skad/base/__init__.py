"""Bases of the detectors: what every one shares."""

from skad.base._detector import BaseDetector, NotHeldOutError, check_scores, decide
from skad.base._image_detector import ImageDetector
from skad.base._trained import RememberedImages, TrainedDetector

__all__ = [
    "BaseDetector",
    "ImageDetector",
    "NotHeldOutError",
    "RememberedImages",
    "TrainedDetector",
    "check_scores",
    "decide",
]

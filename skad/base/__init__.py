"""Bases of the detectors: what every one shares."""

from skad.base._detector import BaseDetector, NotHeldOutError, check_scores, decide
from skad.base._image_detector import ImageDetector

__all__ = [
    "BaseDetector",
    "ImageDetector",
    "NotHeldOutError",
    "check_scores",
    "decide",
]

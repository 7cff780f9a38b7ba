"""Base classes of the detectors, and helpers for a detector of one's own."""

from skad._patches import image_scores, patch_maps, patch_rows
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
    "image_scores",
    "patch_maps",
    "patch_rows",
]

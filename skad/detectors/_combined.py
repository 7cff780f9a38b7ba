"""Helpers of the detectors that contain other detectors: fusion and PUAD."""

from typing import Any

import numpy as np
from sklearn.base import clone

from skad.detectors._patchcore import PatchCoreDetector


def inner_detector(given: Any) -> Any:
    """The detector that a user gave, or the default: PatchCore."""
    return PatchCoreDetector() if given is None else given


def as_part(detector: Any, calibration: str) -> Any:
    """Copy a detector, to fit it as a part whose threshold is not used.

    Its rate is one half, which any number of images can guarantee, so that it does not
    warn of too few images.
    """
    part = clone(detector).set_params(calibration=calibration, contamination=0.5)
    part._is_part = True
    return part


def means_and_stds(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each row; 1 where entries differ by rounding."""
    rows = np.asarray(scores).reshape(len(scores), -1)
    means = rows.mean(axis=1, dtype=np.float64)
    stds = rows.std(axis=1, dtype=np.float64)
    return means, np.where(stds > 1e-10 * np.abs(means), stds, 1.0)

"""What detectors that are made of detectors share."""

import numpy as np
from sklearn.base import clone

from skad.detectors._patchcore import PatchCoreDetector


def inner_detector(given):
    """The detector that a user gave, or the default: PatchCore."""
    return PatchCoreDetector() if given is None else given


def as_part(detector, calibration):
    """A copy to fit, of which the threshold is not used.

    A rate of one half can always be certified: any other could warn of a promise that
    nobody asked for.
    """
    part = clone(detector).set_params(calibration=calibration, contamination=0.5)
    part._is_part = True
    return part


def means_and_stds(scores):
    """Of each row of scores; a deviation is 1 where they differ by rounding only."""
    rows = np.asarray(scores).reshape(len(scores), -1)
    means = rows.mean(axis=1, dtype=np.float64)
    stds = rows.std(axis=1, dtype=np.float64)
    return means, np.where(stds > 1e-10 * np.abs(means), stds, 1.0)

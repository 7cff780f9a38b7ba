"""Warnings of training images, or scores, that may not be normal, or do not differ."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from skad._user_warning import warn_user
from skad.base._threshold import are_equal, outlier

_MIN_EQUAL_SCORES = 3  # two images are as far from each other


def warn_of_outlier(
    detector: Any,
    scores: np.ndarray,
    positions: np.ndarray,
    indices: np.ndarray | None = None,
) -> None:
    """Name the image whose held-out score is far from those of all others.

    Parameters
    ----------
    detector : BaseDetector

    scores : ndarray of shape (m,)
        Held-out scores, larger is more anomalous.

    positions : ndarray of shape (n,), int
        Positions in X of the images learned from.

    indices : ndarray of shape (m,), int, optional
        Which of these the scores are of; negative for images of earlier calls. Without
        it, they are of all.
    """
    found = None if detector._is_part else outlier(scores)
    if found is None:
        return
    image, times = found
    image = image if indices is None else int(indices[image])
    if image < 0:  # of an earlier call
        return
    warn_user(
        f"X[{positions[image]}] scores far from all other normal images when it "
        f"is held out: {times:.0f} times as far above their median as two thirds "
        "of them reach. Look at it; if it is not normal, or of another kind, leave "
        "it out (label -1) and fit again."
    )


def warn_of_equal_images(detector: Any, samples: Any) -> bool:
    """Say so where the images to learn from do not differ; whether it was said."""
    if len(samples) < 2 or detector._is_part or not _are_equal(samples):
        return False
    warn_user(
        f"the {len(samples)} images to learn from do not differ: nothing can "
        "be learned about what normal images look like, and every image that "
        "is not like them is anomalous. Check the images (a lens cap, a frozen "
        "camera, one file read again and again?) and fit on different ones."
    )
    return True


def warn_of_collapse(
    detector: Any, scores: np.ndarray, folds: list[np.ndarray] | None = None
) -> None:
    """Say so where a network that was trained gives one score to different images.

    Parameters
    ----------
    detector : BaseDetector

    scores : ndarray of shape (m,)
        Held-out scores, larger is more anomalous.

    folds : list of ndarray of int, optional
        Places of the scores of each fold, which has a network of its own.
    """
    parts = [scores] if folds is None else [scores[fold] for fold in folds]
    equal = [s for s in parts if len(s) >= _MIN_EQUAL_SCORES and are_equal(s)]
    if detector._is_part or not equal:
        return
    where = "" if folds is None else f" in {len(equal)} of {len(folds)} folds"
    of_which = "" if folds is None else " of a fold"
    rate = getattr(detector, "learning_rate", "now")  # one of a user's own may lack it
    warn_user(
        f"training of {type(detector).__name__} has collapsed{where}: all "
        f"{len(equal[0])} calibration scores{of_which} are equal ({-equal[0][0]:.3g}), "
        f"though the images differ. Fit again with a smaller learning_rate than {rate}."
    )


def are_equal_to(first: np.ndarray, samples: Iterable[np.ndarray]) -> bool:
    """Whether all samples (n, ...) are like the first one (...), up to rounding."""
    tolerance = 1e-5 * np.nanmax(np.abs(first), initial=0)
    return all(
        np.allclose(sample, first, rtol=0, atol=tolerance, equal_nan=True)
        for sample in samples
    )


def _are_equal(samples: Any) -> bool:
    """Whether all samples, features or read one by one, are alike up to rounding."""
    read = getattr(samples, "read", samples.__getitem__)
    rest = (read(i) for i in range(1, len(samples)))
    return are_equal_to(np.asarray(read(0)), rest)

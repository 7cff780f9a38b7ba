"""Training images that are unlike the others: defects among the normal images."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import Bunch
from sklearn.utils.validation import check_is_fitted

from skad._chain import Chain
from skad._held_out import check_detector_of_skad, held_out_positions

_N_ROBUST_STDS = 3
_STD_PER_MAD = 1.4826  # of a normal distribution, per MAD


def suspects(model: Any, X: Any, y: ArrayLike | None = None) -> Bunch:
    """Rank the images that a model was fitted on, the most suspicious first.

    Each is judged by its held-out score: that of a model of the other images. Defects
    that got among the normal images come first in the list, and are worth a look.

    Parameters
    ----------
    model : estimator
        A detector of skad, a pipeline that ends in one, or a fitted search, fitted
        on X and y with ``calibration="loo"`` or "kfold".

    X : sequence of images, or ndarray of patch features
        What the model was fitted on, in the same order.

    y : array-like of shape (n,), optional
        The labels of the fit. Images labelled -1 were not learned from and are not
        in the list.

    Returns
    -------
    result : Bunch
        With one entry for each image that was learned from:

        indices : ndarray of shape (m,), int64
            Positions in X, the most suspicious first.

        scores : ndarray of shape (m,), float64
            Their held-out scores, ascending: larger is more normal.

        flagged : ndarray of shape (m,), bool
            Whether the score lies more than three standard deviations below the
            median of all. The standard deviation is the robust one,
            1.4826 MAD, where MAD is the median absolute difference from the
            median. ``indices[flagged]`` are the positions of the images flagged.

    Raises
    ------
    sklearn.exceptions.NotFittedError
        If the model is not fitted.

    TypeError
        If the model does not end in a detector of skad.

    ValueError
        If X and y are not those of the fit, or if not every image that was learned
        from has a held-out score.

    See Also
    --------
    skad.inspection.explain : What the worst patch of an image resembles most.

    Notes
    -----
    The images flagged are a suggestion. Rare normal images are among them, and faint
    defects, or many of a kind, are not: these stand up for each other when one of them
    is held out.

    If X is not what the model was fitted on, but holds as many images, there is no
    error, and the positions are wrong.

    Examples
    --------
    >>> import numpy as np
    >>> from skad import PatchCoreDetector
    >>> from skad.inspection import suspects
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(40, 4, 4, 8))
    >>> X[[7, 23], 2, 1] += 6
    >>> found = suspects(PatchCoreDetector().fit(X), X)
    >>> sorted(found.indices[found.flagged].tolist())
    [7, 23]
    >>> y = np.ones(40)
    >>> y[found.indices[found.flagged]] = -1
    >>> model = PatchCoreDetector().fit(X, y)
    """
    chain = Chain(model)
    detector = chain.final
    check_detector_of_skad(detector, "suspects")
    check_is_fitted(detector, "offset_")
    detector._check_holds_out_images("suspects")
    positions = held_out_positions(chain, X, y, "suspects")
    scores = detector.calibration_scores_
    order = np.argsort(scores, kind="stable")
    return Bunch(
        indices=positions[order],
        scores=scores[order],
        flagged=scores[order] < _limit(scores),
    )


def _limit(scores: np.ndarray) -> float:
    """Score below which an image is flagged."""
    median = np.median(scores)
    mad = np.median(np.abs(scores - median))
    return median - _N_ROBUST_STDS * _STD_PER_MAD * mad

"""Training images that are unlike the others: defects among the normal images."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import Bunch
from sklearn.utils.validation import check_is_fitted

from skad._chain import Chain
from skad.base import BaseDetector

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
    if not isinstance(detector, BaseDetector):
        raise TypeError(
            f"model ends in {type(detector).__name__}; suspects needs a detector of "
            "skad, alone or at the end of a pipeline."
        )
    check_is_fitted(detector, "offset_")
    _check_held_out(detector)
    learned = _learned_from(chain, X, y)
    scores = detector.calibration_scores_
    if len(scores) != len(learned):
        raise ValueError(
            f"suspects needs a held-out score of each of the {len(learned)} images "
            f"that were learned from, but the model keeps {len(scores)} scores of "
            f"held-out images. {_why_not_all(detector)}"
        )
    positions = learned[detector._held_out_positions(len(learned))]
    order = np.argsort(scores, kind="stable")
    return Bunch(
        indices=positions[order],
        scores=scores[order],
        flagged=scores[order] < _limit(scores),
    )


def _check_held_out(detector: Any) -> None:
    """Refuse a model that keeps scores of images that it learned from, or of a part."""
    detector._check_holds_out_all("suspects")
    if detector._in_sample or detector._resolved_calibration() == "train":
        raise ValueError(
            "suspects judges each image by a model that has not seen it, but "
            f"{type(detector).__name__}(calibration={detector.calibration!r}) has no "
            "held-out scores of the images that were learned from. Fit with "
            "calibration='kfold' or, where it is offered, 'loo'."
        )


def _learned_from(chain: Chain, X: Any, y: Any) -> np.ndarray:
    """Positions of the images of X that the model has learned from."""
    n_learned = chain.final.n_samples_seen_
    learned = np.broadcast_to(chain.final._not_anomalous(X, y), len(X))
    if learned.sum() > n_learned:  # some may not have been readable
        learned = learned & ~np.isnan(chain.ask("decision_function", X))
    if learned.sum() != n_learned:
        labelled = "" if y is None else " that are not labelled -1"
        raise ValueError(
            f"the model has learned from {n_learned} images, but X has "
            f"{int(learned.sum())}{labelled}; pass X and y of its fit."
        )
    return np.flatnonzero(learned)


def _why_not_all(detector: Any) -> str:
    if hasattr(detector, "calibration_size"):
        return f"Raise calibration_size={detector.calibration_size} and fit again."
    return (
        "They are of other images after calibrate, and old ones are dropped by "
        "partial_fit; fit again on all images."
    )


def _limit(scores: np.ndarray) -> float:
    """Score below which an image is flagged."""
    median = np.median(scores)
    mad = np.median(np.abs(scores - median))
    return median - _N_ROBUST_STDS * _STD_PER_MAD * mad

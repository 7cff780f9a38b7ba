"""Metrics of image scores."""

from __future__ import annotations

from typing import Any, Literal, overload

import numpy as np

from skad.metrics._inputs import check_labels_and_scores, warn_undefined
from skad.metrics._levels import area_under_roc, average_precision, best_f1
from skad.metrics._ranks import Levels, Ranks, count_sorted


def _rank(metric: str, y: Any, scores: Any) -> Ranks | None:
    """Rank the defective images; None, after a warning, where there is no rank."""
    is_defective, anomaly = check_labels_and_scores(y, scores)
    if is_defective.all() or not is_defective.any():
        kind = "defective" if is_defective.all() else "good"
        warn_undefined(metric, f"y has {kind} images only")
        return None
    levels = Levels.of(anomaly[is_defective])
    normal = np.sort(anomaly[~is_defective])
    return levels.ranks(count_sorted(levels.values, normal, normal.size))


def image_auroc(y: Any, scores: Any) -> float:
    """Area under the ROC curve of image scores.

    The probability that a defective image gets a lower score than a good one, where a
    tie counts one half.

    Parameters
    ----------
    y : array-like of shape (n_images,)
        +1 for good, -1 for defective images.
    scores : array-like of shape (n_images,)
        Larger for good images, as `decision_function` and `score_samples` return.

    Returns
    -------
    auroc : float
        1 where all defective images have lower scores than all good ones. NaN, with a
        warning, where `y` has one kind of image only.

    Raises
    ------
    ValueError
        If `y` holds anything but +1 and -1, or a score is NaN or infinite.

    Examples
    --------
    >>> from skad.metrics import image_auroc
    >>> image_auroc([1, 1, -1, -1], [0.9, 0.4, 0.5, 0.1])
    0.75
    """
    ranks = _rank("image_auroc", y, scores)
    return float("nan") if ranks is None else area_under_roc(ranks)


def image_average_precision(y: Any, scores: Any) -> float:
    """Average precision of image scores, with the defect as the positive class.

    The sum over thresholds of the gain in recall times the precision, without
    interpolation.

    Parameters
    ----------
    y : array-like of shape (n_images,)
        +1 for good, -1 for defective images.
    scores : array-like of shape (n_images,)
        Larger for good images.

    Returns
    -------
    average_precision : float
        In (0, 1]. NaN, with a warning, where `y` has one kind of image only.

    Raises
    ------
    ValueError
        If `y` holds anything but +1 and -1, or a score is NaN or infinite.

    Examples
    --------
    >>> from skad.metrics import image_average_precision
    >>> round(image_average_precision([1, 1, -1, -1], [0.9, 0.4, 0.5, 0.1]), 4)
    0.8333
    """
    ranks = _rank("image_average_precision", y, scores)
    return float("nan") if ranks is None else average_precision(ranks)


@overload
def image_f1_max(
    y: Any, scores: Any, *, return_threshold: Literal[False] = ...
) -> float: ...
@overload
def image_f1_max(
    y: Any, scores: Any, *, return_threshold: Literal[True]
) -> tuple[float, float]: ...
def image_f1_max(
    y: Any, scores: Any, *, return_threshold: bool = False
) -> float | tuple[float, float]:
    """Largest F1 that any threshold on the image scores reaches.

    The defect is the positive class. The best threshold is chosen with the labels of
    the test images, so this says what scores could do and not what a model's
    `predict` does.

    Parameters
    ----------
    y : array-like of shape (n_images,)
        +1 for good, -1 for defective images.
    scores : array-like of shape (n_images,)
        Larger for good images.
    return_threshold : bool, default=False
        Whether to return the threshold as well.

    Returns
    -------
    f1 : float
        In (0, 1]. NaN, with a warning, where `y` has one kind of image only.
    threshold : float
        Images with scores up to it are called defective. Returned only if
        `return_threshold=True`; of several with the same F1, the one that calls most
        images defective.

    Raises
    ------
    ValueError
        If `y` holds anything but +1 and -1, or a score is NaN or infinite.

    Examples
    --------
    >>> from skad.metrics import image_f1_max
    >>> image_f1_max([1, 1, -1, -1], [0.9, 0.4, 0.5, 0.1], return_threshold=True)
    (0.8, 0.5)
    """
    ranks = _rank("image_f1_max", y, scores)
    f1, level = (float("nan"),) * 2 if ranks is None else best_f1(ranks)
    return (f1, 0.0 - level) if return_threshold else f1

"""Metrics of image scores."""

from __future__ import annotations

from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import (
    average_precision_score,
    precision_recall_curve,
    roc_auc_score,
)

from skad.metrics._validation import check_labels_and_scores, warn_undefined

_NAN = float("nan")


def _defects_and_scores(
    metric: str, y: Any, scores: Any
) -> tuple[NDArray[np.bool_], NDArray[np.float64]] | None:
    """Which images are defective, and anomaly scores; None after a warning."""
    is_defective, anomaly = check_labels_and_scores(y, scores)
    if is_defective.all() or not is_defective.any():
        only = "defective" if is_defective.all() else "normal"
        warn_undefined(metric, f"y has {only} images only")
        return None
    return is_defective, anomaly


def image_auroc(y: Any, scores: Any) -> float:
    """Area under the ROC curve of image scores.

    The probability that a defective image gets a lower score than a normal one, where a
    tie counts one half.

    Parameters
    ----------
    y : array-like of shape (n_images,)
        +1 for normal, -1 for defective images.
    scores : array-like of shape (n_images,)
        Larger for normal images, as `decision_function` and `score_samples` return.

    Returns
    -------
    auroc : float
        1 where all defective images have lower scores than all normal ones. NaN, with a
        warning, where `y` has one class only.

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
    checked = _defects_and_scores("image_auroc", y, scores)
    return _NAN if checked is None else float(roc_auc_score(*checked))


def image_average_precision(y: Any, scores: Any) -> float:
    """Average precision of image scores, with the defect as the positive class.

    The sum over thresholds of the gain in recall times the precision, without
    interpolation.

    Parameters
    ----------
    y : array-like of shape (n_images,)
        +1 for normal, -1 for defective images.
    scores : array-like of shape (n_images,)
        Larger for normal images.

    Returns
    -------
    average_precision : float
        In (0, 1]. NaN, with a warning, where `y` has one class only.

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
    checked = _defects_and_scores("image_average_precision", y, scores)
    return _NAN if checked is None else float(average_precision_score(*checked))


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
        +1 for normal, -1 for defective images.
    scores : array-like of shape (n_images,)
        Larger for normal images.
    return_threshold : bool, default=False
        Whether to return the threshold as well.

    Returns
    -------
    f1 : float
        In (0, 1]. NaN, with a warning, where `y` has one class only.
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
    checked = _defects_and_scores("image_f1_max", y, scores)
    f1, threshold = (_NAN, _NAN) if checked is None else _best_f1(*checked)
    return (f1, threshold) if return_threshold else f1


def _best_f1(
    is_defective: NDArray[np.bool_], anomaly: NDArray[np.float64]
) -> tuple[float, float]:
    """Largest F1, and the score up to which images are then called defective."""
    precision, recall, thresholds = precision_recall_curve(is_defective, anomaly)
    # Numbers of images again: rates are rounded, and equal F1 would look different.
    n_found = np.rint(recall * is_defective.sum())
    n_called = np.rint(n_found / np.where(n_found > 0, precision, 1))
    f1 = 2 * n_found / (n_called + is_defective.sum())
    best = int(f1.argmax())
    return float(f1[best]), 0.0 - float(thresholds[best])

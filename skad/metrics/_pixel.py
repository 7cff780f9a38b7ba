"""Metrics of the pixels of anomaly maps, all images pooled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from skad._progress import progress
from skad.metrics._counts import ThresholdCounts, Thresholds, count_normal
from skad.metrics._curves import (
    area_to_limit,
    area_under_roc,
    average_precision,
    best_f1,
    weigh,
)
from skad.metrics._defect_pixels import defect_pixels
from skad.metrics._overlap import AUPIMO_BOUNDS, SPRO_MAX_FPR, pimo_per_image
from skad.metrics._validation import (
    check_max_fpr,
    check_pairs,
    warn_undefined,
    why_undefined,
)

_NAN = float("nan")


def _counts(metric: str, masks: Any, maps: Any) -> ThresholdCounts | None:
    """Pixels at every threshold; None, after a warning, where one class is missing."""
    pairs = check_pairs(masks, maps)
    thresholds = Thresholds.of(defect_pixels(pairs).scores)
    counts = thresholds.with_counts(count_normal(thresholds.values, pairs))
    reason = why_undefined(counts.index_of.size, counts.n_normal)
    if reason is not None:
        warn_undefined(metric, reason)
        return None
    return counts


def pixel_auroc(masks: Any, maps: Any) -> float:
    """Area under the ROC curve over the pixels of all images.

    Normal images belong in it: their pixels are normal ones.

    Parameters
    ----------
    masks : ndarray of shape (n_images, height, width), list, or None
        True is anomalous; a list holds masks as `skad.images.read_mask` takes them,
        or None for a normal image.
    maps : ndarray of shape (n_images, height, width) or list of (ndarray or path)
        Anomaly maps at the size of the masks, larger is more anomalous. Files are
        .npy files.

    Returns
    -------
    auroc : float
        1 where all defective pixels have higher values than all normal ones; a tie
        counts one half. NaN, with a warning, where one of the two classes is missing.

    Raises
    ------
    ValueError
        If a mask and its map differ in size, a map has NaN, or a mask cannot be read.

    Examples
    --------
    >>> import numpy as np
    >>> from skad.metrics import pixel_auroc
    >>> masks = [np.array([[False, True], [False, True]]), None]
    >>> maps = np.array([[[0.1, 0.9], [0.2, 0.3]], [[0.1, 0.4], [0.0, 0.2]]])
    >>> round(pixel_auroc(masks, maps), 4)
    0.9167
    """
    counts = _counts("pixel_auroc", masks, maps)
    return _NAN if counts is None else area_under_roc(counts)


def pixel_average_precision(masks: Any, maps: Any) -> float:
    """Average precision over the pixels of all images.

    The sum over thresholds of the gain in recall times the precision. The trapezoid
    area under the precision-recall curve, which some publications report, is another
    number.

    Parameters
    ----------
    masks : ndarray of shape (n_images, height, width), list, or None
        True is anomalous; a list holds masks as `skad.images.read_mask` takes them,
        or None for a normal image.
    maps : ndarray of shape (n_images, height, width) or list of (ndarray or path)
        Anomaly maps at the size of the masks, larger is more anomalous. Files are
        .npy files.

    Returns
    -------
    average_precision : float
        In (0, 1]. NaN, with a warning, where no pixel is defective, or none normal.

    Raises
    ------
    ValueError
        If a mask and its map differ in size, a map has NaN, or a mask cannot be read.

    Examples
    --------
    >>> import numpy as np
    >>> from skad.metrics import pixel_average_precision
    >>> masks = [np.array([[False, True], [False, True]]), None]
    >>> maps = np.array([[[0.1, 0.9], [0.2, 0.3]], [[0.1, 0.4], [0.0, 0.2]]])
    >>> round(pixel_average_precision(masks, maps), 4)
    0.8333
    """
    counts = _counts("pixel_average_precision", masks, maps)
    return _NAN if counts is None else average_precision(counts)


@overload
def pixel_f1_max(
    masks: Any, maps: Any, *, return_threshold: Literal[False] = ...
) -> float: ...
@overload
def pixel_f1_max(
    masks: Any, maps: Any, *, return_threshold: Literal[True]
) -> tuple[float, float]: ...
def pixel_f1_max(
    masks: Any, maps: Any, *, return_threshold: bool = False
) -> float | tuple[float, float]:
    """Largest F1 over pixels that any threshold on the maps reaches.

    The threshold is chosen with the masks of the test images, so this says what maps
    could do and not what a model's `predict_mask` does.

    Parameters
    ----------
    masks : ndarray of shape (n_images, height, width), list, or None
        True is anomalous; a list holds masks as `skad.images.read_mask` takes them,
        or None for a normal image.
    maps : ndarray of shape (n_images, height, width) or list of (ndarray or path)
        Anomaly maps at the size of the masks, larger is more anomalous. Files are
        .npy files.
    return_threshold : bool, default=False
        Whether to return the threshold as well.

    Returns
    -------
    f1 : float
        In (0, 1]. NaN, with a warning, where no pixel is defective, or none normal.
    threshold : float
        Pixels from this value on are called defective. Returned only if
        `return_threshold=True`; of several with the same F1, the smallest.

    Raises
    ------
    ValueError
        If a mask and its map differ in size, a map has NaN, or a mask cannot be read.

    Examples
    --------
    >>> import numpy as np
    >>> from skad.metrics import pixel_f1_max
    >>> masks = [np.array([[False, True], [False, True]]), None]
    >>> maps = np.array([[[0.1, 0.9], [0.2, 0.3]], [[0.1, 0.4], [0.0, 0.2]]])
    >>> pixel_f1_max(masks, maps, return_threshold=True)
    (0.8, 0.3)
    """
    counts = _counts("pixel_f1_max", masks, maps)
    f1, threshold = (_NAN, _NAN) if counts is None else best_f1(counts)
    return (f1, threshold) if return_threshold else f1


def pixel_metrics(
    masks: Any,
    maps: Any,
    *,
    max_fpr: float | Sequence[float] = 0.3,
    verbose: bool = False,
) -> dict[str, float | NDArray[np.float64]]:
    """Compute all pixel metrics in one pass.

    Sorting the pixels takes most of the time; it is done once here.

    Maps that are files, or that a `collections.abc.Sequence` other than a list makes
    when they are asked for, are looked at two or three times each and never kept, so
    that memory for one image and all defective pixels is enough. That holds for all
    metrics of pixels.

    Parameters
    ----------
    masks : ndarray of shape (n_images, height, width), list, or None
        True is anomalous; a list holds masks as `skad.images.read_mask` takes them,
        or None for a normal image.
    maps : ndarray of shape (n_images, height, width) or list of (ndarray or path)
        Anomaly maps at the size of the masks, larger is more anomalous. Files are
        .npy files.
    max_fpr : float or sequence of float, default=0.3
        Limit of the false-positive rate for `pro_score`. Several limits give an array
        with one value each.
    verbose : bool, default=False
        Report progress on the standard error stream.

    Returns
    -------
    metrics : dict
        `pixel_auroc`, `pixel_average_precision`, `pixel_f1_max`, `pro_score`,
        `spro_score` and `aupimo_score`, each as the function of that name returns it
        with its defaults. `aupimo_score` is NaN where no image is normal; all are NaN,
        with a warning, where no pixel is defective, or none normal.

    Raises
    ------
    ValueError
        If a mask and its map differ in size, a map has NaN, or a mask cannot be read.

    Examples
    --------
    >>> import numpy as np
    >>> from skad.metrics import pixel_metrics
    >>> masks = [np.array([[False, True], [False, True]]), None]
    >>> maps = np.array([[[0.1, 0.9], [0.2, 0.3]], [[0.1, 0.4], [0.0, 0.2]]])
    >>> for name, value in pixel_metrics(masks, maps).items():
    ...     print(f"{name}: {value:.4f}")
    pixel_auroc: 0.9167
    pixel_average_precision: 0.8333
    pixel_f1_max: 0.8000
    pro_score: 0.7222
    spro_score: 0.5000
    aupimo_score: 0.5000
    """
    limits = [check_max_fpr(limit) for limit in np.atleast_1d(max_fpr)]
    pairs = check_pairs(masks, maps)
    n_reads = len(pairs) + int(pairs.is_defective.sum())
    with progress(n_reads, "maps", verbose, unit="map") as bar:
        pairs = pairs.reporting(bar.update)
        pixels = defect_pixels(pairs, regions=True)
        thresholds = Thresholds.of(pixels.scores)
        # Normal images apart: only they set the false-positive rate of AUPIMO.
        from_normal_images = count_normal(
            thresholds.values, pairs.only(defective=False)
        )
        from_defective_images = count_normal(
            thresholds.values, pairs.only(defective=True)
        )
    counts = thresholds.with_counts(from_normal_images + from_defective_images)
    reason = why_undefined(pixels.scores.size, counts.n_normal)
    if reason is not None:
        warn_undefined("pixel_metrics", reason)
        return _all_metrics([_NAN] * 3, [_NAN] * len(limits), max_fpr, _NAN, _NAN)
    weights = weigh(counts, pixels.weights)
    pro = [
        float(np.dot(weights, area_to_limit(counts, limit)))
        for limit in (*limits, SPRO_MAX_FPR)
    ]
    pimo = pimo_per_image(
        pixels, thresholds.with_counts(from_normal_images), AUPIMO_BOUNDS
    )
    pooled = [area_under_roc(counts), average_precision(counts), best_f1(counts)[0]]
    return _all_metrics(pooled, pro[:-1], max_fpr, pro[-1], float(np.mean(pimo)))


def _all_metrics(
    pooled: list[float], pro: list[float], max_fpr: Any, spro: float, pimo: float
) -> dict[str, float | NDArray[np.float64]]:
    names = ("pixel_auroc", "pixel_average_precision", "pixel_f1_max")
    return {
        **dict(zip(names, pooled, strict=True)),
        "pro_score": pro[0] if np.ndim(max_fpr) == 0 else np.array(pro),
        "spro_score": spro,
        "aupimo_score": pimo,
    }

"""Overlap with each defect (PRO, sPRO) or with the defects of each image (AUPIMO)."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any, Literal, overload

import numpy as np
from numpy.typing import NDArray

from skad.metrics._counts import ThresholdCounts, Thresholds, count_normal, count_top
from skad.metrics._curves import area_to_limit, log_area, weigh
from skad.metrics._defect_pixels import DefectPixels, defect_pixels, saturated_pixels
from skad.metrics._validation import (
    Pairs,
    check_max_fpr,
    check_pairs,
    warn_undefined,
    why_undefined,
)

SPRO_MAX_FPR = 0.05
AUPIMO_BOUNDS = (1e-5, 1e-4)


def pro_score(masks: Any, maps: Any, max_fpr: float = 0.3) -> float:
    """Area under the per-region overlap curve, up to a false-positive rate.

    The per-region overlap of a threshold is the fraction of a connected defect region
    at or above it, averaged over all regions of all images: a small defect counts as
    much as a large one. It is plotted over the rate of normal pixels at or above the
    threshold, normal images included, and its area up to `max_fpr` is divided by
    `max_fpr`.

    Parameters
    ----------
    masks : ndarray of shape (n_images, height, width), list, or None
        True is anomalous; a list holds masks as `skad.images.read_mask` takes them,
        or None for a normal image.
        Regions are connected over edges and corners.
    maps : ndarray of shape (n_images, height, width) or list of (ndarray or path)
        Anomaly maps at the size of the masks, larger is more anomalous. Files are
        .npy files.
    max_fpr : float, default=0.3
        Where the area ends, in (0, 1]: 0.3 is the protocol of MVTec AD, 0.05 that of
        MVTec AD 2. Scores of different limits do not compare.

    Returns
    -------
    score : float
        In [0, 1]; a constant map has `max_fpr / 2`. NaN, with a warning, where no
        pixel is defective, or none normal.

    Raises
    ------
    ValueError
        If a mask and its map differ in size, a map has NaN, a mask cannot be read or
        `max_fpr` lies outside (0, 1].

    References
    ----------
    Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021, section 5.2.

    Examples
    --------
    >>> import numpy as np
    >>> from skad.metrics import pro_score
    >>> masks = [np.array([[False, True], [False, True]]), None]
    >>> maps = np.array([[[0.1, 0.9], [0.2, 0.3]], [[0.1, 0.4], [0.0, 0.2]]])
    >>> round(pro_score(masks, maps), 4)
    0.7222
    """
    limit = check_max_fpr(max_fpr)
    pairs = check_pairs(masks, maps)
    return _area("pro_score", defect_pixels(pairs, regions=True), pairs, limit)


def spro_score(
    masks: Any,
    maps: Any,
    saturation_areas: Any = None,
    *,
    max_fpr: float = SPRO_MAX_FPR,
) -> float:
    """Area under the saturated per-region overlap curve (MVTec LOCO).

    Where a defect has no single right extent, such as a missing part, it counts as
    found in full once as many of its pixels as its saturation area are found.

    Parameters
    ----------
    masks : ndarray of shape (n_images, height, width), list, or None
        As for `pro_score`. In a list, an entry may also be a stack
        (n_defects, height, width), or a list of such channels or their paths: one
        channel for each annotated defect, connected or not.
    maps : ndarray of shape (n_images, height, width) or list of (ndarray or path)
        Anomaly maps at the size of the masks, larger is more anomalous. Files are
        .npy files.
    saturation_areas : float or list, optional
        A float in (0, 1] is the fraction of each defect's area. A list has, for each
        image, one area in pixels per defect (or one for all, or None for the whole
        area); an area larger than the defect is cut to it. By default the whole area,
        which makes this `pro_score` with another limit.
    max_fpr : float, default=0.05
        Where the area ends, in (0, 1].

    Returns
    -------
    score : float
        In [0, 1]. NaN, with a warning, where no pixel is defective, or none normal.

    Raises
    ------
    ValueError
        As for `pro_score`, and if the saturation areas do not fit the masks.

    References
    ----------
    Bergmann et al., "Beyond Dents and Scratches: Logical Constraints in Unsupervised
    Anomaly Detection and Localization", IJCV 2022, section 4.2.

    Examples
    --------
    >>> import numpy as np
    >>> from skad.metrics import spro_score
    >>> masks = [np.array([[False, True], [False, True]]), None]
    >>> maps = np.array([[[0.1, 0.9], [0.2, 0.3]], [[0.1, 0.4], [0.0, 0.2]]])
    >>> spro_score(masks, maps), spro_score(masks, maps, saturation_areas=[1, None])
    (0.5, 1.0)
    """
    limit = check_max_fpr(max_fpr)
    pairs = check_pairs(masks, maps, stacks=True)
    areas = _check_areas(saturation_areas, len(pairs))
    return _area("spro_score", saturated_pixels(pairs, areas), pairs, limit)


def _check_areas(
    areas: Any, n_images: int
) -> Sequence[NDArray[np.float64] | float | None]:
    if areas is None:
        return [None] * n_images
    if isinstance(areas, Real) or getattr(areas, "ndim", 1) == 0:
        if not 0 < float(areas) <= 1:
            raise ValueError(
                "saturation_areas must lie in (0, 1] where one number stands for all "
                f"defects, got {areas!r}. For areas in pixels pass one entry per image."
            )
        return [float(areas)] * n_images
    if len(areas) != n_images:
        raise ValueError(
            f"saturation_areas must have one entry per image, got {len(areas)} for "
            f"{n_images} images."
        )
    return [_check_area(entry, i) for i, entry in enumerate(areas)]


def _check_area(entry: Any, i: int) -> NDArray[np.float64] | None:
    if entry is None:
        return None
    try:
        area = np.atleast_1d(np.asarray(entry, dtype=np.float64))
    except (TypeError, ValueError):
        area = np.array([np.nan])
    if area.ndim != 1 or not (np.isfinite(area) & (area > 0)).all():
        raise ValueError(
            f"saturation_areas[{i}] must be positive, in pixels, one per defect, got "
            f"{entry!r}."
        )
    return area


def _area(metric: str, pixels: DefectPixels, pairs: Pairs, max_fpr: float) -> float:
    """Weigh what each pixel adds to the area up to a limit."""
    thresholds = Thresholds.of(pixels.scores)
    if thresholds.values.size == 0:
        return warn_undefined(metric, "no pixel of masks is defective")
    counts = thresholds.with_counts(count_top(thresholds.values, pairs, max_fpr))
    reason = why_undefined(pixels.scores.size, counts.n_normal)
    if reason is not None:
        return warn_undefined(metric, reason)
    return float(np.dot(weigh(counts, pixels.weights), area_to_limit(counts, max_fpr)))


@overload
def aupimo_score(
    masks: Any,
    maps: Any,
    *,
    fpr_bounds: tuple[float, float] = ...,
    average: Literal["mean"] = ...,
) -> float: ...
@overload
def aupimo_score(
    masks: Any,
    maps: Any,
    *,
    fpr_bounds: tuple[float, float] = ...,
    average: None,
) -> NDArray[np.float64]: ...
def aupimo_score(
    masks: Any,
    maps: Any,
    *,
    fpr_bounds: tuple[float, float] = AUPIMO_BOUNDS,
    average: Literal["mean"] | None = "mean",
) -> float | NDArray[np.float64]:
    """Area under the per-image overlap curve at very low false-positive rates.

    For each defective image, the fraction of its defective pixels at or above a
    threshold, plotted over the logarithm of the false-positive rate. That rate comes
    from the normal images alone, so a map that is high beside a defect costs nothing,
    and one that is high on a normal image costs much.

    Parameters
    ----------
    masks : ndarray of shape (n_images, height, width), list, or None
        True is anomalous; a list holds masks as `skad.images.read_mask` takes them,
        or None for a normal image.
    maps : ndarray of shape (n_images, height, width) or list of (ndarray or path)
        Anomaly maps at the size of the masks, larger is more anomalous. Files are
        .npy files.
    fpr_bounds : tuple of float, default=(1e-5, 1e-4)
        Where the area begins and ends. The pixels of all normal images are pooled,
        which is the average of their rates where they have one size.
    average : {"mean", None}, default="mean"
        Average over the defective images, or None for one value per image.

    Returns
    -------
    score : float or ndarray of shape (n_images,)
        In [0, 1]; NaN for normal images. NaN, with a warning, where no image is normal
        or none defective.

    Raises
    ------
    ValueError
        If a mask and its map differ in size, a map has NaN, a mask cannot be read or
        the bounds are not ``0 < low < high <= 1``.

    References
    ----------
    Bertoldo et al., "AUPIMO: Redefining Visual Anomaly Detection Benchmarks with High
    Speed and Low Tolerance", BMVC 2024, section 3.

    Examples
    --------
    >>> import numpy as np
    >>> from skad.metrics import aupimo_score
    >>> masks = [np.array([[False, True], [False, True]]), None]
    >>> maps = np.array([[[0.1, 0.9], [0.2, 0.3]], [[0.1, 0.4], [0.0, 0.2]]])
    >>> aupimo_score(masks, maps)
    0.5
    >>> aupimo_score(masks, maps, fpr_bounds=(0.1, 1), average=None).round(4)
    array([0.801,   nan])
    """
    bounds = _check_bounds(fpr_bounds)
    if average not in ("mean", None):
        raise ValueError(f'average must be "mean" or None, got {average!r}.')
    pairs = check_pairs(masks, maps)
    pixels = defect_pixels(pairs)
    thresholds = Thresholds.of(pixels.scores)
    normal = pairs.only(defective=False)
    per_image = np.full(len(pairs), np.nan)
    if not pixels.images.size or not normal:
        missing = "normal" if not normal else "defective"
        value = warn_undefined("aupimo_score", f"no image is {missing}")
        return value if average == "mean" else per_image
    counts = thresholds.with_counts(count_normal(thresholds.values, normal))
    scores = pimo_per_image(pixels, counts, bounds)
    if average == "mean":
        return float(scores.mean())
    per_image[pairs.is_defective] = scores
    return per_image


def _check_bounds(bounds: Any) -> tuple[float, float]:
    try:
        low, high = (float(bound) for bound in bounds)
    except (TypeError, ValueError):
        low = high = float("nan")
    if not 0 < low < high <= 1:
        raise ValueError(
            f"fpr_bounds must be two numbers with 0 < low < high <= 1, got {bounds!r}."
        )
    return low, high


def pimo_per_image(
    pixels: DefectPixels, counts: ThresholdCounts, bounds: tuple[float, float]
) -> NDArray[np.float64]:
    """Average the areas of the pixels of each defective image.

    Parameters
    ----------
    pixels : DefectPixels
        The defective pixels.
    counts : ThresholdCounts
        Pixels of normal images at every threshold.
    bounds : tuple of float
        Bounds of the false-positive rate.

    Returns
    -------
    scores : ndarray of shape (n_defective_images,)
        NaN where there is no normal image.
    """
    if counts.n_normal == 0:
        return np.full(pixels.images.size, np.nan)
    area = log_area(counts, *bounds)[counts.index_of]
    starts = np.concatenate([[0], np.cumsum(pixels.n_pixels)[:-1]])
    return np.add.reduceat(area, starts) / pixels.n_pixels

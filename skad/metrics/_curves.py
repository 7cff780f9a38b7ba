"""Areas under curves and the best F1, from counts at every threshold.

Write t_1 < ... < t_m for the distinct scores of defective pixels, TP(t) and FP(t) for
the numbers of defective and of normal pixels that score at least t, and FPR(t) for
FP(t) divided by the number of normal pixels. As the threshold falls past t_k, the
true-positive side of a curve rises by the weight w_k of the defective pixels that
score t_k, and the false-positive rate moves from s_k, the rate of scores above t_k, to
e_k, the rate of scores at or above it. Where no normal pixel ties with t_k, both are
equal and the curve steps up; else it follows a straight line, as a random order of
the tied pixels would on average.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from skad.metrics._counts import ThresholdCounts


def area_under_roc(counts: ThresholdCounts) -> float:
    """Area under the ROC curve, ties counting one half.

    Parameters
    ----------
    counts : ThresholdCounts
        Normal pixels at every threshold.

    Returns
    -------
    area : float
        In [0, 1].

    Notes
    -----
    The area is the share of the pairs of a defective and a normal pixel in which the
    defective one scores higher. A pair is lost where the normal one scores higher,
    and half of it where they tie: (above + at_least) / 2 pairs for a defective pixel.
    """
    n_pairs = float(counts.index_of.size) * counts.n_normal
    twice_lost = np.dot(counts.n_defective, counts.above + counts.at_least)
    return float(1 - twice_lost / 2 / n_pairs)


def _true_positives(counts: ThresholdCounts) -> NDArray[np.int64]:
    return np.cumsum(counts.n_defective[::-1])[::-1]


def average_precision(counts: ThresholdCounts) -> float:
    """Sum of recall gained times precision, over all thresholds.

    Recall changes at defective scores only, so no other threshold contributes.

    Parameters
    ----------
    counts : ThresholdCounts
        Normal pixels at every threshold.

    Returns
    -------
    average_precision : float
        In (0, 1].
    """
    found = _true_positives(counts)
    precision = found / (found + counts.at_least)
    return float(np.dot(counts.n_defective, precision) / counts.index_of.size)


def best_f1(counts: ThresholdCounts) -> tuple[float, float]:
    """Largest F1 over all thresholds, and the smallest threshold that reaches it.

    Between two defective scores, raising the threshold only loses false positives: the
    best threshold is always a defective score.

    Parameters
    ----------
    counts : ThresholdCounts
        Normal pixels at every threshold.

    Returns
    -------
    f1, threshold : float
        Scores from the threshold on are called defective.
    """
    found = _true_positives(counts)
    f1 = 2 * found / (found + counts.at_least + counts.index_of.size)
    best = int(np.argmax(f1))
    return float(f1[best]), float(counts.thresholds[best])


def area_to_limit(counts: ThresholdCounts, max_fpr: float) -> NDArray[np.float64]:
    """Area that one defective pixel of each threshold adds up to a limit of the rate.

    Parameters
    ----------
    counts : ThresholdCounts
        Normal pixels at every threshold.
    max_fpr : float
        Limit of the false-positive rate, where the area ends.

    Returns
    -------
    area : ndarray of shape (n_thresholds,)
        Divided by the limit, so in [0, 1].

    Notes
    -----
    A pixel of threshold t_k lifts the curve by 0 at rates below s_k, by 1 beyond e_k,
    and by (x - s_k) / (e_k - s_k) in between. With the limit L, the integral of that
    from 0 to L is ::

        L - (s_k + e_k) / 2                    if e_k <= L
        (L - s_k)^2 / (2 (e_k - s_k))          if s_k < L < e_k
        0                                      if L <= s_k

    The area under the curve is the sum of these over all defective pixels, each times
    its weight: the per-region overlap needs no curve, and no choice of thresholds.
    """
    start, end = counts.false_positive_rates
    whole = max_fpr - (start + end) / 2
    rise = np.where(end > start, end - start, 1)
    cut = np.maximum(max_fpr - start, 0) ** 2 / (2 * rise)
    return np.where(end <= max_fpr, whole, cut) / max_fpr


def log_area(counts: ThresholdCounts, low: float, high: float) -> NDArray[np.float64]:
    """As `area_to_limit`, over the logarithm of the rate between two bounds.

    Parameters
    ----------
    counts : ThresholdCounts
        Normal pixels at every threshold.
    low, high : float
        Bounds of the false-positive rate.

    Returns
    -------
    area : ndarray of shape (n_thresholds,)
        Divided by the logarithm of high / low, so in [0, 1].

    Notes
    -----
    Over the logarithm of the rate x, an area is an integral of dx / x. Let a and b be
    s_k and e_k, clipped to the bounds. Between a and b, a pixel of threshold t_k
    lifts the curve by (x - s_k) / (e_k - s_k), and from b to the upper bound by 1 ::

        integral from a to b of (x - s_k) / (e_k - s_k) dx / x
            = ((b - a) - s_k log(b / a)) / (e_k - s_k)
        integral from b to high of dx / x = log(high / b)

    Without a tie, a = b and the first integral is 0.
    """
    start, end = counts.false_positive_rates
    first, last = np.clip(start, low, high), np.clip(end, low, high)
    rise = np.where(end > start, end - start, 1)
    sloped = ((last - first) - start * np.log(last / first)) / rise
    return (sloped + np.log(high / last)) / np.log(high / low)


def weigh(counts: ThresholdCounts, weights: NDArray[Any]) -> NDArray[np.float64]:
    """Add up the weights of the defective pixels of each threshold.

    Parameters
    ----------
    counts : ThresholdCounts
        Normal pixels at every threshold.
    weights : ndarray of shape (n_defective,)
        One per defective pixel.

    Returns
    -------
    weights : ndarray of shape (n_thresholds,)
        One per threshold.
    """
    sums = np.bincount(
        counts.index_of, weights=weights, minlength=counts.thresholds.size
    )
    return sums.astype(np.float64, copy=False)

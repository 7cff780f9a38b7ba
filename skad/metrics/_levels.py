"""From ranks to metric values."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from skad.metrics._ranks import Ranks


def area_under_roc(ranks: Ranks) -> float:
    """Area under the ROC curve, ties counting one half.

    Parameters
    ----------
    ranks : Ranks
        Defective scores among normal ones.

    Returns
    -------
    area : float
        In [0, 1].
    """
    n_pairs = float(ranks.level_of.size) * ranks.n_normal
    twice_lost = np.dot(ranks.n_defective, ranks.above + ranks.at_least)
    return float(1 - twice_lost / 2 / n_pairs)


def _true_positives(ranks: Ranks) -> NDArray[np.int64]:
    return np.cumsum(ranks.n_defective[::-1])[::-1]


def average_precision(ranks: Ranks) -> float:
    """Sum of recall gained times precision, over all thresholds.

    Recall changes at defective scores only, so no other threshold contributes.

    Parameters
    ----------
    ranks : Ranks
        Defective scores among normal ones.

    Returns
    -------
    average_precision : float
        In (0, 1].
    """
    found = _true_positives(ranks)
    precision = found / (found + ranks.at_least)
    return float(np.dot(ranks.n_defective, precision) / ranks.level_of.size)


def best_f1(ranks: Ranks) -> tuple[float, float]:
    """Largest F1 over all thresholds, and the smallest threshold that reaches it.

    Between two defective scores, raising the threshold only loses false positives: the
    best threshold is always a defective score.

    Parameters
    ----------
    ranks : Ranks
        Defective scores among normal ones.

    Returns
    -------
    f1, threshold : float
        Scores from the threshold on are called defective.
    """
    found = _true_positives(ranks)
    f1 = 2 * found / (found + ranks.at_least + ranks.level_of.size)
    best = int(np.argmax(f1))
    return float(f1[best]), float(ranks.levels[best])


def area_to_limit(ranks: Ranks, max_fpr: float) -> NDArray[np.float64]:
    """Area that one pixel of each level adds to a curve over the false-positive rate.

    The curve rises by 1 on the segment between the rate just above the level and the
    rate at it: at once if no normal pixel ties, else along a straight line.

    Parameters
    ----------
    ranks : Ranks
        Defective scores among normal ones.
    max_fpr : float
        Where the area ends; the line of a tie may be cut there.

    Returns
    -------
    area : ndarray of shape (n_levels,)
        Divided by the limit, so in [0, 1].
    """
    start, end = ranks.false_positive_rates
    whole = max_fpr - (start + end) / 2
    rise = np.where(end > start, end - start, 1)
    cut = np.maximum(max_fpr - start, 0) ** 2 / (2 * rise)
    return np.where(end <= max_fpr, whole, cut) / max_fpr


def log_area(ranks: Ranks, low: float, high: float) -> NDArray[np.float64]:
    """As `area_to_limit`, over the logarithm of the rate between two bounds.

    Parameters
    ----------
    ranks : Ranks
        Defective scores among normal ones.
    low, high : float
        Bounds of the false-positive rate.

    Returns
    -------
    area : ndarray of shape (n_levels,)
        Divided by the logarithm of high / low, so in [0, 1].
    """
    start, end = ranks.false_positive_rates
    first, last = np.clip(start, low, high), np.clip(end, low, high)
    rise = np.where(end > start, end - start, 1)
    sloped = ((last - first) - start * np.log(last / first)) / rise
    return (sloped + np.log(high / last)) / np.log(high / low)


def weigh(ranks: Ranks, weights: NDArray[Any]) -> NDArray[np.float64]:
    """Add up the weights of the defective scores of each level.

    Parameters
    ----------
    ranks : Ranks
        Defective scores among normal ones.
    weights : ndarray of shape (n_defective,)
        One per defective score.

    Returns
    -------
    weights : ndarray of shape (n_levels,)
        One per level.
    """
    sums = np.bincount(ranks.level_of, weights=weights, minlength=ranks.levels.size)
    return sums.astype(np.float64, copy=False)

"""Thresholds and p-values from held-out scores of normal images.

Scores are larger for more anomalous here. Two rules turn them into a threshold at a
rate of false alarms: the conformal rank, which promises the rate for any
distribution and needs many scores, and a tail fitted to them, which keeps the rate
on average from few.
"""

import numpy as np

RULES = ("tail", "rank")

_LIMIT = 3.0  # robust deviations; what lies farther out counts as if it lay there
_TRUST = 4  # scores beyond the quantile at which they and the tail count alike
_ROUNDING = 1e-5  # of a score, computed in float32 by other ways
_FAR, _ALONE = 8.0, 4.0  # robust deviations of an outlier over median and next score
_FEWEST = 8  # scores among which one can be called an outlier


def threshold_of(scores, contamination, rule="tail"):
    """Threshold that a new normal image exceeds with a given probability.

    Parameters
    ----------
    scores : ndarray of shape (n,)
        Held-out scores.

    contamination : float
        The probability.

    rule : {"tail", "rank"}, default="tail"
        "rank" takes the tail too where no rank exists; see `certifies`.

    Returns
    -------
    threshold : float
    """
    if len(scores) and np.ptp(scores) <= _ROUNDING * np.abs(scores).max():
        # All alike: what is like them stays on their side, whatever rounding does.
        return float(scores.max() + _ROUNDING * np.abs(scores).max())
    if rule == "rank" and certifies(len(scores), contamination):
        rank = _rank(len(scores), contamination)
        return float(np.partition(scores, rank - 1)[rank - 1])
    return _tail_quantile(scores, contamination)


def certifies(n, contamination):
    """Whether n held-out scores have the conformal rank of a rate of false alarms."""
    return _rank(n, contamination) <= n


def _rank(n, contamination):
    return int(np.ceil((n + 1) * (1 - contamination) - 1e-9))


def _tail_quantile(scores, contamination):
    """Quantile of new scores, from the upper half of the known ones.

    Excesses over the median are taken for exponential, of a scale that their root mean
    square tells; at a rate of 5 % that is right for the upper half of a normal
    distribution, too. The scale counts as the mean of n / 3 excesses, since the mean
    square of n / 2 varies more than their mean. The quantile moves and stretches as
    the scores do. With more scores, those near the quantile tell where it is, and the
    weight passes on to them.
    """
    n = len(scores)
    if n == 0:
        return np.inf
    scores = np.sort(scores)
    median = float(np.median(scores))
    n_known = max(n / 3, 1)
    # Of a new excess, where the scale is the mean of so many known ones.
    factor = n_known * np.expm1(-np.log(2 * contamination) / n_known)
    scale = _upper_deviation(scores, median) / np.sqrt(2)
    quantile = median + factor * scale
    n_beyond = (n + 1) * contamination - 2  # so that the largest score has no say
    if n_beyond > 0:
        weight = n_beyond / (n_beyond + _TRUST)
        place = (n + 1) * (1 - contamination) - 1
        known = np.interp(place, np.arange(n), scores)
        quantile = weight * known + (1 - weight) * quantile
    return float(quantile)


def _upper_deviation(scores, median):
    """Root mean square of the excess over the median, of at most a robust multiple."""
    excess = scores[scores >= median] - median
    largest = excess[-1]
    if largest == 0:
        return 0.0
    limit = _LIMIT * robust_deviation(excess)
    if limit > 0:
        excess = np.minimum(excess, limit)
    return largest * np.sqrt(np.sum((excess / largest) ** 2) / (len(scores) / 2))


def robust_deviation(excess):
    """Standard deviation of a normal distribution of which these are the upper half."""
    return 1.4826 * float(np.median(excess))


def conformal_p_values(scores, held_out):
    """Share of held-out normal images, the image itself counted, at least as anomalous.

    Both are scores in scikit-learn's sense, larger for more normal.
    """
    below = np.searchsorted(np.sort(held_out), scores, side="right")
    p = (1 + below) / (len(held_out) + 1)
    return np.where(np.isnan(scores), np.nan, p)


def outlier(scores):
    """Position of the one score that lies far above all others, or None.

    Returns
    -------
    found : (int, float) or None
        With how many robust deviations above the median it lies.
    """
    scores = np.where(np.isfinite(scores), scores, -np.inf)
    if np.isfinite(scores).sum() < _FEWEST:
        return None
    ordered = np.sort(scores[np.isfinite(scores)])
    excess = ordered[len(ordered) // 2 :] - np.median(ordered)
    deviation = robust_deviation(excess)
    far = excess[-1] > _FAR * deviation
    alone = excess[-1] - excess[-2] > _ALONE * deviation
    if deviation == 0 or not (far and alone):
        return None
    return int(scores.argmax()), float(excess[-1] / deviation)

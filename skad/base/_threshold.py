"""Thresholds and p-values from held-out scores of normal images.

Scores are larger for more anomalous here. Two rules turn them into a threshold at a
rate of false alarms. `conformal_rank` promises the rate for any distribution of scores
and needs many of them. A tail fitted to the scores keeps the rate on average, from few.
"""

import numpy as np

RULES = ("tail", "rank")

_MAX_EXCESS = 3.0  # robust standard deviations; larger excesses count as this one
_N_BEYOND_EQUAL = (
    4  # scores beyond the quantile for which they and the tail weigh alike
)
_ROUNDING_SHARE = 1e-5  # relative error of a score that is computed in float32
_OUTLIER_EXCESS = 8.0  # robust standard deviations of an outlier above the median
_OUTLIER_GAP = 4.0  # the same above the next score
_MIN_SCORES_FOR_OUTLIER = 8


def conformal_rank(n: int, contamination: float) -> int:
    """Rank of the held-out score that is the threshold: 1 is the smallest of n.

    If n held-out scores and a new one are exchangeable, the new one is equally likely
    to take each of the n + 1 places among them all. It exceeds the score at rank k in
    the places k + 1 to n + 1, so with a probability of at most (n + 1 - k) / (n + 1).
    That is at most `contamination` for k = ceil((n + 1) (1 - contamination)).

    Parameters
    ----------
    n : int
        Number of held-out scores.

    contamination : float
        Rate of false alarms, in (0, 0.5].

    Returns
    -------
    rank : int
        n + 1 or more where no score will do: see `certifies`.

    References
    ----------
    .. [1] V. Vovk, A. Gammerman and G. Shafer, "Algorithmic Learning in a Random
       World", Springer 2005. Section 2.2.
    """
    return int(np.ceil((n + 1) * (1 - contamination) - 1e-9))


def certifies(n: int, contamination: float) -> bool:
    """Whether n held-out scores are enough to guarantee a rate of false alarms."""
    return conformal_rank(n, contamination) <= n


def threshold_of(scores: np.ndarray, contamination: float, rule: str = "tail") -> float:
    """Threshold that a new normal image exceeds with a given probability.

    Parameters
    ----------
    scores : ndarray of shape (n,)
        Held-out scores, larger is more anomalous.

    contamination : float
        The probability, in (0, 0.5].

    rule : {"tail", "rank"}, default="tail"
        "rank" takes the tail too where no rank exists; see `certifies`.

    Returns
    -------
    threshold : float
    """
    if len(scores) and are_equal(scores):
        # All alike: what is like them stays on their side, whatever rounding does.
        return float(scores.max() + _ROUNDING_SHARE * np.abs(scores).max())
    if rule == "rank" and certifies(len(scores), contamination):
        k = conformal_rank(len(scores), contamination)
        return float(np.partition(scores, k - 1)[k - 1])
    return _tail_quantile(scores, contamination)


def are_equal(scores: np.ndarray) -> bool:
    """Whether all scores (n,) are alike, up to what rounding does to them."""
    return bool(np.ptp(scores) <= _ROUNDING_SHARE * np.abs(scores).max())


def _tail_quantile(scores: np.ndarray, contamination: float) -> float:
    """Quantile of new scores at a rate c, from the upper half of the known ones.

    Half of all scores exceed the median. Their excesses e are taken for exponential
    with mean s, so that P(e > x) = exp(-x / s) / 2. If s is not known but estimated as
    the mean of k excesses, a new one follows P(e > x) = (1 + x / (k s))^-k / 2, which
    is c for x = k s ((2 c)^(-1 / k) - 1).

    The estimate of s is the root mean square of the excesses over sqrt(2), as the mean
    square of an exponential distribution is 2 s^2. Taken so, x at c = 5 % is right for
    the upper half of a normal distribution, too (1.63 standard deviations in place of
    1.64). It varies more than the mean of n / 2 excesses, so k = n / 3.

    The more scores lie beyond the quantile, the better they tell where it is: the
    weight passes from x to their own quantile.
    """
    n = len(scores)
    if n == 0:
        return np.inf
    scores = np.sort(scores)
    median = float(np.median(scores))
    k = max(n / 3, 1)
    factor = k * np.expm1(-np.log(2 * contamination) / k)
    scale = _upper_rms(scores, median) / np.sqrt(2)
    quantile = median + factor * scale
    n_beyond = (n + 1) * contamination - 2  # less 2: the largest score has no weight
    if n_beyond > 0:
        weight = n_beyond / (n_beyond + _N_BEYOND_EQUAL)
        place = (n + 1) * (1 - contamination) - 1
        empirical = np.interp(place, np.arange(n), scores)
        quantile = weight * empirical + (1 - weight) * quantile
    return float(quantile)


def _upper_rms(scores: np.ndarray, median: float) -> float:
    """Root mean square of the excess over the median, of at most a robust multiple."""
    excess = scores[scores >= median] - median
    largest = excess[-1]
    if largest == 0:
        return 0.0
    limit = _MAX_EXCESS * _robust_std(excess)
    if limit > 0:
        excess = np.minimum(excess, limit)
    return largest * np.sqrt(np.sum((excess / largest) ** 2) / (len(scores) / 2))


def _robust_std(excess: np.ndarray) -> float:
    """Standard deviation of a normal distribution of which these are the upper half.

    The median of the absolute values of a standard normal variable is 1 / 1.4826.
    """
    return 1.4826 * float(np.median(excess))


def conformal_p_values(scores: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Share of normal images, the image itself counted, that are at least as anomalous.

    Parameters
    ----------
    scores : ndarray of shape (n,)
        In scikit-learn's sense: larger is more normal.

    held_out : ndarray of shape (m,)
        The same of held-out normal images.

    Returns
    -------
    p : ndarray of shape (n,), float64
        In [1 / (m + 1), 1]; NaN where the score is.
    """
    below = np.searchsorted(np.sort(held_out), scores, side="right")
    p = (1 + below) / (len(held_out) + 1)
    return np.where(np.isnan(scores), np.nan, p)


def outlier(scores: np.ndarray) -> tuple[int, float] | None:
    """Position of the one score that lies far above all others, or None.

    Returns
    -------
    found : (int, float) or None
        With how many robust standard deviations above the median it lies.
    """
    scores = np.where(np.isfinite(scores), scores, -np.inf)
    if np.isfinite(scores).sum() < _MIN_SCORES_FOR_OUTLIER:
        return None
    ordered = np.sort(scores[np.isfinite(scores)])
    excess = ordered[len(ordered) // 2 :] - np.median(ordered)
    std = _robust_std(excess)
    is_far = excess[-1] > _OUTLIER_EXCESS * std
    is_alone = excess[-1] - excess[-2] > _OUTLIER_GAP * std
    if std == 0 or not (is_far and is_alone):
        return None
    return int(scores.argmax()), float(excess[-1] / std)

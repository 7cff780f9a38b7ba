"""Thresholds and p-values from held-out scores of good images."""

import numpy as np
from scipy.stats import norm


def conformal_threshold(scores, contamination):
    """Threshold that a new good image exceeds with a given probability at most.

    The order statistic of rank ceil((n + 1) (1 - contamination)) of held-out
    scores, larger for more anomalous. Where that exceeds n no rank exists, and
    a fitted quantile stands in: log-normal, or normal where a score is not
    positive.

    Returns
    -------
    threshold : float
    certified : bool
        Whether the rank exists, and with it the promise.
    """
    n = len(scores)
    rank = int(np.ceil((n + 1) * (1 - contamination) - 1e-9))
    if rank <= n:
        return float(np.partition(scores, rank - 1)[rank - 1]), True
    if n == 0:
        return np.inf, False
    if n == 1:
        return float(scores[0]), False
    z = norm.ppf(1 - contamination)
    if scores.min() > 0:
        logs = np.log(scores)
        return float(np.exp(logs.mean() + z * logs.std(ddof=1))), False
    return float(scores.mean() + z * scores.std(ddof=1)), False


def conformal_p_values(scores, held_out):
    """Share of held-out good images, the image itself counted, at least as odd.

    Both are scores in scikit-learn's sense, larger for more normal.
    """
    below = np.searchsorted(np.sort(held_out), scores, side="right")
    p = (1 + below) / (len(held_out) + 1)
    return np.where(np.isnan(scores), np.nan, p)

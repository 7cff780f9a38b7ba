"""Exact nearest neighbours.

One matrix product per block of queries screens the bank; every row that the
rounding of the product leaves in doubt is then measured directly in float64.
The answer does not depend on the number of threads or on the blocking.
"""

import numpy as np
from sklearn.utils import check_array

from skad.neighbors._distances import direct, rounding_bound, squared_norms

_BLOCK = 2**23  # entries of one block of the product


def nearest(queries, bank, k=1):
    """Find the k nearest rows of a bank for every query, exactly.

    Parameters
    ----------
    queries : array-like of shape (n, d)
        Rows to look up, float32 or float64.

    bank : array-like of shape (m, d)
        Rows to find.

    k : int, default=1
        Number of neighbours, from 1 to m.

    Returns
    -------
    distances : ndarray of shape (n,), or (n, k) where k > 1, float64
        Euclidean distances in ascending order. A row that equals its query is
        at exactly 0.

    indices : ndarray of the same shape, intp
        Rows of the bank. Of equally near rows the first is taken.

    Raises
    ------
    ValueError
        If an input is empty or not finite, if the numbers of columns differ,
        or if `k` is out of range.

    Examples
    --------
    >>> from skad.neighbors import nearest
    >>> nearest([[0.0, 0.0], [5.0, 4.0]], [[3.0, 4.0], [0.0, 0.0]])
    (array([0., 2.]), array([1, 0]))
    """
    dtype = [np.float64, np.float32]
    queries = check_array(queries, dtype=dtype, input_name="queries")
    bank = check_array(bank, dtype=dtype, input_name="bank")
    if queries.shape[1] != bank.shape[1]:
        raise ValueError(
            f"queries has {queries.shape[1]} columns but bank has {bank.shape[1]}; "
            "both must come from the same features."
        )
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)):
        raise ValueError(f"k must be an integer, got {k!r}.")
    if not 1 <= k <= len(bank):
        raise ValueError(
            f"k={k} is out of range: bank has {len(bank)} rows, so k must be "
            f"between 1 and {len(bank)}."
        )
    squared, indices = search(queries, bank, k)
    distances = np.sqrt(squared)
    return (distances[:, 0], indices[:, 0]) if k == 1 else (distances, indices)


def search(queries, bank, k=1, *, groups=None, hidden=None):
    """Squared distances and indices of the k nearest rows, unvalidated.

    Parameters
    ----------
    queries, bank : ndarray of shape (n, d) and (m, d)

    k : int

    groups : (ndarray of shape (n,), ndarray of shape (m,)), optional
        A group per query and per bank row; a query never finds a row of its
        own group. Where fewer than k rows are left, distances are infinite.

    hidden : ndarray of shape (n, m), bool, optional
        Pairs that never find each other, with the same effect.

    Returns
    -------
    squared : ndarray of shape (n, k), float64
    indices : ndarray of shape (n, k), intp
    """
    squared = np.full((len(queries), k), np.inf)
    indices = np.zeros((len(queries), k), np.intp)
    bank_norms = squared_norms(bank)
    step = max(1, _BLOCK // len(bank))
    for lo in range(0, len(queries), step):
        block = slice(lo, lo + step)
        hide = None
        if groups is not None:
            hide = _hide_own_group(groups[0][block], groups[1])
        elif hidden is not None:
            hide = _hide_pairs(hidden[block])
        _search_block(
            queries[block], bank, bank_norms, k, hide, squared[block], indices[block]
        )
    return squared, indices


def _search_block(queries, bank, bank_norms, k, hide, squared, indices):
    """Fill `squared` and `indices` for one block of queries."""
    # |q|^2 is the same along a row and so left out of the screening. Scaling by
    # a power of two before the product is exact, and spares a pass over it.
    screen = (-2 * queries) @ bank.T
    screen += bank_norms
    found = np.arange(len(queries))
    if hide is not None:
        found = hide(screen, k)
        if len(found) < len(queries):
            screen = screen[found]
    kth = screen.min(axis=1) if k == 1 else np.partition(screen, k - 1)[:, k - 1]
    norms = squared_norms(queries[found])
    noise = rounding_bound(norms, bank_norms.max(), bank.shape[1], screen.dtype)
    in_doubt = np.flatnonzero(screen <= (kth + 2 * noise)[:, None])
    rows, cols = np.divmod(in_doubt, len(bank))
    exact = direct(queries, bank, found[rows], cols)
    order = np.lexsort((cols, exact, rows))
    first = np.searchsorted(rows, np.arange(len(found)))
    best = order[first[:, None] + np.arange(k)]
    squared[found] = exact[best]
    indices[found] = cols[best]


def _hide_pairs(hidden):
    """Put hidden pairs out of reach; tells which queries have k rows left."""

    def hide(screen, k):
        screen[hidden] = np.inf
        return np.flatnonzero(screen.shape[1] - hidden.sum(axis=1) >= k)

    return hide


def _hide_own_group(query_groups, bank_groups):
    """The same for the rows of a query's own group, without a flag per pair."""

    def hide(screen, k):
        enough = []
        for group in np.unique(query_groups):
            own = np.flatnonzero(bank_groups == group)
            members = np.flatnonzero(query_groups == group)
            screen[members[:, None], own] = np.inf
            if len(bank_groups) - len(own) >= k:
                enough.append(members)
        return np.sort(np.concatenate(enough)) if enough else np.array([], np.intp)

    return hide

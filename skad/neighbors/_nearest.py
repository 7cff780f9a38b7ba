"""Exact nearest neighbours.

Lower bounds of all distances come first, by one matrix product per block of queries.
One exact distance per query then rules out nearly all of the bank, and the few rows
that are left are measured directly in float64. The answer does not depend on how the
bounds were found, on the number of threads, or on the blocking.
"""

from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import check_array

from skad._matrices import direct
from skad.neighbors._bounds import Bounds, plan
from skad.networks._torch_state import in_own_torch_state

BLOCK_ENTRIES = 2**23  # of one block of bounds
_GROUP_ROWS = 16  # of these, only the one with the smallest bound is looked at
_UNDERFLOW_MARGIN = 1e-30  # above all that underflow takes from a squared distance

# What speeds up the search of each bank: the number of rows looked up so far, the plan
# that they pay for, and the bounds by it. It stands outside of the banks, and with that
# outside of fitted estimators, which a search leaves as they are.
_PREPARED: WeakKeyDictionary[Any, tuple] = WeakKeyDictionary()


@in_own_torch_state
def nearest(
    queries: ArrayLike, bank: ArrayLike, k: int = 1
) -> tuple[np.ndarray, np.ndarray]:
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
    rows: np.ndarray = check_array(queries, dtype=dtype, input_name="queries")
    known: np.ndarray = check_array(bank, dtype=dtype, input_name="bank")
    if rows.shape[1] != known.shape[1]:
        raise ValueError(
            f"queries has {rows.shape[1]} columns but bank has {known.shape[1]}; "
            "both must come from the same features."
        )
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)):
        raise ValueError(f"k must be an integer, got {k!r}.")
    if not 1 <= k <= len(known):
        raise ValueError(
            f"k={k} is out of range: bank has {len(known)} rows, so k must be "
            f"between 1 and {len(known)}."
        )
    squared, indices = search(rows, known, k)
    distances = np.sqrt(squared)
    return (distances[:, 0], indices[:, 0]) if k == 1 else (distances, indices)


def search(queries, bank, k=1, *, groups=None, hidden=None):
    """Squared distances and indices of the k nearest rows, unvalidated.

    For a bank that is searched once; see `Bank.search`.
    """
    return Bank(bank).search(queries, k, groups=groups, hidden=hidden)


class Bank:
    """Rows to search exactly, and often: what speeds a search up is kept.

    More is prepared when more has been looked up, so that preparing never takes
    more than a part of the time spent in searching.

    Parameters
    ----------
    rows : ndarray of shape (m, d)
        Rows to find; kept, not copied.
    """

    def __init__(self, rows):
        self.rows = rows

    def __getstate__(self):
        return self.rows  # the rest comes again, and must not tell copies apart

    def __setstate__(self, rows):
        self.rows = rows

    def _prepare(self, n_queries):
        """Bounds that pay for these queries on top of those before."""
        n_before, known, bounds = _PREPARED.get(self, (0, None, None))
        needed = plan(self.rows.shape, n_before + n_queries)
        if needed != known:
            bounds = Bounds(self.rows, **needed)
        _PREPARED[self] = n_before + n_queries, needed, bounds
        return bounds

    def search(self, queries, k=1, *, groups=None, hidden=None, report=None):
        """Squared distances and indices of the k nearest rows.

        Parameters
        ----------
        queries : ndarray of shape (n, d)

        k : int

        groups : (ndarray of shape (n,), ndarray of shape (m,)), optional
            A group per query and per row; a query never finds a row of its own
            group. Where fewer than k rows are left, distances are infinite.

        hidden : ndarray of shape (n, m), bool, optional
            Pairs that never find each other, with the same effect.

        report : callable, optional
            Called after each block of queries with their number.

        Returns
        -------
        squared : ndarray of shape (n, k), float64
        indices : ndarray of shape (n, k), intp
        """
        prepared = self._prepare(len(queries))
        squared = np.full((len(queries), k), np.inf)
        indices = np.zeros((len(queries), k), np.intp)
        step = max(1, BLOCK_ENTRIES // len(self.rows))
        for lo in range(0, len(queries), step):
            block = slice(lo, lo + step)
            hide = None
            if groups is not None:
                hide = _hide_own_group(groups[0][block], groups[1])
            elif hidden is not None:
                hide = _hide_pairs(hidden[block])
            found = squared[block], indices[block]
            self._search_block(prepared, queries[block], k, hide, *found)
            if report is not None:
                report(len(found[0]))
        return squared, indices

    def upper_bounds(self, queries, k, parts):
        """Bounds of the squared distances to the k nearest rows, (n, k), from above.

        They are those to k rows of some parts of the bank, which are likely to be the
        nearest of the parts.

        Parameters
        ----------
        queries : ndarray of shape (n, d)

        k : int

        parts : list of slice
            Disjoint parts, each of at least k rows.
        """
        prepared = self._prepare(len(queries))
        squared = np.full((len(queries), k), np.inf)
        for part in parts:
            rows = self.rows[part]
            step = max(1, BLOCK_ENTRIES // len(rows))
            for lo in range(0, len(queries), step):
                block = slice(lo, lo + step)
                likely = _likely(prepared.rough(queries[block], part), k)
                seen = _at_most_to(queries[block], rows, likely)
                both = np.concatenate([squared[block], seen], axis=1)
                squared[block] = np.sort(both, axis=1)[:, :k]
        return squared

    def _search_block(self, prepared, queries, k, hide, squared, indices):
        """Fill `squared` and `indices` for one block of queries."""
        bounds, limits = prepared.of(queries)
        found = np.arange(len(queries))
        if hide is not None:
            found = hide(bounds, k)
        if len(found) == 0:
            return
        # The nearest of more rows are closer; hidden rows must not be among them.
        n_tried = k if k == 1 or hide is not None else min(2 * k, len(self.rows))
        seen = _at_most_to(queries, self.rows, _likely(bounds, n_tried))
        reach = np.sqrt(np.partition(seen, k - 1, axis=1)[:, k - 1])
        left = np.flatnonzero(bounds <= limits(reach)[:, None])
        rows, cols = np.divmod(left, len(self.rows))
        both_single = queries.dtype == self.rows.dtype == np.float32
        if both_single and len(rows) > 2 * k * len(found):
            # Few of many pairs are worth float64.
            rough = direct(queries, self.rows, rows, cols, np.float32)
            kth = np.full(len(queries), np.inf)
            kth[found] = _kth(rough, rows, found, k)
            kept = rough <= _at_most(kth, queries.shape[1])[rows]
            rows, cols = rows[kept], cols[kept]
        exact = direct(queries, self.rows, rows, cols)
        order = np.lexsort((cols, exact, rows))
        best = order[np.searchsorted(rows, found)[:, None] + np.arange(k)]
        squared[found] = exact[best]
        indices[found] = cols[best]


def _kth(rough, rows, some, k):
    """The k-th smallest value, in float32, of each of some rows; rows ascend.

    Row and value as one integer: floats that are not negative have the order of their
    bits, and NumPy sorts integers fast.
    """
    bits = rough.astype(np.float32).view(np.uint32)
    keys = np.sort(rows.astype(np.uint64) << np.uint64(32) | bits)
    kth = keys[np.searchsorted(rows, some) + k - 1]
    return kth.astype(np.uint32).view(np.float32)


def _at_most_to(queries, rows, likely):
    """Bounds from above of the squared distances to some rows of each query."""
    pairs = np.repeat(np.arange(len(likely)), likely.shape[1]), likely.ravel()
    if not queries.dtype == rows.dtype == np.float32:
        return direct(queries, rows, *pairs).reshape(likely.shape)
    seen = _at_most(direct(queries, rows, *pairs, np.float32), queries.shape[1])
    # Too small or too large for float32.
    unsure = np.flatnonzero((seen < 1e6 * _UNDERFLOW_MARGIN) | (seen == np.inf))
    seen[unsure] = direct(queries, rows, pairs[0][unsure], pairs[1][unsure])
    return seen.reshape(likely.shape)


def _at_most(rough, n_features):
    """Bounds, by squared distances in float32, of what is no farther in float64."""
    margin = 1 + 2 * (n_features + 4) * np.finfo(np.float32).eps
    return rough * margin + _UNDERFLOW_MARGIN


def _likely(bounds, k):
    """Any k rows per query with small bounds: the true ones are hardly farther.

    The smallest of each of some groups of rows are cheap to take, and few to sort.
    """
    if k == 1:
        return bounds.argmin(axis=1)[:, None]
    n, m = bounds.shape
    n_groups = m // _GROUP_ROWS
    if n_groups >= 4 * k:
        grouped = bounds[:, : n_groups * _GROUP_ROWS].reshape(n, _GROUP_ROWS, n_groups)
        smallest = grouped.min(axis=1)
        groups = np.argpartition(smallest, k - 1, axis=1)[:, :k]
        found = np.take_along_axis(smallest, groups, axis=1)
        if found.max() < np.iinfo(bounds.dtype).max:  # none of them is hidden
            of_queries = np.arange(n)[:, None]
            members = grouped[of_queries, :, groups].argmin(axis=2)
            return members * n_groups + groups
    return np.argpartition(bounds, k - 1, axis=1)[:, :k]


def _hide_pairs(hidden):
    """Put hidden pairs out of reach; tells which queries have k rows left."""

    def hide(bounds, k):
        bounds[hidden] = np.iinfo(bounds.dtype).max
        return np.flatnonzero(bounds.shape[1] - hidden.sum(axis=1) >= k)

    return hide


def _hide_own_group(query_groups, bank_groups):
    """The same for the rows of a query's own group, without a flag per pair."""

    def hide(bounds, k):
        enough = []
        for group in np.unique(query_groups):
            own = np.flatnonzero(bank_groups == group)
            members = np.flatnonzero(query_groups == group)
            bounds[members[:, None], own] = np.iinfo(bounds.dtype).max
            if len(bank_groups) - len(own) >= k:
                enough.append(members)
        return np.sort(np.concatenate(enough)) if enough else np.array([], np.intp)

    return hide

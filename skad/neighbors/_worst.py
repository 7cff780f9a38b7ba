"""The farthest queries of each image, without an exact search of all others.

The score of an image is that of its worst patch; only this one needs its nearest row.
The distance to any row is an upper bound of the distance to the nearest one, and some
rows that cover the bank give such a bound for every query, by a small matrix product.
Queries are searched in falling order of their bounds, until the next bound is below the
worst distance found: no query after it can be farther. Where many are left, more rows
lower their bounds first. Where nothing is to be gained, because many queries are
wanted, or because those searched are equally far, the others are searched at once.

Upper bounds are distances of pairs with room for their rounding, and what is found
comes from the exact search. So the result is that of a search of all queries, bit for
bit.
"""

from collections.abc import Callable

import numpy as np

from skad.neighbors._nearest import Bank

_COVER_ROWS = 1024  # that give each query its first bound
_GROWTH = 4  # of these rows, and of the queries searched at once
_FIRST_QUERIES = 8  # of an image that are searched at once; a product likes powers of 2
_FEW_QUERIES = 48  # are searched in less time than their bounds are lowered
# Queries times rows times columns, plus 128 for what a pair costs beside: with less, a
# search of all queries takes no longer.
_MIN_WORK = 2**29
_MAX_WANTED = 1 / 16  # of the queries; to find more takes a search of nearly all
# Share of the queries searched that are as far as the worst one known. If it is larger,
# many others are as far, too, and bounds rule out none.
_MAX_REACHING = 0.75


def search_worst(
    bank: Bank,
    queries: np.ndarray,
    images: np.ndarray,
    n_worst: np.ndarray,
    k: int,
    distance: Callable[[np.ndarray], np.ndarray],
    *,
    in_order: bool,
) -> tuple[np.ndarray, np.ndarray]:
    """Search the farthest queries of each image exactly.

    Parameters
    ----------
    bank : Bank

    queries : ndarray of shape (n, d)

    images : ndarray of shape (n,), intp
        The image of each query, ascending from 0.

    n_worst : ndarray of shape (n_images,), intp
        Number of queries of each image to find, at least 1: those of the largest mean
        distance to their k nearest rows.

    k : int

    distance : callable
        Distances from squared ones, elementwise and monotone.

    in_order : bool
        Whether the first rows of the bank cover it, as those of a coreset do. If not,
        rows are taken from everywhere.

    Returns
    -------
    squared : ndarray of shape (n, k), float64
        Squared distances to the k nearest rows; 0 for queries that are nearer than
        those to find.

    indices : ndarray of shape (n, k), intp
        The k nearest rows; 0 for these.
    """
    n, d = queries.shape
    levels = _levels(len(bank.rows), k, in_order)
    work = n * len(bank.rows) * (d + 128)
    if not levels or work < _MIN_WORK or n_worst.sum() > _MAX_WANTED * n:
        return bank.search(queries, k)
    squared, indices = np.zeros((n, k)), np.zeros((n, k), np.intp)
    values = np.full(n, -np.inf)  # exact mean distances, where they are known
    floor = np.full(len(n_worst), -np.inf)  # the smallest of the worst ones found
    starts = np.searchsorted(images, np.arange(len(n_worst) + 1))
    known = bank.upper_bounds(queries, k, levels[0])
    bounds = distance(known).mean(axis=1)
    n_next = max(_FIRST_QUERIES, 2 ** int(2 * n_worst.max() - 1).bit_length())
    left, next_level = np.arange(n), 1
    while len(left):
        some = left[_rank(bounds[left], images[left]) < n_next]
        squared[some], indices[some] = bank.search(queries[some], k)
        values[some] = distance(squared[some]).mean(axis=1)
        for image in np.unique(images[some]):
            own = values[starts[image] : starts[image + 1]]
            floor[image] = np.partition(own, -n_worst[image])[-n_worst[image]]
        left = _open(left, bounds, values, floor, images)
        if np.mean(values[some] >= floor[images[some]]) > _MAX_REACHING:
            n_next = n
        for level in levels[next_level:]:
            if len(left) <= _FEW_QUERIES or n_next == n:
                break
            more = bank.upper_bounds(queries[left], k, level)
            both = np.sort(np.concatenate([known[left], more], axis=1), axis=1)
            known[left] = both[:, :k]
            bounds[left] = distance(known[left]).mean(axis=1)
            left = _open(left, bounds, values, floor, images)
            next_level += 1
        n_next *= _GROWTH
    return squared, indices


def _levels(n_rows: int, k: int, in_order: bool) -> list[list[slice]]:
    """Disjoint parts of the bank, growing, which are half of it at most."""
    n_cover = max(_COVER_ROWS, k)
    n_parts = n_rows // n_cover // 2
    levels, low, high = [], 0, 1
    while high <= n_parts:
        if in_order:
            levels.append([slice(low * n_cover, high * n_cover)])
        else:
            step = n_rows // n_cover
            levels.append([slice(first, None, step) for first in range(low, high)])
        low, high = high, high * _GROWTH
    return levels


def _rank(bounds: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Place of each query among those of its image, by falling bounds."""
    rank = np.empty(len(bounds), np.intp)
    order = np.lexsort((-bounds, images))
    rank[order] = np.arange(len(bounds)) - np.searchsorted(images, images)
    return rank


def _open(
    left: np.ndarray,
    bounds: np.ndarray,
    values: np.ndarray,
    floor: np.ndarray,
    images: np.ndarray,
) -> np.ndarray:
    """Those of the queries left that may be among the worst, and are not searched."""
    return left[(values[left] == -np.inf) & (bounds[left] >= floor[images[left]])]

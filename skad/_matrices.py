"""Products of matrices, and squared Euclidean distances at their speed.

After a product, the threads of NumPy's BLAS wait for the next one by spinning, for some
20 ms, and take the cores from the network, which has threads of its own: scored one by
one, images took up to twice as long. So what is multiplied between two runs of a
network is multiplied by PyTorch, whose threads those are.

Written as ``|a|^2 + |b|^2 - 2 a.b`` a distance is one entry of a matrix product, but
close rows cancel: in float32 two identical rows of length 320 end up 0.2 apart. The
expansion is therefore only used to tell far from near; wherever its rounding could
matter the difference itself is taken, in float64.
"""

import os
from typing import Any

import numpy as np

_CHUNK_ENTRIES = 2**16  # entries of a float64 temporary: it stays in the cache
_process = os.getpid()  # whose threads torch has


def product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Multiply two matrices as ``left @ right`` does.

    The bits do not depend on where in memory the matrices lie. Where torch has been
    told to multiply float32 with fewer digits, NumPy multiplies.

    Parameters
    ----------
    left : ndarray of shape (m, k), float32 or float64
    right : ndarray of shape (k, n), float32 or float64

    Returns
    -------
    result : ndarray of shape (m, n)
    """
    if right.shape[1] == 1:  # there, a BLAS adds up in an order that depends on it
        return np.einsum("ij,j->i", left, right[:, 0])[:, None]
    import torch

    if not _multiplies_float32(torch):
        return left @ right
    use_one_thread_after_fork(torch)
    result = np.empty((len(left), right.shape[1]), np.result_type(left, right))
    both = (_shared(torch, matrix, result.dtype) for matrix in (left, right))
    # With `out`, the caller's autocast has no say.
    torch.mm(*both, out=torch.from_numpy(result))
    return result


def use_one_thread_after_fork(torch: Any) -> None:
    """Have torch use one thread in a process that was forked.

    The threads of OpenMP do not survive a fork; a child that wants to share work with
    them waits for ever.
    """
    global _process
    if os.getpid() != _process:
        torch.set_num_threads(1)
        _process = os.getpid()


def _multiplies_float32(torch: Any) -> bool:
    """Whether torch keeps all digits of float32 in a product, by settings of its user.

    Bounds of distances count on them.
    """
    product = getattr(torch.backends.mkldnn, "matmul", None)
    if product is not None:
        return product.fp32_precision in ("none", "ieee")
    return torch.get_float32_matmul_precision() == "highest"  # before torch 2.9


def _shared(torch: Any, matrix: np.ndarray, dtype: Any) -> Any:
    """A tensor of the memory of a matrix, or of a copy where torch cannot share it."""
    matrix = matrix.astype(dtype, copy=False)
    if not matrix.flags.writeable or min(matrix.strides) < 0:
        matrix = matrix.copy()
    return torch.from_numpy(np.asarray(matrix))


def squared_norms(rows):
    """Squared length of each row, in the dtype of the rows."""
    return np.einsum("ij,ij->i", rows, rows)


def unit_rows(rows):
    """Rows scaled to length one: half their squared distance is the cosine's."""
    length = np.sqrt(squared_norms(rows))
    return rows / np.maximum(length, np.finfo(rows.dtype).tiny)[:, None]


def rounding_bound(left_norms, right_norms, n_features, dtype):
    """Bound on the rounding error of an expanded squared distance.

    `left_norms` and `right_norms` are squared lengths (broadcast together).
    The bound is the classical one for a dot product of `n_features` terms,
    doubled as the product is, plus the two additions.
    """
    eps = float(np.finfo(dtype).eps)
    # Each root by itself: the product of squared lengths may leave the range.
    return eps * (n_features + 4) * (np.sqrt(left_norms) * np.sqrt(right_norms) * 2) + (
        4 * eps * (left_norms + right_norms)
    )


def direct(left, right, left_index, right_index, dtype=np.float64):
    """Exact squared distances of the given pairs of rows, in float64.

    In float32 they are off by no more than `n_features` + 4 roundings, in less time.
    """
    result = np.empty(len(left_index))
    step = max(1, _CHUNK_ENTRIES // left.shape[1])
    for lo in range(0, len(left_index), step):
        pairs = slice(lo, lo + step)
        gap = left.take(left_index[pairs], axis=0).astype(dtype, copy=False)
        gap -= right.take(right_index[pairs], axis=0)
        result[pairs] = squared_norms(gap)
    return result


def squared_distances(left, right):
    """All squared distances; an identical pair of rows is at exactly 0.

    Returns an array of shape (len(left), len(right)) in the dtype of `left`.
    """
    left_norms, right_norms = squared_norms(left), squared_norms(right)
    result = product(left, right.T)
    result *= -2
    result += left_norms[:, None]
    result += right_norms
    largest = right_norms.max(initial=0)
    noise = rounding_bound(left_norms, largest, left.shape[1], left.dtype)
    rows, cols = np.nonzero(result <= 16 * noise[:, None])
    result[rows, cols] = direct(left, right, rows, cols)
    return result


def upper_bounds(rows, centres):
    """Upper bounds of the squared distance of each row to the nearest centre.

    Computed in the dtype of the rows, with room for its rounding; float64.
    """
    norms, centre_norms = squared_norms(rows), squared_norms(centres)
    screen = product(rows, centres.T)
    screen *= -2
    screen += centre_norms
    noise = rounding_bound(norms, centre_norms.max(), rows.shape[1], rows.dtype)
    return screen.min(axis=1).astype(np.float64) + norms + 2 * noise


def nearest_of_own_group(rows, groups, others, other_groups):
    """Squared distance of each row to the nearest of the others in its own group.

    Infinite where there is none; others of negative groups are in none.
    """
    nearest = np.full(len(rows), np.inf)
    for group in np.unique(other_groups[other_groups >= 0]):
        members = np.flatnonzero(groups == group)
        own = others[other_groups == group]
        nearest[members] = squared_distances(rows[members], own).min(axis=1)
    return nearest


def join_own_group(squared, indices, queries, groups, rows, places):
    """Put nearer rows of the queries' own groups in the place of those found.

    Parameters
    ----------
    squared, indices : ndarray of shape (n, k)
        Squared distances and indices of the k nearest rows found, ascending. Both are
        written to.

    queries : ndarray of shape (n, d)

    groups : ndarray of shape (n,)
        Group of each query.

    rows : ndarray of shape (m, d)
        All rows.

    places : dict of ndarray
        By group, the indices of the rows that only its queries find.
    """
    k = squared.shape[1]
    for group, own in places.items():
        members = np.flatnonzero(groups == group)
        if len(members) == 0:
            continue
        more = squared_distances(
            queries[members].astype(np.float64), rows[own].astype(np.float64)
        )
        both = np.concatenate([squared[members], more], axis=1)
        which = np.concatenate(
            [indices[members], np.broadcast_to(own, more.shape)], axis=1
        )
        order = np.argsort(both, axis=1, kind="stable")[:, :k]
        squared[members] = np.take_along_axis(both, order, axis=1)
        indices[members] = np.take_along_axis(which, order, axis=1)

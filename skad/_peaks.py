"""Largest value of each map at pixel size, without rendering all of its pixels."""

from hashlib import blake2b
from typing import Any

import numpy as np

from skad._kept import ByteBounded
from skad._maps import WHOLE, Window, axis_operators
from skad._matrices import product

_ROWS_AT_ONCE = 8  # pixel rows of a map that are rendered together
_known = ByteBounded(2**20)


def peaks(
    grids: np.ndarray,
    size: tuple[int, int],
    *,
    sigma: float = 4.0,
    window: Window = WHOLE,
    interpolation: str = "bilinear",
) -> np.ndarray:
    """Largest value of each patch grid as `skad._maps.render` renders it.

    Every row of pixels is a combination of rows of the grid, so the largest values of
    these bound it. The pixel rows with the largest bounds are rendered first, until
    no other can be larger. Results are cached outside of the estimators, as a service
    asks for the same ones with every image.

    Parameters
    ----------
    grids : ndarray of shape (n, h, w)

    size, sigma, window, interpolation
        As of `render`.

    Returns
    -------
    peaks : ndarray of shape (n,), float32
    """
    grids = np.ascontiguousarray(grids, np.float32)
    digest = blake2b(grids.data, digest_size=16).digest()
    key = digest, grids.shape, tuple(size), float(sigma), window, interpolation
    found = _known.get(key, lambda: _peaks(grids, size, sigma, window, interpolation))
    return found.copy()


def _peaks(
    grids: np.ndarray,
    size: tuple[int, int],
    sigma: float,
    window: Window,
    interpolation: str,
) -> np.ndarray:
    rows, cols = axis_operators(grids.shape[1:], size, sigma, window, interpolation)
    found = np.empty(len(grids), np.float32)
    for i, grid in enumerate(grids):
        found[i] = _peak(product(grid, cols.T), rows)
    if rows.shape[0] < size[0] or cols.shape[0] < size[1]:
        # Outside of the window, maps take the smallest value of their grid.
        found = np.maximum(found, grids.min(axis=(1, 2)))
    return found


def _peak(stretched: np.ndarray, rows: Any) -> float:
    """Largest entry of ``rows @ stretched``.

    An entry is a sum of products r s. Over all columns, that is at most max(s) where
    r > 0 and min(s) where r < 0, which bounds each row.
    """
    above = product(np.maximum(rows, 0), stretched.max(axis=1)[:, None])
    below = product(np.minimum(rows, 0), stretched.min(axis=1)[:, None])
    bound = (above + below)[:, 0]
    order = np.argsort(-bound)
    slack = 1e-5 * np.abs(bound).max()  # of rounding
    best = -np.inf
    for lo in range(0, len(order), _ROWS_AT_ONCE):
        some = order[lo : lo + _ROWS_AT_ONCE]
        if bound[some[0]] + slack < best:
            break
        best = max(best, product(rows[some], stretched).max())
    return best

"""Perlin noise: smooth random fields, and the blobs that a threshold cuts from them."""

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import rotate

from skad._checks import check_size


def perlin_noise(
    shape: tuple[int, int], cells: tuple[int, int], rng: np.random.Generator | ArrayLike
) -> np.ndarray:
    """Generate a field of Perlin noise.

    A random unit vector stands at every corner of a lattice; the field interpolates
    the scalar products of a position with the vectors at the corners of its cell.

    Parameters
    ----------
    shape : (int, int)
        Height and width of the field.

    cells : (int, int)
        Rows and columns of the lattice: more of them make finer noise.

    rng : numpy.random.Generator or array-like of shape (rows + 1, columns + 1)
        Source of the directions, or the directions themselves as angles in radians.

    Returns
    -------
    noise : ndarray of shape `shape`, float64
        In [-1, 1], 0 at the corners of the lattice.

    Raises
    ------
    ValueError
        If a size is not a positive integer.

    References
    ----------
    .. [1] K. Perlin, "Improving Noise", SIGGRAPH 2002.

    Examples
    --------
    >>> import numpy as np
    >>> from skad.synthesis import perlin_noise
    >>> noise = perlin_noise((64, 96), (2, 3), np.random.default_rng(0))
    >>> noise.shape
    (64, 96)
    >>> bool(np.abs(noise[::32, ::32]).max() == 0)
    True
    """
    check_size(shape, "shape")
    check_size(cells, "cells")
    corners = (cells[0] + 1, cells[1] + 1)
    if isinstance(rng, np.random.Generator):
        angles = rng.uniform(0, 2 * np.pi, corners)
    else:
        angles = np.asarray(rng, float)
        if angles.shape != corners:
            raise ValueError(
                f"rng has shape {angles.shape}, but cells={tuple(cells)} has "
                f"{corners} corners; pass one angle for each."
            )
    down, right = np.cos(angles), np.sin(angles)
    i, y = _cells(shape[0], cells[0])
    j, x = _cells(shape[1], cells[1])
    i, y = i[:, None], y[:, None]

    def from_corner(di: int, dj: int) -> np.ndarray:
        corner = i + di, j + dj
        return down[corner] * (y - di) + right[corner] * (x - dj)

    upper = _between(from_corner(0, 0), from_corner(1, 0), y)
    lower = _between(from_corner(0, 1), from_corner(1, 1), y)
    return np.sqrt(2) * _between(upper, lower, x)


def perlin_mask(
    shape: tuple[int, int],
    rng: np.random.Generator,
    *,
    threshold: float = 0.5,
    max_scale: int = 5,
) -> np.ndarray:
    """Generate blobs: where rotated Perlin noise exceeds a threshold.

    Parameters
    ----------
    shape : (int, int)
        Height and width.

    rng : numpy.random.Generator
        Source of all randomness.

    threshold : float, default=0.5
        A larger one leaves less.

    max_scale : int, default=5
        The lattice has 2**a rows and 2**b columns, a and b uniform in 0 to this,
        or fewer where the shape has not so many pixels.

    Returns
    -------
    mask : ndarray of shape `shape`, bool
        It can be empty.

    References
    ----------
    .. [1] V. Zavrtanik, M. Kristan, D. Skocaj, "DRAEM - A discriminatively trained
       reconstruction embedding for surface anomaly detection", ICCV 2021, Section
       3.3.

    Examples
    --------
    >>> import numpy as np
    >>> from skad.synthesis import perlin_mask
    >>> mask = perlin_mask((64, 64), np.random.default_rng(1))
    >>> mask.dtype, bool(0 < mask.mean() < 0.5)
    (dtype('bool'), True)
    """
    check_size(shape, "shape")
    rows, columns = (
        min(2 ** int(rng.integers(max_scale + 1)), max(1, side // 2)) for side in shape
    )
    noise = perlin_noise(shape, (rows, columns), rng)
    angle = rng.uniform(-90, 90)
    return rotate(noise, angle, reshape=False, order=1, mode="constant") > threshold


def _cells(n: int, n_cells: int) -> tuple[np.ndarray, np.ndarray]:
    """Cell of each of n positions, and where in it that is, in [0, 1)."""
    position = np.arange(n) * (n_cells / n)
    cell = np.minimum(position.astype(np.intp), n_cells - 1)
    return cell, position - cell


def _between(a: np.ndarray, b: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Interpolate from a (t = 0) to b (t = 1), flat at both ends."""
    return a + (b - a) * (t**3 * (t * (6 * t - 15) + 10))

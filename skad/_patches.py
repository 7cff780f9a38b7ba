"""Grids of patches and their scores; NaN patches lie outside of a region."""

import numpy as np


def inside_patches(X: np.ndarray, squared: bool = True) -> np.ndarray:
    """Flag the patches (n, h, w) that are not NaN; refuse other values not finite.

    A patch that is NaN in every channel lies outside the region of interest. With
    `squared`, values are refused, too, where squared distances between patches may
    exceed the range of the dtype.
    """
    # The square of a distance is up to four times the larger squared length.
    largest = np.finfo(X.dtype).max / 16
    limit = largest if squared else np.inf
    with np.errstate(over="ignore", invalid="ignore"):
        total = np.einsum("nhwd,nhwd->", X, X)
    if total <= largest:  # without an array of flags as large as X
        return np.ones(X.shape[:3], bool)
    inside = np.empty(X.shape[:3], bool)
    for i, image in enumerate(X):
        inside[i] = np.isfinite(image).all(axis=-1)
        if not np.isnan(image[~inside[i]]).all():
            raise ValueError(
                f"X[{i}] contains NaN or infinity; features must be finite, or NaN in "
                "all channels of a patch to leave it out."
            )
        with np.errstate(over="ignore", invalid="ignore"):
            lengths = np.einsum("hwd,hwd->hw", image, image)
        if (lengths > limit).any():  # not where it is NaN
            raise ValueError(
                f"X[{i}] holds values up to {np.nanmax(np.abs(image)):.3g}: squared "
                f"distances between such patches may exceed the range of {X.dtype}. "
                "Scale the features, or look for a fault in what made them."
            )
    return inside


def patch_rows(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """List the patches of all images as rows, without those that are NaN.

    Parameters
    ----------
    X : ndarray of shape (n, h, w, d)
        Patch features. A patch that is NaN lies outside of the region of interest.

    Returns
    -------
    rows : ndarray of shape (m, d)
        Patches that are not NaN, image by image and row by row; a view of X where
        that is all of them.

    inside : ndarray of shape (n * h * w,), bool
        Which of all patches these are.

    See Also
    --------
    patch_maps : From one value for each row back to maps.

    Examples
    --------
    >>> import numpy as np
    >>> from skad.base import patch_rows
    >>> X = np.ones((2, 4, 4, 8))
    >>> X[0, 0] = np.nan
    >>> rows, inside = patch_rows(X)
    >>> rows.shape, inside.shape
    ((28, 8), (32,))
    """
    rows = X.reshape(-1, X.shape[-1])
    inside = ~np.isnan(rows[:, 0])
    return (rows, inside) if inside.all() else (rows[inside], inside)


def patch_maps(
    values: np.ndarray, inside: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """Put one value for each row of `patch_rows` back into maps.

    Parameters
    ----------
    values : ndarray of shape (m,)
        Scores of the rows, of any dtype that holds NaN.

    inside : ndarray of shape (n * h * w,), bool
        As `patch_rows` returns it.

    shape : (int, int, int)
        Shape (n, h, w) of the maps.

    Returns
    -------
    maps : ndarray of shape (n, h, w), dtype of `values`
        NaN for patches that are no rows.

    See Also
    --------
    patch_rows : From patch features to rows.

    Examples
    --------
    >>> import numpy as np
    >>> from skad.base import patch_maps
    >>> inside = np.array([True, False, True, True])
    >>> patch_maps(np.array([1.0, 2.0, 3.0]), inside, (1, 2, 2))
    array([[[ 1., nan],
            [ 2.,  3.]]])
    """
    maps = np.full(inside.shape, np.nan, np.asarray(values).dtype)
    maps[inside] = values
    return maps.reshape(shape)


def image_scores(maps: np.ndarray, top_ratio: float | None = None) -> np.ndarray:
    """Score each image by its largest patch score, or by a mean of the largest.

    Parameters
    ----------
    maps : ndarray of shape (n, h, w)
        Patch scores.

    top_ratio : float or None, default=None
        Share of the patches, those with the largest scores, over which to take the
        mean. None takes the largest score.

    Returns
    -------
    scores : ndarray of shape (n,), float64
        NaN for an image whose patches are all NaN.

    Examples
    --------
    >>> import numpy as np
    >>> from skad.base import image_scores
    >>> maps = np.arange(8.0).reshape(2, 2, 2)
    >>> image_scores(maps), image_scores(maps, top_ratio=0.5)
    (array([3., 7.]), array([2.5, 6.5]))
    """
    if top_ratio is None:
        return np.fmax.reduce(maps.reshape(len(maps), -1), axis=1).astype(np.float64)
    scores = np.full(len(maps), np.nan)
    for i, values in enumerate(maps):
        values = np.sort(values[~np.isnan(values)])
        if len(values):
            worst = values[-n_top(len(values), top_ratio) :]
            scores[i] = worst.mean(dtype=np.float64)
    return scores


def n_top(n: int, top_ratio: float) -> int:
    """Number of the largest of n patch scores that `image_scores` takes the mean of."""
    return max(1, round(n * top_ratio))


def filled(maps: np.ndarray) -> np.ndarray:
    """Replace NaN patches of each map by its smallest score; float32.

    These were not scored, so that they must not exceed a threshold.
    """
    maps = np.asarray(maps, np.float32)
    outside = np.isnan(maps)
    if not outside.any():
        return maps
    lowest = np.fmin.reduce(maps, axis=(1, 2), keepdims=True)
    return np.where(outside, lowest, maps)

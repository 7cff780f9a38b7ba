"""Grids of patches and their scores; NaN patches lie outside of a region."""

import numpy as np


def inside_patches(X: np.ndarray) -> np.ndarray:
    """Which patches (n, h, w) are not NaN; raise for other values that are not finite.

    A patch that is NaN in every channel lies outside the region of interest.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        total = X.sum(dtype=np.float64)
    if np.isfinite(total):  # without an array of flags as large as X
        return np.ones(X.shape[:3], bool)
    inside = np.empty(X.shape[:3], bool)
    for i, image in enumerate(X):
        inside[i] = np.isfinite(image).all(axis=-1)
        if not np.isnan(image[~inside[i]]).all():
            raise ValueError(
                f"X[{i}] contains NaN or infinity; features must be finite, or NaN in "
                "all channels of a patch to leave it out."
            )
    return inside


def patch_rows(X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Patches that are not NaN, as rows (m, d), and which of all (n h w,) these are."""
    rows = X.reshape(-1, X.shape[-1])
    inside = ~np.isnan(rows[:, 0])
    return (rows, inside) if inside.all() else (rows[inside], inside)


def patch_maps(
    values: np.ndarray, inside: np.ndarray, shape: tuple[int, ...]
) -> np.ndarray:
    """Values of the patches of `patch_rows` as maps (n, h, w); NaN for the others."""
    maps = np.full(inside.shape, np.nan, np.asarray(values).dtype)
    maps[inside] = values
    return maps.reshape(shape)


def image_scores(maps: np.ndarray, top_ratio: float | None = None) -> np.ndarray:
    """Score of each image, float64: its largest patch score, or a mean of the largest.

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
    """
    if top_ratio is None:
        return np.fmax.reduce(maps.reshape(len(maps), -1), axis=1).astype(np.float64)
    scores = np.full(len(maps), np.nan)
    for i, values in enumerate(maps):
        values = np.sort(values[~np.isnan(values)])
        if len(values):
            n_top = max(1, round(len(values) * top_ratio))
            scores[i] = values[-n_top:].mean(dtype=np.float64)
    return scores


def filled(maps: np.ndarray) -> np.ndarray:
    """Maps, float32, with the smallest score of each in place of its NaN patches.

    These were not scored, so that they must not exceed a threshold.
    """
    maps = np.asarray(maps, np.float32)
    outside = np.isnan(maps)
    if not outside.any():
        return maps
    lowest = np.fmin.reduce(maps, axis=(1, 2), keepdims=True)
    return np.where(outside, lowest, maps)

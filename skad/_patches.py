"""Patch grids, some patches of which are NaN: these are not looked at."""

import numpy as np


def inside_patches(X):
    """Which patches (n, h, w) to look at; raise for values that are not finite.

    A patch that is NaN in every channel lies outside the region of interest.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        total = X.sum(dtype=np.float64)
    if np.isfinite(total):  # a sum needs no array of flags as large as X
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


def patch_rows(X):
    """Patches as rows, without those that are NaN, and which of all they are."""
    rows = X.reshape(-1, X.shape[-1])
    inside = ~np.isnan(rows[:, 0])
    return (rows, inside) if inside.all() else (rows[inside], inside)


def patch_maps(values, inside, shape):
    """Values of the patches inside as maps of a shape; NaN for the others."""
    maps = np.full(inside.shape, np.nan, np.asarray(values).dtype)
    maps[inside] = values
    return maps.reshape(shape)


def image_scores(maps, top_ratio=None):
    """Score of each image from its patches: the largest, or a mean of the largest."""
    if top_ratio is None:
        return np.fmax.reduce(maps.reshape(len(maps), -1), axis=1).astype(np.float64)
    scores = np.full(len(maps), np.nan)
    for i, values in enumerate(maps):
        values = np.sort(values[~np.isnan(values)])
        if len(values):
            n_top = max(1, round(len(values) * top_ratio))
            scores[i] = values[-n_top:].mean(dtype=np.float64)
    return scores


def filled(maps):
    """Maps with the smallest score of each in place of its NaN patches.

    Nothing was looked at there, so nothing fires there.
    """
    maps = np.asarray(maps, np.float32)
    outside = np.isnan(maps)
    if not outside.any():
        return maps
    lowest = np.fmin.reduce(maps, axis=(1, 2), keepdims=True)
    return np.where(outside, lowest, maps)

"""Fewer dimensions: some sampled at random, or the leading principal axes."""

from collections.abc import Iterable

import numpy as np

from skad._moments import RunningMoments

MIN_VARIANCE = 1e-6  # of responses to values in [0, 1]: no signal


def random_dimensions(n_features: int, n_components: int, seed: int) -> np.ndarray:
    """Sample `n_components` of the dimensions, in ascending order."""
    shuffled = np.random.RandomState(seed).permutation(n_features)
    return np.sort(shuffled[:n_components])


def principal_axes(
    blocks: Iterable[np.ndarray], n_components: int
) -> tuple[np.ndarray, np.ndarray] | None:
    """Leading principal axes (n_components, d) of rows, and their mean (d,), float32.

    Parameters
    ----------
    blocks : iterable of ndarray of shape (m, d)
        The rows.

    n_components : int
        Number of axes.

    Returns
    -------
    axes, mean : ndarray of shape (n_components, d), ndarray of shape (d,)
        None instead of both where there are no rows.
    """
    running = RunningMoments()
    for rows in blocks:
        running.add(rows)
    moments = running.total
    if moments.n == 0:
        return None
    axes = leading_directions(moments.covariance, n_components)[1]
    return in_order(axes.T), in_order(moments.mean)


def leading_directions(
    covariance: np.ndarray, n: int | None
) -> tuple[np.ndarray, np.ndarray, float]:
    """Leading variances and principal components, and the mean of all variances.

    Directions in which nothing varies, as in equal images, are all alike: those among
    the leading ones look into all of them, not into a few channels, so that what
    differs from the images learned from does not escape.
    """
    values, vectors = np.linalg.eigh(covariance)
    values, vectors = np.maximum(values[::-1], 0), vectors[:, ::-1]
    silent = values <= 1e-10 * max(values[0], MIN_VARIANCE)
    leading = _signed(vectors[:, :n])
    n_mixed = np.sum(silent[:n])
    if n_mixed:
        kept = np.sum(~silent)
        mixture = np.random.default_rng(0).normal(size=(np.sum(silent), n_mixed))
        leading[:, kept:] = vectors[:, kept:] @ np.linalg.qr(mixture)[0]
    return values[:n], leading, values.mean()


def in_order(values: np.ndarray) -> np.ndarray:
    """Convert to float32 in C order, as after a pickle: order changes last bits."""
    return np.ascontiguousarray(values, np.float32)


def _signed(vectors: np.ndarray) -> np.ndarray:
    """Eigenvectors with their largest entry positive: the sign is arbitrary."""
    largest = np.abs(vectors).argmax(axis=0)
    return vectors * np.sign(vectors[largest, np.arange(vectors.shape[1])])

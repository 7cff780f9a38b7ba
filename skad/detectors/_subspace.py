"""SubspaceAD: the residual of a patch outside of the subspace of normal patches.

One principal component analysis over all patches of the normal images; the score of a
patch is the length of its residual. The model is one small matrix, and scoring is one
matrix product.
"""

import copy
import math
from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.utils._param_validation import Interval, RealNotInt

from skad._matrices import product
from skad._moments import BLOCK_ENTRIES, Moments
from skad._patches import image_scores, patch_maps, patch_rows
from skad.base import PatchDetector

_CHUNK_ENTRIES = 2**22  # of a temporary array


class SubspaceDetector(PatchDetector):
    """Detect anomalies by their distance to the subspace of normal patches.

    Parameters
    ----------
    n_components : float or int, default=0.99
        Share of the variance inside of the subspace, in (0, 1), or its number of
        dimensions. At least one dimension always remains outside.

    top_ratio : float or None, default=0.01
        The score of an image is the mean of this share of its highest patch scores,
        in (0, 1]; None takes the highest.

    contamination : float, default=0.05
        Tolerated false-alarm rate on normal images, in (0, 0.5].

    calibration : {"auto", "kfold", "split", "train"}, default="auto"
        How the scores behind the threshold are held out. "auto" is "kfold":
        every image is scored by the subspace of the other nine tenths.

    threshold : {"tail", "rank"}, default="tail"
        How the threshold comes from the held-out scores: by a tail fitted to them,
        which keeps the false-alarm rate on average from few images, or by their
        conformal rank, which keeps it for any distribution and finds fewer anomalies
        where images are few.

    sigma : float, default=4.0
        Standard deviation, in pixels, of the Gaussian that smooths maps at pixel
        size.

    random_state : int, RandomState instance or None, default=0
        Chooses the images that "kfold" and "split" hold out; the method itself is
        deterministic.

    verbose : bool, default=False
        Show progress on the standard error stream.

    Attributes
    ----------
    mean_ : ndarray of shape (n_features,), float64
        Mean of all normal patches.

    n_components_ : int
        Dimensions of the subspace.

    explained_variance_ratio_ : ndarray of shape (n_features,), float64
        Share of the variance along every axis, in descending order.

    contamination_ : float
        False-alarm rate of the thresholds, as of the fit or of `set_contamination`.

    offset_ : float
        Threshold of `score_samples`.

    calibration_scores_ : ndarray of shape (n_held_out,), float64
        Held-out scores of normal images behind `offset_`, larger is more normal.

    calibration_maps_ : ndarray of shape (n_maps, h, w), float32
        Their patch scores, larger is more anomalous. Of more than 1,000 images whose
        maps take more than 256 MB together, those of a random sample.

    n_samples_seen_ : int
        Number of training images.

    n_features_in_ : int
        Number of channels of a patch.

    Notes
    -----
    `partial_fit` and `merge` give the subspace of one fit on all patches, to
    rounding: what is learned is the number, mean and covariance of the patches.

    References
    ----------
    .. [1] C. Lendering, E. Akdag and E. Bondarev, "SubspaceAD: Training-Free
       Few-Shot Anomaly Detection via Subspace Modeling", arXiv 2602.23013, 2026.

    Examples
    --------
    >>> import numpy as np
    >>> from skad import SubspaceDetector
    >>> rng = np.random.default_rng(0)
    >>> mixing = rng.normal(size=(3, 8))
    >>> normal = rng.normal(size=(40, 4, 4, 3)) @ mixing
    >>> normal += 0.1 * rng.normal(size=normal.shape)
    >>> anomalous = normal[:1].copy()
    >>> anomalous[0, 2, 1] += rng.normal(size=8)
    >>> detector = SubspaceDetector(n_components=0.95).fit(normal)
    >>> detector.n_components_
    3
    >>> detector.predict(anomalous)
    array([-1])
    """

    _parameter_constraints = {
        **PatchDetector._parameter_constraints,
        "n_components": [
            Interval(RealNotInt, 0, 1, closed="neither"),
            Interval(Integral, 1, None, closed="left"),
        ],
        "top_ratio": [Interval(Real, 0, 1, closed="right"), None],
    }

    def __init__(
        self,
        n_components: float = 0.99,
        *,
        top_ratio: float | None = 0.01,
        contamination: float = 0.05,
        calibration: str = "auto",
        threshold: str = "tail",
        sigma: float = 4.0,
        random_state: int | np.random.RandomState | None = 0,
        verbose: bool = False,
    ) -> None:
        self.n_components = n_components
        self.top_ratio = top_ratio
        self.contamination = contamination
        self.calibration = calibration
        self.threshold = threshold
        self.sigma = sigma
        self.random_state = random_state
        self.verbose = verbose

    def _fit(self, X: np.ndarray) -> None:
        self._set_moments(Moments().with_rows(patch_rows(X)[0]), X.dtype)

    def _update(self, X: np.ndarray) -> None:
        self._set_moments(self._moments.with_rows(patch_rows(X)[0]), X.dtype)

    def _merge(self, other: Any) -> None:
        self._set_moments(self._moments + other._moments, self._axes.dtype)

    def _fit_bytes(
        self, shape: tuple[int, ...], itemsize: int, *, first: bool
    ) -> tuple[float, float]:
        # Covariance and axes, work space for these, and a block of patches.
        matrix = 8.0 * shape[3] ** 2
        return 2 * matrix, 4 * matrix + 8 * min(BLOCK_ENTRIES, math.prod(shape))

    def _fold_bytes(self, kept: float, shape: tuple[int, ...], itemsize: int) -> float:
        # The covariances of all folds, and the patches of one.
        moments = 8.0 * self._n_folds * shape[3] ** 2
        return kept + moments + 0.2 * math.prod(shape) * itemsize

    def _memory_advice(self) -> str:
        return (
            "Reduce the channels of the features (n_components or target_dim), or "
            "image_size."
        )

    def _set_moments(self, moments: Moments, dtype: Any) -> None:
        self._moments = moments
        self.mean_ = moments.mean
        variance, axes = np.linalg.eigh(moments.squares)
        variance = np.maximum(variance[::-1], 0)
        share = variance / max(variance.sum(), np.finfo(float).tiny)
        n: Any = self.n_components
        if not isinstance(n, Integral):
            n = np.searchsorted(np.cumsum(share), n) + 1
        # A direction in which normal patches do not differ is not in their subspace,
        # and with a residual of no dimension every patch would score 0.
        n_varied = np.sum(variance > _rounding(moments))
        self.n_components_ = int(min(n, n_varied, len(share) - 1))
        self.explained_variance_ratio_ = share
        # Axes of the subspace or of its complement, whichever are fewer.
        n_left = len(share) - self.n_components_
        self._spans_residual = n_left <= self.n_components_
        axes = axes[:, :n_left] if self._spans_residual else axes[:, n_left:]
        self._axes = axes.astype(dtype)

    def _score(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows, inside = patch_rows(X)
        length = np.empty(len(rows))
        # A residual below is rounding of the features.
        floor = _rounding(self._moments) / self._moments.n
        step = max(1, _CHUNK_ENTRIES // rows.shape[1])
        for lo in range(0, len(rows), step):
            residual = rows[lo : lo + step] - self.mean_.astype(rows.dtype)
            along = product(residual, self._axes)
            if self._spans_residual:
                residual = along
            else:
                residual -= product(along, self._axes.T)
            squared = np.einsum("ij,ij->i", residual, residual)
            squared[squared <= floor] = 0
            length[lo : lo + step] = np.sqrt(squared)
        maps = patch_maps(length, inside, X.shape[:3])
        return image_scores(maps, self.top_ratio), maps

    def _models_without(
        self, folds: Any, X: np.ndarray, before: Any, *, first: bool
    ) -> Iterator[tuple[np.ndarray, Any]]:
        """As in the base class, with every fold's moments computed once."""
        moments = [Moments().with_rows(patch_rows(X[fold])[0]) for fold in folds]
        known = Moments() if first else before._moments
        for i in range(len(folds)):
            model = copy.copy(before)
            rest = sum(moments[:i] + moments[i + 1 :], known)
            model._set_moments(rest, X.dtype)
            yield model


def _rounding(moments: Moments) -> float:
    """Sum of squares along one direction that float32 features have by rounding.

    A feature of size f has an error of up to eps * f; 32 leaves room for the errors
    of the arithmetic behind.
    """
    size = moments.n * np.sum(moments.mean**2) + np.trace(moments.squares)
    return (32 * np.finfo(np.float32).eps) ** 2 * size

"""Any transformer of scikit-learn on patch features."""

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.preprocessing import StandardScaler
from sklearn.utils import check_array
from sklearn.utils._param_validation import HasMethods
from sklearn.utils.validation import check_is_fitted, validate_data

from skad._checks import normal_positions
from skad._patches import inside_patches
from skad._portable import Portable, with_plain_arrays

_FLOATS = [np.float64, np.float32]


class Patchwise(Portable, TransformerMixin, BaseEstimator):
    """Transform every patch by a transformer of scikit-learn.

    The transformer learns from single patches of the normal images, as rows, wherever
    they lie in an image. Patches that are NaN, outside the region of interest, are not
    learned from and stay NaN.

    Parameters
    ----------
    transformer : transformer, default=None
        Such as `PCA` or `QuantileTransformer`. A copy of it is fitted. None is a
        `StandardScaler`.

    Attributes
    ----------
    transformer_ : transformer
        The fitted copy.

    n_features_in_ : int
        Number of channels of a patch.

    n_features_out_ : int
        Number of channels of a transformed patch.

    See Also
    --------
    PatchwiseDetector : An outlier detector of scikit-learn on patches.

    Notes
    -----
    `transform` gives plain arrays: descriptors of whole images, which SPADE takes
    (`PatchFeatures(pooled=True)`), are lost.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.decomposition import PCA
    >>> from skad import Patchwise
    >>> X = np.random.default_rng(0).normal(size=(10, 4, 4, 6))
    >>> Patchwise(PCA(2)).fit_transform(X).shape
    (10, 4, 4, 2)
    """

    _parameter_constraints = {"transformer": [HasMethods(["fit", "transform"]), None]}

    def __init__(self, transformer: Any = None) -> None:
        self.transformer = transformer

    def fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Fit the transformer on the patches of the normal images.

        Parameters
        ----------
        X : array-like of shape (n, h, w, d) or (n, d)
            Patch features, float32 or float64. Rows of a 2-D array are samples of one
            patch each.

        y : array-like of shape (n,), optional
            +1 for normal, -1 for anomalous images, which are left out. Labels of rows
            of a 2-D array are passed to the transformer.

        Returns
        -------
        self : object
            The same object.

        Raises
        ------
        ValueError
            If X is empty, of another number of dimensions, or not finite but for
            patches that are NaN in all channels, or if no normal image is left.
        """
        self._validate_params()
        rows, inside = self._checked(X, reset=True)
        if rows.ndim == 4:
            normal = normal_positions(rows, y)
            rows, y = rows[normal][inside[normal]], None
        if self.transformer is None:
            self.transformer_ = StandardScaler()
        else:
            self.transformer_ = clone(self.transformer)
        self.transformer_.fit(rows, y)
        with_plain_arrays(self.transformer_)
        self.n_features_out_ = self.transformer_.transform(rows[:1]).shape[1]
        return self

    def transform(self, X: ArrayLike) -> np.ndarray:
        """Transform every patch.

        Parameters
        ----------
        X : array-like of shape (n, h, w, d) or (n, d)
            Patch features.

        Returns
        -------
        transformed : ndarray of shape (n, h, w, d_out) or (n, d_out)
            With `n_features_out_` channels; NaN for patches that are NaN.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If `fit` was not called.

        ValueError
            If X is not as in `fit`.
        """
        check_is_fitted(self)
        patches, inside = self._checked(X, reset=False)
        if patches.ndim == 2:
            return self.transformer_.transform(patches)
        result = np.full((*inside.shape, self.n_features_out_), np.nan, patches.dtype)
        if inside.any():
            result[inside] = self.transformer_.transform(patches[inside])
        return result

    def _checked(self, X: Any, *, reset: bool) -> tuple[np.ndarray, np.ndarray]:
        """X as an array (n, h, w, d) or (n, d), and which of its patches to look at."""
        if getattr(X, "ndim", 2) != 4:
            X = validate_data(self, X, dtype=_FLOATS, reset=reset)
            return X, np.ones(len(X), bool)
        X = check_array(X, dtype=_FLOATS, allow_nd=True, ensure_all_finite=False)
        inside = inside_patches(X, squared=False)
        rows = X.reshape(-1, X.shape[3])
        validate_data(self, rows[:1], reset=reset, skip_check_array=True)
        return X, inside

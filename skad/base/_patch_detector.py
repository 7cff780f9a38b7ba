"""Base of the detectors that take patch features.

A patch that is NaN in every channel lies outside the region of interest: no
detector learns from it or scores it. An image of such patches only was skipped.
"""

import math
import os
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import check_array
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import (
    check_consistent_length,
    check_is_fitted,
    validate_data,
)

from skad._checks import check_labels, check_size
from skad._maps import WHOLE, Window
from skad._patches import inside_patches
from skad.base._detector import BaseDetector
from skad.base._memory_of_fit import require_memory_to_learn
from skad.images._containers import refuse_no_sequence
from skad.networks._torch_state import own_torch_state

_FLOATS = [np.float64, np.float32]
_IMAGE_DTYPES = {"uint8", "uint16", "bool"}
_IMAGE_CHANNELS = {1, 3, 4}
_MIN_IMAGE_SIDE = 16  # pixels; a smaller array of integers may be a patch grid


def _has(hook):
    def check(detector):
        return hasattr(detector, hook)

    return check


class PatchDetector(BaseDetector):
    """Base of the detectors that take patch features.

    Subclasses define ``_fit(X)``, where X has shape (n, h, w, d), and ``_score(X)``,
    which returns one anomaly score per image, (n,), and one per patch, (n, h, w),
    larger for more anomalous, NaN for patches that are NaN. Further hooks add methods:

    - ``_score_left_out(X)``, which scores each training image by a model of all others,
      adds ``calibration="loo"``; it may give maps of some scores only, and then their
      places as a third array;
    - ``_update(X)`` adds `partial_fit`, and ``_merge(other)`` adds `merge`; both put
      new arrays in the place of old ones, so that a copy made before stays as it was.

    ``_auto_calibration`` is what ``calibration="auto"`` stands for.

    Their constructors take at least `contamination`, `calibration`, `sigma` and
    `random_state`.

    Attributes
    ----------
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

    Examples
    --------
    >>> import numpy as np
    >>> from skad.base import PatchDetector
    >>> class BrightnessDetector(PatchDetector):
    ...     def __init__(self, contamination=0.1, calibration="auto", sigma=4.0,
    ...                  random_state=0):
    ...         self.contamination = contamination
    ...         self.calibration = calibration
    ...         self.sigma = sigma
    ...         self.random_state = random_state
    ...
    ...     def _fit(self, X):
    ...         self.mean_ = X.mean()
    ...
    ...     def _score(self, X):
    ...         maps = np.abs(X.mean(axis=3) - self.mean_)
    ...         return maps.max(axis=(1, 2)), maps
    >>> rng = np.random.default_rng(0)
    >>> detector = BrightnessDetector().fit(rng.random((30, 4, 4, 8)))
    >>> detector.predict(rng.random((2, 4, 4, 8)) + [[[[0]]], [[[9]]]])
    array([ 1, -1])
    """

    _takes_views = True
    _leaves_out_views = False  # whether `_score_left_out` does

    @available_if(_has("_update"))
    def partial_fit(self, X: ArrayLike, y: ArrayLike | None = None) -> Self:
        """Learn from more normal images, on top of those seen so far.

        The threshold follows: every new image is scored as held out, and old
        scores stay while the model had then seen at least half as many images
        as now.

        Parameters
        ----------
        X : array-like of shape (n, h, w, d) or (n, d)
            Patch features, on the same grid as before.

        y : array-like of shape (n,), optional
            Images labelled -1 are left out.

        Returns
        -------
        self : object
            The same object.

        Raises
        ------
        ValueError
            As `fit`, or if the grid differs.
        """
        if not hasattr(self, "offset_"):
            return self.fit(X, y)
        self._validate_params()
        self._check_views(1)
        samples, positions = self._to_learn_from(X, y, reset=False)
        self._check_grid(samples.shape[1:3])
        with own_torch_state():
            self._learn(samples, positions, first=False)
        return self

    @available_if(_has("_merge"))
    def merge(self, other: Any) -> Self:
        """Take in what another detector has learned, in place.

        For models that were fitted on parts of the images, on several machines.

        Parameters
        ----------
        other : detector
            Fitted, of the same class, on features of the same type. It stays as
            it is.

        Returns
        -------
        self : object
            The same object.

        Raises
        ------
        TypeError
            If `other` is of another class.

        ValueError
            If its features differ in channels or grid, or if what the two detectors
            have learned cannot be joined.
        """
        check_is_fitted(self)
        if type(other) is not type(self):
            raise TypeError(
                f"other is a {type(other).__name__}; a {type(self).__name__} merges "
                "only with its like."
            )
        check_is_fitted(other)
        if other.n_features_in_ != self.n_features_in_:
            raise ValueError(
                f"other was fitted on {other.n_features_in_} channels, this detector "
                f"on {self.n_features_in_}; fit both on features of the same type."
            )
        self._check_grid(other.calibration_maps_.shape[1:])
        self._check_views(other._n_per_image, other._held_out_sample)
        self._merge(other)
        self.n_samples_seen_ += other.n_samples_seen_
        if self._keeps_left_out_scores and self._resolved_calibration() == "loo":
            with own_torch_state():
                self._replace_held_out(*self._score_left_out(None))
        else:
            self._in_sample = self._in_sample or other._in_sample
            self._add_held_out(
                -other.calibration_scores_,
                other.calibration_maps_,
                other._calibration_seen,
                other._map_rows,
                other._map_ranks,
            )
        return self

    def anomaly_map(
        self, X: ArrayLike, size: tuple[int, int] | None = None
    ) -> np.ndarray:
        """Anomaly score of each patch or pixel; larger is more anomalous.

        Mind the sign: scores of images are larger for normal images, maps are larger
        for anomalous patches.

        Parameters
        ----------
        X : array-like of shape (n, h, w, d) or (n, d)
            Patch features.

        size : (int, int), optional
            Height and width of the maps in pixels: the patch scores are
            upsampled bilinearly and smoothed by a Gaussian of `sigma` pixels.
            Without it, the raw scores of the patch grid.

        Returns
        -------
        maps : ndarray of shape (n, h, w) or (n, H, W), float32
            Of any range; NaN for an image that was skipped when it was read.

        Raises
        ------
        ValueError
            If X has another number of channels than in `fit`, or if `size` is not a
            pair of positive integers.

        sklearn.exceptions.NotFittedError
            If the detector is not fitted.
        """
        maps = self._patch_maps(X)
        return maps if size is None else self._render(maps, check_size(size))

    def predict_mask(
        self, X: ArrayLike, size: tuple[int, int] | None = None
    ) -> np.ndarray:
        """Mark the anomalous patches or pixels.

        Parameters
        ----------
        X : array-like of shape (n, h, w, d) or (n, d)
            Patch features.

        size : (int, int), optional
            Height and width of the masks in pixels; without it, the patch grid.

        Returns
        -------
        masks : ndarray of shape (n, h, w) or (n, H, W), bool
            True where the map exceeds `pixel_threshold`; nowhere in an image that was
            skipped.
        """
        return self.anomaly_map(X, size) > self.pixel_threshold(size)

    def pixel_threshold(
        self,
        size: tuple[int, int] | None = None,
        window: Window = WHOLE,
    ) -> float:
        """Threshold for the pixels of maps of a given size.

        It is taken from the largest value of each held-out map of a normal image,
        rendered at that size, by the rule of `threshold`, so that "no pixel of a
        normal image fires" holds as often as the threshold of the image scores. Of
        many images, a random sample of the maps is kept (see `calibration_maps_`).

        Parameters
        ----------
        size : (int, int), optional
            Height and width of the maps; without it, the patch grid.

        window : ((float, float), (float, float)), default=((0, 1), (0, 1))
            The part of the image that the patch grid covers.

        Returns
        -------
        threshold : float
            In units of the maps; a pixel above it is anomalous.

        Raises
        ------
        ValueError
            If `size` is not a pair of positive integers.

        sklearn.exceptions.NotFittedError
            If the detector is not fitted.
        """
        return self._pixel_threshold(None if size is None else check_size(size), window)

    # -- augmented views -------------------------------------------------------------

    def _learn_views(self, X, positions, n_per_image, *, held_out=0, update=False):
        """Fit, or update, on patch features of images, each followed by its views.

        Parameters
        ----------
        X : ndarray of shape (n * n_per_image, h, w, d)
            Where an image is NaN, so are its views.

        positions : ndarray of shape (n,)
            Of the images in what the user passed.

        n_per_image : int
            One more than there are views of each.

        held_out : int, default=0
            Which of them the held-out score is of: 0 is the image, 1 its first view.
        """
        first = not (update and hasattr(self, "offset_"))
        self._validate_params()
        self._check_constructor()
        self._check_takes_views()
        samples, places = self._to_learn_from(X, None, reset=first)
        if first:
            self.n_samples_seen_, self._n_per_image = 0, n_per_image
            self._held_out_sample = held_out
        else:
            self._check_views(n_per_image, held_out)
            self._check_grid(samples.shape[1:3])
        with own_torch_state():
            positions = positions[places[::n_per_image] // n_per_image]
            self._learn(samples, positions, first=first)
        return self

    def _check_takes_views(self):
        name = type(self).__name__
        if not self._takes_views:
            raise ValueError(
                f"{name} cannot leave out images together with their augmented views. "
                "Use PatchCoreDetector, PaDiMDetector, SPADEDetector, "
                "SubspaceDetector, PatchwiseDetector or SimpleNetDetector, or "
                "augmentation=None."
            )
        if self._resolved_calibration() == "loo" and not self._leaves_out_views:
            raise ValueError(
                f"{name}._score_left_out knows no augmented views, which have to be "
                "left out together with their image: use calibration='kfold', or "
                "augmentation=None."
            )

    def _check_views(self, n_per_image, held_out=0):
        """Refuse to join what was learned, or held out, with other views."""
        if n_per_image != self._n_per_image:
            raise ValueError(
                f"{type(self).__name__} has learned {self._n_per_image - 1} augmented "
                f"views of each image, and cannot go on with {n_per_image - 1}: keep "
                "the augmentation of the fit, or fit again."
            )
        if n_per_image > 1 and held_out != self._held_out_sample:
            ours, theirs = (
                "views" if one else "images"
                for one in (self._held_out_sample, held_out)
            )
            raise ValueError(
                f"{type(self).__name__} has held-out scores of {ours}, and cannot go "
                f"on with calibrate_on={theirs!r}: keep the augmentation of the fit, "
                "or fit again."
            )

    # -- hooks ---------------------------------------------------------------------

    def _fit(self, X):
        raise NotImplementedError(
            f"{type(self).__name__} defines no _fit(X): it learns from patch features "
            "(n, h, w, d) of normal images."
        )

    def _score(self, X):
        raise NotImplementedError(
            f"{type(self).__name__} defines no _score(X): for patch features "
            "(n, h, w, d) it returns one anomaly score per image, (n,), and one per "
            "patch, (n, h, w), larger for more anomalous."
        )

    # -- input ---------------------------------------------------------------------

    def _to_learn_from(self, X, y, *, reset):
        """Patch grids that are present and not called anomalous, and their places."""
        X = _stacked(X, type(self).__name__)
        normal = self._not_anomalous(X, y)
        X, present = self._check_features(X, reset=reset)
        chosen = present & normal
        if not chosen.any():
            raise ValueError(
                "no normal image is left: every image is labelled -1 or was skipped."
            )
        return (X if chosen.all() else X[chosen]), np.flatnonzero(chosen)

    def _to_score(self, X):
        """Patch grids of the images that are present, and which ones these are."""
        X, present = self._check_features(X, reset=False)
        return (X if present.all() else X[present]), present

    @staticmethod
    def _not_anomalous(X, y):
        """Which images (n,) `y` does not call anomalous; True for all of them."""
        if y is None:
            return True
        check_consistent_length(X, y)
        y = np.asarray(y)
        if getattr(X, "ndim", 0) == 4:
            return check_labels(y) == 1
        # Rows may come with any y: only the label -1 means something.
        return y != -1 if y.ndim == 1 and y.dtype.kind in "if" else True

    def _check_features(self, X, *, reset):
        """Patch grids (n, h, w, d), and which images are present."""
        X = _stacked(X, type(self).__name__)
        n_dims = getattr(X, "ndim", 0)
        if n_dims == 3 or n_dims > 4:
            raise ValueError(
                f"X has shape {X.shape}: expected patch features of shape "
                "(n, h, w, d), or (n, d). A single image is X[None]; images "
                "first pass through PatchFeatures. Found array with dim "
                f"{X.ndim}."
            )
        if n_dims != 4:
            X = validate_data(self, X, dtype=_FLOATS, reset=reset)[:, None, None, :]
            return X, inside_patches(X).all(axis=(1, 2))
        X = check_array(
            X, dtype=_FLOATS, allow_nd=True, ensure_all_finite=False, input_name="X"
        )
        if 0 in X.shape:
            raise ValueError(f"X has shape {X.shape}: every axis needs an entry.")
        # One image tells the number of channels; all of them could mean a copy.
        one = X[0].reshape(-1, X.shape[3])
        validate_data(self, one, reset=reset, skip_check_array=True)
        return X, inside_patches(X).any(axis=(1, 2))

    def _require_memory_to_fit(self, shape):
        """Refuse features of a shape, which are to be extracted for a fit."""
        self._validate_params()
        n_bytes, way = 4.0 * math.prod(shape), self._resolved_calibration()
        require_memory_to_learn(self, shape, 4, way, features=n_bytes)

    def _check_grid(self, grid):
        """Refuse features on another patch grid than that of the fit."""
        known = self.calibration_maps_.shape[1:]
        if tuple(grid) != known:
            raise ValueError(
                f"X has a patch grid of {grid[0]} x {grid[1]}, but "
                f"{type(self).__name__} was fitted on {known[0]} x {known[1]}; use "
                "the same image size and layers, or fit again."
            )


def _stacked(X, owner):
    """X, where a list of patch grids becomes an array; images are refused."""
    shape: tuple = getattr(X, "shape", ())
    dtype = str(getattr(X, "dtype", "")).removeprefix("torch.")
    if len(shape) == 4:
        channels_first = shape[1] in _IMAGE_CHANNELS and (
            min(shape[2:]) >= _MIN_IMAGE_SIDE
        )
        if dtype in _IMAGE_DTYPES and (channels_first or shape[3] in _IMAGE_CHANNELS):
            _refuse_images(f"an array of shape {tuple(shape)} and {dtype}", owner)
        return X
    if isinstance(X, (str, os.PathLike)):
        _refuse_images("a single path", owner)
    if hasattr(X, "getexif"):
        _refuse_images("a PIL image", owner)
    refuse_no_sequence(X, expected="patch features (n, h, w, d) or (n, d)")
    if not isinstance(X, (list, tuple)) and (len(shape) != 1 or dtype == ""):
        return X
    first = next(iter(X), None)
    if isinstance(first, (str, os.PathLike)):
        _refuse_images("a list of paths", owner)
    if hasattr(first, "getexif"):
        _refuse_images("a list of PIL images", owner)
    if _n_dims(first) < 2:
        return X
    try:
        grids = np.stack([np.asarray(item) for item in X])
    except ValueError:  # they differ in shape
        _refuse_images("a list of arrays of different shapes", owner)
    return _stacked(grids, owner)


def _refuse_images(what, owner):
    raise ValueError(
        f"X is {what}, as images are; {owner} takes patch features (n, h, w, d). Put "
        f"PatchFeatures before it: Pipeline([PatchFeatures(...), {owner}(...)])."
    )


def _n_dims(item):
    """Dimensions of one item of a list; nested lists count as arrays do."""
    if not isinstance(item, (list, tuple)):
        return getattr(item, "ndim", 0)
    return 1 + (_n_dims(item[0]) if len(item) else 0)

"""What every detector shares: input, scores, maps and a threshold to trust.

A detector on features implements two hooks, `_fit` and `_score`; one that can
score its own training data as if unseen adds `_score_left_out`; one that can
learn on adds `_update` and `_merge`. Everything that a user calls lives here.

A patch that is NaN in every channel lies outside the region of interest: no
detector learns from it or scores it. An image of such patches only was skipped.

Signs follow scikit-learn: scores are larger for normal, `predict` gives +1 for
normal and -1 for anomalous. Maps run the other way: larger is more anomalous.
"""

import copy
import functools
import os
from functools import partial
from numbers import Real
from types import MethodType
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils import check_array, check_random_state
from sklearn.utils._param_validation import (
    Interval,
    StrOptions,
    validate_parameter_constraints,
)
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import (
    check_consistent_length,
    check_is_fitted,
    validate_data,
)

from skad._checks import (
    BY_CROSS_VALIDATION,
    check_labels,
    check_size,
    require_attributes,
)
from skad._maps import WHOLE, render
from skad._patches import filled, inside_patches
from skad._peaks import peaks
from skad._portable import Portable
from skad._user_warning import warn_user
from skad.base._threshold import (
    RULES,
    certifies,
    conformal_p_values,
    outlier,
    threshold_of,
)
from skad.networks._torch_state import own_torch_state

_FLOATS = [np.float64, np.float32]
_IMAGE_DTYPES = {"uint8", "uint16", "bool"}
_IMAGE_CHANNELS = {1, 3, 4}


def _can(hook):
    def check(detector):
        return hasattr(type(detector), hook)

    return check


class NotHeldOutError(ValueError, AttributeError):
    """There is no `fit_predict`, for want of held-out scores of every image.

    An `AttributeError`, too: scikit-learn asks by `hasattr` what an estimator offers.
    """


class _IfAllAreHeldOut:
    """Decorate a method to be there only if every image is held out.

    As `available_if` of scikit-learn, but the error says why.
    """

    def __init__(self, method):
        self.method = method

    def __get__(self, detector, owner=None):
        if detector is None:
            return self.method
        detector._check_holds_out_all()
        return MethodType(self.method, detector)


class BaseDetector(Portable, OutlierMixin, BaseEstimator):
    """Base of the detectors that work on patch features.

    Subclasses define ``_fit(X)``, where X has shape (n, h, w, d), and
    ``_score(X)``, which returns one anomaly score per image and one per patch,
    larger for more anomalous, NaN for patches that are NaN. ``_update(X)`` and
    ``_merge(other)``, where they exist, put new arrays in the place of old
    ones, so that a copy made before stays as it was. ``_auto_calibration``
    names what ``calibration="auto"`` stands for.
    """

    _auto_calibration = "kfold"
    _keeps_images = False  # whether left-out scores can be had again at any time
    _least_to_hold_out = 2  # images that leave-one-out needs
    _n_folds = 10  # of calibration="kfold"
    _in_sample = False  # whether calibration scores are of training images
    _is_part = False  # of another detector, which warns itself
    threshold = "tail"  # of detectors whose constructors do not take it
    _parameter_constraints: dict[str, list[Any]] = {
        "contamination": [Interval(Real, 0, 0.5, closed="right")],
        "calibration": [StrOptions({"auto", "loo", "kfold", "split", "train"})],
        "threshold": [StrOptions(set(RULES))],
        "sigma": [Interval(Real, 0, None, closed="left")],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init_subclass__(cls, **kwargs):
        # What a detector of the user's own returns is checked where it returns it, so
        # that no caller has to guess which hook a wrong shape came from.
        super().__init_subclass__(**kwargs)
        for name in ("_score", "_score_left_out"):
            if callable(hook := vars(cls).get(name)):
                setattr(cls, name, _checked_hook(hook, cls.__name__, name))

    def fit(self, X, y=None):
        """Learn from features of good images.

        Parameters
        ----------
        X : array-like of shape (n, h, w, d) or (n, d)
            Patch features, float32 or float64. Rows of a 2-D array are samples
            of one patch each.

        y : array-like of shape (n,), optional
            +1 for good, -1 for anomalous. Anomalous images are left out of
            training; y has no other use.

        Returns
        -------
        self : object

        Raises
        ------
        ValueError
            If X is empty, not finite or of another number of dimensions, if no
            good image is left, or if a parameter is out of range.
        """
        self._validate_params()
        self._check_constructor()
        given, X = X, self._to_learn_from(X, y, reset=True)
        self.n_samples_seen_ = 0
        with own_torch_state():
            self._learn(X, type(self)._fit, lambda: self._learned(given, y, X))
        return self

    @_IfAllAreHeldOut
    def fit_predict(self, X, y=None, **fit_params):
        """Learn from images, and decide for each of them.

        Images that were learned from are judged as images to come would be: by their
        held-out scores, those of ``calibration="loo"`` or "kfold". All others, those
        labelled -1 in `y`, are judged as by `predict`.

        Parameters
        ----------
        X : array-like
            As in `fit`.

        y : array-like of shape (n,), optional
            Images labelled -1 are not learned from.

        **fit_params : dict
            As in `fit`.

        Returns
        -------
        labels : ndarray of shape (n,), int64
            +1 is normal, -1 is anomalous; 0 for an image that was skipped.

        Raises
        ------
        ValueError
            As `fit`, or if not every image that was learned from has a held-out
            score, as with ``calibration="split"``. With "train", images are judged by
            the model that has seen them, as by ``fit(X, y).predict(X)``.
        """
        self.fit(X, y, **fit_params)
        decisions = self.decision_function(X)
        return self._labels_after_fit(decisions, self._learned_from(X, y, decisions))

    @available_if(_can("_update"))
    def partial_fit(self, X, y=None):
        """Learn from more good images, on top of those seen so far.

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

        Raises
        ------
        ValueError
            As `fit`, or if the grid differs.
        """
        if not hasattr(self, "offset_"):
            return self.fit(X, y)
        self._validate_params()
        given, X = X, self._to_learn_from(X, y, reset=False)
        self._check_grid(X.shape[1:3])
        with own_torch_state():
            self._learn(X, type(self)._update, lambda: self._learned(given, y, X))
        return self

    @available_if(_can("_merge"))
    def merge(self, other):
        """Take in what another detector has learned, in place.

        For models that were fitted on parts of the images, on several machines.

        Parameters
        ----------
        other : detector
            Fitted, of the same class, on features of the same kind. It stays as
            it is.

        Returns
        -------
        self : object

        Raises
        ------
        TypeError
            If `other` is of another class.

        ValueError
            If its features differ in channels or grid.
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
                f"on {self.n_features_in_}; fit both on features of the same kind."
            )
        self._check_grid(other.calibration_maps_.shape[1:])
        self._merge(other)
        self.n_samples_seen_ += other.n_samples_seen_
        if self._keeps_images and self._calibration() == "loo":
            with own_torch_state():
                self._set_threshold(*self._score_left_out(None))
        else:
            self._in_sample = self._in_sample or other._in_sample
            self._join_threshold(
                -other.calibration_scores_,
                other.calibration_maps_,
                other._calibration_seen,
            )
        return self

    def score_samples(self, X):
        """Score images; larger is more normal.

        Parameters
        ----------
        X : array-like of shape (n, h, w, d) or (n, d)
            Patch features.

        Returns
        -------
        scores : ndarray of shape (n,), float64
            NaN for an image that was skipped when it was read.
        """
        return -self._of_present(X, self._score_images)

    def decision_function(self, X):
        """Score images against the threshold; negative is anomalous.

        Parameters
        ----------
        X : array-like of shape (n, h, w, d) or (n, d)
            Patch features.

        Returns
        -------
        decision : ndarray of shape (n,), float64
            ``score_samples(X) - offset_``.
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X):
        """Decide for each image: +1 is normal, -1 is anomalous.

        Parameters
        ----------
        X : array-like of shape (n, h, w, d) or (n, d)
            Patch features.

        Returns
        -------
        labels : ndarray of shape (n,), int64
            0 for an image that was skipped when it was read.
        """
        return decide(self.decision_function(X))

    def p_value(self, X):
        """How usual each image is among good ones.

        The share of held-out good images, the image itself counted, that look
        at least as anomalous. Where training and new good images are
        exchangeable, a good image gets p <= a with a probability of at most a.

        Parameters
        ----------
        X : array-like of shape (n, h, w, d) or (n, d)
            Patch features.

        Returns
        -------
        p : ndarray of shape (n,), float64
            In (0, 1], small for anomalies.
        """
        return conformal_p_values(self.score_samples(X), self.calibration_scores_)

    def anomaly_map(self, X, size=None):
        """Say where images are anomalous; larger is more anomalous.

        Mind the sign: scores are larger for normal images, maps for anomalous
        patches.

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
            NaN for an image that was skipped when it was read.
        """
        maps = filled(self._of_present(X, self._score_patches))
        return maps if size is None else self._draw(maps, check_size(size))

    def predict_mask(self, X, size=None):
        """Mark the anomalous pixels.

        Parameters
        ----------
        X : array-like of shape (n, h, w, d) or (n, d)
            Patch features.

        size : (int, int), optional
            As in `anomaly_map`.

        Returns
        -------
        masks : ndarray of shape (n, h, w) or (n, H, W), bool
            True where the map exceeds `pixel_threshold`.
        """
        return self.anomaly_map(X, size) > self.pixel_threshold(size)

    def pixel_threshold(self, size=None, window=WHOLE):
        """Threshold for the pixels of maps of a given size.

        It is taken from the largest value of each held-out map of a normal image,
        rendered at that size, by the rule of `threshold`, so that "no pixel of a
        normal image fires" holds as often as the threshold of the image scores.

        Parameters
        ----------
        size : (int, int), optional
            Height and width of the maps; without it, the patch grid.

        window : ((float, float), (float, float)), default=((0, 1), (0, 1))
            The part of the image that the patch grid covers.

        Returns
        -------
        threshold : float
        """
        check_is_fitted(self, "calibration_maps_")
        maps = self.calibration_maps_
        if size is None:
            highest = maps.max(axis=(1, 2))
        else:
            rendering = self._rendering(window, maps.shape[1:])
            highest = peaks(maps, check_size(size), **rendering)
        return threshold_of(
            highest.astype(np.float64), self.contamination_, self._threshold_rule
        )

    def set_contamination(self, contamination):
        """Set another rate of false alarms, from the held-out scores at hand.

        Both thresholds follow, that of the image scores and that of the pixels. The
        parameter `contamination` stays as it is, and is what the next `fit` takes.

        Parameters
        ----------
        contamination : float
            Tolerated false-alarm rate on normal images, in (0, 0.5].

        Returns
        -------
        self : object

        Raises
        ------
        ValueError
            If `contamination` is out of range.

        sklearn.exceptions.NotFittedError
            If the detector is not fitted.
        """
        validate_parameter_constraints(
            {"contamination": BaseDetector._parameter_constraints["contamination"]},
            {"contamination": contamination},
            caller_name="set_contamination",
        )
        check_is_fitted(self, "calibration_scores_")
        self.contamination_ = float(contamination)
        self._set_offset()
        return self

    def calibrate(self, X, y=None, *, add=False):
        """Set the threshold anew from normal images that were not trained on.

        The model itself stays as it is: for a new camera, new lighting, or a
        threshold from more images.

        Parameters
        ----------
        X : array-like of shape (n, h, w, d) or (n, d)
            Patch features of normal images that `fit` has not seen.

        y : array-like of shape (n,), optional
            Images labelled -1 are left out.

        add : bool, default=False
            Whether to add to the held-out scores at hand: thresholds and p-values
            are then from both. By default the new ones replace them. Scores of
            training images (``calibration="train"``) are always replaced.

        Returns
        -------
        self : object
        """
        self._validate_params()
        check_is_fitted(self)
        given, X = X, self._to_learn_from(X, y, reset=False)
        with own_torch_state():
            scores, maps = self._score(X)
        if add and not self._in_sample:
            self._join_threshold(scores, maps, self.n_samples_seen_)
        else:
            self._set_threshold(scores, maps)
        self._warn_of_outlier(scores, lambda: self._learned(given, y, X))
        return self

    # -- hooks ---------------------------------------------------------------

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

    def _needed_attributes(self):
        """What the constructor has to store."""
        names = ["contamination", "calibration", "random_state"]
        draws = type(self)._draw is BaseDetector._draw
        if draws and "sigma" in self._parameter_constraints:
            names.append("sigma")
        return names

    def _check_constructor(self):
        require_attributes(
            self,
            self._needed_attributes(),
            "the constructor of a detector takes these parameters and stores them",
        )

    @property
    def classes_(self):
        """Not there: a detector is no classifier. Tools for these ask for it."""
        raise AttributeError(
            f"{type(self).__name__} has no classes_: it is an outlier detector, no "
            f"classifier. {BY_CROSS_VALIDATION} Its threshold is set by contamination "
            "and calibrate, not by tools that tune thresholds of classifiers."
        )

    # -- images that were learned from ---------------------------------------

    def _check_holds_out_all(self):
        how = getattr(self, "calibration", None)
        if (self._auto_calibration if how == "auto" else how) == "split":
            raise NotHeldOutError(
                "fit_predict judges each image by a model that has not seen it, but "
                f"calibration={self.calibration!r} of {type(self).__name__} holds out "
                "a part of the images only. Use calibration='kfold', or fit(X, y) and "
                "then predict on other images."
            )

    def _learned_from(self, X, y, decisions):
        """Which images `fit` learned from, of those that have these decisions."""
        return ~np.isnan(decisions) & self._good(X, y)

    def _labels_after_fit(self, decisions, learned):
        """Labels of images right after `fit`, those learned from held out."""
        if self._in_sample:
            return decide(decisions)
        held_out, n = self.calibration_scores_, int(learned.sum())
        if len(held_out) != n:
            raise ValueError(
                f"fit_predict needs a held-out score of each of the {n} images that "
                f"were learned from, but {type(self).__name__} keeps {len(held_out)} "
                "(see calibration and, where there is one, calibration_size)."
            )
        decisions = decisions.copy()
        decisions[learned] = held_out - self.offset_
        return decide(decisions)

    # -- input ---------------------------------------------------------------

    def _learned(self, X, y, learned):
        """Positions in X of the images that `_to_learn_from` takes: `learned`."""
        good = np.broadcast_to(self._good(X, y), len(X))
        present = self._check_features(X, reset=False)[1]
        return np.flatnonzero(good & present)

    def _to_learn_from(self, X, y, *, reset):
        """Patch grids to learn from: present, and not called anomalous by y."""
        X = self._features(X)
        good = self._good(X, y)
        X, present = self._check_features(X, reset=reset)
        good = present & good
        if not good.any():
            raise ValueError(
                "no good image is left: every image is labelled -1 or was skipped."
            )
        return X if good.all() else X[good]

    def _check_features(self, X, *, reset):
        """Patch grids (n, h, w, d), and which images are present."""
        X = self._features(X)
        if getattr(X, "ndim", 0) != 4:
            if getattr(X, "ndim", 0) == 3 or getattr(X, "ndim", 0) > 4:
                raise ValueError(
                    f"X has shape {X.shape}: expected patch features of shape "
                    "(n, h, w, d), or (n, d). A single image is X[None]; images "
                    "first pass through PatchFeatures. Found array with dim "
                    f"{X.ndim}."
                )
            X = validate_data(self, X, dtype=_FLOATS, reset=reset)
            return X[:, None, None, :], np.ones(len(X), bool)
        X = check_array(
            X, dtype=_FLOATS, allow_nd=True, ensure_all_finite=False, input_name="X"
        )
        if 0 in X.shape:
            raise ValueError(f"X has shape {X.shape}: every axis needs an entry.")
        # One image tells the number of channels; all of them could mean a copy.
        one = X[0].reshape(-1, X.shape[3])
        validate_data(self, one, reset=reset, skip_check_array=True)
        return X, inside_patches(X).any(axis=(1, 2))

    def _features(self, X):
        """X, where a list of patch grids becomes an array; images are refused."""
        shape: tuple = getattr(X, "shape", ())
        dtype = str(getattr(X, "dtype", "")).removeprefix("torch.")
        if len(shape) == 4:
            first = shape[1] in _IMAGE_CHANNELS and min(shape[2:]) >= 16
            if dtype in _IMAGE_DTYPES and (first or shape[3] in _IMAGE_CHANNELS):
                self._refuse_images(f"an array of shape {tuple(shape)} and {dtype}")
            return X
        if not isinstance(X, (list, tuple)) and (len(shape) != 1 or dtype == ""):
            return X
        first = next(iter(X), None)
        if isinstance(first, (str, os.PathLike)):
            self._refuse_images("a list of paths")
        if hasattr(first, "getexif"):
            self._refuse_images("a list of PIL images")
        if _n_dims(first) < 2:
            return X
        try:
            grids = np.stack([np.asarray(item) for item in X])
        except ValueError:  # they differ in shape
            self._refuse_images("a list of arrays of different shapes")
        return self._features(grids)

    def _refuse_images(self, seen):
        raise ValueError(
            f"X is {seen}, as images are; {type(self).__name__} takes patch features "
            "(n, h, w, d). Put PatchFeatures before it: "
            f"Pipeline([PatchFeatures(...), {type(self).__name__}(...)])."
        )

    def _check_grid(self, grid):
        """Refuse features on another patch grid than that of the fit."""
        known = self.calibration_maps_.shape[1:]
        if tuple(grid) != known:
            raise ValueError(
                f"X has a patch grid of {grid[0]} x {grid[1]}, but "
                f"{type(self).__name__} was fitted on {known[0]} x {known[1]}; use "
                "the same image size and layers, or fit again."
            )

    @staticmethod
    def _good(X, y):
        """Which samples to learn from: those that y does not call anomalous."""
        if y is None:
            return True
        check_consistent_length(X, y)
        y = np.asarray(y)
        if getattr(X, "ndim", 0) == 4:
            return check_labels(y) == 1
        # Rows may come with any y: only the label -1 means something.
        return y != -1 if y.ndim == 1 and y.dtype.kind in "if" else True

    # -- scores --------------------------------------------------------------

    def _score_and_map(self, X):
        """Scores and maps as the two below give them, for the price of one search."""
        return self._score(X)

    def _scores_and_maps(self, X):
        """What `score_samples` and `anomaly_map` say, from one search."""
        check_is_fitted(self)
        X, present = self._check_features(X, reset=False)
        scores = np.full(len(X), np.nan)
        if not present.any():
            return scores, self._no_maps(len(X))
        with own_torch_state():
            found = self._score_and_map(X if present.all() else X[present])
        scores[present], some = -found[0], filled(found[1])
        maps = np.full((len(X), *some.shape[1:]), np.nan, np.float32)
        maps[present] = some
        return scores, maps

    def _no_maps(self, n):
        """Maps of n images that could not be read, on the grid of all others."""
        return np.full((n, *self.calibration_maps_.shape[1:]), np.nan, np.float32)

    def _score_images(self, X):
        """Scores alone, where these can be had for less."""
        return self._score(X)[0]

    def _score_patches(self, X):
        """Maps alone, where these can be had for less."""
        return self._score(X)[1]

    def _of_present(self, X, score):
        """What `score` gives for the images present; NaN for the others."""
        check_is_fitted(self)
        X, present = self._check_features(X, reset=False)
        if present.all():
            with own_torch_state():
                return score(X)
        if not present.any():
            no_scores = score == self._score_images
            return np.full(len(X), np.nan) if no_scores else self._no_maps(len(X))
        with own_torch_state():
            found = score(X[present])
        result = np.full((len(X), *found.shape[1:]), np.nan, found.dtype)
        result[present] = found
        return result

    def _draw(self, maps, size, window=WHOLE):
        """Patch scores at pixel size; `window` is the part that the grid covers."""
        return render(maps, size, **self._rendering(window, maps.shape[1:]))

    def _rendering(self, window, grid):
        """How `skad._maps.render` brings maps to pixel size."""
        return {"sigma": self.sigma, "window": window}

    # -- threshold -----------------------------------------------------------

    def _learn(self, X, step, positions=None):
        """Fit or update (`step`) on X, and set the threshold.

        ``positions()`` tells where the images of X stand in what the user passed.
        """
        everyone = X
        how, first = self._calibration(), step is type(self)._fit
        if len(X) == 1 and how in ("kfold", "split"):
            how = "train" if first else "kfold"
        if how == "loo" and first and len(X) < self._least_to_hold_out:
            how = "train"
        if how == "train" and len(X) == 1 and self.calibration != "train":
            warn_user(
                "one training image leaves none to hold out: the threshold comes "
                "from the training image itself and will reject most normal images. "
                "Call calibrate with more normal images."
            )
        if first:
            self._start_threshold()
            self._warn_of_equal(X)
        chosen = np.arange(len(X))
        if how == "split":
            order = check_random_state(self.random_state).permutation(len(X))
            n_held_out = max(1, len(X) // 5)
            chosen = np.sort(order[:n_held_out])
            X = X[np.sort(order[n_held_out:])]
        before = copy.copy(self)
        step(self, X)
        self.n_samples_seen_ += len(X)
        if how == "loo":
            scores, maps = self._score_left_out(X)
            chosen = self._left_out_images(len(X))
        elif how == "kfold":
            scores, maps = self._score_out_of_fold(X, before, step)
        else:
            scores, maps = self._score(everyone[chosen] if how == "split" else X)
        self._in_sample = how == "train" or (self._in_sample and not first)
        if first or (how == "loo" and self._keeps_images):
            self._set_threshold(scores, maps, in_sample=self._in_sample)
        else:
            self._join_threshold(scores, maps, self.n_samples_seen_)
        if how != "train":
            if positions is None:
                positions = partial(self._learned, None, None, everyone)
            self._warn_of_outlier(scores, positions, chosen)

    def _calibration(self):
        """How scores are held out, once "auto" is resolved."""
        how = self._auto_calibration if self.calibration == "auto" else self.calibration
        if how == "loo" and not hasattr(self, "_score_left_out"):
            raise ValueError(
                f"calibration='loo' is not offered by {type(self).__name__}; use "
                "'auto', 'kfold', 'split' or 'train'."
            )
        return how

    def _score_out_of_fold(self, X, before, step, n_folds=None):
        """Score every image by a model that learned from the other folds."""
        scores, maps = np.empty(len(X)), None
        for fold in self._folds(len(X), n_folds):
            other = copy.copy(before)
            other.random_state = copy.deepcopy(before.random_state)
            if len(fold) < len(X):
                step(other, X[np.delete(np.arange(len(X)), fold)])
            scores[fold], fold_maps = other._score(X[fold])
            if maps is None:
                maps = np.empty((len(X), *fold_maps.shape[1:]), fold_maps.dtype)
            maps[fold] = fold_maps
        return scores, maps

    def _folds(self, n, n_folds):
        """Parts of n images at random: neighbours in a folder are often alike."""
        rng = check_random_state(copy.deepcopy(self.random_state))
        n_folds = min(n_folds or self._n_folds, n)
        parts = np.array_split(rng.permutation(n), n_folds)
        return [np.sort(part) for part in parts]

    def _start_threshold(self):
        """Take rate and rule of the thresholds from the parameters, as `fit` does."""
        self.contamination_ = float(self.contamination)
        self._threshold_rule = self.threshold

    def _set_threshold(self, scores, maps, in_sample=False):
        """Keep held-out anomaly scores and maps, and set `offset_` from them."""
        self.calibration_scores_ = np.empty(0)
        self.calibration_maps_ = np.empty((0, *maps.shape[1:]), np.float32)
        self._calibration_seen = np.empty(0, np.int64)
        self._in_sample = in_sample
        self._join_threshold(scores, maps, self.n_samples_seen_)

    def _join_threshold(self, scores, maps, seen):
        """Add held-out scores to those at hand, and set `offset_` from all.

        `seen` is the number of images behind the model that gave them. Scores
        of a model that knew less than half as much are dropped: it scored
        higher.
        """
        known = np.isfinite(scores)
        seen = np.broadcast_to(seen, scores.shape)[known]
        scores = np.concatenate([self.calibration_scores_, -scores[known]])
        maps = np.concatenate([self.calibration_maps_, filled(maps[known])])
        seen = np.concatenate([self._calibration_seen, seen])
        current = 2 * seen >= seen.max(initial=0)
        self.calibration_scores_ = scores[current]
        self.calibration_maps_ = maps[current]
        self._calibration_seen = seen[current]
        self._set_offset()

    def _set_offset(self):
        """Set `offset_` from the scores at hand, by rate and rule of the fit."""
        scores, rate = self.calibration_scores_, self.contamination_
        if self._in_sample:
            self.offset_ = float(np.percentile(scores, 100 * rate))
            return
        self.offset_ = -threshold_of(-scores, rate, self._threshold_rule)
        n = len(scores)
        if not certifies(n, rate):
            warn_user(
                f"{n} held-out images cannot certify a false-alarm rate of {rate:g}; "
                f"the smallest rate that they can certify is {1 / (n + 1):.2g}. The "
                "threshold lies beyond all of their scores, by their spread: an "
                "estimate without a guarantee."
            )

    def _left_out_images(self, n):
        """Which of the n images learned from last `_score_left_out` scores."""
        return np.arange(n)

    def _held_out_positions(self, n):
        """Ascending places, among the n images learned from last, of held-out images.

        Those behind `calibration_scores_`; negative for images of earlier calls.
        """
        n_held_out = len(self.calibration_scores_)
        return np.arange(n_held_out) - (n_held_out - n)

    def _warn_of_outlier(self, scores, positions, chosen=None):
        """Name the image whose held-out score is far from those of all others.

        The scores are of the images `chosen` among those at ``positions()``.
        """
        found = None if self._is_part else outlier(scores)
        if found is None:
            return
        image, times = found
        image = image if chosen is None else chosen[image]
        if image < 0:  # of an earlier call
            return
        warn_user(
            f"X[{positions()[image]}] scores far from all other normal images when it "
            f"is held out: {times:.0f} times as far above their median as two thirds "
            "of them reach. Look at it; if it is not normal, or of another kind, leave "
            "it out (label -1) and fit again."
        )

    def _warn_of_equal(self, X):
        """Say so where the images to learn from do not differ."""
        if len(X) > 1 and not self._is_part and _are_equal(X):
            warn_user(
                f"the {len(X)} images to learn from do not differ: nothing can be "
                "learned about what normal images look like, and every image that is "
                "not like them is anomalous. Check the images (a lens cap, a frozen "
                "camera, one file read again and again?) and fit on different ones."
            )


def _are_equal(X):
    """Whether all images, features or read one by one, are alike up to rounding."""
    read = getattr(X, "read", X.__getitem__)
    first = np.asarray(read(0))
    room = 1e-5 * np.nanmax(np.abs(first), initial=0)
    return all(
        np.allclose(read(i), first, rtol=0, atol=room, equal_nan=True)
        for i in range(1, len(X))
    )


def decide(decision):
    """Labels from decisions: +1, -1, or 0 where there is no decision (NaN)."""
    labels = np.where(decision >= 0, 1, -1)
    labels[np.isnan(decision)] = 0
    return labels


def check_scores(found, n, where):
    """Check what a hook returns: anomaly scores (n,) and maps (n, h, w)."""
    wanted = (
        "it must return two arrays, one anomaly score per image, (n,), and one map per "
        "image, (n, h, w), larger for more anomalous"
    )
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        raise TypeError(f"{where} returned {type(found).__name__}; {wanted}.")
    scores, maps = (np.shape(array) for array in found)
    if (
        len(scores) != 1
        or len(maps) != 3
        or scores[0] != maps[0]
        or (n is not None and scores[0] != n)
    ):
        of = "" if n is None else f" for n={n} images"
        raise ValueError(
            f"{where} returned scores of shape {scores} and maps of shape {maps}{of}; "
            f"{wanted}."
        )


def _checked_hook(hook, owner, name):
    @functools.wraps(hook)
    def checked(self, *args):
        found = hook(self, *args)
        X: Any = args[0] if args else None
        # The scores left out may be those of more images than X.
        n = len(X) if X is not None and name == "_score" else None
        check_scores(found, n, f"{owner}.{name}")
        return found

    return checked


def _n_dims(item):
    """Dimensions of one item of a list; nested lists count as arrays do."""
    if not isinstance(item, (list, tuple)):
        return getattr(item, "ndim", 0)
    return 1 + (_n_dims(item[0]) if len(item) else 0)

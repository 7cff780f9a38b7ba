"""Base of all detectors: from held-out scores to thresholds, decisions and p-values.

`BaseDetector` knows no input: its subclass `PatchDetector` takes patch features, its
subclass `ImageDetector` takes images. A detector defines what it learns (`_fit`) and
how it scores (`_score`); everything that a user calls is here and in these two.

Signs follow scikit-learn: scores are larger for normal, `predict` gives +1 for normal
and -1 for anomalous. Maps run the other way: larger is more anomalous.
"""

import copy
import math
from numbers import Real
from types import MethodType
from typing import Any, NoReturn, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skad._checks import BY_CROSS_VALIDATION, require_attributes
from skad._maps import WHOLE, render
from skad._patches import filled
from skad._portable import Portable
from skad.base._calibrated import CONTAMINATION, CalibratedThreshold
from skad.base._hold_out import HOLD_OUT, n_left_out_together, way_to_hold_out
from skad.base._hooks import checked_hook
from skad.base._memory_of_fit import learning, require_memory_to_learn
from skad.base._threshold import RULES, conformal_p_values
from skad.base._warnings import warn_of_equal_images, warn_of_outlier
from skad.networks._torch_state import own_torch_state


class NotHeldOutError(ValueError, AttributeError):
    """`fit_predict` is not available, as not every image has a held-out score.

    An `AttributeError`, too: scikit-learn asks by `hasattr` what an estimator offers.
    """


class _IfAllAreHeldOut:
    """Decorator of a method that is available only if every image is held out.

    It works as `available_if` of scikit-learn, but its error says why.
    """

    def __init__(self, method):
        self.method = method

    def __get__(self, detector, owner=None):
        if detector is None:
            return self.method
        detector._check_holds_out_all()
        return MethodType(self.method, detector)


class BaseDetector(CalibratedThreshold, Portable, OutlierMixin, BaseEstimator):
    """Base of all detectors: from anomaly scores to decisions, whatever the input.

    A detector of your own derives from one of its two subclasses, `PatchDetector` or
    `ImageDetector`, which say what to define.

    Attributes
    ----------
    contamination_ : float
        False-alarm rate of the thresholds, as of the fit or of `set_contamination`.

    offset_ : float
        Threshold of `score_samples`.

    calibration_scores_ : ndarray of shape (n_held_out,), float64
        Held-out scores of normal images behind `offset_`, larger is more normal.

    calibration_maps_ : ndarray of shape (n_maps, h, w), float32
        Their maps, larger is more anomalous. Of more than 1,000 images whose maps
        take more than 256 MB together, those of a random sample.

    n_samples_seen_ : int
        Number of training images.
    """

    _auto_calibration = "kfold"  # what calibration="auto" stands for
    _keeps_left_out_scores = False  # whether they can be computed again at any time
    _min_left_out = 2  # images that calibration="loo" needs
    _takes_views = False  # whether it can leave an image and its views out together
    _n_per_image = 1  # samples of each image: itself, and its augmented views
    # Which of them a held-out score is of: 0 is the image, k its k-th view. Modulo the
    # number of samples that are left out together, it is 0 where that is one.
    _held_out_sample = 0
    _n_folds = 10  # of calibration="kfold"
    _required_parameters: tuple[str, ...] = (
        "contamination",
        "calibration",
        "random_state",
        "sigma",
    )
    threshold = "tail"  # of detectors whose constructors do not take it
    _parameter_constraints: dict[str, list[Any]] = {
        "contamination": CONTAMINATION,
        "calibration": [StrOptions({"auto", "loo", "kfold", "split", "train"})],
        "threshold": [StrOptions(set(RULES))],
        "sigma": [Interval(Real, 0, None, closed="left")],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init_subclass__(cls, **kwargs):
        # The hooks of a detector of the user's own are checked where they return, so
        # that an error names the hook.
        super().__init_subclass__(**kwargs)
        for name in ("_score", "_score_left_out"):
            if callable(hook := vars(cls).get(name)):
                setattr(cls, name, checked_hook(hook, cls.__name__, name))

    def fit(self, X: Any, y: ArrayLike | None = None) -> Self:
        """Learn what normal images look like, and set the threshold.

        Parameters
        ----------
        X : array-like of shape (n, h, w, d) or (n, d), or sequence of images
            What the detector takes. For a `PatchDetector`, patch features, float32 or
            float64; rows of a 2-D array are samples of one patch each. For an
            `ImageDetector`, paths, `PIL.Image`, arrays (H, W[, C]), one array
            (n, H, W[, C]) or a torch tensor (n, C, H, W).

        y : array-like of shape (n,), optional
            +1 for normal, -1 for anomalous. Anomalous images are left out of
            training; y has no other use.

        Returns
        -------
        self : object
            The same object.

        Raises
        ------
        ValueError
            If X is empty, if features are not finite or of another number of
            dimensions, if no normal image is left, or if a parameter is out of range.

        MemoryError
            If learning takes more memory than there is, by an estimate before it
            starts; it names the parameters to change.

        skad.images.ImageError
            If an image cannot be read; it names position, file and reason. With
            ``on_error="skip"`` such images are left out, and a
            `SkippedImageWarning` lists them.
        """
        self._validate_params()
        self._check_constructor()
        samples, positions = self._to_learn_from(X, y, reset=True)
        self.n_samples_seen_, self._n_per_image = 0, 1
        with own_torch_state():
            self._learn(samples, positions, first=True)
        return self

    @_IfAllAreHeldOut
    def fit_predict(
        self, X: Any, y: ArrayLike | None = None, **fit_params: Any
    ) -> np.ndarray:
        """Learn from images, and decide for each of them.

        Images that were learned from are judged as new images would be: by their
        held-out scores, those of ``calibration="loo"`` or "kfold". All others, those
        labelled -1 in `y`, are judged as by `predict`.

        Parameters
        ----------
        X : patch features or images
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
        return self._labels_after_fit(X, y, self.decision_function(X))

    def score_samples(self, X: Any) -> np.ndarray:
        """Score images; larger is more normal.

        Parameters
        ----------
        X : patch features or images
            As in `fit`.

        Returns
        -------
        scores : ndarray of shape (n,), float64
            Of any range, the anomaly score of the method with the opposite sign; NaN
            for an image that was skipped when it was read.

        Raises
        ------
        ValueError
            If X is not in a form that `fit` takes, or if features are of another
            number of channels.

        sklearn.exceptions.NotFittedError
            If the detector is not fitted.
        """
        check_is_fitted(self)
        samples, present = self._to_score(X)
        scores = np.empty(0)
        if present.any():
            with own_torch_state():
                scores = self._image_scores(samples)
        return -_at(present, scores)

    def decision_function(self, X: Any) -> np.ndarray:
        """Score images against the threshold; negative is anomalous.

        Parameters
        ----------
        X : patch features or images
            As in `fit`.

        Returns
        -------
        decision : ndarray of shape (n,), float64
            ``score_samples(X) - offset_``; NaN for an image that was skipped.
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """Decide for each image: +1 is normal, -1 is anomalous.

        Parameters
        ----------
        X : patch features or images
            As in `fit`.

        Returns
        -------
        labels : ndarray of shape (n,), int64
            0 for an image that was skipped when it was read.
        """
        return decide(self.decision_function(X))

    def p_value(self, X: Any) -> np.ndarray:
        """Conformal p-value of each image: small for anomalies.

        The share of held-out normal images, the image itself counted, that look at
        least as anomalous. Where training images and new normal images are
        exchangeable, a normal image gets p <= a with a probability of at most a.

        Parameters
        ----------
        X : patch features or images
            As in `fit`.

        Returns
        -------
        p : ndarray of shape (n,), float64
            In (0, 1]; NaN for an image that was skipped.
        """
        return conformal_p_values(self.score_samples(X), self.calibration_scores_)

    def calibrate(
        self, X: Any, y: ArrayLike | None = None, *, add: bool = False
    ) -> Self:
        """Set the threshold anew from normal images that were not trained on.

        The model itself stays as it is: for a new camera, new lighting, or a
        threshold from more images.

        Parameters
        ----------
        X : patch features or images
            Of normal images that `fit` has not seen, in a form that `fit` takes.

        y : array-like of shape (n,), optional
            Images labelled -1 are left out.

        add : bool, default=False
            Whether to add to the held-out scores at hand: thresholds and p-values
            are then from both. By default the new ones replace them. Scores of
            training images (``calibration="train"``) are always replaced.

        Returns
        -------
        self : object
            The same object.

        Raises
        ------
        ValueError
            If X is empty or not in a form that `fit` takes, if features are of another
            number of channels, or if no normal image is left.

        sklearn.exceptions.NotFittedError
            If the detector is not fitted.

        skad.images.ImageError
            If an image cannot be read, as in `fit`.
        """
        self._calibrate(*self._scores_to_calibrate(X, y), add=add)
        return self

    def _scores_to_calibrate(self, X, y):
        """Anomaly scores and maps of new normal images, and their positions in X."""
        self._validate_params()
        check_is_fitted(self)
        samples, positions = self._to_learn_from(X, y, reset=False)
        with own_torch_state():
            return *self._score_for_calibration(samples), positions

    def _calibrate(self, scores, maps, rows, positions, *, add):
        """Set the threshold from scores and maps of new normal images."""
        if add and not self._in_sample:
            self._add_held_out(scores, maps, self.n_samples_seen_, rows)
        else:
            self._replace_held_out(scores, maps, rows)
        warn_of_outlier(self, scores, positions)

    @property
    def classes_(self) -> NoReturn:
        """Raise an AttributeError: a detector is no classifier, and has no classes."""
        raise AttributeError(
            f"{type(self).__name__} has no classes_: it is an outlier detector, no "
            f"classifier. {BY_CROSS_VALIDATION} Its threshold is set by contamination "
            "and calibrate, not by tools that tune thresholds of classifiers."
        )

    # -- input: what PatchDetector and ImageDetector define ------------------------

    def _to_learn_from(self, X, y, *, reset):
        """Samples that y does not call anomalous and that are present, for `_fit`.

        Returns
        -------
        samples : object
            With a length, and indexed by arrays of integers.

        positions : ndarray of shape (len(samples),)
            Their positions in X.
        """
        raise NotImplementedError

    def _to_score(self, X):
        """Samples for `_score`, and which images of X (n,) they are: the present ones.

        Images that could not be read are not present.
        """
        raise NotImplementedError

    _reads_samples = False  # whether samples are read when needed, not in memory

    def _shape_of(self, samples):
        """Shape (n, h, w, d) of the samples, and bytes of each number."""
        return samples.shape, samples.dtype.itemsize

    @staticmethod
    def _not_anomalous(X, y):
        """Which images (n,) `y` does not call anomalous; True for all of them."""
        raise NotImplementedError

    # -- hooks ---------------------------------------------------------------------

    def _fit(self, samples):
        """Learn from samples of normal images."""
        raise NotImplementedError

    def _score(self, samples):
        """Anomaly score (n,) and map (n, h, w) of each sample."""
        raise NotImplementedError

    def _score_for_calibration(self, samples):
        """Scores and maps for thresholds, and the places of the scores that have maps.

        As `_score`, unless that omits some maps. None for the places is all of them.
        """
        return *self._score(samples), None

    def _image_scores(self, samples):
        """The scores of `_score` alone, which some methods compute in less time."""
        return self._score(samples)[0]

    def _anomaly_maps(self, samples):
        """The maps of `_score` alone, which some methods compute in less time."""
        return self._score(samples)[1]

    def _fit_bytes(self, shape, itemsize, *, first):
        """Estimate of the memory that `_fit`, or `_update`, takes.

        Beside the samples, which are numbers of `itemsize` bytes in an array (n, h, w,
        d): bytes of the model, and those that are free again after the fit. Together
        they may be half or twice of what it really is.
        """
        return 0.0, 0.0

    def _fold_bytes(self, kept, shape, itemsize):
        """Estimate of what ``calibration="kfold"`` adds; a model has `kept` bytes."""
        if self._reads_samples:
            return kept
        return kept + math.prod(shape) * itemsize  # the images outside of a fold

    def _memory_advice(self):
        """Sentence that says which parameters to change if memory is short."""
        return (
            "Reduce image_size of the features, their channels, or the number of "
            "images."
        )

    def _fit_fold(self, samples, whole):
        """Learn from the samples outside of a fold; `whole` learned from all."""
        self._fit(samples)

    def _check_constructor(self):
        require_attributes(
            self,
            self._required_parameters,
            "the constructor of a detector takes these parameters and stores them",
        )

    # -- maps ----------------------------------------------------------------------

    def _patch_maps(self, X):
        """Maps on the grid of the detector; NaN for images that are not present."""
        check_is_fitted(self)
        samples, present = self._to_score(X)
        maps = self._no_maps(0)
        if present.any():
            with own_torch_state():
                maps = self._anomaly_maps(samples)
        return filled(_at(present, maps))

    def _scores_and_maps(self, X):
        """Results of `score_samples` and `_patch_maps`, from one call of `_score`."""
        check_is_fitted(self)
        samples, present = self._to_score(X)
        scores, maps = np.empty(0), self._no_maps(0)
        if present.any():
            with own_torch_state():
                scores, maps = self._score(samples)
        return -_at(present, scores), filled(_at(present, maps))

    def _render(self, maps, size, window=WHOLE):
        """Patch scores at pixel size; `window` is the part that the grid covers."""
        return render(maps, size, **self._rendering(window, maps.shape[1:]))

    def _rendering(self, window, grid):
        """Arguments by which `skad._maps.render` brings maps to pixel size."""
        return {"sigma": self.sigma, "window": window}

    # -- held-out scores -----------------------------------------------------------

    def _learn(self, samples, positions, *, first):
        """Fit, or update, on samples, and set the threshold from held-out scores."""
        way = way_to_hold_out(self, len(samples), first)
        shape, itemsize = self._shape_of(samples)
        require_memory_to_learn(self, shape, itemsize, way, first=first)
        alike = False
        if first:
            self._take_threshold_parameters()
            n = self._n_per_image
            alike = warn_of_equal_images(self, samples if n == 1 else samples[::n])
        # Views of one image that were held out from each other are no scores of images.
        guessed = not first and self._n_per_image > 1 and self.n_samples_seen_ == 1
        with learning(self, shape, way):
            held_out = HOLD_OUT[way](self, samples, first=first)
        if not alike:
            self._check_held_out(held_out)
        self._in_sample = way == "train" or (self._in_sample and not first)
        if first or guessed or (way == "loo" and self._keeps_left_out_scores):
            self._replace_held_out(
                held_out.scores, held_out.maps, held_out.rows, self._in_sample
            )
        else:
            self._add_held_out(
                held_out.scores, held_out.maps, self.n_samples_seen_, held_out.rows
            )
        n_together = n_left_out_together(self, len(samples), first)
        if way != "train" and n_together == self._n_per_image:
            warn_of_outlier(self, held_out.scores, positions, held_out.indices)

    def _check_held_out(self, held_out):
        """Hook: look at the scores of a `HeldOut`."""

    def _resolved_calibration(self):
        """`calibration`, or what "auto" stands for."""
        way = self._auto_calibration if self.calibration == "auto" else self.calibration
        if way == "loo" and not hasattr(self, "_score_left_out"):
            raise ValueError(
                f"calibration='loo' is not offered by {type(self).__name__}; use "
                "'auto', 'kfold', 'split' or 'train'."
            )
        return way

    def _folds(self, n):
        """Parts of n images at random: neighbours in a folder are often alike."""
        rng = check_random_state(copy.deepcopy(self.random_state))
        parts = np.array_split(rng.permutation(n), min(self._n_folds, n))
        return [np.sort(part) for part in parts]

    def _models_without(self, folds, samples, before, *, first):
        """Yield, for each fold, a copy of `before` that learned from all others."""
        for fold in folds:
            model = copy.copy(before)
            model.random_state = copy.deepcopy(before.random_state)
            if len(fold) < len(samples):
                rest = samples[np.delete(np.arange(len(samples)), fold)]
                if first:
                    model._fit_fold(rest, self)
                else:
                    model._update(rest)
            yield model

    def _left_out_images(self, n):
        """Which of the n images learned from last `_score_left_out` scores."""
        return np.arange(n)

    def _held_out_positions(self, n):
        """Ascending places, among the n images learned from last, of held-out images.

        Those behind `calibration_scores_`; negative for images of earlier calls.
        """
        n_held_out = len(self.calibration_scores_)
        return np.arange(n_held_out) - (n_held_out - n)

    def _check_holds_out_all(self, caller="fit_predict"):
        """Refuse a calibration that holds out a part of the images only."""
        way = getattr(self, "calibration", None)
        if (self._auto_calibration if way == "auto" else way) == "split":
            raise NotHeldOutError(
                f"{caller} judges each image by a model that has not seen it, but "
                f"calibration={self.calibration!r} of {type(self).__name__} holds out "
                "a part of the images only. Use calibration='kfold', or fit(X, y) and "
                "then predict on other images."
            )

    def _check_holds_out_images(self, caller):
        """Refuse held-out scores that are of views of the images."""
        if self._n_per_image > 1 and self._held_out_sample:
            self._refuse_scores_of_views(caller)

    def _refuse_scores_of_views(self, caller):
        raise NotHeldOutError(
            f"{caller} judges each image by its own held-out score, but augmentation "
            "has calibrate_on='views', so scores are those of views. Use "
            "calibrate_on='images', or fit and then predict on other images."
        )

    def _labels_after_fit(self, X, y, decisions):
        """Labels of images right after `fit`, those learned from held out.

        `decisions` are those of the model, which has seen the images learned from.
        """
        self._check_holds_out_images("fit_predict")
        if self._in_sample:
            return decide(decisions)
        learned = ~np.isnan(decisions) & self._not_anomalous(X, y)
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


def decide(decision: np.ndarray) -> np.ndarray:
    """Labels from decisions: +1, -1, or 0 where there is no decision (NaN).

    Parameters
    ----------
    decision : ndarray of shape (n,)
        Scores less the threshold, as of `decision_function`.

    Returns
    -------
    labels : ndarray of shape (n,), int64
    """
    labels = np.where(decision >= 0, 1, -1)
    labels[np.isnan(decision)] = 0
    return labels


def _at(present, found):
    """Spread results (m, ...) of the present images over all n; NaN for the others."""
    if present.all():
        return found
    result = np.full((len(present), *found.shape[1:]), np.nan, found.dtype)
    result[present] = found
    return result

"""One detector for every kind of patch features, their scores and maps summed.

Where kinds of features disagree, a joint distance lets the noisier one drown the
other. Scores apart, in deviations of good images, give each as much of a say as it
has earned: a kind that finds some good images very odd counts for little.
"""

import copy
from functools import reduce
from typing import Any

import numpy as np
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.metaestimators import available_if

from skad._progress import progress
from skad.base import PatchDetector
from skad.detectors._combined import as_part, inner_detector, means_and_stds


def _members_have(hook):
    """Whether the detectors of all feature types have a hook."""

    def check(fusion):
        return hasattr(inner_detector(fusion.detector), hook)

    return check


class FusionDetector(PatchDetector):
    """Sum the standardised scores and maps of detectors on kinds of features.

    Each kind of channels, such as the two of `FusedFeatures`, has a detector of its
    own. Of their image scores and of their maps, the mean and the deviation over
    held-out good images are taken out before they are summed.

    Parameters
    ----------
    detector : detector, default=None
        Any detector of `skad` on patch features, copied for each kind. None is
        ``PatchCoreDetector()``. Its `contamination` does not matter: the threshold
        is that of the sum.

    levels : {"auto"} or sequence of int, default="auto"
        Number of channels of each kind. "auto" takes those that the features bring
        along, as `FusedFeatures` and the features for SPADE do, or else all channels
        as one kind.

    weights : sequence of float or None, default=None
        Weight of each kind in the sum; they are divided by their own sum. None
        weighs them alike.

    contamination : float, default=0.05
        Tolerated false-alarm rate on good images, in (0, 0.5].

    calibration : {"auto", "loo", "kfold", "split", "train"}, default="auto"
        How the scores behind the threshold are held out. "auto" is "loo": it sums the
        scores that the detectors gave to images which they held out.

    threshold : {"tail", "rank"}, default="tail"
        How the threshold comes from the held-out scores: by a tail fitted to them,
        which keeps the false-alarm rate on average from few images, or by their
        conformal rank, which keeps it for any distribution and finds fewer anomalies
        where images are few.

    random_state : int, RandomState instance or None, default=0
        Draws the images that are held out by "split". `detector` has a seed of its
        own.

    verbose : bool, default=False
        Report on the standard error stream which kind is being learned, and let every
        detector report on itself.

    Attributes
    ----------
    detectors_ : list of detectors
        The fitted detectors, one for each kind.

    levels_ : tuple of int
        Number of channels of each kind.

    weights_ : ndarray of shape (n_kinds,), float64
        Weights, which sum to 1.

    score_means_, score_stds_ : ndarray of shape (n_kinds,), float64
        Mean and deviation of each detector's held-out image scores, larger is more
        anomalous.

    map_means_, map_stds_ : ndarray of shape (n_kinds,), float64
        Mean and deviation of its held-out patch scores.

    contamination_ : float
        False-alarm rate of the thresholds, as of the fit or of `set_contamination`.

    offset_ : float
        Threshold of `score_samples`.

    calibration_scores_ : ndarray of shape (n_held_out,), float64
        Held-out scores of good images behind `offset_`, larger is more normal.

    calibration_maps_ : ndarray of shape (n_held_out, h, w), float32
        Their patch scores, larger is more anomalous.

    n_samples_seen_ : int
        Number of training images.

    n_features_in_ : int
        Number of channels of a patch.

    See Also
    --------
    FusedFeatures : Two kinds of features side by side.
    PUADDetector : Adds how unusual the mean patch is.

    Notes
    -----
    With "loo", an image's own scores take part in the means and deviations that
    standardise them; over some tens of images that makes little difference.

    `partial_fit` and `merge` are there where `detector` has them. With "loo", means,
    deviations and held-out scores are then those of all images that the detectors
    still hold out. Otherwise `partial_fit` keeps means and deviations, in which the
    earlier scores are, and `merge` is refused.

    Held-out scores are those of images that the detectors of all feature types hold
    out. `PaDiMDetector` holds out `calibration_size` images, of each type others: set
    it to the number of training images if these are more.

    Examples
    --------
    >>> import numpy as np
    >>> from skad import FusionDetector, SubspaceDetector
    >>> X = np.random.default_rng(0).normal(size=(60, 4, 4, 6))
    >>> detector = FusionDetector(SubspaceDetector(), levels=(4, 2)).fit(X)
    >>> detector.levels_, detector.anomaly_map(X[:2]).shape
    ((4, 2), (2, 4, 4))
    """

    _auto_calibration = "loo"
    _keeps_left_out_scores = True  # the detectors keep their left-out scores
    _parameter_constraints = {
        **PatchDetector._parameter_constraints,
        "detector": [PatchDetector, None],
        "levels": [StrOptions({"auto"}), list, tuple],
        "weights": ["array-like", None],
    }
    del _parameter_constraints["sigma"]
    _required_parameters: tuple[str, ...] = (
        "contamination",
        "calibration",
        "random_state",
    )

    detectors_: list[Any]

    def __init__(
        self,
        detector=None,
        *,
        levels="auto",
        weights=None,
        contamination=0.05,
        calibration="auto",
        threshold="tail",
        random_state=0,
        verbose=False,
    ):
        self.detector = detector
        self.levels = levels
        self.weights = weights
        self.contamination = contamination
        self.calibration = calibration
        self.threshold = threshold
        self.random_state = random_state
        self.verbose = verbose

    def _check_features(self, X, *, reset):
        levels = getattr(X, "levels", ())
        patches, present = super()._check_features(X, reset=reset)
        if reset:
            self.levels_ = self._counts(levels, patches.shape[3])
            self.weights_ = self._shares(len(self.levels_))
        return patches, present

    def _counts(self, carried, n_channels):
        if self.levels == "auto":
            counts = tuple(count for count, _ in carried)
            return counts if sum(counts) == n_channels else (n_channels,)
        counts = tuple(self.levels)
        whole = all(isinstance(count, (int, np.integer)) for count in counts)
        if not whole or sum(counts) != n_channels or min(counts) < 1:
            raise ValueError(
                f"levels={self.levels!r} must be positive integers that add up to the "
                f"{n_channels} channels of X."
            )
        return counts

    def _shares(self, n_kinds):
        given = np.ones(n_kinds) if self.weights is None else self.weights
        weights = np.asarray(given, np.float64)
        fine = weights.shape == (n_kinds,) and np.isfinite(weights).all()
        if not fine or (weights < 0).any() or weights.sum() == 0:
            raise ValueError(
                f"weights={self.weights!r} must be {n_kinds} numbers, one per kind "
                "of channels, none negative and not all zero."
            )
        return weights / weights.sum()

    def _kinds(self, X):
        """The channels of each kind."""
        ends = np.cumsum(self.levels_)[:-1]
        return [np.ascontiguousarray(kind) for kind in np.split(X, ends, axis=3)]

    def _fit(self, X):
        inner = inner_detector(self.detector)
        parts = [as_part(inner, self._how(inner, len(X))) for _ in self.levels_]
        self.detectors_ = self._each(parts, "fit", self._kinds(X))
        self._standardise()

    @staticmethod
    def _how(inner, n_images):
        """How a detector holds out scores."""
        if n_images == 1:
            return "train"
        return "loo" if hasattr(inner, "_score_left_out") else "kfold"

    def _each(self, detectors, method, arguments):
        """The detectors, after a method of each has learned from its own argument."""
        with progress(len(detectors), "feature types", self.verbose) as bar:
            for one, own in zip(detectors, arguments, strict=True):
                if self.verbose:
                    one.set_params(verbose=self.verbose)
                getattr(one, method)(own)
                bar.update()
        return detectors

    @available_if(_members_have("_update"))
    def _update(self, X):
        n_images = self.n_samples_seen_ + len(X)
        # Copies: an earlier copy of this detector stays as it was.
        parts = [copy.copy(one) for one in self.detectors_]
        for one in parts:
            one.set_params(calibration=self._how(one, n_images))
        self.detectors_ = self._each(parts, "partial_fit", self._kinds(X))
        if self._resolved_calibration() == "loo":
            self._standardise()

    @available_if(_members_have("_merge"))
    def _merge(self, other):
        if other.levels_ != self.levels_:
            raise ValueError(
                f"other was fitted on kinds of {other.levels_} channels, this detector "
                f"on {self.levels_}; fit both on features of the same kinds."
            )
        if self._resolved_calibration() != "loo":
            raise ValueError(
                f"calibration={self.calibration!r}: the scores that two detectors held "
                "out are in deviations of their own images. Use 'loo', or fit again."
            )
        parts = [copy.copy(one) for one in self.detectors_]
        self.detectors_ = self._each(parts, "merge", other.detectors_)
        self._standardise()

    def _standardise(self):
        """Set means and deviations by what the detectors held out."""
        scores, maps = self._held_out()
        self.score_means_, self.score_stds_ = means_and_stds(scores)
        self.map_means_, self.map_stds_ = means_and_stds(maps)

    def _held_out(self):
        """Each detector's anomaly scores and maps of images that all of them held out.

        Each chooses by itself which images it keeps, where these are too many.
        """
        positions = [one._held_out_positions(0) for one in self.detectors_]
        common = reduce(np.intersect1d, positions)
        if len(common) == 0:
            raise ValueError(
                "detector: no image is held out by the detectors of all feature types; "
                "raise its calibration_size to the number of training images."
            )
        rows = [np.searchsorted(own, common) for own in positions]
        pairs = list(zip(self.detectors_, rows, strict=True))
        return (
            [-one.calibration_scores_[kept] for one, kept in pairs],
            [one.calibration_maps_[kept] for one, kept in pairs],
        )

    def _left_out_images(self, n):
        return reduce(
            np.intersect1d, [one._held_out_positions(n) for one in self.detectors_]
        )

    def _score_left_out(self, X):
        scores, maps = self._held_out()
        return self._sum_scores(scores), self._sum_maps(maps)

    def _score(self, X):
        scores, maps = zip(
            *(one._score(kind) for one, kind in self._pairs(X)), strict=True
        )
        return self._sum_scores(scores), self._sum_maps(maps)

    def _score_for_calibration(self, X):
        scores, maps = zip(
            *(one._score_for_calibration(kind) for one, kind in self._pairs(X)),
            strict=True,
        )
        return self._sum_scores(scores), self._sum_maps(maps)

    def _image_scores(self, X):
        each = [one._image_scores(kind) for one, kind in self._pairs(X)]
        return self._sum_scores(each)

    def _anomaly_maps(self, X):
        each = [one._anomaly_maps(kind) for one, kind in self._pairs(X)]
        return self._sum_maps(each)

    def _pairs(self, X):
        """Each detector with what it scores."""
        for one, kind in zip(self.detectors_, self._kinds(X), strict=True):
            yield one, one._check_features(kind, reset=False)[0]

    def _sum_scores(self, scores):
        means, stds = self.score_means_, self.score_stds_
        return _weighted_sum(scores, means, stds, self.weights_)

    def _sum_maps(self, maps):
        means, stds = self.map_means_, self.map_stds_
        return _weighted_sum(maps, means, stds, self.weights_).astype(np.float32)

    def _rendering(self, window, grid):
        return self.detectors_[0]._rendering(window, grid)


def _weighted_sum(values, means, stds, weights):
    total = 0.0
    for value, mean, std, weight in zip(values, means, stds, weights, strict=True):
        total = total + (np.asarray(value, np.float64) - mean) * (weight / std)
    return total

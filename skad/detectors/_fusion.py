"""One detector per feature type, their standardised scores and maps summed.

In one distance over all channels, the feature type with the most noise hides what the
others find. Here each type is scored by itself, in standard deviations of normal
images: a type that gives some normal images high scores counts for little.
"""

import copy
import math
from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.metaestimators import available_if

from skad._progress import progress
from skad.base import PatchDetector
from skad.base._memory_of_fit import learning_parts
from skad.detectors._combined import as_part, inner_detector, means_and_stds


def _members_have(hook):
    """Whether the detectors of all feature types have a hook, for `available_if`."""

    def check(fusion):
        return hasattr(inner_detector(fusion.detector), hook)

    return check


class FusionDetector(PatchDetector):
    """Sum the standardised scores and maps of one detector per feature type.

    Each feature type, such as the two of `FusedFeatures`, has a detector of its own
    for its channels. The image scores of each detector, and its maps, are standardised
    by their mean and standard deviation over held-out normal images, and summed.

    Parameters
    ----------
    detector : detector, default=None
        Any detector of `skad` on patch features, copied for each feature type. None
        is ``PatchCoreDetector()``. Its `contamination` does not matter: the threshold
        is that of the sum.

    n_channels : {"auto"} or sequence of int, default="auto"
        Number of channels of each feature type, in their order; they add up to the
        channels of X. "auto" takes the numbers that come with the features of
        `FusedFeatures`, and of `PatchFeatures` with ``pooled=True``; without such
        numbers, all channels are one type.

    detector_weights : sequence of float or None, default=None
        Weight of each feature type in the sum, not negative; they are divided by their
        sum. None weighs all alike.

    contamination : float, default=0.05
        Tolerated false-alarm rate on normal images, in (0, 0.5].

    calibration : {"auto", "loo", "kfold", "split", "train"}, default="auto"
        How the scores behind the threshold are held out. "auto" is "loo": it sums the
        scores that the detectors gave to images which they held out.

    threshold : {"tail", "rank"}, default="tail"
        How the threshold comes from the held-out scores: by a tail fitted to them,
        which keeps the false-alarm rate on average from few images, or by their
        conformal rank, which keeps it for any distribution and finds fewer anomalies
        where images are few.

    random_state : int, RandomState instance or None, default=0
        Chooses the images that are held out by "split". `detector` has a seed of its
        own.

    verbose : bool, default=False
        Show progress over the feature types on the standard error stream, and let
        every detector show its own.

    Attributes
    ----------
    detectors_ : list of detectors
        The fitted detectors, one for each feature type.

    n_channels_ : tuple of int
        Number of channels of each feature type.

    detector_weights_ : ndarray of shape (n_feature_types,), float64
        Weights, which sum to 1.

    score_means_, score_stds_ : ndarray of shape (n_feature_types,), float64
        Mean and standard deviation of each detector's held-out image scores, larger is
        more anomalous.

    map_means_, map_stds_ : ndarray of shape (n_feature_types,), float64
        Mean and standard deviation of its held-out patch scores, of the images whose
        maps are kept.

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

    See Also
    --------
    FusedFeatures : Two feature types side by side.
    PUADDetector : Adds how unusual the mean patch is.

    Notes
    -----
    With "loo", an image's own scores take part in the means and standard deviations
    that standardise them; over some tens of images that makes little difference.

    `partial_fit` and `merge` are offered if `detector` offers them. With "loo", means,
    standard deviations and held-out scores are then those of all images that the
    detectors still hold out. Otherwise `partial_fit` keeps the means and standard
    deviations by which the earlier scores were standardised, and `merge` is refused.

    Held-out scores are those of images that the detectors of all feature types hold
    out. `PaDiMDetector` holds out `calibration_size` images, which differ from type to
    type: set it to the number of training images if these are more.

    Examples
    --------
    >>> import numpy as np
    >>> from skad import FusionDetector, SubspaceDetector
    >>> X = np.random.default_rng(0).normal(size=(60, 4, 4, 6))
    >>> detector = FusionDetector(SubspaceDetector(), n_channels=(4, 2)).fit(X)
    >>> detector.n_channels_, detector.anomaly_map(X[:2]).shape
    ((4, 2), (2, 4, 4))
    """

    _auto_calibration = "loo"
    _takes_views = False
    _keeps_left_out_scores = True  # the detectors keep their left-out scores
    _parameter_constraints = {
        **PatchDetector._parameter_constraints,
        "detector": [PatchDetector, None],
        "n_channels": [StrOptions({"auto"}), list, tuple],
        "detector_weights": ["array-like", None],
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
        detector: PatchDetector | None = None,
        *,
        n_channels: str | Sequence[int] = "auto",
        detector_weights: ArrayLike | None = None,
        contamination: float = 0.05,
        calibration: str = "auto",
        threshold: str = "tail",
        random_state: int | np.random.RandomState | None = 0,
        verbose: bool = False,
    ):
        self.detector = detector
        self.n_channels = n_channels
        self.detector_weights = detector_weights
        self.contamination = contamination
        self.calibration = calibration
        self.threshold = threshold
        self.random_state = random_state
        self.verbose = verbose

    # -- input ---------------------------------------------------------------------

    def _check_features(self, X, *, reset):
        carried = getattr(X, "levels", ())
        patches, present = super()._check_features(X, reset=reset)
        if reset:
            self.n_channels_ = self._channel_counts(carried, patches.shape[3])
            self.detector_weights_ = self._normalised_weights(len(self.n_channels_))
        return patches, present

    def _channel_counts(self, carried, n_total):
        """Number of channels of each feature type; `carried` came with the features."""
        if isinstance(self.n_channels, str):
            counts = tuple(count for count, _ in carried)
            return counts if sum(counts) == n_total else (n_total,)
        counts = tuple(self.n_channels)
        are_integers = all(isinstance(count, (int, np.integer)) for count in counts)
        if not are_integers or sum(counts) != n_total or min(counts) < 1:
            raise ValueError(
                f"n_channels={self.n_channels!r} must be positive integers that add up "
                f"to the {n_total} channels of X."
            )
        return counts

    def _normalised_weights(self, n_types):
        given = self.detector_weights
        weights = np.asarray(np.ones(n_types) if given is None else given, np.float64)
        is_valid = weights.shape == (n_types,) and np.isfinite(weights).all()
        if not is_valid or (weights < 0).any() or weights.sum() == 0:
            raise ValueError(
                f"detector_weights={given!r} must be {n_types} numbers, one per "
                "feature type, none negative and not all zero."
            )
        return weights / weights.sum()

    def _by_type(self, X):
        """The channels of each feature type, as arrays of their own."""
        ends = np.cumsum(self.n_channels_)[:-1]
        return [np.ascontiguousarray(part) for part in np.split(X, ends, axis=3)]

    def _with_inputs(self, X):
        """Pair each detector with the features of its type."""
        for one, part in zip(self.detectors_, self._by_type(X), strict=True):
            yield one, one._check_features(part, reset=False)[0]

    # -- learning ------------------------------------------------------------------

    def _fit(self, X):
        inner = inner_detector(self.detector)
        calibration = _member_calibration(inner, len(X))
        parts = [as_part(inner, calibration) for _ in self.n_channels_]
        self.detectors_ = self._each(parts, "fit", self._by_type(X))
        self._standardise()

    def _fit_bytes(self, shape, itemsize, *, first):
        inner = inner_detector(self.detector)
        way = _member_calibration(inner, shape[0])
        # Before a fit, the number of channels of each type may not be known.
        counts = getattr(self, "n_channels_", (shape[3],))
        each = [inner] * len(counts) if first else self.detectors_
        parts = [
            learning_parts(one, (*shape[:3], d), itemsize, way, first=first)
            for one, d in zip(each, counts, strict=True)
        ]
        copies = float(math.prod(shape)) * itemsize  # of the channels of each type
        kept, passing = zip(*parts, strict=True)
        return sum(kept), copies + max(passing)

    def _memory_advice(self):
        return (
            "Call partial_fit with a part of the images at a time, and give the "
            "detector a bank_size if it is a PatchCoreDetector; or reduce image_size "
            "of the features."
        )

    def _each(self, detectors, method, arguments):
        """Call a method of each detector with its argument; return the detectors."""
        with progress(len(detectors), "feature types", self.verbose) as bar:
            for one, argument in zip(detectors, arguments, strict=True):
                if self.verbose:
                    one.set_params(verbose=self.verbose)
                getattr(one, method)(argument)
                bar.update(1)
        return detectors

    @available_if(_members_have("_update"))
    def _update(self, X):
        n_images = self.n_samples_seen_ + len(X)
        # Copies: an earlier copy of this detector stays as it was.
        parts = [copy.copy(one) for one in self.detectors_]
        for one in parts:
            one.set_params(calibration=_member_calibration(one, n_images))
        self.detectors_ = self._each(parts, "partial_fit", self._by_type(X))
        if self._resolved_calibration() == "loo":
            self._standardise()

    @available_if(_members_have("_merge"))
    def _merge(self, other):
        if other.n_channels_ != self.n_channels_:
            raise ValueError(
                f"other was fitted on feature types of {other.n_channels_} channels, "
                f"this detector on {self.n_channels_}; fit both on the same features."
            )
        if self._resolved_calibration() != "loo":
            raise ValueError(
                f"calibration={self.calibration!r}: the held-out scores of the two "
                "detectors are in standard deviations of different images. Use 'loo', "
                "or fit again."
            )
        parts = [copy.copy(one) for one in self.detectors_]
        self.detectors_ = self._each(parts, "merge", other.detectors_)
        self._standardise()

    def _standardise(self):
        """Set means and standard deviations by the scores that the detectors hold."""
        scores, maps, _ = self._held_out()
        self.score_means_, self.score_stds_ = means_and_stds(scores)
        self.map_means_, self.map_stds_ = means_and_stds(maps)

    def _held_out(self):
        """Each detector's anomaly scores and maps of images that all of them hold out.

        A detector that keeps a sample of the images chooses it by their features. Of
        many images, all keep the maps of the same sample; the last value returned is
        the places of the scores that have maps.
        """
        positions = [one._held_out_positions(0) for one in self.detectors_]
        with_maps = [
            own[one._map_rows]
            for one, own in zip(self.detectors_, positions, strict=True)
        ]
        common = reduce(np.intersect1d, positions)
        mapped = reduce(np.intersect1d, with_maps)
        if len(mapped) == 0:
            raise ValueError(
                "detector: no image is held out by the detectors of all feature types; "
                "raise its calibration_size to the number of training images."
            )
        return (
            [
                -one.calibration_scores_[np.searchsorted(own, common)]
                for one, own in zip(self.detectors_, positions, strict=True)
            ],
            [
                one.calibration_maps_[np.searchsorted(own, mapped)]
                for one, own in zip(self.detectors_, with_maps, strict=True)
            ],
            np.searchsorted(common, mapped),
        )

    def _left_out_images(self, n):
        return reduce(
            np.intersect1d, [one._held_out_positions(n) for one in self.detectors_]
        )

    # -- scores --------------------------------------------------------------------

    def _score_left_out(self, X):
        scores, maps, rows = self._held_out()
        return self._sum_scores(scores), self._sum_maps(maps), rows

    def _score(self, X):
        found = [one._score(part) for one, part in self._with_inputs(X)]
        scores, maps = zip(*found, strict=True)
        return self._sum_scores(scores), self._sum_maps(maps)

    def _score_for_calibration(self, X):
        found = [one._score_for_calibration(part) for one, part in self._with_inputs(X)]
        scores, maps, _ = zip(*found, strict=True)  # on patches, all have maps
        return self._sum_scores(scores), self._sum_maps(maps), None

    def _image_scores(self, X):
        scores = [one._image_scores(part) for one, part in self._with_inputs(X)]
        return self._sum_scores(scores)

    def _anomaly_maps(self, X):
        maps = [one._anomaly_maps(part) for one, part in self._with_inputs(X)]
        return self._sum_maps(maps)

    def _sum_scores(self, scores):
        means, stds = self.score_means_, self.score_stds_
        return _weighted_sum(scores, means, stds, self.detector_weights_)

    def _sum_maps(self, maps):
        means, stds = self.map_means_, self.map_stds_
        total = _weighted_sum(maps, means, stds, self.detector_weights_)
        return total.astype(np.float32)

    def _rendering(self, window, grid):
        return self.detectors_[0]._rendering(window, grid)


def _member_calibration(inner, n_images):
    """Value of `calibration` for the detector of a feature type."""
    if n_images == 1:
        return "train"
    return "loo" if hasattr(inner, "_score_left_out") else "kfold"


def _weighted_sum(values, means, stds, weights):
    """Sum of w (v - mean) / std over the feature types, float64."""
    total = np.float64(0.0)
    for value, mean, std, weight in zip(values, means, stds, weights, strict=True):
        total = total + (np.asarray(value, np.float64) - mean) * (weight / std)
    return total

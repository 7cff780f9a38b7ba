"""PUAD: the mean patch feature of an image as a second score (ICIP 2024).

A wrong number of parts, or a missing part, leaves every patch normal, so that no patch
scores high. It changes the mean of the patch features: its Mahalanobis distance to the
means of normal images is added to the image score of any detector, both as z-scores.
"""

import math
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import HasMethods

from skad._matrices import product
from skad._patch_array import PatchArray
from skad._training_images import TrainingImages
from skad._user_warning import warn_user
from skad.base import ImageDetector, PatchDetector
from skad.base._memory_of_fit import learning_parts
from skad.detectors._combined import as_part, inner_detector, means_and_stds

# Images for two z-scores: of 7, four fifths are 5, which are split into 2 and 3.
_MIN_IMAGES = 7


class _TwoScores:
    """Mixin: sum of a detector's score and the Mahalanobis distance of the mean patch.

    Samples are what the detectors with this mixin take: patch features, or readers of
    images.
    """

    detector_: Any
    random_state: Any
    _reads_samples: bool
    location_: np.ndarray
    precision_: np.ndarray
    score_means_: np.ndarray
    score_stds_: np.ndarray
    _is_alone: bool  # whether images are too few for the score of mean patches
    _n_folds = 5
    _required_parameters: tuple[str, ...] = (
        "contamination",
        "calibration",
        "random_state",
    )

    def _inner(self):
        """The detector to copy and fit."""
        raise NotImplementedError

    def _fit_input(self, samples):
        """Samples in the form that the `fit` of the detector takes."""
        raise NotImplementedError

    def _score_input(self, samples):
        """Samples in the form that the `_score` of the detector takes."""
        raise NotImplementedError

    def _mean_patches(self, samples):
        """Mean patch feature of each sample, (n, d)."""
        raise NotImplementedError

    def _fit(self, X):
        self._is_alone = len(X) < _MIN_IMAGES
        if not self._is_alone:
            self._fit_both(X)
            return
        warn_user(
            f"{len(X)} images to learn from are too few for the distribution of their "
            "mean patch features: scores are those of the detector alone. Fit on at "
            "least 10 normal images, better 50.",
        )
        self._fit_alone(X)

    def _fit_both(self, X):
        # Held out from both: their scores would be too low on training images.
        order = check_random_state(self.random_state).permutation(len(X))
        n_held_out = max(len(X) // 5, min(4, len(X) // 2))
        held_out = X[np.sort(order[:n_held_out])]
        X = X[np.sort(order[n_held_out:])]
        self._fit_detector(X)
        # Slow to import, and only fits need it.
        from sklearn.covariance import LedoitWolf

        gaussian = LedoitWolf().fit(self._mean_patches(X))
        self.location_, self.precision_ = gaussian.location_, gaussian.precision_
        scores = self.detector_._image_scores(self._score_input(held_out))
        both = self._both(held_out, scores)
        self.score_means_, self.score_stds_ = means_and_stds(both.T)

    def _fit_alone(self, X):
        self._fit_detector(X)
        self.location_ = self._mean_patches(X).mean(axis=0)
        self.precision_ = np.zeros((len(self.location_),) * 2)
        self.score_means_, self.score_stds_ = np.zeros(2), np.ones(2)

    def _score(self, X):
        scores, maps = self.detector_._score(self._score_input(X))
        return self._sum(X, scores), maps

    def _score_for_calibration(self, X):
        found = self.detector_._score_for_calibration(self._score_input(X))
        return self._sum(X, found[0]), *found[1:]

    def _image_scores(self, X):
        scores = self.detector_._image_scores(self._score_input(X))
        return self._sum(X, scores)

    def _anomaly_maps(self, X):
        return self.detector_._anomaly_maps(self._score_input(X))

    def _sum(self, X, scores):
        """Sum of the z-scores of the detector's scores and of the distances, (n,)."""
        both = self._both(X, scores)
        return ((both - self.score_means_) / self.score_stds_).sum(axis=1)

    def _both(self, X, scores):
        """The detector's scores beside the Mahalanobis distances, (n, 2)."""
        distances = np.full(len(scores), np.nan)
        present = ~np.isnan(scores)  # the others could not be read
        if present.any():
            means = self._mean_patches(X if present.all() else X[present])
            centred = means - self.location_
            squared = np.einsum("ij,ij->i", product(centred, self.precision_), centred)
            distances[present] = np.sqrt(np.maximum(squared, 0))
        return np.column_stack([scores, distances])

    def _fit_fold(self, X, whole):
        """Fit as the model of all images was fitted, however few those of X are."""
        self._is_alone = whole._is_alone
        if self._is_alone:
            self._fit_alone(X)
        else:
            self._fit_both(X)

    def _fit_detector(self, X):
        self.detector_ = as_part(self._inner(), "train")
        self.detector_.fit(self._fit_input(X))

    def _rendering(self, window, grid):
        return self.detector_._rendering(window, grid)

    def _fit_bytes(self, shape, itemsize, *, first):
        kept, passing = learning_parts(self._inner(), shape, itemsize, "train")
        if not self._reads_samples:  # what is held out, and the rest
            passing += math.prod(shape) * itemsize
        return kept, passing

    def _memory_advice(self):
        return self._inner()._memory_advice()


class PUADDetector(_TwoScores, PatchDetector):
    """Add to a detector's image score the distance of the mean patch feature.

    For logical anomalies, where every patch is normal and the image is not: a part
    that is missing, one too many, or the wrong one of two. The distance is that of
    Mahalanobis, to the mean patch features of normal images.

    Parameters
    ----------
    detector : detector, default=None
        Any detector of `skad` on patch features, which makes the maps and one of
        the two scores. None is ``PatchCoreDetector()``. Its `contamination` and
        `calibration` do not matter: the threshold is that of the sum.

    contamination : float, default=0.05
        Tolerated false-alarm rate on normal images, in (0, 0.5].

    calibration : {"auto", "kfold", "split", "train"}, default="auto"
        How the scores behind the threshold are held out. "auto" is "split": a fifth
        of the images is used for nothing else. "kfold" fits six times and scores
        every image, which a set of less than a hundred images may need.

    threshold : {"tail", "rank"}, default="tail"
        How the threshold comes from the held-out scores: by a tail fitted to them,
        which keeps the false-alarm rate on average from few images, or by their
        conformal rank, which keeps it for any distribution and finds fewer anomalies
        where images are few.

    random_state : int, RandomState instance or None, default=0
        Chooses the images that are held out. `detector` has a seed of its own.

    verbose : bool, default=False
        Accepted as by every detector; `detector` reports on itself.

    Attributes
    ----------
    detector_ : detector
        The fitted detector. Its own threshold comes from training images, rejects
        most normal images, and is not used.

    location_ : ndarray of shape (n_features,), float64
        Mean of the images' mean patch features.

    precision_ : ndarray of shape (n_features, n_features), float64
        Inverse of their Ledoit-Wolf covariance.

    score_means_ : ndarray of shape (2,), float64
        Mean of the detector's anomaly score and of the Mahalanobis distance, over
        normal images from which neither `detector_` nor `precision_` was learned.

    score_stds_ : ndarray of shape (2,), float64
        Their standard deviations; 1 where a score is constant.

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
    With ``calibration="split"``, a fifth of the images is held out for the threshold;
    of the others, a fifth, or four if that is more, is held out for `score_means_`
    and `score_stds_`, and `detector_` and `precision_` learn from the rest.

    Maps are those of `detector_`: they say where patches are anomalous, not where
    something is missing, and the score of an image is not the maximum of its map.

    Patches that are NaN, outside of a region, are left out of the mean. With fewer than
    seven training images, the score is the detector's alone, with a warning.

    References
    ----------
    .. [1] S. Sugawara and R. Imamura, "PUAD: Frustratingly Simple Method for Robust
       Anomaly Detection", ICIP 2024.

    Examples
    --------
    Of 16 patches, half are of one type and half of another. An image of twelve and
    four is anomalous, although none of its patches is.

    >>> import numpy as np
    >>> from skad import PUADDetector
    >>> rng = np.random.default_rng(0)
    >>> def images(n, n_first):
    ...     types = np.repeat([0.0, 5.0], [n_first, 16 - n_first])
    ...     patches = types[:, None] + rng.normal(size=(n, 16, 3))
    ...     return rng.permuted(patches, axis=1).reshape(n, 4, 4, 3)
    >>> detector = PUADDetector().fit(images(100, 8))
    >>> detector.predict(images(3, 12))
    array([-1, -1, -1])
    """

    _auto_calibration = "split"
    _takes_views = False
    _parameter_constraints = {
        **PatchDetector._parameter_constraints,
        "detector": [PatchDetector, None],
    }
    del _parameter_constraints["sigma"]

    def __init__(
        self,
        detector: PatchDetector | None = None,
        *,
        contamination: float = 0.05,
        calibration: str = "auto",
        threshold: str = "tail",
        random_state: int | np.random.RandomState | None = 0,
        verbose: bool = False,
    ):
        self.detector = detector
        self.contamination = contamination
        self.calibration = calibration
        self.threshold = threshold
        self.random_state = random_state
        self.verbose = verbose

    def _check_features(self, X, *, reset):
        patches, present = super()._check_features(X, reset=reset)
        if getattr(X, "pooled", None) is not None:  # SPADE wants them
            patches = PatchArray(patches, X.pooled, X.levels)
        return patches, present

    def _inner(self):
        return inner_detector(self.detector)

    def _fit_input(self, X):
        return X

    def _score_input(self, X):
        return self.detector_._check_features(X, reset=False)[0]

    def _mean_patches(self, X):
        return mean_patches(X)


class ImagePUADDetector(TrainingImages, _TwoScores, ImageDetector):
    """`PUADDetector` for detectors that take images, such as EfficientAD.

    Parameters
    ----------
    detector : ImageDetector
        Any detector of `skad` that takes images. It makes the maps and one of the two
        scores, and tells how images are read and resized.

    features : PatchFeatures or other patch-feature transformer
        Makes the patch features whose mean gives the other score. It reads the images
        itself.

    contamination : float, default=0.05
        Tolerated false-alarm rate on normal images, in (0, 0.5].

    calibration : {"auto", "kfold", "split", "train"}, default="auto"
        As of `PUADDetector`.

    threshold : {"tail", "rank"}, default="tail"
        How the threshold comes from the held-out scores: by a tail fitted to them,
        which keeps the false-alarm rate on average from few images, or by their
        conformal rank, which keeps it for any distribution and finds fewer anomalies
        where images are few.

    random_state : int, RandomState instance or None, default=0
        Chooses the images that are held out.

    verbose : bool, default=False
        Show the progress of scoring; `detector` and `features` show their own.

    Attributes
    ----------
    detector_ : ImageDetector
        The fitted detector.

    features_ : transformer
        The fitted transformer.

    location_ : ndarray of shape (d,), float64
        Mean of the images' mean patch features.

    precision_ : ndarray of shape (d, d), float64
        Inverse of their Ledoit-Wolf covariance.

    score_means_ : ndarray of shape (2,), float64
        As of `PUADDetector`.

    score_stds_ : ndarray of shape (2,), float64
        As of `PUADDetector`.

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

    See Also
    --------
    PUADDetector : The same on patch features, with what is held out for what.

    References
    ----------
    .. [1] As of `PUADDetector`, whose authors combine it with EfficientAD.

    Examples
    --------
    >>> from skad import EfficientADDetector, ImagePUADDetector, PatchFeatures
    >>> features = PatchFeatures("resnet18", weights=False, image_size=64)
    >>> detector = ImagePUADDetector(EfficientADDetector("small", "t.pth"), features)
    >>> detector.detector.image_size
    256
    """

    detector: Any
    _training_images = ("detector",)
    _parameter_constraints = {
        **PUADDetector._parameter_constraints,
        "detector": [ImageDetector],
        "features": [HasMethods("transform")],
    }

    def __init__(
        self,
        detector: ImageDetector | None = None,
        features: Any = None,
        *,
        contamination: float = 0.05,
        calibration: str = "auto",
        threshold: str = "tail",
        random_state: int | np.random.RandomState | None = 0,
        verbose: bool = False,
    ):
        self.detector = detector
        self.features = features
        self.contamination = contamination
        self.calibration = calibration
        self.threshold = threshold
        self.random_state = random_state
        self.verbose = verbose

    # How images are read is a matter of the detector.

    def image_sizes(self, X: Any) -> list[tuple[int, int] | None]:
        """Size of each image as passed.

        Parameters
        ----------
        X : sequence of images
            As in `fit`.

        Returns
        -------
        sizes : list of n (int, int) or None
            Height and width in pixels; None for an image that is skipped.
        """
        return self.detector.image_sizes(X)

    def _reader(self, X):
        return self.detector._reader(X)

    def _frame(self):
        return self.detector._frame()

    def _images_at_once(self):
        return self.detector._images_at_once()

    def _n_channels(self):
        return self.detector._n_channels()

    def _inner(self):
        return self.detector

    def _fit_input(self, reader):
        return [reader.item(i)[0] for i in range(len(reader))]

    def _score_input(self, reader):
        return reader

    def _fit_detector(self, reader):
        self.features_ = clone(self.features).fit(self._fit_input(reader))
        super()._fit_detector(reader)

    def _mean_patches(self, reader):
        images = self._fit_input(reader)
        blocks = (images[lo : lo + 16] for lo in range(0, len(images), 16))
        return np.concatenate(
            [mean_patches(self.features_.transform(block)) for block in blocks]
        )


def mean_patches(X):
    """Mean patch of each image (n, d), float64, without patches that are NaN."""
    images = (np.asarray(image) for image in X)
    return np.stack(
        [
            image[~np.isnan(image[..., 0])].mean(axis=0, dtype=np.float64)
            for image in images
        ]
    )

"""PaDiM (Defard et al., ICPR workshops 2021): a Gaussian at every position.

Section III-B of the paper: mean and regularised covariance of the patch
features at each position of the grid. Section III-C: the score of a patch is its
Mahalanobis distance, that of an image is its largest patch score.
"""

from numbers import Integral, Real
from typing import Any, Self

import numpy as np
from sklearn.utils._param_validation import Interval, StrOptions

from skad._memory import explained_shortage
from skad._patches import image_scores
from skad._progress import progress
from skad._user_warning import warn_user
from skad.base import PatchDetector
from skad.base._memory_of_fit import require_memory_to_learn
from skad.base._warnings import warn_of_equal_images, warn_of_outlier
from skad.detectors._gaussians import Gaussians
from skad.networks._torch_state import in_own_torch_state


class PaDiMDetector(PatchDetector):
    """Detect anomalies by their Mahalanobis distance at each patch position.

    For parts that always lie in the same place. The size of the model grows with the
    grid and the square of the channels, not with the number of images.

    Parameters
    ----------
    eps : float, default=0.01
        Added to the diagonal of every covariance, in squared units of the
        features.

    calibration_size : int, default=128
        Number of training images kept for the threshold, which needs at least
        ``1 / contamination - 1`` of them. All are kept while there are fewer
        images than channels.

    interpolation : {"bilinear", "bicubic"}, default="bilinear"
        How maps are upsampled to pixel size: as in the published code ("bilinear")
        or in the paper ("bicubic").

    contamination : float, default=0.05
        Tolerated false-alarm rate on normal images, in (0, 0.5].

    calibration : {"auto", "loo", "kfold", "split", "train"}, default="auto"
        How the scores behind the threshold are held out. "auto" is "loo": every
        image kept is scored by the Gaussians of all other images, in closed
        form.

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
    mean_ : ndarray of shape (h, w, n_features), float64
        Mean patch feature at each position.

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
    skad.PatchFeatures : ``PatchFeatures(layers=("layer1", "layer2", "layer3"),
        embedding="replicate", n_components=100)`` gives PaDiM's features.

    Notes
    -----
    `partial_fit` and `merge` give the Gaussians of one fit on all images, to
    rounding. A `skad.Pipeline` with PaDiM at its end learns batch by batch, so
    that its memory does not grow with the number of images.

    For d channels, d * d float64 values are kept for each position, and with N < d
    images N * (d + N) instead, by the Woodbury identity. A position that is NaN in
    all training images has no score; maps show their smallest score there.

    The published code takes the maximum of the smoothed map, after a min-max
    normalisation over the whole test set; this follows the paper.

    References
    ----------
    .. [1] T. Defard, A. Setkov, A. Loesch and R. Audigier, "PaDiM: a Patch
       Distribution Modeling Framework for Anomaly Detection and Localization",
       ICPR workshops 2021. Equations 1 and 2.

    Examples
    --------
    >>> import numpy as np
    >>> from skad import PaDiMDetector
    >>> rng = np.random.default_rng(0)
    >>> normal = rng.normal(size=(60, 4, 4, 8))
    >>> anomalous = rng.normal(size=(1, 4, 4, 8))
    >>> anomalous[0, 2, 1] += 6
    >>> detector = PaDiMDetector().partial_fit(normal[:30]).partial_fit(normal[30:])
    >>> detector.predict(anomalous)
    array([-1])
    >>> detector.mean_.shape, detector.covariance(2, 1).shape
    ((4, 4, 8), (8, 8))
    """

    _auto_calibration = "loo"
    _leaves_out_views = True
    _keeps_left_out_scores = True
    _parameter_constraints = {
        **PatchDetector._parameter_constraints,
        "eps": [Interval(Real, 0, None, closed="neither")],
        "calibration_size": [Interval(Integral, 1, None, closed="left")],
        "interpolation": [StrOptions({"bilinear", "bicubic"})],
    }

    def __init__(
        self,
        eps: float = 0.01,
        *,
        calibration_size: int = 128,
        interpolation: str = "bilinear",
        contamination: float = 0.05,
        calibration: str = "auto",
        threshold: str = "tail",
        sigma: float = 4.0,
        random_state: int | np.random.RandomState | None = 0,
        verbose: bool = False,
    ) -> None:
        self.eps = eps
        self.calibration_size = calibration_size
        self.interpolation = interpolation
        self.contamination = contamination
        self.calibration = calibration
        self.threshold = threshold
        self.sigma = sigma
        self.random_state = random_state
        self.verbose = verbose

    def covariance(self, row: int, column: int) -> np.ndarray:
        """Covariance of the patch features at one position.

        Parameters
        ----------
        row, column : int
            Position on the patch grid.

        Returns
        -------
        covariance : ndarray of shape (n_features, n_features), float64
            In squared units of the features, with `eps` added to the diagonal.

        Raises
        ------
        ValueError
            If the position lies outside of the grid.
        """
        height, width = self.mean_.shape[:2]
        if not (0 <= row < height and 0 <= column < width):
            raise ValueError(
                f"position ({row}, {column}) lies outside the grid of {height} x "
                f"{width} patches."
            )
        return self._gaussians.covariance(row * width + column)

    def _fit(self, X: Any) -> None:
        self._learn_from(self._new_gaussians(X), X)

    def _update(self, X: Any) -> None:
        self._learn_from(self._gaussians.reopened(), X)

    def _merge(self, other: Any) -> None:
        gaussians = self._gaussians.reopened().join(other._gaussians)
        self._set_gaussians(gaussians, self.mean_.shape[:2])

    @in_own_torch_state  # a network may extract the batches
    def _fit_batches(self, batches: Any, update: bool = False) -> Self:
        """Fit, or update, on batches of positions in X and features."""
        self._validate_params()
        if update:
            self._check_views(1)
        else:
            self._n_per_image = 1
        with explained_shortage("PaDiMDetector", self._memory_advice()):
            gaussians, shape = self._gaussians_of(batches, update)
            if gaussians.n_images == 1:  # which need not be in the last batch
                return self.fit(gaussians.images[:1].reshape(1, *shape))
            self._set_gaussians(gaussians, shape[:2])
            self.n_samples_seen_ = gaussians.n_images
            if not update:
                self._take_threshold_parameters()
                warn_of_equal_images(self, gaussians.images)
            scores, maps = self._score_left_out()
            self._replace_held_out(scores, maps)
        if not update:
            warn_of_outlier(self, scores, gaussians.numbers)
        return self

    def _fit_bytes(
        self, shape: tuple[int, ...], itemsize: int, *, first: bool
    ) -> tuple[float, float]:
        n, n_positions = shape[0], shape[1] * shape[2]
        n += 0 if first else self.n_samples_seen_ * self._n_per_image
        n_kept = self.calibration_size * self._n_per_image
        kept, passing = Gaussians.n_bytes(n, n_positions, shape[3], itemsize, n_kept)
        return kept, passing if first else passing + kept  # the old ones stay that long

    def _memory_advice(self) -> str:
        return (
            "Reduce the channels of the features, whose square counts at every "
            "position: n_components=100 of PatchFeatures is that of the paper. Or "
            "reduce image_size of the features, or calibration_size="
            f"{self.calibration_size}."
        )

    def _gaussians_of(self, batches: Any, update: bool) -> tuple[Any, tuple[int, ...]]:
        """Gaussians, not finished, of all batches, and the shape of an image."""
        gaussians = self._gaussians.reopened() if update else None
        n_before = self.n_samples_seen_ if update else 0
        shape: tuple[int, ...] = ()
        for positions, X in batches:
            X, present = self._check_features(X, reset=gaussians is None)
            if not shape:
                shape = X.shape[1:]
                if update:
                    self._check_grid(shape[:2])
                n = getattr(batches, "n_images", None) or len(X)
                require_memory_to_learn(
                    self, (n, *shape), X.dtype.itemsize, "loo", first=not update
                )
            if gaussians is None:
                gaussians = self._new_gaussians(X)
            if present.any():
                X_present = X if present.all() else X[present]
                gaussians.add(_flat(X_present), positions[present])
        if gaussians is None or gaussians.n_images == n_before:
            raise ValueError("no normal image is left: all of them were skipped.")
        return gaussians, shape

    def _new_gaussians(self, X: Any) -> Gaussians:
        n_positions, n_features = X.shape[1] * X.shape[2], X.shape[3]
        # The views of one image alone are folds of their own.
        n_per_image = self._n_per_image if len(X) % self._n_per_image == 0 else 1
        return Gaussians(
            n_positions,
            n_features,
            X.dtype,
            self.eps,
            self.calibration_size,
            n_per_image,
        )

    def _learn_from(self, gaussians: Any, X: Any) -> None:
        with progress(len(X), "Gaussians", self.verbose) as bar:
            step = max(1, 32 // self._n_per_image) * self._n_per_image
            for lo in range(0, len(X), step):
                gaussians.add(_flat(X[lo : lo + step]))
                bar.update(min(step, len(X) - lo))
        if gaussians.n_images == 1:
            warn_user(
                "one training image has no covariance: patches score by their "
                "Euclidean distance to it, divided by the square root of eps.",
            )
        self._set_gaussians(gaussians, X.shape[1:3])

    def _set_gaussians(self, gaussians: Any, grid: Any) -> None:
        self._gaussians = gaussians.finish()
        self.mean_ = gaussians.mean.reshape(*grid, -1)

    def _score(self, X: Any) -> tuple[np.ndarray, np.ndarray]:
        if X.shape[1:3] != self.mean_.shape[:2]:
            raise ValueError(
                f"X has a patch grid of {X.shape[1]} x {X.shape[2]}, but the Gaussians "
                f"belong to {self.mean_.shape[0]} x {self.mean_.shape[1]} positions; "
                "use the same image size and layers as in fit."
            )
        maps = self._gaussians.distances(_flat(X)).reshape(X.shape[:3])
        return image_scores(maps), maps

    def _left_out_images(self, n: int) -> np.ndarray:
        return self._gaussians.numbers - self._gaussians.start

    def _held_out_positions(self, n: int) -> np.ndarray:
        if self._resolved_calibration() != "loo":
            return super()._held_out_positions(n)
        return self._left_out_images(n)

    def _score_left_out(self, X: Any = None) -> tuple[np.ndarray, np.ndarray]:
        """Score the images kept, each by the Gaussians of all others."""
        grid = self.mean_.shape[:2]
        n_positions = grid[0] * grid[1]
        with progress(n_positions, "positions, images left out", self.verbose) as bar:
            # Views of one image alone are left out one by one.
            n_together = 1 if self.n_samples_seen_ == 1 else self._n_per_image
            scored = self._held_out_sample % n_together
            maps = self._gaussians.left_out(bar.update, n_together, scored)
            maps = maps.reshape(-1, *grid)
        return image_scores(maps), maps

    def _rendering(self, window: Any, grid: Any) -> dict[str, Any]:
        return {**super()._rendering(window, grid), "interpolation": self.interpolation}


def _flat(X: Any) -> np.ndarray:
    return X.reshape(len(X), -1, X.shape[-1])

"""Any outlier detector of scikit-learn or PyOD as a detector on patches."""

import math
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import HasMethods, Interval

from skad._patches import image_scores, patch_maps, patch_rows
from skad._portable import with_plain_arrays
from skad.base import PatchDetector


class PatchwiseDetector(PatchDetector):
    """Detect anomalies by an outlier detector of scikit-learn that scores patches.

    The estimator learns from single patches of the normal images, as rows, wherever
    they lie in an image. An image scores by its most anomalous patches.

    Parameters
    ----------
    estimator : estimator, default=None
        An outlier detector, such as ``LocalOutlierFactor(novelty=True)``, `OneClassSVM`
        or `EllipticEnvelope`, a density, such as `GaussianMixture`, a detector of PyOD,
        or a pipeline of scikit-learn that ends in one of these. A copy of it is fitted.
        Its own threshold, `contamination` and labels have no effect. None is an
        `IsolationForest`, seeded by `random_state`.

    max_patches : int or None, default=20_000
        Number of patches to learn from, sampled at random from those of all images;
        None takes all.

    top_ratio : float or None, default=0.01
        An image scores by the mean of this share of its highest patch scores;
        None takes the highest.

    contamination : float, default=0.05
        Tolerated false-alarm rate on normal images, in (0, 0.5].

    calibration : {"auto", "kfold", "split", "train"}, default="auto"
        How the scores behind the threshold are held out. "auto" is "kfold": every
        image is scored by an estimator that learned from the other nine tenths, which
        takes ten more fits; "split" takes none.

    threshold : {"tail", "rank"}, default="tail"
        How the threshold comes from the held-out scores: by a tail fitted to them,
        which keeps the false-alarm rate on average from few images, or by their
        conformal rank, which keeps it for any distribution and finds fewer anomalies
        where images are few.

    sigma : float, default=4.0
        Standard deviation in pixels of the Gaussian that smooths maps rendered at
        pixel size.

    random_state : int, RandomState instance or None, default=0
        Determines the sampled patches and the images that are held out. `estimator`
        has a seed of its own.

    verbose : bool, default=False
        Report progress on the standard error stream.

    Attributes
    ----------
    estimator_ : estimator
        The fitted copy.

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
    Patchwise : A transformer of scikit-learn on patches.

    Notes
    -----
    Patch scores are `score_samples` of the estimator with the sign turned, or
    `decision_function` where it has no `score_samples`. In PyOD, a larger
    `decision_function` is more anomalous; its sign is kept.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.neighbors import LocalOutlierFactor
    >>> from skad import PatchwiseDetector
    >>> rng = np.random.default_rng(0)
    >>> detector = PatchwiseDetector(LocalOutlierFactor(novelty=True))
    >>> detector = detector.fit(rng.normal(size=(40, 4, 4, 6)))
    >>> new = rng.normal(size=(2, 4, 4, 6))
    >>> new[1, 3, 2] += 5
    >>> detector.predict(new)
    array([ 1, -1])
    >>> np.unravel_index(detector.anomaly_map(new)[1].argmax(), (4, 4))
    (np.int64(3), np.int64(2))
    """

    _parameter_constraints = {
        **PatchDetector._parameter_constraints,
        "estimator": [HasMethods("fit"), None],
        "max_patches": [Interval(Integral, 1, None, closed="left"), None],
        "top_ratio": [Interval(Real, 0, 1, closed="right"), None],
    }

    def __init__(
        self,
        estimator: Any = None,
        max_patches: int | None = 20_000,
        *,
        top_ratio: float | None = 0.01,
        contamination: float = 0.05,
        calibration: str = "auto",
        threshold: str = "tail",
        sigma: float = 4.0,
        random_state: int | np.random.RandomState | None = 0,
        verbose: bool = False,
    ) -> None:
        self.estimator = estimator
        self.max_patches = max_patches
        self.top_ratio = top_ratio
        self.contamination = contamination
        self.calibration = calibration
        self.threshold = threshold
        self.sigma = sigma
        self.random_state = random_state
        self.verbose = verbose

    def _fit(self, X: np.ndarray) -> None:
        rng = check_random_state(self.random_state)
        rows, _ = patch_rows(X)
        if self.max_patches is not None and len(rows) > self.max_patches:
            sampled = rng.choice(len(rows), self.max_patches, replace=False)
            rows = rows[np.sort(sampled)]
        if self.estimator is None:
            # Slow to import, and only fits need it.
            from sklearn.ensemble import IsolationForest

            estimator = IsolationForest(random_state=rng.randint(2**31))
        else:
            estimator = clone(self.estimator)
        _check_scores_new_rows(estimator)
        estimator.fit(rows)  # what it returns is not always itself in PyOD
        self.estimator_ = with_plain_arrays(estimator)

    def _fit_bytes(
        self, shape: tuple[int, ...], itemsize: int, *, first: bool
    ) -> tuple[float, float]:
        n_rows = math.prod(shape[:3])
        if self.max_patches is not None:
            n_rows = min(n_rows, self.max_patches)
        rows = float(n_rows * shape[3] * itemsize)
        return rows, rows  # `estimator` may keep them

    def _memory_advice(self) -> str:
        return (
            f"Reduce max_patches={self.max_patches}, image_size of the features, or "
            "the number of images."
        )

    def _score(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows, inside = patch_rows(X)
        maps = patch_maps(_anomaly_scores(self.estimator_, rows), inside, X.shape[:3])
        return image_scores(maps, self.top_ratio), maps


def _check_scores_new_rows(estimator: Any) -> None:
    """Refuse an estimator that cannot score rows that it has not learned from."""
    if hasattr(estimator, "score_samples") or hasattr(estimator, "decision_function"):
        return
    name = type(estimator).__name__
    hint = f" Use {name}(novelty=True)." if hasattr(estimator, "novelty") else ""
    raise TypeError(
        f"estimator={name} has neither score_samples nor decision_function, one of "
        f"which has to score the patches of new images.{hint}"
    )


def _anomaly_scores(estimator: Any, rows: np.ndarray) -> np.ndarray:
    """Scores (n,) of rows, larger for more anomalous, float64."""
    if _is_of_pyod(estimator):
        scores = np.asarray(estimator.decision_function(rows), np.float64)
    elif hasattr(estimator, "score_samples"):
        scores = -np.asarray(estimator.score_samples(rows), np.float64)
    else:
        scores = -np.asarray(estimator.decision_function(rows), np.float64)
    if scores.shape != (len(rows),):
        raise ValueError(
            f"{type(estimator).__name__} gives scores of shape {scores.shape} for "
            f"{len(rows)} patches; estimator must give one score per row, as outlier "
            "detectors do."
        )
    return scores


def _is_of_pyod(estimator: Any) -> bool:
    """Whether an estimator, or the last step of a pipeline, is a detector of PyOD."""
    if hasattr(estimator, "steps"):
        return _is_of_pyod(estimator.steps[-1][1])
    return any(
        cls.__name__ == "BaseDetector" and cls.__module__.startswith("pyod.")
        for cls in type(estimator).__mro__
    )

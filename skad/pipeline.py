"""A scikit-learn Pipeline that also tells where an image is anomalous."""

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Self

import numpy as np
import sklearn.pipeline
from numpy.typing import ArrayLike
from sklearn import get_config
from sklearn.exceptions import NotFittedError
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from skad._augmented_fit import check_can_augment, fit_on_views, update_on_views
from skad._chain import (
    Chain,
    is_frozen,
    path_to_images,
    require_maps,
    transform_through,
)
from skad._chain import unwrap as _unwrap
from skad._memory import checked_features
from skad._steps import has_bare, named


def _final_has(method: str) -> Callable[[Any], bool]:
    def check(pipeline: Any) -> bool:
        getattr(Chain(pipeline).final, method)  # raises if it is absent
        return True

    return check


class Pipeline(sklearn.pipeline.Pipeline):
    """Chain of transformers with a detector at its end.

    A `sklearn.pipeline.Pipeline` in every respect, which also takes steps
    without names and offers the maps of its detector in the geometry of the
    images.

    Parameters
    ----------
    steps : list of estimators or of (str, estimator)
        Steps without a name are named as `make_pipeline` does; the attribute
        `steps` then holds the named list.

    transform_input : list of str, default=None
        As in scikit-learn.

    memory : str or object with the joblib.Memory interface, default=None
        Caches fitted transformers. To cache the features of images, use
        ``PatchFeatures(cache_dir=)``, which also serves scoring.

    verbose : bool, default=False
        Print the time of each step of `fit`.

    augmentation : AugmentedViews or None, default=None
        For few images: `fit` and `partial_fit` learn from each normal image and from
        changed copies of it. For held-out scores, an image and all of its copies are
        left out together, so that thresholds keep their rate of false alarms; there is
        one score per image. Needs a step that reads images, and one of
        `PatchCoreDetector`, `PaDiMDetector`, `SPADEDetector`, `SubspaceDetector`,
        `PatchwiseDetector` and `SimpleNetDetector` at the end.

    See Also
    --------
    make_pipeline : The same from positional arguments.
    skad.synthesis.AugmentedViews : The copies.
    anomaly_map : Maps of any estimator, scikit-learn's own Pipeline included.

    Examples
    --------
    >>> from skad import PatchCoreDetector, PCANetFeatures, Pipeline
    >>> from skad.datasets import make_textures
    >>> data = make_textures(n_normal=24, n_anomalous=2, size=64, random_state=0)
    >>> model = Pipeline([PCANetFeatures(image_size=64), PatchCoreDetector()])
    >>> [name for name, _ in model.steps]
    ['pcanetfeatures', 'patchcoredetector']
    >>> maps = model.fit(data.train).anomaly_map(data.test)
    >>> maps.shape[1:]
    (64, 64)
    """

    augmentation: Any = None  # of pipelines from before it was a parameter

    def __init__(
        self,
        steps: Sequence[Any],
        *,
        transform_input: list[str] | None = None,
        memory: Any = None,
        verbose: bool = False,
        augmentation: Any = None,
    ) -> None:
        super().__init__(
            steps, transform_input=transform_input, memory=memory, verbose=verbose
        )
        self.augmentation = augmentation

    @property
    def steps(self) -> Any:
        """Named steps."""
        return self._steps

    @steps.setter
    def steps(self, steps: Sequence[Any]) -> None:
        # clone demands that a list that it passes is stored as it is; what it
        # passes is always named.
        self._steps = steps if not has_bare(steps) else named(steps)

    def __getitem__(self, ind: Any) -> Any:
        """Give a step by its number or name, or a pipeline of a slice of the steps.

        As in scikit-learn, the pipeline shares the steps. It has the same parameters,
        but `augmentation` only where it has the step that reads images and ends in the
        detector, which learns from the views.
        """
        found = super().__getitem__(ind)
        if isinstance(ind, slice):
            some = self.steps[ind]
            learns = some[-1:] == self.steps[-1:] and path_to_images(found)
            for name, value in self.get_params(deep=False).items():
                if name != "steps" and (name != "augmentation" or learns):
                    setattr(found, name, value)
        return found

    def fit(
        self,
        X: Any,
        y: ArrayLike | None = None,
        regions: Sequence[Any] | None = None,
        **params: Any,
    ) -> Self:
        """Fit all transformers and the detector.

        As in scikit-learn. A `PatchFeatures` followed by a `PaDiMDetector`, or by a
        `PatchCoreDetector` with `bank_size`, works batch by batch, so that memory does
        not grow with the number of images. With `augmentation`, the features of all
        images and copies are held in memory.

        Parameters
        ----------
        X : sequence of images
            As the first step takes them.

        y : array-like of shape (n,), optional
            Images labelled -1 are left out.

        regions : sequence of n masks, optional
            As in `PatchFeatures.transform`.

        **params
            As in scikit-learn.

        Returns
        -------
        self : object
            The same object.
        """
        if self.augmentation is not None:
            return self._fit_augmented(X, y, regions, params)
        Chain(self).check_takes_images()
        if self._can_stream() and not params:
            started = time.perf_counter()
            self.steps[1][1]._fit_batches(self._training_batches(X, y, regions))
            self._say_elapsed(started)
            return self
        with self._checked_memory():
            if regions is None:
                return super().fit(X, y, **params)
            path = path_to_images(self)
            if path and is_frozen(path[0][1]):
                return self._fit_around_frozen(path[0][0], X, y, regions, params)
            return super().fit(X, y, **params, **_regions_parameter(path, regions))

    def _checked_memory(self) -> AbstractContextManager[None, bool | None]:
        """Let a detector right after the features refuse these before extraction."""
        final = self.steps[-1][1] if len(self.steps) == 2 else None
        check = getattr(final, "_require_memory_to_fit", None)
        return nullcontext() if check is None else checked_features(check)

    def _fit_augmented(
        self,
        X: Any,
        y: ArrayLike | None,
        regions: Sequence[Any] | None,
        params: dict[str, Any],
    ) -> Self:
        if params:
            raise ValueError(
                f"{sorted(params)} cannot be passed to fit together with augmentation; "
                "only y and regions can."
            )
        check_can_augment(self)
        started = time.perf_counter()
        with self._checked_memory():
            fit_on_views(self, X, y, regions)
        self._say_elapsed(started)
        return self

    def _training_batches(
        self, X: Any, y: ArrayLike | None, regions: Sequence[Any] | None
    ) -> Iterable[tuple[np.ndarray, np.ndarray]]:
        """Positions and features of the normal images, as often as is asked for."""
        images = self.steps[0][1]
        if is_frozen(images):
            return _unwrap(images)._normal_batches(X, y, regions)
        return images._fit_batches(X, y, regions)

    def _say_elapsed(self, started: float) -> None:
        if self.verbose:
            names = " and ".join(name for name, _ in self.steps)
            seconds = time.perf_counter() - started
            n = len(self.steps)
            sys.stdout.write(
                f"[Pipeline] (steps 1 and {n} of {n}) Processing {names}, "
                f"total={seconds:5.1f}s\n"
            )

    def _fit_around_frozen(
        self,
        name: str,
        X: Any,
        y: ArrayLike | None,
        regions: Sequence[Any] | None,
        params: dict[str, Any],
    ) -> Self:
        """Fit with regions for a frozen step, to which scikit-learn passes none."""
        if params:
            raise ValueError(
                f"regions and {sorted(params)} cannot both be passed to fit where the "
                f"step {name!r} that reads images is frozen."
            )
        k = [other for other, _ in self.steps].index(name)
        if k:
            before = self[:k]
            X = before.fit_transform(X, y)
        X = transform_through(self.steps[k][1], X, regions)
        after = self[k + 1 :].fit(X, y)
        # With `memory`, the steps that were fitted are copies.
        self.steps = [*(before.steps if k else []), self.steps[k], *after.steps]
        return self

    @available_if(lambda pipeline: hasattr(type(Chain(pipeline).final), "fit_predict"))
    def fit_predict(
        self,
        X: Any,
        y: ArrayLike | None = None,
        regions: Sequence[Any] | None = None,
        **params: Any,
    ) -> np.ndarray:
        """Learn from images, and decide for each of them as if it were new.

        Images that the detector learned from are judged by their held-out scores, all
        others, those labelled -1, as by `predict`; see `fit_predict` of the detector.

        Parameters
        ----------
        X : sequence of images
            As the first step takes them.

        y : array-like of shape (n,), optional
            Images labelled -1 are not learned from.

        regions : sequence of n masks, optional
            As in `PatchFeatures.transform`.

        **params
            As in scikit-learn.

        Returns
        -------
        labels : ndarray of shape (n,), int64
            +1 is normal, -1 is anomalous; 0 for an image that was skipped.

        Raises
        ------
        ValueError
            If not every image that was learned from has a held-out score.
        """
        final = self.steps[-1][1]
        if is_frozen(final):
            raise ValueError(
                f"fit_predict has no held-out scores of X: {final!r} is frozen and "
                "learns nothing. Use fit, then predict."
            )
        if hasattr(final, "_check_holds_out_all"):
            final._check_holds_out_all()
            if getattr(self.augmentation, "calibrate_on", "images") == "views":
                final._refuse_scores_of_views("fit_predict")
        streams = self._can_stream() and not params
        if regions is None and not streams and self.augmentation is None:
            Chain(self).check_takes_images()
            with self._checked_memory():
                return super().fit_predict(X, y, **params)
        self.fit(X, y, regions, **params)
        decisions = self.decision_function(X, regions)
        if not hasattr(final, "_labels_after_fit"):
            raise ValueError(
                f"fit_predict with regions needs a detector of skad as the last step, "
                f"not {type(final).__name__}; use fit, then predict."
            )
        return final._labels_after_fit(X, y, decisions)

    @available_if(_final_has("score_samples"))
    def score_samples(self, X: Any, regions: Sequence[Any] | None = None) -> np.ndarray:
        """Score images; larger is more normal.

        Parameters
        ----------
        X : sequence of images
            As the first step takes them.

        regions : sequence of n masks, optional
            As in `PatchFeatures.transform`.

        Returns
        -------
        scores : ndarray of shape (n,), float64
            NaN for an image that was skipped.
        """
        return Chain(self).ask("score_samples", X, regions)

    @available_if(_final_has("decision_function"))
    def decision_function(
        self, X: Any, regions: Sequence[Any] | None = None, **params: Any
    ) -> np.ndarray:
        """Score images against the threshold; negative is anomalous.

        Parameters
        ----------
        X : sequence of images
            As the first step takes them.

        regions : sequence of n masks, optional
            As in `PatchFeatures.transform`.

        **params
            As in scikit-learn.

        Returns
        -------
        decision : ndarray of shape (n,), float64
            Scores minus the threshold.
        """
        if params:
            return super().decision_function(X, **params)
        return Chain(self).ask("decision_function", X, regions)

    @available_if(_final_has("predict"))
    def predict(
        self, X: Any, regions: Sequence[Any] | None = None, **params: Any
    ) -> np.ndarray:
        """Decide for each image: +1 is normal, -1 is anomalous.

        Parameters
        ----------
        X : sequence of images
            As the first step takes them.

        regions : sequence of n masks, optional
            As in `PatchFeatures.transform`.

        **params
            As in scikit-learn.

        Returns
        -------
        labels : ndarray of shape (n,), int64
            0 for an image that was skipped.
        """
        if params:
            return super().predict(X, **params)
        return Chain(self).ask("predict", X, regions)

    @available_if(_final_has("partial_fit"))
    def partial_fit(
        self, X: Any, y: ArrayLike | None = None, regions: Sequence[Any] | None = None
    ) -> Self:
        """Let the detector learn from more normal images.

        Transformers stay as the first call has fitted them: the filters of
        `PCANetFeatures`, for example. A frozen detector stays as it is, as in `fit`.

        Parameters
        ----------
        X : sequence of images
            As the first step takes them.

        y : array-like of shape (n,), optional
            Images labelled -1 are left out.

        regions : sequence of n masks, optional
            As in `PatchFeatures.transform`.

        Returns
        -------
        self : object
            The same object.
        """
        final = self.steps[-1][1]
        if not _is_fitted(final):
            self.fit(X, y, regions)
            return self
        if self.augmentation is not None:
            check_can_augment(self)
            update_on_views(self, X, y, regions)
            return self
        chain = Chain(self)
        if self._can_stream():
            batches = chain.images._normal_batches(X, y, regions)
            chain.final._fit_batches(batches, update=True)
        elif not chain.is_frozen:
            chain.final.partial_fit(chain.features(X, regions), y)
        return self

    def _can_stream(self) -> bool:
        """Whether features can pass from step to step batch by batch."""
        if len(self.steps) != 2 or self.memory is not None:
            return False
        if self.transform_input is not None or getattr(self, "_skl_callbacks", None):
            return False
        images, final = (step for _, step in self.steps)
        return (
            hasattr(final, "_fit_batches")
            and hasattr(_unwrap(images), "_fit_batches")
            and not is_frozen(final)
            and final._resolved_calibration() == "loo"
        )

    @available_if(_final_has("anomaly_map"))
    def anomaly_map(
        self,
        X: Any,
        size: tuple[int, int] | None = None,
        regions: Sequence[Any] | None = None,
    ) -> np.ndarray | list[np.ndarray]:
        """Anomaly score of each pixel; larger is more anomalous.

        Mind the sign: scores are larger for normal images, maps for anomalous
        pixels.

        Parameters
        ----------
        X : sequence of images
            As the first step takes them.

        size : (int, int), optional
            Height and width of the maps in pixels. Without it every map has
            the size of its image as the step that reads images gets it: as passed,
            unless a step before has changed it. Behind one that crops, a map
            shows what is left of the image.

        regions : sequence of n masks, optional
            As in `PatchFeatures.transform`.

        Returns
        -------
        maps : ndarray of shape (n, H, W), float32, or list of (H, W) arrays
            A list where images differ in size. Pixels outside a region, or
            outside a crop that the features saw, take the smallest score of the
            image. NaN for an image that was skipped; if its size is not known
            either, it has the size of the first image of which it is, or
            `image_size` where there is none.
        """
        return Chain(self).anomaly_map(X, size, regions)

    @available_if(_final_has("predict_mask"))
    def predict_mask(
        self,
        X: Any,
        size: tuple[int, int] | None = None,
        regions: Sequence[Any] | None = None,
    ) -> np.ndarray | list[np.ndarray]:
        """Mark the anomalous pixels.

        Parameters
        ----------
        X : sequence of images
            As the first step takes them.

        size : (int, int), optional
            As in `anomaly_map`.

        regions : sequence of n masks, optional
            As in `PatchFeatures.transform`.

        Returns
        -------
        masks : ndarray of shape (n, H, W), bool, or list of (H, W) arrays
            True where the map exceeds `pixel_threshold` at its size; nowhere in an
            image that was skipped.
        """
        return Chain(self).predict_mask(X, size, regions)

    @available_if(_final_has("pixel_threshold"))
    def pixel_threshold(self, size: tuple[int, int]) -> float:
        """Threshold for the pixels of maps of a given size.

        Parameters
        ----------
        size : (int, int)
            Height and width of the maps. With features of ``resize="short"``, the
            images are taken to have that size.

        Returns
        -------
        threshold : float
            An anomaly score, as of `anomaly_map`.
        """
        return Chain(self).pixel_threshold(size)

    @available_if(_final_has("p_value"))
    def p_value(self, X: Any, regions: Sequence[Any] | None = None) -> np.ndarray:
        """Conformal p-value of each image: small for anomalies.

        Parameters
        ----------
        X : sequence of images
            As the first step takes them.

        regions : sequence of n masks, optional
            As in `PatchFeatures.transform`.

        Returns
        -------
        p : ndarray of shape (n,), float64
            In (0, 1].
        """
        return Chain(self).ask("p_value", X, regions)

    @available_if(_final_has("set_contamination"))
    def set_contamination(self, contamination: float) -> Self:
        """Set another rate of false alarms, from the held-out scores at hand.

        Parameters
        ----------
        contamination : float
            Tolerated false-alarm rate on normal images, in (0, 0.5].

        Returns
        -------
        self : object
            The same object.
        """
        _unwrap(self.steps[-1][1]).set_contamination(contamination)
        return self

    @available_if(_final_has("calibrate"))
    def calibrate(
        self,
        X: Any,
        y: ArrayLike | None = None,
        regions: Sequence[Any] | None = None,
        *,
        add: bool = False,
    ) -> Self:
        """Set the threshold anew from normal images that were not trained on.

        Parameters
        ----------
        X : sequence of images
            As the first step takes them.

        y : array-like of shape (n,), optional
            Images labelled -1 are left out.

        regions : sequence of n masks, optional
            As in `PatchFeatures.transform`.

        add : bool, default=False
            Whether to add to the held-out scores at hand; by default the new ones
            replace them.

        Returns
        -------
        self : object
            The same object.
        """
        chain = Chain(self)
        chain.final.calibrate(chain.features(X, regions), y, add=add)
        return self


def make_pipeline(
    *steps: Any,
    memory: Any = None,
    transform_input: list[str] | None = None,
    verbose: bool = False,
    augmentation: Any = None,
) -> Pipeline:
    """Build a `Pipeline` from estimators, naming each after its class.

    Parameters
    ----------
    *steps : estimators
        Transformers, and a detector at the end.

    memory, transform_input, verbose, augmentation : as in Pipeline
        As in `Pipeline`.

    Returns
    -------
    pipeline : Pipeline
        Not fitted.

    Examples
    --------
    >>> from skad import PatchCoreDetector, PCANetFeatures, make_pipeline
    >>> make_pipeline(PCANetFeatures(), PatchCoreDetector()).named_steps.keys()
    dict_keys(['pcanetfeatures', 'patchcoredetector'])
    """
    steps = sklearn.pipeline.make_pipeline(*steps).steps
    kwargs: dict[str, Any] = {
        "memory": memory,
        "verbose": verbose,
        "augmentation": augmentation,
    }
    if transform_input is not None:
        kwargs["transform_input"] = transform_input
    return Pipeline(steps, **kwargs)


def anomaly_map(
    estimator: Any,
    X: Any,
    size: tuple[int, int] | None = None,
    regions: Sequence[Any] | None = None,
) -> np.ndarray | list[np.ndarray]:
    """Anomaly maps of any fitted estimator that can make them.

    Detectors, this package's and scikit-learn's Pipeline, and searches around
    them.

    Parameters
    ----------
    estimator : object
        A fitted detector, Pipeline, or search such as `GridSearchCV`.

    X : sequence of images, or ndarray of patch features
        What the estimator's `predict` takes.

    size : (int, int), optional
        Height and width of the maps in pixels. Without it, every map has the
        size of its image, or of the patch grid where X holds features.

    regions : sequence of n masks, optional
        For pipelines: what to look at in each image, as in
        `PatchFeatures.transform`.

    Returns
    -------
    maps : ndarray of shape (n, H, W), float32, or list of (H, W) arrays
        Larger is more anomalous. A list where images differ in size.

    Raises
    ------
    TypeError
        If the estimator makes no maps.
    """
    inner = _unwrap(estimator)
    if isinstance(inner, sklearn.pipeline.Pipeline):
        return Chain(inner).anomaly_map(X, size, regions)
    require_maps(inner)
    if regions is not None:
        if hasattr(inner, "image_sizes"):
            takes = "takes whole images and cannot leave parts of them out."
        else:
            takes = "takes features, where patches outside a region are NaN."
        raise ValueError(
            "regions is for pipelines that start from images; "
            f"{type(inner).__name__} {takes}"
        )
    return inner.anomaly_map(X, size=size)


def _is_fitted(estimator: Any) -> bool:
    try:
        check_is_fitted(estimator)
    except NotFittedError:
        return False
    return True


def _regions_parameter(
    path: Sequence[tuple[str, Any]], regions: Sequence[Any]
) -> dict[str, Any]:
    """Regions, as the keyword argument by which `fit` passes them to their step."""
    if not path:
        raise ValueError("regions needs a step that reads images, as PatchFeatures.")
    if any(is_frozen(step) for _, step in path):
        raise ValueError(
            f"regions cannot reach the frozen step {path[-1][0]!r} inside of "
            f"{path[0][0]!r} during fit: scikit-learn passes none to it. Make it a "
            "step of the outer pipeline."
        )
    if get_config()["enable_metadata_routing"]:
        return {"regions": regions}
    return {"__".join([*(name for name, _ in path), "regions"]): regions}

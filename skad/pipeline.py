"""A scikit-learn Pipeline that also says where an image is anomalous."""

from functools import partial
from typing import Any

import numpy as np
import sklearn.pipeline
from sklearn import get_config
from sklearn.exceptions import NotFittedError
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from skad._checks import check_size
from skad._maps import draw_each, masks_above, render
from skad._steps import has_bare, named


def _final_has(method):
    def check(pipeline):
        getattr(_unwrap(pipeline.steps[-1][1]), method)  # raises if it is absent
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

    See Also
    --------
    make_pipeline : The same from positional arguments.
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

    @property
    def steps(self):
        """Named steps."""
        return self._steps

    @steps.setter
    def steps(self, steps):
        # clone demands that a list that it passes is stored as it is; what it
        # passes is always named.
        self._steps = steps if not has_bare(steps) else named(steps)

    def fit(self, X, y=None, regions=None, **params):
        """Fit all transformers and the detector.

        As in scikit-learn. A `PatchFeatures` followed by a `PaDiMDetector` works
        batch by batch, so that memory does not grow with the number of images.

        Parameters
        ----------
        X : sequence of images

        y : array-like of shape (n,), optional
            Images labelled -1 are left out.

        regions : sequence of n masks, optional
            As in `PatchFeatures.transform`.

        **params
            As in scikit-learn.

        Returns
        -------
        self : object
        """
        if self._can_stream() and not params:
            self.steps[1][1]._fit_blocks(self.steps[0][1]._fit_blocks(X, y, regions))
            return self
        if regions is not None:
            params[self._regions_name()] = regions
        return super().fit(X, y, **params)

    def _regions_name(self):
        """The name by which scikit-learn's pipeline takes regions in `fit`."""
        if get_config()["enable_metadata_routing"]:
            return "regions"
        for name, step in self.steps[:-1]:
            if hasattr(_unwrap(step), "image_sizes"):
                return f"{name}__regions"
        raise ValueError("regions needs a step that reads images, as PatchFeatures.")

    @available_if(_final_has("score_samples"))
    def score_samples(self, X, regions=None):
        """Score images; larger is more normal.

        Parameters
        ----------
        X : sequence of images

        regions : sequence of n masks, optional
            As in `PatchFeatures.transform`.

        Returns
        -------
        scores : ndarray of shape (n,), float64
        """
        return _judged(self, "score_samples", X, regions)

    @available_if(_final_has("decision_function"))
    def decision_function(self, X, regions=None, **params):
        """Score images against the threshold; negative is anomalous.

        Parameters
        ----------
        X : sequence of images

        regions : sequence of n masks, optional
            As in `PatchFeatures.transform`.

        **params
            As in scikit-learn.

        Returns
        -------
        decision : ndarray of shape (n,), float64
        """
        if params:
            return super().decision_function(X, **params)
        return _judged(self, "decision_function", X, regions)

    @available_if(_final_has("predict"))
    def predict(self, X, regions=None, **params):
        """Decide for each image: +1 is normal, -1 is anomalous.

        Parameters
        ----------
        X : sequence of images

        regions : sequence of n masks, optional
            As in `PatchFeatures.transform`.

        **params
            As in scikit-learn.

        Returns
        -------
        labels : ndarray of shape (n,), int64
        """
        if params:
            return super().predict(X, **params)
        return _judged(self, "predict", X, regions)

    @available_if(_final_has("partial_fit"))
    def partial_fit(self, X, y=None, regions=None):
        """Let the detector learn from more good images.

        Transformers stay as the first call has fitted them: the filters of
        `PCANetFeatures`, for example.

        Parameters
        ----------
        X : sequence of images

        y : array-like of shape (n,), optional
            Images labelled -1 are left out.

        regions : sequence of n masks, optional
            As in `PatchFeatures.transform`.

        Returns
        -------
        self : object
        """
        final = self.steps[-1][1]
        if not _is_fitted(final):
            self.fit(X, y, regions)
        elif self._can_stream():
            images = self.steps[0][1]
            final._fit_blocks(images._transform_blocks(X, y, regions), update=True)
        else:
            final.partial_fit(_transformed(self, X, regions), y)
        return self

    def _can_stream(self):
        """Whether features can pass from step to step block by block."""
        if len(self.steps) != 2 or self.memory is not None:
            return False
        images, final = (step for _, step in self.steps)
        return (
            hasattr(images, "_fit_blocks")
            and hasattr(final, "_fit_blocks")
            and final._calibration() == "loo"
        )

    @available_if(_final_has("anomaly_map"))
    def anomaly_map(self, X, size=None, regions=None):
        """Say where images are anomalous; larger is more anomalous.

        Mind the sign: scores are larger for normal images, maps for anomalous
        pixels.

        Parameters
        ----------
        X : sequence of images

        size : (int, int), optional
            Height and width of the maps in pixels. Without it every map has
            the size of its image as passed.

        regions : sequence of n masks, optional
            As in `PatchFeatures.transform`.

        Returns
        -------
        maps : ndarray of shape (n, H, W), float32, or list of (H, W) arrays
            A list where images differ in size. Pixels outside a region, or
            outside a crop that the features saw, take the smallest score of the
            image.
        """
        return _pipeline_map(self, X, size, regions)

    @available_if(_final_has("predict_mask"))
    def predict_mask(self, X, size=None, regions=None):
        """Mark the anomalous pixels.

        Parameters
        ----------
        X : sequence of images

        size : (int, int), optional
            As in `anomaly_map`.

        regions : sequence of n masks, optional
            As in `PatchFeatures.transform`.

        Returns
        -------
        masks : ndarray of shape (n, H, W), bool, or list of (H, W) arrays
            True where the map exceeds `pixel_threshold` at its size.
        """
        return masks_above(self.anomaly_map(X, size, regions), self.pixel_threshold)

    @available_if(_final_has("pixel_threshold"))
    def pixel_threshold(self, size):
        """Threshold for the pixels of maps of a given size.

        Parameters
        ----------
        size : (int, int)
            Height and width of the maps.

        Returns
        -------
        threshold : float
        """
        final = _unwrap(self.steps[-1][1])
        images = _image_step(self)
        if images is None:
            return final.pixel_threshold(size)
        return final.pixel_threshold(size, window=images.window())

    @available_if(_final_has("p_value"))
    def p_value(self, X, regions=None):
        """How usual each image is among good ones; small for anomalies.

        Parameters
        ----------
        X : sequence of images

        regions : sequence of n masks, optional
            As in `PatchFeatures.transform`.

        Returns
        -------
        p : ndarray of shape (n,), float64
        """
        return _judged(self, "p_value", X, regions)

    @available_if(_final_has("set_contamination"))
    def set_contamination(self, contamination):
        """Set another rate of false alarms, from the held-out scores at hand.

        Parameters
        ----------
        contamination : float
            Tolerated false-alarm rate on normal images, in (0, 0.5].

        Returns
        -------
        self : object
        """
        _unwrap(self.steps[-1][1]).set_contamination(contamination)
        return self

    @available_if(_final_has("calibrate"))
    def calibrate(self, X, y=None, regions=None, *, add=False):
        """Set the threshold anew from good images that were not trained on.

        Parameters
        ----------
        X : sequence of images

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
        """
        features = _transformed(self, X, regions)
        _unwrap(self.steps[-1][1]).calibrate(features, y, add=add)
        return self


def make_pipeline(*steps, memory=None, transform_input=None, verbose=False):
    """Build a `Pipeline` from estimators, naming each after its class.

    Parameters
    ----------
    *steps : estimators

    memory, transform_input, verbose
        As in `Pipeline`.

    Returns
    -------
    pipeline : Pipeline

    Examples
    --------
    >>> from skad import PatchCoreDetector, PCANetFeatures, make_pipeline
    >>> make_pipeline(PCANetFeatures(), PatchCoreDetector()).named_steps.keys()
    dict_keys(['pcanetfeatures', 'patchcoredetector'])
    """
    steps = sklearn.pipeline.make_pipeline(*steps).steps
    kwargs: dict[str, Any] = {"memory": memory, "verbose": verbose}
    if transform_input is not None:
        kwargs["transform_input"] = transform_input
    return Pipeline(steps, **kwargs)


def anomaly_map(estimator, X, size=None, regions=None):
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
        return _pipeline_map(inner, X, size, regions)
    _require_maps(inner)
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


def _require_maps(estimator):
    if not hasattr(estimator, "anomaly_map"):
        raise TypeError(
            f"{type(estimator).__name__} has no method anomaly_map; maps come from the "
            "detectors of skad, alone or at the end of a pipeline."
        )


def _unwrap(estimator):
    """The estimator that a fitted search or a FrozenEstimator stands for."""
    if hasattr(estimator, "best_estimator_"):
        return _unwrap(estimator.best_estimator_)
    if type(estimator).__name__ == "FrozenEstimator":
        return _unwrap(estimator.estimator)
    return estimator


def _is_fitted(estimator):
    try:
        check_is_fitted(estimator)
    except NotFittedError:
        return False
    return True


def _transformed(pipeline, X, regions=None):
    """What the last step gets; regions go to the step that reads images."""
    images = _image_step(pipeline)
    if regions is not None and images is None:
        raise ValueError("regions needs a step that reads images, as PatchFeatures.")
    for _, step in pipeline.steps[:-1]:
        if step is None or step == "passthrough":
            continue
        if regions is not None and _unwrap(step) is images:
            X = images.transform(X, regions=regions)
        elif regions is not None and isinstance(step, sklearn.pipeline.Pipeline):
            X = step.steps[-1][1].transform(_transformed(step, X, regions))
        else:
            X = step.transform(X)
    return X


def _judged(pipeline, method, X, regions):
    """What a method of the last step says of images, some blocks at a time."""
    final = _unwrap(pipeline.steps[-1][1])
    images = _unwrap(pipeline.steps[0][1])
    if len(pipeline.steps) != 2 or not hasattr(images, "_scoring_blocks"):
        features = _transformed(pipeline, X, regions)
        return getattr(final, method)(features)
    judge, result = getattr(final, method), None
    for index, block in images._scoring_blocks(X, regions):
        part = judge(block)
        if result is None:  # what stays is an image that was skipped
            nothing = 0 if part.dtype.kind == "i" else np.nan
            result = np.full((len(X), *part.shape[1:]), nothing, part.dtype)
        result[index] = part
    return result


def _image_step(pipeline):
    """The transformer that knows the geometry of images, if there is one."""
    for _, step in pipeline.steps:
        step = _unwrap(step)
        if isinstance(step, sklearn.pipeline.Pipeline):
            step = _image_step(step)
        if hasattr(step, "image_sizes") and hasattr(step, "transform"):
            return step
    return None


def _pipeline_map(pipeline, X, size, regions=None):
    final = pipeline.steps[-1][1]
    images = _image_step(pipeline)
    if size is not None:
        size = check_size(size)
    if images is None:
        return anomaly_map(final, _transformed(pipeline, X, regions), size)
    _require_maps(_unwrap(final))
    grids = _judged(pipeline, "anomaly_map", X, regions)
    sizes = [size] * len(grids) if size is not None else images.image_sizes(X)
    draw = getattr(_unwrap(final), "_draw", partial(render, sigma=0.0))
    maps = draw_each(draw, grids, sizes, images.window())
    looked_at = images.regions(regions, len(grids))
    for i in range(len(maps)) if looked_at else ():
        maps[i][~looked_at.inside(i, maps[i].shape)] = grids[i].min()
    return maps

"""A scikit-learn Pipeline that also says where an image is anomalous."""

from typing import Any

import numpy as np
import sklearn.pipeline
from sklearn.utils.metaestimators import available_if

from skad._checks import check_size
from skad._maps import render


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
        self._steps = steps if not _has_bare(steps) else _named(steps)

    @available_if(_final_has("anomaly_map"))
    def anomaly_map(self, X, size=None):
        """Say where images are anomalous; larger is more anomalous.

        Mind the sign: scores are larger for normal images, maps for anomalous
        pixels.

        Parameters
        ----------
        X : sequence of images

        size : (int, int), optional
            Height and width of the maps in pixels. Without it every map has
            the size of its image as passed.

        Returns
        -------
        maps : ndarray of shape (n, H, W), float32, or list of (H, W) arrays
            A list where images differ in size. Where the features saw a crop
            only, the rest takes the smallest score of the image.
        """
        return _pipeline_map(self, X, size)

    @available_if(_final_has("predict_mask"))
    def predict_mask(self, X, size=None):
        """Mark the anomalous pixels.

        Parameters
        ----------
        X : sequence of images

        size : (int, int), optional
            As in `anomaly_map`.

        Returns
        -------
        masks : ndarray of shape (n, H, W), bool, or list of (H, W) arrays
            True where the map exceeds `pixel_threshold` at its size.
        """
        maps = self.anomaly_map(X, size)
        thresholds = {s: self.pixel_threshold(s) for s in {m.shape for m in maps}}
        masks = [m > thresholds[m.shape] for m in maps]
        return np.stack(masks) if isinstance(maps, np.ndarray) else masks

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
    def p_value(self, X):
        """How usual each image is among good ones; small for anomalies.

        Parameters
        ----------
        X : sequence of images

        Returns
        -------
        p : ndarray of shape (n,), float64
        """
        return _unwrap(self.steps[-1][1]).p_value(_transformed(self, X))

    @available_if(_final_has("calibrate"))
    def calibrate(self, X, y=None):
        """Set the threshold anew from good images that were not trained on.

        Parameters
        ----------
        X : sequence of images

        y : array-like of shape (n,), optional
            Images labelled -1 are left out.

        Returns
        -------
        self : object
        """
        _unwrap(self.steps[-1][1]).calibrate(_transformed(self, X), y)
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
    named = sklearn.pipeline.make_pipeline(*steps).steps
    kwargs: dict[str, Any] = {"memory": memory, "verbose": verbose}
    if transform_input is not None:
        kwargs["transform_input"] = transform_input
    return Pipeline(named, **kwargs)


def anomaly_map(estimator, X, size=None):
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
        return _pipeline_map(inner, X, size)
    if not hasattr(inner, "anomaly_map"):
        raise TypeError(
            f"{type(inner).__name__} has no method anomaly_map; maps come from the "
            "detectors of skad, alone or at the end of a pipeline."
        )
    return inner.anomaly_map(X, size=size)


def _unwrap(estimator):
    """The estimator that a fitted search or a FrozenEstimator stands for."""
    if hasattr(estimator, "best_estimator_"):
        return _unwrap(estimator.best_estimator_)
    if type(estimator).__name__ == "FrozenEstimator":
        return _unwrap(estimator.estimator)
    return estimator


def _transformed(pipeline, X):
    return pipeline[:-1].transform(X) if len(pipeline.steps) > 1 else X


def _image_step(pipeline):
    """The step that knows the geometry of images, if there is one."""
    for _, step in pipeline.steps:
        step = _unwrap(step)
        if isinstance(step, sklearn.pipeline.Pipeline):
            step = _image_step(step)
        if hasattr(step, "image_sizes"):
            return step
    return None


def _pipeline_map(pipeline, X, size):
    final = pipeline.steps[-1][1]
    images = _image_step(pipeline)
    if size is not None:
        size = check_size(size)
    if images is None:
        return anomaly_map(final, _transformed(pipeline, X), size)
    grids = anomaly_map(final, _transformed(pipeline, X))
    sizes = [size] * len(grids) if size is not None else images.image_sizes(X)
    # An image that could not be read has no size and no scores: any size serves.
    known = [s for s in sizes if s is not None]
    sizes = [known[0] if s is None else s for s in sizes]
    sigma, window = getattr(_unwrap(final), "sigma", 0.0), images.window()
    if len(set(sizes)) == 1:
        return render(grids, sizes[0], sigma=sigma, window=window)
    return [
        render(grids[i : i + 1], sizes[i], sigma=sigma, window=window)[0]
        for i in range(len(grids))
    ]


def _is_named(step):
    return isinstance(step, tuple) and len(step) == 2 and isinstance(step[0], str)


def _has_bare(steps):
    """Whether a list holds steps without a name; anything else is left alone."""
    if not isinstance(steps, (list, tuple)):
        return False
    return any(
        hasattr(step, "fit") or step is None or step == "passthrough" for step in steps
    )


def _named(steps):
    taken = {step[0] for step in steps if _is_named(step)}
    bare = [step for step in steps if not _is_named(step)]
    fresh = iter(sklearn.pipeline.make_pipeline(*bare).steps)
    named = []
    for step in steps:
        if _is_named(step):
            named.append(step)
            continue
        name, estimator = next(fresh)
        while name in taken:
            name += "-x"
        taken.add(name)
        named.append((name, estimator))
    return named

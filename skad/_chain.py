"""Models made of pipelines, searches and frozen estimators, as one row of steps.

However a model is nested, images pass through its transformers one after the other, one
of which reads them, and a detector scores what the last one returns. `Chain` finds
these steps, and calls the methods of the detector on images.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import sklearn.pipeline
from sklearn.frozen import FrozenEstimator

from skad._checks import check_size
from skad._frame import WHOLE, Window
from skad._maps import (
    masks_above,
    render,
    render_each,
    require_memory_for_maps,
)
from skad.images._batches import ImageReader


class Chain:
    """The transformers of a model in their order, and the detector at the end.

    Parameters
    ----------
    estimator : object
        A detector, a pipeline (also inside of others), a search that was fitted, or
        a `FrozenEstimator` around any of these.

    Attributes
    ----------
    before, after : list of transformers
        Those ahead of the one that reads images, and those behind it. Where none
        reads images, all are in `before`.

    images : transformer or None
        The one that reads images, and knows their geometry.

    final : object
        The detector.

    is_frozen : bool
        Whether the detector is inside of a `FrozenEstimator`.
    """

    def __init__(self, estimator: Any) -> None:
        row = list(_row(estimator))
        steps = [step for step, _ in row[:-1]]
        self.final: Any = row[-1][0] if row else None
        self.is_frozen = bool(row) and row[-1][1]
        k = next((k for k, step in enumerate(steps) if reads_images(step)), None)
        self.images: Any = None if k is None else steps[k]
        self.before = steps if k is None else steps[:k]
        self.after = [] if k is None else steps[k + 1 :]

    def check_takes_images(self) -> None:
        """Raise if a step takes images, but gets features from the step before."""
        if self.images is None:
            return
        for step in [*self.after, self.final]:
            if hasattr(step, "image_sizes"):
                raise ValueError(
                    f"{type(step).__name__} takes images, but gets the patch features "
                    f"of {type(self.images).__name__}. Leave out the step "
                    f"{type(self.images).__name__}."
                )

    def entering(self, X: Any) -> Any:
        """Transform X by the steps before the one that reads images."""
        for step in self.before:
            X = step.transform(X)
        return X

    def features(self, X: Any, regions: Any = None) -> Any:
        """Transform X by all steps before the detector, with regions of interest."""
        self._check_regions(regions)
        return self._after_entering(self.entering(X), regions)

    def _check_regions(self, regions: Any) -> None:
        if regions is not None and self.images is None:
            raise ValueError(
                "regions needs a step that reads images, as PatchFeatures."
            )

    def _after_entering(self, X: Any, regions: Any) -> Any:
        steps = self.after if self.images is None else [self.images, *self.after]
        return _passed_through(steps, X, regions)

    def ask(self, method: str, X: Any, regions: Any = None) -> Any:
        """Call a method of the detector on images, which pass the steps in batches."""
        self._check_regions(regions)
        return self._answers(method, self._readable(self.entering(X)), regions)

    def _readable(self, X: Any) -> Any:
        """Reader of the images, where the step that reads them has one; else X."""
        if hasattr(self.images, "_checked_reader"):
            return self.images._checked_reader(X)
        return X

    def _answers(self, method: str, images: Any, regions: Any) -> Any:
        """Call a method of the detector on the images, or features, of `_readable`."""
        answer = getattr(self.final, method)
        if self.after or not hasattr(self.images, "_map_parts"):
            return answer(self._after_entering(images, regions))
        return self.images._map_parts(answer, images, regions)

    def anomaly_map(self, X: Any, size: Any = None, regions: Any = None) -> Any:
        """Anomaly maps, by default of the size of each image; see `Pipeline`."""
        require_maps(self.final)
        return self._maps_and_windows(X, size, regions)[0]

    def predict_mask(self, X: Any, size: Any = None, regions: Any = None) -> Any:
        """Masks of the pixels that exceed their threshold; see `Pipeline`."""
        maps, windows = self._maps_and_windows(X, size, regions)
        threshold: Any = self.final.pixel_threshold
        if self.images is None:
            return masks_above(maps, lambda size, window: threshold(size), windows)
        return masks_above(
            maps, lambda size, window: threshold(size, window=window), windows
        )

    def _maps_and_windows(self, X: Any, size: Any, regions: Any) -> Any:
        """Maps, and the part of each image that its patch grid covers."""
        if size is not None:
            size = check_size(size)
        if self.images is None:
            maps = self.final.anomaly_map(self.features(X, regions), size=size)
            return maps, [WHOLE] * len(maps)
        X = self.entering(X)
        images = self._readable(X)
        if size is not None:
            require_memory_for_maps([size] * len(images))
        grids = self._answers("anomaly_map", images, regions)
        if size is not None and not self.windows_vary():
            own = sizes = [size] * len(grids)
        else:
            if isinstance(images, ImageReader):
                own = images.original_sizes()  # no file is opened again
            else:
                own = self.images.image_sizes(X)
            sizes = own if size is None else [size] * len(grids)
        require_memory_for_maps(sizes)
        if self.windows_vary():
            windows = [self.window(one) for one in own]
        elif isinstance(images, ImageReader):
            windows = [images.frame.window(None)] * len(grids)
        else:
            windows = [self.images.window()] * len(grids)
        looked_at = self.images.regions(regions, len(grids))
        return self.rendered(grids, sizes, windows, looked_at), windows

    def windows_vary(self) -> bool:
        """Whether the part of an image that is looked at depends on its size."""
        return getattr(self.images, "resize", "exact") != "exact"

    def window(self, size: tuple[int, int] | None) -> Window:
        """The part of an image of a size that is looked at; see `ImageInput.window`."""
        if not self.windows_vary():
            return self.images.window()
        return WHOLE if size is None else self.images.window(size)  # it was skipped

    def rendered(
        self,
        grids: np.ndarray,
        sizes: Sequence[tuple[int, int]],
        windows: Sequence[Window],
        looked_at: Any = None,
    ) -> Any:
        """Render patch scores as maps of these sizes.

        `windows` are the parts of the images that the grids cover. `looked_at` is the
        `Regions` outside of which maps take their smallest score, or None.
        """
        maps = render_each(
            getattr(self.final, "_render", partial(render, sigma=0.0)),
            grids,
            sizes,
            windows,
            self.images._size_of_unread,
        )
        for i in range(len(maps)) if looked_at else ():
            maps[i][~looked_at.inside(i, maps[i].shape)] = grids[i].min()
        return maps

    def pixel_threshold(self, size: Any) -> float:
        """Threshold for the pixels of maps of one size, of images of that size."""
        if self.images is None:
            return self.final.pixel_threshold(size)
        return self.final.pixel_threshold(size, window=self.window(check_size(size)))


def unwrap(estimator: Any) -> Any:
    """The estimator that a fitted search or a FrozenEstimator stands for."""
    if isinstance(estimator, FrozenEstimator):
        return unwrap(estimator.estimator)
    if hasattr(estimator, "best_estimator_"):
        return unwrap(estimator.best_estimator_)
    return estimator


def is_frozen(estimator: Any) -> bool:
    """Whether scikit-learn is told not to fit an estimator."""
    return isinstance(estimator, FrozenEstimator)


def reads_images(step: Any) -> bool:
    """Whether a step is the transformer that knows the geometry of images."""
    return hasattr(step, "image_sizes") and hasattr(step, "transform")


def transform_through(estimator: Any, X: Any, regions: Any = None) -> Any:
    """Transform by a fitted transformer or a pipeline of these."""
    return _passed_through([step for step, _ in _row(estimator)], X, regions)


def require_maps(estimator: Any) -> None:
    """Raise if an estimator makes no maps."""
    if not hasattr(estimator, "anomaly_map"):
        raise TypeError(
            f"{type(estimator).__name__} has no method anomaly_map; maps come from the "
            "detectors of skad, alone or at the end of a pipeline."
        )


def path_to_images(pipeline: Any) -> list[tuple[str, Any]]:
    """Steps, with their names, that lead to the one that reads images."""
    for name, step in pipeline.steps:
        inner = unwrap(step)
        if isinstance(inner, sklearn.pipeline.Pipeline):
            if path := path_to_images(inner):
                return [(name, step), *path]
        elif reads_images(inner):
            return [(name, step)]
    return []


def _passed_through(steps: Sequence[Any], X: Any, regions: Any) -> Any:
    for step in steps:
        if regions is not None and reads_images(step):
            X = step.transform(X, regions=regions)
        else:
            X = step.transform(X)
    return X


def _row(estimator: Any, frozen: bool = False) -> Iterator[tuple[Any, bool]]:
    """Yield each estimator that is no pipeline, and whether it is frozen."""
    frozen = frozen or is_frozen(estimator)
    inner = unwrap(estimator)
    if not isinstance(inner, sklearn.pipeline.Pipeline):
        yield inner, frozen
        return
    for _, step in inner.steps:
        if step is not None and step != "passthrough":
            yield from _row(step, frozen)

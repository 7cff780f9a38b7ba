"""All results of a model for an image, from one pass of the network and one search."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from skad._chain import Chain
from skad._checks import check_size
from skad._frame import WHOLE, Window
from skad._patches import filled
from skad.base import BaseDetector, decide
from skad.base._threshold import conformal_p_values
from skad.images import image_size
from skad.images._batches import ImageReader
from skad.inspection._defects import Defect, find_defects
from skad.networks._torch_state import own_torch_state

_FEATURES_AT_ONCE = 256  # images whose features are scored together


@dataclass(frozen=True, eq=False)
class Inspection:
    """All results of a model for one image.

    Parameters
    ----------
    index : int
        Position of the image in X, from 0.

    source : object
        The image as passed, such as its path.

    label : {1, -1, 0}
        1 is normal, -1 is anomalous; 0 for an image that could not be read, or of
        which nothing lies inside of its region.

    score : float
        As of `score_samples`: larger is more normal. NaN where `label` is 0.

    decision : float
        As of `decision_function`: negative is anomalous. NaN where `label` is 0.

    p_value : float
        As of `p_value`, in (0, 1]: small for anomalies. NaN where `label` is 0.

    anomaly_map : ndarray of shape (H, W), float32, or None, default=None
        Larger is more anomalous. None where no map was asked for, or where `label`
        is 0.

    mask : ndarray of shape (H, W), bool, or None, default=None
        Where the map exceeds `pixel_threshold`; None where there is no map.

    defects : list of Defect, or None, default=None
        Regions of the mask, the largest first; None where there is no map.

    error : str or None, default=None
        Why the image could not be read.

    pixel_threshold : float or None, default=None
        Threshold of the map, which depends on its size; None where there is no map.
    """

    index: int
    source: Any
    label: int
    score: float
    decision: float
    p_value: float
    anomaly_map: NDArray[np.float32] | None = None
    mask: NDArray[np.bool_] | None = None
    defects: list[Defect] | None = None
    error: str | None = None
    pixel_threshold: float | None = None

    def __repr__(self) -> str:
        if self.error is not None:
            return f"Inspection(index={self.index}, error={self.error!r})"
        found = "" if self.defects is None else f", defects={len(self.defects)}"
        return (
            f"Inspection(index={self.index}, label={self.label}, score="
            f"{self.score:.6g}, decision={self.decision:.6g}, p_value="
            f"{self.p_value:.4g}{found})"
        )


def inspect(
    model: Any,
    X: Any,
    *,
    size: tuple[int, int] | None = None,
    maps: bool | Literal["rejected"] = True,
) -> Iterator[Inspection]:
    """Compute all results of a model, one image after the other.

    Label, decision, p-value, map, mask and defects come from one pass of the network
    and one search, and memory does not grow with the number of images. The model
    stays as it is.

    Parameters
    ----------
    model : estimator
        A fitted detector of skad, a pipeline that ends in one, a search that was
        fitted, or a `FrozenEstimator` around any of these.

    X : sequence or iterator of images, or ndarray of patch features
        What the model's `predict` takes. From an iterator, which may be endless,
        such as a camera, one image is taken at a time, and its inspection comes
        before the next one is asked for; a sequence is read in batches, which takes
        less time.

    size : (int, int), default=None
        Height and width of maps and masks. None is the size of each image, as
        `anomaly_map` of the model has it.

    maps : {True, False, "rejected"}, default=True
        Whether to make map, mask and defects: of each image, of none, or of those
        labelled -1. Without maps, some detectors take less time.

    Yields
    ------
    inspection : Inspection
        One per image, in the order of X. An image that cannot be read is one with an
        `error`, whatever `on_error` of the model is.

    Raises
    ------
    sklearn.exceptions.NotFittedError
        If the model is not fitted.

    TypeError
        If the model does not end in a detector of skad.

    ValueError
        If an argument is out of range, or X is an empty sequence.

    Examples
    --------
    >>> import skad
    >>> from skad.datasets import make_textures
    >>> data = make_textures(n_normal=24, n_anomalous=4, size=64, random_state=0)
    >>> features = skad.PatchFeatures("skad_small", embedding="concat", image_size=64)
    >>> model = skad.make_pipeline(features, skad.PatchCoreDetector()).fit(data.train)
    >>> for result in skad.inspect(model, data.test[-1:]):
    ...     print(result.label, result.mask.shape)
    -1 (64, 64)
    """
    chain = Chain(model)
    if not isinstance(chain.final, BaseDetector):
        raise TypeError(
            f"model ends in {type(chain.final).__name__}; inspect needs a detector of "
            "skad, alone or at the end of a pipeline."
        )
    check_is_fitted(chain.final, "offset_")
    if maps not in (True, False, "rejected"):
        raise ValueError(f"maps={maps!r} must be True, False or 'rejected'.")
    if size is not None:
        size = check_size(size)
    _check_iterable(X)
    if hasattr(chain.final, "_refuse_features"):
        chain.final._refuse_features(X)
    elif hasattr(chain.images, "_refuse_features"):
        chain.images._refuse_features(X)
    return inspections(chain, X, size, maps)


def _check_iterable(X: Any) -> None:
    """Refuse what gives no images one after the other, and what is empty."""
    if isinstance(X, (str, bytes, Mapping)) or not hasattr(X, "__iter__"):
        raise TypeError(
            f"X is of type {type(X).__name__}; pass a list of images, an array of "
            "them, or an iterator."
        )
    if isinstance(X, Sized) and len(X) == 0:
        raise ValueError("X is empty: found 0 images.")


def inspections(
    chain: Chain,
    X: Any,
    size: tuple[int, int] | None = None,
    maps: bool | str = True,
) -> Iterator[Inspection]:
    """Yield what `inspect` does, by the steps of a model; nothing is checked."""
    inspector, start = _Inspector(chain, size, maps), 0
    for part in _parts(X, inspector.images_at_once()):
        yield from inspector.inspections(part, start)
        start += len(part)


def _parts(X: Any, n: int) -> Iterator[Sequence[Any]]:
    """Yield X in parts of n images; of an iterator, single images."""
    if not hasattr(X, "__len__"):
        for item in X:
            yield [item]
    elif hasattr(X, "shape") and hasattr(X, "__getitem__") and len(X.shape) > 1:
        for lo in range(0, len(X), n):
            yield X[lo : lo + n]
    else:
        images: Iterator[Any] = iter(X)
        while part := list(islice(images, n)):
            yield part


class _Inspector:
    """Inspects images part by part, and keeps what every part needs.

    Parameters
    ----------
    chain : Chain
        The model.

    size : (int, int) or None
        Height and width of the maps; None is that of each image.

    maps : bool or "rejected"
        As of `inspect`.
    """

    def __init__(
        self, chain: Chain, size: tuple[int, int] | None, maps: bool | str
    ) -> None:
        self.chain, self.size = chain, size
        self.maps = maps if maps == "rejected" else bool(maps)
        self.detector = chain.final
        # What reads images: a transformer, a detector, or nobody.
        takes_images = hasattr(chain.final, "image_sizes")
        self.image_step = chain.final if takes_images else chain.images
        self.regions = chain.images.regions(None, 1) if chain.images else None
        self._thresholds: dict[Any, float] = {}  # of maps, by their size and window

    def images_at_once(self) -> int:
        """Images of a part: as many as one step of scoring takes."""
        if hasattr(self.image_step, "_images_per_part"):
            return self.image_step._images_per_part()
        if hasattr(self.image_step, "_images_at_once"):
            return self.image_step._images_at_once()
        return _FEATURES_AT_ONCE

    def inspections(self, part: Sequence[Any], start: int) -> Iterator[Inspection]:
        """Yield the inspections of a part, whose first image is number `start`."""
        images = self._entered(part, start)
        scores, grids = self._scores_and_grids(images)
        reader = images if isinstance(images, ImageReader) else None
        errors = {} if reader is None else dict(reader.skipped)
        decisions = scores - self.detector.offset_
        labels = decide(decisions)
        p_values = conformal_p_values(scores, self.detector.calibration_scores_)
        for i, item in enumerate(part):
            found: dict[str, Any] = {}
            if grids is not None and (
                labels[i] == -1 or (labels[i] == 1 and self.maps is True)
            ):
                own = self._size_of(images, i)
                found = self._map_mask_defects(grids[i], self.size or own, own)
            yield Inspection(
                index=start + i,
                source=item,
                label=int(labels[i]),
                score=float(scores[i]),
                decision=float(decisions[i]),
                p_value=float(p_values[i]),
                error=errors.get(start + i),
                **found,
            )

    def _entered(self, part: Sequence[Any], start: int) -> Any:
        """Reader of a part, or what enters the step that reads images by itself."""
        images = self.chain.entering(part)
        if not hasattr(self.image_step, "_reader"):
            return images
        reader = self.image_step._reader(_Numbered(images, start))
        reader.positions = np.arange(start, start + len(images))
        reader.on_error = "report"
        return reader

    def _size_of(self, images: Any, i: int) -> tuple[int, int] | None:
        """Size of the map of an image: its own, or None for features."""
        if isinstance(images, ImageReader):
            return images.original_size(i)  # known, for the image has been read
        return None if self.image_step is None else image_size(images[i])

    # -- scores and patch grids ----------------------------------------------

    def _scores_and_grids(self, images: Any) -> tuple[np.ndarray, np.ndarray | None]:
        """Scores of images, and their patch scores, or None."""
        if not isinstance(images, ImageReader):
            return self._of_features(self.chain._after_entering(images, None))
        if self.image_step is not self.detector:
            with own_torch_state():
                return self._of_feature_parts(images)
        if self.maps is False:
            return -self.detector._image_scores(images), None
        scores, grids = self.detector._score(images)
        return -scores, filled(grids)

    def _of_feature_parts(self, images: Any) -> tuple[np.ndarray, np.ndarray | None]:
        """Scores and patch scores by way of features, some images at a time."""
        scores, grids = np.full(len(images), np.nan), None
        for index, features in self.chain.images._scoring_parts(images):
            for step in self.chain.after:
                features = step.transform(features)
            scores[index], some = self._of_features(features)
            if some is None:
                continue
            if grids is None:
                grids = np.full((len(images), *some.shape[1:]), np.nan, some.dtype)
            grids[index] = some
        return scores, grids

    def _of_features(self, X: Any) -> tuple[np.ndarray, np.ndarray | None]:
        """Scores and patch scores of what the detector takes."""
        # Scores alone take less time only where the detector has a way of its own.
        one_search = type(self.detector)._image_scores is BaseDetector._image_scores
        if self.maps is True or (self.maps == "rejected" and one_search):
            return self.detector._scores_and_maps(X)
        scores = self.detector.score_samples(X)
        rejected = decide(scores - self.detector.offset_) == -1
        if self.maps is False or not rejected.any():
            return scores, None
        some = self.detector.anomaly_map(X[rejected])
        grids = np.full((len(scores), *some.shape[1:]), np.nan, some.dtype)
        grids[rejected] = some
        return scores, grids

    # -- maps ------------------------------------------------------------------

    def _map_mask_defects(
        self,
        grid: np.ndarray,
        size: tuple[int, int] | None,
        own: tuple[int, int] | None,
    ) -> dict[str, Any]:
        """Map, mask and defects of one image, from its patch scores.

        `own` is the size of the image, `size` that of the map.
        """
        window = self._window(own)
        anomaly_map = self._rendered(grid[None], size, window)[0]
        if (size, window) not in self._thresholds:
            # The method of a detector of images knows its window.
            known = {} if self.chain.images is None else {"window": window}
            self._thresholds[size, window] = self.detector.pixel_threshold(
                size, **known
            )
        threshold = float(self._thresholds[size, window])
        mask = anomaly_map > threshold
        return {
            "pixel_threshold": threshold,
            "anomaly_map": anomaly_map,
            "mask": mask,
            "defects": find_defects(mask, anomaly_map),
        }

    def _window(self, own: tuple[int, int] | None) -> Window:
        """The part of an image of a size that is looked at."""
        if self.image_step is None:
            return WHOLE
        if self.image_step is self.detector:
            return self.detector.window()
        return self.chain.window(own)

    def _rendered(self, grids: np.ndarray, size: Any, window: Window) -> Any:
        """Patch scores as maps of a size; as they are where it is None."""
        if self.image_step is None and size is None:
            return grids
        if self.image_step is None or self.image_step is self.detector:
            return self.detector._render(grids, size, window)
        return self.chain.rendered(grids, [size], [window], self.regions)


class _Numbered:
    """Images of a part, by their positions in X."""

    def __init__(self, images: Any, start: int) -> None:
        self._images, self._start = images, start

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, position: int) -> Any:
        return self._images[position - self._start]

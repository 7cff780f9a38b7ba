"""Scorers for scikit-learn's model selection.

scikit-learn's `make_scorer` serves the image metrics, which compare `decision_function`
with labels. It does not know `anomaly_map`, so pixel scorers are objects of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.metrics import make_scorer

from skad.images._read import CarriesPixelLimit
from skad.metrics._image import image_auroc, image_average_precision, image_f1_max
from skad.metrics._overlap import aupimo_score, pro_score, spro_score
from skad.metrics._pixel import pixel_auroc, pixel_average_precision, pixel_f1_max
from skad.metrics._validation import read_masks

_ROUTING_HINT = (
    "In a search, call sklearn.set_config(enable_metadata_routing=True) first, then "
    "pass masks=masks to fit of the search, or params={'masks': masks} to "
    "cross_validate, beside the labels y. To score one model, call "
    "scorer(model, X, masks=masks)."
)


class PixelScorer(CarriesPixelLimit, BaseEstimator):
    """Score an estimator by a metric of masks and anomaly maps.

    In a search, masks reach it by metadata routing: with
    ``sklearn.set_config(enable_metadata_routing=True)``, pass ``masks=masks`` to
    `GridSearchCV.fit`, or ``params={"masks": masks}`` to `cross_validate`, beside the
    image labels in `y`; nothing needs to be requested. A call of the scorer itself,
    ``pro_scorer(model, X, masks)``, takes them directly. Images that could not be read
    (``on_error="skip"``) are left out.

    Parameters
    ----------
    metric : callable
        Takes masks and maps, returns a number that is larger for better maps.

    See Also
    --------
    pro_score : A metric for it; `pro_scorer` is made of it.

    Examples
    --------
    >>> from functools import partial
    >>> from skad.metrics import PixelScorer, pro_score
    >>> strict_scorer = PixelScorer(partial(pro_score, max_fpr=0.05))
    """

    __metadata_request__score = {"masks": True, "regions": True}

    def __init__(self, metric: Callable[..., float] = pro_score) -> None:
        self.metric = metric

    def __call__(
        self,
        estimator: Any,
        X: Any,
        y: Any = None,
        masks: Any = None,
        regions: Any = None,
    ) -> float:
        """Score a fitted estimator, see `score`."""
        return self.score(estimator, X, y, masks=masks, regions=regions)

    def score(
        self,
        estimator: Any,
        X: Any,
        y: Any = None,
        masks: Any = None,
        regions: Any = None,
    ) -> float:
        """Score a fitted estimator.

        Parameters
        ----------
        estimator : object
            A detector, pipeline or search with `anomaly_map(X, size=)`.
        X : sequence of images or array
            What the estimator takes.
        y : array-like, optional
            Image labels, which are not used. In a call of the scorer itself, masks,
            where `masks` is not given.
        masks : ndarray of shape (n_images, height, width) or list, optional
            True is defective; a list holds arrays, paths, or None for a normal image.
        regions : sequence of masks, optional
            What to look at in each image, see `skad.PatchFeatures.transform`.

        Returns
        -------
        score : float
            The metric of masks and maps. Maps are computed at the size of the masks
            where these have one size, otherwise in the geometry of each image.
        """
        from skad.pipeline import anomaly_map

        with self._limited():
            given = _masks_of(y, masks)
        sizes = {mask.shape for mask in given if mask is not None}
        size = sizes.pop() if len(sizes) == 1 else None
        maps = anomaly_map(estimator, X, size=size, regions=regions)
        read = [i for i, heat in enumerate(maps) if not np.isnan(heat).all()]
        if len(read) < len(maps) == len(given):
            given, maps = [given[i] for i in read], [maps[i] for i in read]
        return float(self.metric(given, maps))


def _masks_of(y: Any, masks: Any) -> list[Any]:
    """Read the masks, wherever they are."""
    if masks is not None:
        return read_masks(masks)
    if y is None:
        raise ValueError(
            f"masks is missing: a pixel scorer needs masks. {_ROUTING_HINT}"
        )
    if np.ndim(y) == 1 and np.asarray(y).dtype.kind in "iufb":
        raise ValueError(f"y holds image labels and masks is missing. {_ROUTING_HINT}")
    return read_masks(y, name="y")


def _of_scored(y: Any, scores: Any, metric: Callable[..., float]) -> float:
    """Apply a metric to the images that could be read: others have no score (NaN)."""
    scored = ~np.isnan(np.asarray(scores, np.float64))
    if scored.all():
        return metric(y, scores)
    return metric(np.asarray(y)[scored], np.asarray(scores)[scored])


def _image_scorer(metric: Callable[..., float]) -> Any:
    return make_scorer(_of_scored, response_method="decision_function", metric=metric)


image_auroc_scorer = _image_scorer(image_auroc)
image_average_precision_scorer = _image_scorer(image_average_precision)
image_f1_max_scorer = _image_scorer(image_f1_max)

pixel_auroc_scorer = PixelScorer(pixel_auroc)
pixel_average_precision_scorer = PixelScorer(pixel_average_precision)
pixel_f1_max_scorer = PixelScorer(pixel_f1_max)
pro_scorer = PixelScorer(pro_score)
spro_scorer = PixelScorer(spro_score)
aupimo_scorer = PixelScorer(aupimo_score)

"""One model for several products, with a threshold for each of them."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, MetaEstimatorMixin, OutlierMixin, clone
from sklearn.utils.validation import check_is_fitted

from skad._chain import Chain
from skad._held_out import check_detector_of_skad, held_out_positions
from skad._maps import WHOLE, masks_above
from skad._portable import Portable
from skad.base._detector import decide
from skad.base._threshold import conformal_p_values
from skad.calibration._group_models import (
    held_out_of,
    held_out_of_some,
    with_held_out,
)
from skad.calibration._groups import by_group, checked_groups, shown
from skad.pipeline import anomaly_map


class ThresholdPerGroup(Portable, OutlierMixin, MetaEstimatorMixin, BaseEstimator):
    """One model for several products, with a threshold for each.

    The model learns from the images of all products together. Normal images of one
    product may score lower than those of another: with one threshold for all, the
    first product has more false alarms than promised, and defects of the other are
    missed. Here the held-out scores of each product set a threshold of its own.

    Parameters
    ----------
    estimator : estimator
        A pipeline that ends in a detector of skad, or such a detector, whose
        `calibration` is "loo" or "kfold". It stays unfitted. Within a
        `sklearn.frozen.FrozenEstimator`, a fitted one is taken as it is, and `fit`
        takes what it was fitted on.

    Attributes
    ----------
    estimator_ : estimator
        Fitted on the images of all groups.

    groups_ : ndarray of shape (n_groups,)
        The groups, sorted.

    offsets_ : ndarray of shape (n_groups,), float64
        Threshold of `score_samples` for each of them.

    n_held_out_ : ndarray of shape (n_groups,), int64
        Number of held-out scores behind each.

    See Also
    --------
    skad.datasets.load_mvtec : Products in folders.

    Notes
    -----
    The promise on false alarms holds for each group by itself. A group needs as many
    images for it as a single product does: 19 for a rate of 5 %. With fewer, the
    threshold is an estimate, as in a single model, and a warning names the group.

    A group is whatever shifts scores and is known when an image is judged: a product,
    a camera, a line.

    Examples
    --------
    >>> import numpy as np
    >>> from skad import PatchCoreDetector
    >>> from skad.calibration import ThresholdPerGroup
    >>> rng = np.random.default_rng(0)
    >>> smooth, rough = rng.normal(size=(2, 30, 4, 4, 8))
    >>> X = np.concatenate([0.1 * smooth, 20 + rough])
    >>> product = np.repeat(["smooth", "rough"], 30)
    >>> model = ThresholdPerGroup(PatchCoreDetector()).fit(X, groups=product)
    >>> model.groups_, model.n_held_out_
    (array(['rough', 'smooth'], dtype='<U6'), array([30, 30]))
    >>> new = 0.1 * rng.normal(size=(1, 4, 4, 8))
    >>> new[0, 2, 1] += 1  # nothing beside the rough product, much for the smooth one
    >>> model.predict(new, groups=["smooth"]), model.estimator_.predict(new)
    (array([-1]), array([1]))
    """

    def __init__(self, estimator: Any) -> None:
        self.estimator = estimator

    def fit(
        self, X: Any, y: ArrayLike | None = None, groups: ArrayLike | None = None
    ) -> Self:
        """Learn from the images of all groups, and set the threshold of each.

        Parameters
        ----------
        X : sequence of images, or ndarray of patch features
            As `estimator` takes them.

        y : array-like of shape (n,), optional
            Images labelled -1 are left out.

        groups : array-like of shape (n,)
            Group of each image: a string or an integer.

        Returns
        -------
        self : object
            The same object.

        Raises
        ------
        TypeError
            If `estimator` does not end in a detector of skad.

        ValueError
            If `groups` is missing or of another length than X, if a group has no normal
            image, or if `estimator` does not hold out every image.
        """
        self._fit(X, y, groups)
        return self

    def fit_predict(
        self, X: Any, y: ArrayLike | None = None, groups: ArrayLike | None = None
    ) -> np.ndarray:
        """Learn from images, and decide for each of them as if it were new.

        Parameters
        ----------
        X : sequence of images, or ndarray of patch features
            As in `fit`.

        y : array-like of shape (n,), optional
            As in `fit`.

        groups : array-like of shape (n,)
            As in `fit`.

        Returns
        -------
        labels : ndarray of shape (n,), int64
            +1 is normal, -1 is anomalous; 0 for an image that was skipped. Images that
            were learned from are judged by their held-out scores.
        """
        positions = self._fit(X, y, groups)
        decisions = self.decision_function(X, groups)
        held_out = Chain(self.estimator_).final.calibration_scores_
        offsets = self.offsets_[self._members(X, groups)]
        decisions[positions] = held_out - offsets[positions]
        return decide(decisions)

    def _fit(self, X: Any, y: Any, groups: Any) -> np.ndarray:
        """Fit; returns the positions in X of the held-out scores."""
        final = Chain(self.estimator).final
        check_detector_of_skad(final, "ThresholdPerGroup", "estimator")
        final._check_holds_out_all("ThresholdPerGroup")
        groups = checked_groups(groups, X)
        estimator = clone(self.estimator).fit(X, y)
        final = Chain(estimator).final
        positions = held_out_positions(Chain(estimator), X, y, "ThresholdPerGroup")
        of_score = groups[positions]
        held_out = [
            held_out_of_some(
                final, np.flatnonzero(of_score == group), f"group {shown(group)}: "
            )
            for group in np.unique(groups)
        ]
        # All at once: a fit that fails leaves what was fitted before.
        self.estimator_, self.groups_ = estimator, np.unique(groups)
        self._held_out = held_out
        self._set_attributes()
        return positions

    def _set_attributes(self) -> None:
        held_out = self._held_out
        self.offsets_ = np.array([one["offset_"] for one in held_out], np.float64)
        counts = [len(one["calibration_scores_"]) for one in held_out]
        self.n_held_out_ = np.array(counts, np.int64)

    def score_samples(self, X: Any) -> np.ndarray:
        """Score images, whatever their group; larger is more normal.

        Parameters
        ----------
        X : sequence of images, or ndarray of patch features
            As in `fit`.

        Returns
        -------
        scores : ndarray of shape (n,), float64
            NaN for an image that was skipped.
        """
        check_is_fitted(self)
        return Chain(self.estimator_).ask("score_samples", X)

    def decision_function(self, X: Any, groups: ArrayLike | None = None) -> np.ndarray:
        """Score images against the threshold of their group; negative is anomalous.

        Parameters
        ----------
        X : sequence of images, or ndarray of patch features
            As in `fit`.

        groups : array-like of shape (n,)
            Group of each image, one of `groups_`.

        Returns
        -------
        decision : ndarray of shape (n,), float64
            NaN for an image that was skipped.

        Raises
        ------
        ValueError
            If `groups` is missing, of another length than X, or holds a group that
            `fit` has not seen.
        """
        check_is_fitted(self)
        offsets = self.offsets_[self._members(X, groups)]
        return self.score_samples(X) - offsets

    def predict(self, X: Any, groups: ArrayLike | None = None) -> np.ndarray:
        """Decide for each image by the threshold of its group: -1 is anomalous.

        Parameters
        ----------
        X : sequence of images, or ndarray of patch features
            As in `fit`.

        groups : array-like of shape (n,)
            Group of each image, one of `groups_`.

        Returns
        -------
        labels : ndarray of shape (n,), int64
            +1 is normal, -1 is anomalous; 0 for an image that was skipped.
        """
        return decide(self.decision_function(X, groups))

    def p_value(self, X: Any, groups: ArrayLike | None = None) -> np.ndarray:
        """Conformal p-value of each image among its group: small for anomalies.

        Parameters
        ----------
        X : sequence of images, or ndarray of patch features
            As in `fit`.

        groups : array-like of shape (n,)
            Group of each image, one of `groups_`.

        Returns
        -------
        p : ndarray of shape (n,), float64
            In (0, 1]; NaN for an image that was skipped.
        """
        check_is_fitted(self)
        members = self._members(X, groups)
        scores = self.score_samples(X)
        p = np.empty(len(scores))
        for k, places in by_group(members):
            held_out = self._held_out[k]["calibration_scores_"]
            p[places] = conformal_p_values(scores[places], held_out)
        return p

    def anomaly_map(
        self, X: Any, size: tuple[int, int] | None = None
    ) -> np.ndarray | list[np.ndarray]:
        """Anomaly score of each pixel, whatever the group; larger is more anomalous.

        Parameters
        ----------
        X : sequence of images, or ndarray of patch features
            As in `fit`.

        size : (int, int), optional
            Height and width of the maps in pixels, as of `estimator`.

        Returns
        -------
        maps : ndarray of shape (n, H, W), float32, or list of (H, W) arrays
            A list where images differ in size.
        """
        check_is_fitted(self)
        return anomaly_map(self.estimator_, X, size)

    def predict_mask(
        self,
        X: Any,
        size: tuple[int, int] | None = None,
        groups: ArrayLike | None = None,
    ) -> np.ndarray | list[np.ndarray]:
        """Mark the anomalous pixels, by the pixel threshold of each image's group.

        Parameters
        ----------
        X : sequence of images, or ndarray of patch features
            As in `fit`.

        size : (int, int), optional
            Height and width of the masks in pixels, as of `estimator`.

        groups : array-like of shape (n,)
            Group of each image, one of `groups_`.

        Returns
        -------
        masks : ndarray of shape (n, H, W), bool, or list of (H, W) arrays
            A list where images differ in size.
        """
        check_is_fitted(self)
        members = self._members(X, groups)
        chain = Chain(self.estimator_)
        if chain.images is not None:
            maps, windows = chain._maps_and_windows(X, size, None)
        else:
            maps = self.anomaly_map(X, size)
            windows = [WHOLE] * len(maps)
        masks: list[Any] = [None] * len(maps)
        for k, places in by_group(members):
            found = masks_above(
                [maps[i] for i in places],
                _pixel_threshold_of(self._detector_of(k), chain, size),
                [windows[i] for i in places],
            )
            for i, mask in zip(places, found, strict=True):
                masks[i] = mask
        return np.stack(masks) if isinstance(maps, np.ndarray) else masks

    def model_of(self, group: Any) -> Any:
        """Give the fitted model with the thresholds of one group.

        For the line that makes only this product, for `skad.inspect`, a report, or a
        graph. It shares arrays and networks with this object, which stays as it is
        whatever methods of the model are called: `fit`, `partial_fit`, `set_params`.

        Parameters
        ----------
        group : str or int
            One of `groups_`.

        Returns
        -------
        model : estimator
            Of the type of `estimator_`, fitted.

        Raises
        ------
        ValueError
            If `group` is not one of `groups_`.
        """
        check_is_fitted(self)
        k = self._places(np.asarray([group]))[0]
        return with_held_out(self.estimator_, self._held_out[k])

    def set_contamination(self, contamination: float) -> Self:
        """Set another rate of false alarms for all groups, from the scores at hand.

        Parameters
        ----------
        contamination : float
            Tolerated false-alarm rate on normal images, in (0, 0.5].

        Returns
        -------
        self : object
            The same object.
        """
        check_is_fitted(self)
        detectors = [self._detector_of(k) for k in range(len(self.groups_))]
        for detector in detectors:
            detector.set_contamination(contamination)
        self._held_out = [held_out_of(detector) for detector in detectors]
        self._set_attributes()
        return self

    def _detector_of(self, k: int) -> Any:
        return Chain(self.model_of(self.groups_[k])).final

    def calibrate(
        self,
        X: Any,
        y: ArrayLike | None = None,
        groups: ArrayLike | None = None,
        *,
        add: bool = False,
    ) -> Self:
        """Set thresholds anew from normal images that were not trained on.

        Only those of the groups in `groups` change.

        Parameters
        ----------
        X : sequence of images, or ndarray of patch features
            As in `fit`.

        y : array-like of shape (n,), optional
            Images labelled -1 are left out.

        groups : array-like of shape (n,)
            Group of each image, one of `groups_`.

        add : bool, default=False
            Whether to add to the held-out scores at hand; by default the new ones
            replace them.

        Returns
        -------
        self : object
            The same object.
        """
        check_is_fitted(self)
        members = self._members(X, groups)
        chain = Chain(self.estimator_)
        new = chain.final._scores_to_calibrate(chain.features(X), y)
        scores, maps, rows, positions = new
        rows = np.arange(len(scores)) if rows is None else rows
        for k, places in by_group(members[positions]):
            detector, kept = self._detector_of(k), np.isin(rows, places)
            rows_of_group = np.searchsorted(places, rows[kept])
            detector._calibrate(
                scores[places], maps[kept], rows_of_group, positions[places], add=add
            )
            self._held_out[k] = held_out_of(detector)
        self._set_attributes()
        return self

    def _members(self, X: Any, groups: Any) -> np.ndarray:
        """Place among `groups_` of the group of each image."""
        return self._places(checked_groups(groups, X))

    def _places(self, groups: np.ndarray) -> np.ndarray:
        known = self.groups_.tolist()
        unknown = sorted({repr(one) for one in groups.tolist() if one not in known})
        if unknown:
            raise ValueError(
                f"groups holds {', '.join(unknown[:5])}, of which fit has seen no "
                f"image; it knows {', '.join(map(repr, known[:20]))}. Fit again with "
                "normal images of every group."
            )
        place = {group: k for k, group in enumerate(known)}
        return np.array([place[one] for one in groups.tolist()], np.intp)


def _pixel_threshold_of(detector: Any, chain: Chain, size: Any) -> Any:
    """Threshold of a detector for maps of one size over one window."""
    if chain.images is not None:
        return lambda shape, window: detector.pixel_threshold(shape, window=window)
    if hasattr(detector, "image_sizes"):
        return lambda shape, window: detector.pixel_threshold(shape)
    return lambda shape, window: detector.pixel_threshold(size)

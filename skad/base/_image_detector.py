"""Detectors that take images themselves, without patch features before them.

Beside reading the images, all that a user calls behaves as in `skad.base`: the
threshold from held-out images, p-values, and maps that carry the same promise.
Maps come in the geometry of the images as passed, as those of a Pipeline do.
"""

from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from skad._checks import check_size, good_positions
from skad._maps import draw_each, masks_above
from skad._patches import filled
from skad._progress import progress
from skad.base._detector import BaseDetector, check_scores
from skad.base._image_input import ImageInput
from skad.networks._torch_state import own_torch_state


class ImageDetector(ImageInput, BaseDetector):
    """Base of the detectors that take images.

    Subclasses define ``_fit(reader)``, which learns from an `ImageReader` of
    good images, and ``_score_batch(batch)``, from float32 (b, H, W, C) in
    [0, 1] to one anomaly score per image (b,) and float32 maps (b, h, w), larger
    for more anomalous. All maps have one size, which may be coarser than that of
    the images; those of held-out images are kept, so coarse maps make small
    models. Where ``on_error="skip"``, the reader holds only images that could be
    read just before. How maps get their size is a matter of
    ``_rendering(window, grid)``.

    Their constructors take `image_size`, `crop_size`, `batch_size`, `on_error`,
    `n_jobs`, `contamination`, `calibration`, `sigma`, `random_state` and
    `verbose`.
    """

    _auto_calibration = "split"  # training five times more would be slow
    _n_folds = 5
    _parameter_constraints: dict[str, Any] = {
        **BaseDetector._parameter_constraints,
        **ImageInput._parameter_constraints,
    }

    def fit(self, X, y=None):
        """Learn from good images.

        Parameters
        ----------
        X : sequence of images
            Paths, `PIL.Image`, arrays (H, W[, C]), one array (n, H, W[, C]) or
            a torch tensor (n, C, H, W).

        y : array-like of shape (n,), optional
            +1 for good, -1 for anomalous. Anomalous images are left out of
            training; y has no other use.

        Returns
        -------
        self : object

        Raises
        ------
        ValueError
            If X is empty, if no good image is left, or if a parameter is out of
            range.

        skad.images.ImageError
            If an image cannot be read; it names position, file and reason. With
            ``on_error="skip"`` such images are left out, and a
            `SkippedImageWarning` lists them.
        """
        self._validate_params()
        self._check_constructor()
        reader = self._to_learn_from(X, y)
        self.n_samples_seen_ = 0
        with own_torch_state():
            self._learn(reader, type(self)._fit)
        return self

    def score_samples(self, X):
        """Score images; larger is more normal.

        Parameters
        ----------
        X : sequence of images
            As in `fit`.

        Returns
        -------
        scores : ndarray of shape (n,), float64
            NaN for an image that was skipped.
        """
        return super().score_samples(X)

    def decision_function(self, X):
        """Score images against the threshold; negative is anomalous.

        Parameters
        ----------
        X : sequence of images
            As in `fit`.

        Returns
        -------
        decision : ndarray of shape (n,), float64
            ``score_samples(X) - offset_``.
        """
        return super().decision_function(X)

    def predict(self, X):
        """Decide for each image: +1 is normal, -1 is anomalous.

        Parameters
        ----------
        X : sequence of images
            As in `fit`.

        Returns
        -------
        labels : ndarray of shape (n,), int64
            0 for an image that was skipped.
        """
        return super().predict(X)

    def p_value(self, X):
        """How usual each image is among good ones.

        The share of held-out good images, the image itself counted, that look
        at least as anomalous. Where training and new good images are
        exchangeable, a good image gets p <= a with a probability of at most a.

        Parameters
        ----------
        X : sequence of images
            As in `fit`.

        Returns
        -------
        p : ndarray of shape (n,), float64
            In (0, 1], small for anomalies.
        """
        return super().p_value(X)

    def anomaly_map(self, X, size=None):
        """Say where images are anomalous; larger is more anomalous.

        Mind the sign: scores are larger for normal images, maps for anomalous
        pixels.

        Parameters
        ----------
        X : sequence of images
            As in `fit`.

        size : (int, int), optional
            Height and width of the maps in pixels. Without it every map has
            the size of its image as passed.

        Returns
        -------
        maps : ndarray of shape (n, H, W), float32, or list of (H, W) arrays
            A list where images differ in size. Pixels outside of `crop_size`
            take the smallest score of the image. NaN for an image that was
            skipped; if its size is not known either, it has the size of the first
            image of which it is, or `image_size` where there is none.
        """
        if size is not None:
            size = check_size(size)
        grids = filled(self._of_present(X, self._score_patches))
        sizes = self.image_sizes(X) if size is None else [size] * len(grids)
        return draw_each(self._draw, grids, sizes, self.window(), self._frame()[0])

    def predict_mask(self, X, size=None):
        """Mark the anomalous pixels.

        Parameters
        ----------
        X : sequence of images
            As in `fit`.

        size : (int, int), optional
            As in `anomaly_map`.

        Returns
        -------
        masks : ndarray of shape (n, H, W), bool, or list of (H, W) arrays
            True where the map exceeds `pixel_threshold` at its size; nowhere in an
            image that was skipped.
        """
        return masks_above(self.anomaly_map(X, size), self.pixel_threshold)

    # The window is that of the crop, and maps of no size there are none.
    def pixel_threshold(self, size):  # type: ignore[override]
        """Threshold for the pixels of maps of a given size.

        It is taken from the largest value of each held-out good map, drawn at
        that size, so that "no pixel of a good image fires" carries the same
        promise as the threshold of the image scores.

        Parameters
        ----------
        size : (int, int)
            Height and width of the maps.

        Returns
        -------
        threshold : float
        """
        return super().pixel_threshold(check_size(size), window=self.window())

    def calibrate(self, X, y=None, *, add=False):
        """Set the threshold anew from good images that were not trained on.

        The model itself stays as it is: for a new camera, new lighting, or a
        threshold from more images.

        Parameters
        ----------
        X : sequence of images
            Good images that `fit` has not seen.

        y : array-like of shape (n,), optional
            Images labelled -1 are left out.

        add : bool, default=False
            Whether to add to the held-out scores at hand: thresholds and p-values
            are then from both. By default the new ones replace them. Scores of
            training images (``calibration="train"``) are always replaced.

        Returns
        -------
        self : object
        """
        return super().calibrate(X, y, add=add)

    # -- hooks -------------------------------------------------------------------

    def _fit(self, reader):
        raise NotImplementedError(
            f"{type(self).__name__} defines no _fit(reader): it learns from an "
            "ImageReader of normal images, as reader.batches(batch_size) gives them."
        )

    def _score_batch(self, batch):
        raise NotImplementedError(
            f"{type(self).__name__} defines no _score_batch(batch): for images "
            "(b, H, W, C) it returns one anomaly score per image, (b,), and one map "
            "per image, (b, h, w), larger for more anomalous."
        )

    def _needed_attributes(self):
        names = super()._needed_attributes()
        if type(self)._frame is ImageInput._frame:
            own = ["image_size", "crop_size", "on_error", "n_jobs", "verbose"]
            if type(self)._images_at_once is ImageInput._images_at_once:
                own.append("batch_size")
            names += own
        return names

    def _to_learn_from(self, X, y, *, reset=False):
        """Reader of the images that y does not call anomalous and that can be read."""
        reader = self._reader(self._checked_images(X))
        if y is not None:
            reader = reader[good_positions(X, y)]
        if self.on_error == "raise":
            return reader
        # Training may go over the images many times and in any order: it is told
        # beforehand what there is, at the price of reading everything once more.
        readable = [i for i, _ in reader.each(reader.read, range(len(reader)))]
        self._warn_of_skipped(reader, len(reader), stacklevel=4)
        return reader[np.array(readable)]

    def _learned(self, X, y, learned):
        return learned.positions

    def _of_present(self, X, score):
        check_is_fitted(self)
        return score(self._reader(self._checked_images(X)))

    def _learned_from(self, X, y, decisions):
        """Which images `fit` learned from, of those that have these decisions."""
        learned = ~np.isnan(decisions)
        if y is not None:
            learned &= np.isin(np.arange(len(learned)), good_positions(X, y))
        return learned

    def _score(self, reader):
        scores, maps = np.full(len(reader), np.nan), None
        for index, some, found in self._scored_batches(reader):
            if maps is None:
                shape = len(reader), *found.shape[1:]
                maps = np.full(shape, np.nan, np.float32)
            scores[index], maps[index] = some, found
        if maps is None:  # no image could be read
            if not hasattr(self, "calibration_maps_"):
                self._warn_of_skipped(reader, len(reader))  # raises: in fit
            maps = self._no_maps(len(reader))
        return scores, maps

    def _score_images(self, reader):
        scores = np.full(len(reader), np.nan)
        for index, some, _ in self._scored_batches(reader):
            scores[index] = some
        return scores

    def _scored_batches(self, reader):
        """Yield indices, scores and maps of the images that can be read."""
        with progress(len(reader), "images", self.verbose) as bar:
            for index, batch in reader.indexed_batches(self._images_at_once()):
                with own_torch_state():
                    found = self._score_batch(batch)
                check_scores(found, len(batch), f"{type(self).__name__}._score_batch")
                yield index, *found
                bar.update(len(index))
        self._warn_of_skipped(reader, len(reader), stacklevel=7, scoring=True)

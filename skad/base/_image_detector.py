"""Base of the detectors that take images, without patch features before them.

Maps come in the geometry of the images as passed, as those of a Pipeline do.
"""

from typing import Any

import numpy as np

from skad._checks import check_size, normal_positions
from skad._maps import masks_above, render_each, require_memory_for_maps
from skad._progress import progress
from skad.base._calibrated import first_ranked, map_ranks, max_maps
from skad.base._detector import BaseDetector
from skad.base._hooks import check_scores
from skad.base._image_input import ImageInput
from skad.networks._torch_state import own_torch_state


class ImageDetector(ImageInput, BaseDetector):
    """Base of the detectors that take images.

    Subclasses define ``_fit(reader)``, which learns from an `ImageReader` of normal
    images, and ``_score_batch(batch)``, from float32 images (b, H, W, C) in [0, 1] to
    one anomaly score per image, (b,), and one float32 map per image, (b, h, w), larger
    for more anomalous. All maps have one size, which may be coarser than that of the
    images; those of held-out images are kept, so coarse maps make small models. With
    ``on_error="skip"``, the reader holds only images that could be read just before.

    Their constructors take at least `image_size`, `crop_size`, `batch_size`,
    `on_error`, `n_jobs`, `contamination`, `calibration`, `sigma`, `random_state` and
    `verbose`.

    Attributes
    ----------
    contamination_ : float
        False-alarm rate of the thresholds, as of the fit or of `set_contamination`.

    offset_ : float
        Threshold of `score_samples`.

    calibration_scores_ : ndarray of shape (n_held_out,), float64
        Held-out scores of normal images behind `offset_`, larger is more normal.

    calibration_maps_ : ndarray of shape (n_maps, h, w), float32
        Their maps, larger is more anomalous. Of more than 1,000 images whose maps
        take more than 256 MB together, those of a random sample.

    n_samples_seen_ : int
        Number of training images.

    Examples
    --------
    >>> import numpy as np
    >>> from skad.base import ImageDetector
    >>> class BrightnessDetector(ImageDetector):
    ...     def __init__(self, image_size=16, crop_size=None, batch_size=8,
    ...                  on_error="raise", n_jobs=None, contamination=0.2,
    ...                  calibration="auto", sigma=0.0, random_state=0, verbose=False):
    ...         self.image_size, self.crop_size = image_size, crop_size
    ...         self.batch_size, self.on_error = batch_size, on_error
    ...         self.contamination, self.calibration = contamination, calibration
    ...         self.sigma, self.random_state = sigma, random_state
    ...         self.n_jobs, self.verbose = n_jobs, verbose
    ...
    ...     def _fit(self, reader):
    ...         batches = list(reader.batches(self.batch_size))
    ...         self.mean_ = np.concatenate(batches).mean()
    ...
    ...     def _score_batch(self, batch):
    ...         maps = np.abs(batch.mean(axis=3) - self.mean_)
    ...         return maps.mean(axis=(1, 2)), maps
    >>> rng = np.random.default_rng(0)
    >>> images = rng.integers(100, 120, size=(40, 16, 16, 3), dtype=np.uint8)
    >>> detector = BrightnessDetector().fit(images)
    >>> detector.predict(images[:1] + np.uint8(100))
    array([-1])
    """

    _auto_calibration = "split"  # training five times more would be slow
    _n_folds = 5
    _required_parameters: tuple[str, ...] = (
        *BaseDetector._required_parameters,
        *("image_size", "crop_size", "batch_size", "on_error", "n_jobs", "verbose"),
    )
    _parameter_constraints: dict[str, Any] = {
        **BaseDetector._parameter_constraints,
        **ImageInput._parameter_constraints,
    }

    def anomaly_map(
        self, X: Any, size: tuple[int, int] | None = None
    ) -> np.ndarray | list[np.ndarray]:
        """Anomaly score of each pixel; larger is more anomalous.

        Mind the sign: scores of images are larger for normal images, maps are larger
        for anomalous pixels.

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

        Raises
        ------
        ValueError
            If X is not a sequence of images, or `size` is not a pair of positive
            integers.

        sklearn.exceptions.NotFittedError
            If the detector is not fitted.

        skad.images.ImageError
            If an image cannot be read and ``on_error="raise"``.
        """
        if size is not None:
            size = check_size(size)
        images = self._checked_reader(X)
        if size is not None:
            require_memory_for_maps([size] * len(images))
        grids = self._patch_maps(images)
        # No file is opened again to tell the size of its image.
        sizes = images.original_sizes() if size is None else [size] * len(grids)
        require_memory_for_maps(sizes)
        return render_each(
            self._render,
            grids,
            sizes,
            [self.window()] * len(grids),
            self._size_of_unread,
        )

    def predict_mask(
        self, X: Any, size: tuple[int, int] | None = None
    ) -> np.ndarray | list[np.ndarray]:
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
        maps = self.anomaly_map(X, size)
        windows = [self.window()] * len(maps)
        return masks_above(maps, self._pixel_threshold, windows)

    def pixel_threshold(self, size: tuple[int, int]) -> float:
        """Threshold for the pixels of maps of a given size.

        It is taken from the largest value of each held-out map of a normal image,
        rendered at that size, by the rule of `threshold`, so that "no pixel of a
        normal image fires" holds as often as the threshold of the image scores.

        Parameters
        ----------
        size : (int, int)
            Height and width of the maps.

        Returns
        -------
        threshold : float
            In units of the maps; a pixel above it is anomalous.

        Raises
        ------
        ValueError
            If `size` is not a pair of positive integers.

        sklearn.exceptions.NotFittedError
            If the detector is not fitted.
        """
        return self._pixel_threshold(check_size(size), self.window())

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

    # -- input -------------------------------------------------------------------

    def _to_learn_from(self, X, y, *, reset):
        """Reader of the images that y does not call anomalous and that can be read."""
        reader = self._checked_reader(X)
        if y is not None:
            reader = reader[normal_positions(X, y)]
        if reader.on_error == "skip":
            # Training may go over the images many times and in any order: it is told
            # beforehand what there is, at the price of reading everything once more.
            readable = [i for i, _ in reader.each(reader.read, range(len(reader)))]
            self._warn_of_skipped(reader, len(reader))
            reader = reader[np.array(readable)]
        return reader, reader.positions

    _reads_samples = True

    def _shape_of(self, reader):
        return (len(reader), *self._input_size(), reader.n_channels), 4

    def _fit_bytes(self, shape, itemsize, *, first):
        """Estimate of the bytes of the batches that are read."""
        return 0.0, self._images_at_once() * float(np.prod(shape[1:])) * itemsize

    def _memory_advice(self):
        return (
            f"Reduce image_size={self.image_size!r} or batch_size={self.batch_size!r}."
        )

    def _to_score(self, X):
        """Reader of all images: which of them are present shows when it is read."""
        reader = self._checked_reader(X)
        return reader, np.ones(len(reader), bool)

    @staticmethod
    def _not_anomalous(X, y):
        """Which images (n,) `y` does not call anomalous; True for all of them."""
        return True if y is None else np.isin(np.arange(len(X)), normal_positions(X, y))

    # -- scores ------------------------------------------------------------------

    def _score(self, reader):
        """Scores and maps of images; NaN for those that cannot be read."""
        return self._scored(reader, lambda grid: np.arange(len(reader)))[:2]

    def _score_for_calibration(self, reader):
        """As `_score`, but with no more maps than are kept, of a random sample."""
        ranks = map_ranks(0, len(reader))
        return self._scored(reader, lambda grid: first_ranked(ranks, max_maps(grid)))

    def _scored(self, reader, choose):
        """Scores of images, maps of some of them, and which these are.

        ``choose(grid)`` gives their ascending places, for maps of that size.
        """
        scores, maps = np.full(len(reader), np.nan), None
        rows = np.arange(len(reader))
        for index, batch_scores, batch_maps in self._scored_batches(reader):
            if maps is None:
                rows = choose(batch_maps.shape[1:])
                maps = np.full((len(rows), *batch_maps.shape[1:]), np.nan, np.float32)
            scores[index] = batch_scores
            _, places, chosen = np.intersect1d(
                rows, index, assume_unique=True, return_indices=True
            )
            maps[places] = batch_maps[chosen]
        if maps is None:  # no image could be read
            if not hasattr(self, "calibration_maps_"):
                self._warn_of_skipped(reader, len(reader))  # raises: in fit
            maps = self._no_maps(len(reader))
        return scores, maps, rows

    def _image_scores(self, reader):
        scores = np.full(len(reader), np.nan)
        for index, batch_scores, _ in self._scored_batches(reader):
            scores[index] = batch_scores
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
        self._warn_of_skipped(reader, len(reader), scoring=True)

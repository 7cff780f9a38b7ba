"""What every patch-feature transformer shares: images in, patch grids out."""

import os
import tempfile
import warnings
from hashlib import sha256
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from skad._checks import check_labels
from skad._progress import progress
from skad.features._reading import ImageReader, n_threads
from skad.images import (
    ImageError,
    center_crop_box,
    check_images,
    content_key,
    image_size,
)


class SkippedImageWarning(UserWarning):
    """Some images could not be read and were skipped, as on_error="skip" asks."""


class PatchFeatureTransformer(TransformerMixin, BaseEstimator):
    """Base of the transformers from images to patch features.

    Subclasses define ``_fit_extractor(images)``, which learns from an
    `ImageReader` and sets `grid_shape_` and `n_features_out_`, and
    ``_extract(batch)``, from float32 (b, H, W, 3) in [0, 1] to float32
    (b, h, w, d). One that caches defines ``_signature()``, a text of
    everything that its features depend on beside the image.
    """

    _parameter_constraints: dict[str, list[Any]] = {
        "image_size": [Interval(Integral, 1, None, closed="left"), tuple, list],
        "crop_size": [Interval(Integral, 1, None, closed="left"), tuple, list, None],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "on_error": [StrOptions({"raise", "skip"})],
        "n_jobs": [Integral, None],
        "verbose": ["verbose"],
    }

    def fit(self, X, y=None):
        """Prepare the extractor on images.

        Parameters
        ----------
        X : sequence of images
            Paths, `PIL.Image`, arrays (H, W[, C]), one array (n, H, W[, C]) or
            a torch tensor (n, C, H, W).

        y : array-like of shape (n,), optional
            +1 for good, -1 for anomalous. Filters are learned from good images
            only.

        Returns
        -------
        self : object
        """
        self._fit_reader(X, y)
        return self

    def _fit_reader(self, X, y):
        """Validate, and fit the extractor; returns what `_fit_extractor` does."""
        self._validate_params()
        self._frame()
        X = check_images(X)
        if y is not None:
            check_consistent_length(X, y)
            X = [X[i] for i in np.flatnonzero(check_labels(y) == 1)]
            if not X:
                raise ValueError("no good image to learn from: every label is -1.")
        return self._fit_extractor(self._reader(X))

    def fit_transform(self, X, y=None):
        """Fit, then extract the features of the same images.

        Like ``fit(X, y).transform(X)``; images that could not be read are
        listed in `skipped_` as pairs of position and reason.

        Parameters
        ----------
        X : sequence of images
            As in `fit`.

        y : array-like of shape (n,), optional
            As in `fit`.

        Returns
        -------
        features : ndarray of shape (n, h, w, d), float32
            As of `transform`.
        """
        self.fit(X, y)
        features, self.skipped_ = self._transform(X)
        return features

    def transform(self, X):
        """Extract patch features.

        Parameters
        ----------
        X : sequence of images
            As in `fit`.

        Returns
        -------
        features : ndarray of shape (n, h, w, d), float32
            With ``on_error="skip"`` an image that could not be read is all NaN,
            and a `SkippedImageWarning` lists it.

        Raises
        ------
        skad.images.ImageError
            If an image cannot be read; it names position, file and reason.
        """
        return self._transform(X)[0]

    def _transform(self, X, extract=None):
        """Features and skipped images; `extract` takes indices and their batch."""
        check_is_fitted(self, "grid_shape_")
        reader = self._reader(check_images(X))
        features = np.full(
            (len(reader), *self.grid_shape_, self.n_features_out_), np.nan, np.float32
        )
        cache = _Cache.of(self)
        with progress(len(reader), "features", self.verbose) as bar:
            missing, keys = cache.fill(features, reader)
            done = len(reader) - len(missing)
            for index, batch in reader.indexed_batches(self.batch_size, missing):
                features[index] = (
                    self._extract(batch) if extract is None else extract(index, batch)
                )
                cache.store(features, index, keys)
                done += len(index)
                bar.reach(done)
        skipped = sorted(reader.skipped)
        if skipped:
            if len(skipped) == len(reader):
                raise ImageError(
                    f"none of the {len(reader)} images could be read; the first: "
                    f"{skipped[0][1]}"
                )
            warnings.warn(
                f"{len(skipped)} of {len(reader)} images could not be read and were "
                f"skipped: {'; '.join(reason for _, reason in skipped)}",
                SkippedImageWarning,
                stacklevel=3,
            )
        return features, skipped

    def image_sizes(self, X):
        """Tell the size of each image as passed.

        Parameters
        ----------
        X : sequence of images
            As in `fit`.

        Returns
        -------
        sizes : list of (int, int)
            Height and width; None for an image that is skipped.
        """
        sizes: list[tuple[int, int] | None] = []
        for i, item in enumerate(check_images(X)):
            try:
                sizes.append(image_size(item, where=f"X[{i}]"))
            except ImageError:
                if self.on_error == "raise":
                    raise
                sizes.append(None)
        return sizes

    def window(self):
        """The part of an image that its patch grid covers, as fractions.

        Returns
        -------
        ((float, float), (float, float))
            Top and bottom as fractions of the height, left and right of the
            width; ((0, 1), (0, 1)) without `crop_size`.
        """
        size, crop = self._frame()
        if crop is None:
            return (0.0, 1.0), (0.0, 1.0)
        starts = center_crop_box(size, crop)
        return tuple(
            (start / side, (start + kept) / side)
            for start, side, kept in zip(starts, size, crop, strict=True)
        )

    def _frame(self):
        """Validated (height, width) of the resized image and of the crop, or None."""
        size = _pair(self.image_size, "image_size")
        if self.crop_size is None:
            return size, None
        crop = _pair(self.crop_size, "crop_size")
        if crop[0] > size[0] or crop[1] > size[1]:
            raise ValueError(
                f"crop_size={self.crop_size!r} exceeds image_size="
                f"{self.image_size!r}; a crop is cut from the resized image."
            )
        return size, crop

    def _input_size(self):
        """Height and width of what `_extract` sees."""
        size, crop = self._frame()
        return size if crop is None else crop

    def _reader(self, X):
        size, crop = self._frame()
        return ImageReader(
            X, size, crop, self.on_error, n_threads(self.n_jobs), self._n_channels()
        )

    def _n_channels(self):
        """Channels of the images that `_extract` sees."""
        return 3

    def _signature(self):
        raise NotImplementedError

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        return tags


class _Cache:
    """Features on disk, one file per image; without a folder it does nothing."""

    def __init__(self, folder, signature):
        self.folder = folder
        self.signature = signature

    @classmethod
    def of(cls, transformer):
        folder = getattr(transformer, "cache_dir", None)
        if folder is None:
            return cls(None, "")
        return cls(Path(folder), transformer._signature())

    def fill(self, features, reader):
        """Fill what is on disk; return the indices left and all keys."""
        if self.folder is None:
            return range(len(reader)), {}
        missing, keys = [], {}

        def content_of(i):
            return content_key(reader.X[i], where=f"X[{i}]")

        for index, content in reader.each(content_of, range(len(reader))):
            key = sha256(f"{self.signature}\n{content}".encode()).hexdigest()
            keys[index] = key
            try:
                features[index] = np.load(self._path(key))
            except (OSError, ValueError, EOFError):  # absent, or cut short
                missing.append(index)
        return missing, keys

    def store(self, features, indices, keys):
        for index in indices if self.folder is not None else ():
            path = self._path(keys[index])
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, partial = tempfile.mkstemp(dir=path.parent, suffix=".partial")
            with os.fdopen(handle, "wb") as file:
                np.save(file, features[index])
            os.replace(partial, path)  # readers see a whole file or none

    def _path(self, key):
        return self.folder / key[:2] / f"{key}.npy"


def _pair(value, name):
    """(height, width) from an int or a pair."""
    pair = (value, value) if isinstance(value, Integral) else tuple(value)
    if len(pair) != 2 or not all(
        isinstance(side, (int, np.integer)) and side > 0 for side in pair
    ):
        raise ValueError(
            f"{name}={value!r} must be a positive integer or a pair of them "
            "(height, width)."
        )
    return int(pair[0]), int(pair[1])

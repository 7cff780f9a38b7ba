"""What every patch-feature transformer shares: images in, patch grids out."""

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from skad._checks import good_positions
from skad._patch_array import PatchArray
from skad._portable import Portable
from skad._progress import progress
from skad._torch_state import own_torch_state
from skad.features._cache import Cache
from skad.features._regions import Regions
from skad.images import check_images
from skad.images._input import ImageInput


class PatchFeatureTransformer(Portable, ImageInput, TransformerMixin, BaseEstimator):
    """Base of the transformers from images to patch features.

    Subclasses define ``_fit_extractor(images)``, which learns from an
    `ImageReader` and sets `grid_shape_` and `n_features_out_`, and
    ``_extract(batch)``, from float32 (b, H, W, 3) in [0, 1] to float32
    (b, h, w, d). One that caches defines ``_signature()``, a text of
    everything that its features depend on beside the image. One that describes
    whole images, too, sets ``_n_pooled``, the length of the descriptor, and
    ``_own_levels``, and extracts a `PatchArray`.
    """

    _n_pooled = 0
    _own_levels: tuple = ()

    _parameter_constraints: dict[str, Any] = {
        **ImageInput._parameter_constraints,
        "region": "no_validation",
        "verbose": ["verbose"],
    }

    # A region for each image reaches `transform` through metadata routing.
    __metadata_request__fit = {"regions": True}
    __metadata_request__transform = {"regions": True}

    def fit(self, X, y=None, regions=None):
        """Prepare the extractor on images.

        Parameters
        ----------
        X : sequence of images
            Paths, `PIL.Image`, arrays (H, W[, C]), one array (n, H, W[, C]) or
            a torch tensor (n, C, H, W).

        y : array-like of shape (n,), optional
            +1 for good, -1 for anomalous. Filters are learned from good images
            only.

        regions : object
            Not used: what lies outside a region is cut out after the extractor.

        Returns
        -------
        self : object
        """
        self._fit_extract(X, y)
        return self

    def fit_transform(self, X, y=None, regions=None):
        """Fit, then extract the features of the same images.

        Like ``fit(X, y).transform(X)``; images that could not be read are
        listed in `skipped_` as pairs of position and reason.

        Parameters
        ----------
        X : sequence of images
            As in `fit`.

        y : array-like of shape (n,), optional
            As in `fit`.

        regions : sequence of n masks, optional
            As in `transform`.

        Returns
        -------
        features : ndarray of shape (n, h, w, d), float32
            As of `transform`.
        """
        extract = self._fit_extract(X, y)
        features, self.skipped_ = self._transform(X, regions, extract)
        return features

    def transform(self, X, regions=None):
        """Extract patch features.

        Parameters
        ----------
        X : sequence of images
            As in `fit`.

        regions : sequence of n masks, optional
            For each image an array (H, W), the path of a mask, or None for the
            whole image; True or not zero is looked at, beside what `region`
            leaves out of every image.

        Returns
        -------
        features : ndarray of shape (n, h, w, d), float32
            A patch that lies outside the region by more than half is NaN. With
            ``on_error="skip"`` an image that could not be read is all NaN, and
            a `SkippedImageWarning` lists it.

        Raises
        ------
        skad.images.ImageError
            If an image cannot be read; it names position, file and reason.
        """
        return self._transform(X, regions)[0]

    def _fit_extract(self, X, y):
        """Fit; returns how to extract the features of the same images, or None."""
        self._fit_reader(X, y)

    def _fit_reader(self, X, y):
        """Validate, and fit the extractor; returns what `_fit_extractor` does."""
        self._validate_params()
        self._frame()
        X = check_images(X, n_channels=self._n_channels())
        if y is not None:
            X = [X[i] for i in good_positions(X, y)]
        with own_torch_state():
            return self._fit_extractor(self._reader(X))

    def _transform(self, X, regions=None, extract=None):
        """Features and skipped images."""
        check_is_fitted(self, "grid_shape_")
        X = check_images(X, n_channels=self._n_channels())
        features = np.empty(
            (len(X), *self.grid_shape_, self.n_features_out_), np.float32
        )
        pooled = np.empty((len(X), self._n_pooled), np.float32)
        absent = np.ones(len(X), bool)
        reader = self._reader(X)
        for index, block in self._blocks(reader, regions, extract):
            features[index], absent[index] = block, False
            if self._n_pooled:
                pooled[index] = block.pooled
        features[absent], pooled[absent] = np.nan, np.nan
        if self._n_pooled:
            features = PatchArray(features, pooled, self._own_levels)
        return features, sorted(reader.skipped)

    def _fit_blocks(self, X, y=None, regions=None):
        """Fit, then yield the features of the good images block by block."""
        extract = self._fit_extract(X, y)
        X = check_images(X, n_channels=self._n_channels())
        reader = self._reader(X)
        for _, block in self._blocks(reader, regions, extract, good_positions(X, y)):
            yield block
        self.skipped_ = sorted(reader.skipped)

    def _transform_blocks(self, X, y=None, regions=None):
        """Yield the features of the good images block by block."""
        check_is_fitted(self, "grid_shape_")
        X = check_images(X, n_channels=self._n_channels())
        for _, block in self._blocks(
            self._reader(X), regions, None, good_positions(X, y)
        ):
            yield block

    def _scoring_blocks(self, X, regions=None, n_entries=2**24):
        """Yield indices and features of images in blocks of 64 MB or more."""
        check_is_fitted(self, "grid_shape_")
        X = check_images(X, n_channels=self._n_channels())
        waiting, room = [], n_entries
        for index, block in self._blocks(self._reader(X), regions):
            waiting.append((index, block))
            room -= block.size
            if room <= 0:
                yield _joined(waiting)
                waiting, room = [], n_entries
        if waiting:
            yield _joined(waiting)

    def _blocks(self, reader, regions, extract=None, indices=None):
        """Yield indices and the features of these images, the cached ones first.

        `extract` takes indices and their batch of images.
        """
        indices = range(len(reader)) if indices is None else indices
        regions = self.regions(regions, len(reader))
        cache = Cache.of(self)
        with progress(len(indices), "features", self.verbose) as bar:
            keys, missing, done = cache.keys(reader, indices), [], 0
            for lo in range(0, len(keys), self._images_at_once()):
                some = list(keys)[lo : lo + self._images_at_once()]
                index, rows, absent = cache.load(some, keys)
                missing += absent
                done += len(index)
                bar.reach(done)
                if len(index):
                    yield index, regions.cut(self._unpacked(rows), index)
            missing = indices if cache.folder is None else missing
            for index, batch in reader.indexed_batches(self._images_at_once(), missing):
                with own_torch_state():
                    if extract is None:
                        block = self._extract(batch)
                    else:
                        block = extract(index, batch)
                cache.store(self._packed(block), index, keys)
                done += len(index)
                bar.reach(done)
                yield index, regions.cut(block, index)
        self._warn_of_skipped(reader, len(indices))

    def _packed(self, block):
        """One row per image: its patches, then its descriptor if there is one."""
        rows = np.asarray(block).reshape(len(block), -1)
        return np.hstack([rows, block.pooled]) if self._n_pooled else rows

    def _unpacked(self, rows):
        patches = rows[:, : rows.shape[1] - self._n_pooled]
        patches = patches.reshape(len(rows), *self.grid_shape_, self.n_features_out_)
        if not self._n_pooled:
            return patches
        return PatchArray(patches, rows[:, -self._n_pooled :], self._own_levels)

    def regions(self, each, n_images):
        """What to look at in each of some images.

        Parameters
        ----------
        each : sequence of n masks, or None
            As the argument `regions` of `transform`.

        n_images : int

        Returns
        -------
        regions : object
            False where everything is looked at; ``inside(i, grid)`` tells which
            cells of a grid over image i are.
        """
        return Regions(self.region, each, n_images, self.window())

    def _signature(self):
        raise NotImplementedError


def _joined(blocks):
    """Indices and features of several blocks as of one."""
    if len(blocks) == 1:
        return blocks[0]
    index = np.concatenate([index for index, _ in blocks])
    patches = np.concatenate([np.asarray(block) for _, block in blocks])
    first = blocks[0][1]
    if isinstance(first, PatchArray):
        pooled = np.concatenate([block.pooled for _, block in blocks])
        patches = PatchArray(patches, pooled, first.levels)
    return index, patches

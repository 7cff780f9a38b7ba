"""What every patch-feature transformer shares: images in, patch grids out."""

import copy
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from skad._checks import good_positions, require_attributes
from skad._patch_array import PatchArray
from skad._portable import Portable
from skad._progress import progress
from skad.base._image_input import ImageInput
from skad.features._cache import Cache
from skad.features._regions import Regions, read_region
from skad.networks._torch_state import own_torch_state


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
        features, self.skipped_ = self._transform(X, regions, extract, scoring=False)
        return features

    def transform(self, X, regions=None):
        """Extract patch features.

        Parameters
        ----------
        X : sequence of images
            As in `fit`.

        regions : sequence of n masks, optional
            For each image a mask, as `skad.images.read_mask` takes it, or None for
            the whole image; True or not zero is looked at, beside what `region`
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
        self._check_constructor()
        self._frame()
        X = self._checked_images(X)
        self._fit_region()
        # A part of the reader, not of X: errors name the places in X.
        reader = self._reader(X)
        if y is not None:
            reader = reader[good_positions(X, y)]
        with own_torch_state():
            learned = self._fit_extractor(reader)
        require_attributes(
            self, ("grid_shape_", "n_features_out_"), "_fit_extractor(images) sets them"
        )
        return learned

    def _fit_region(self):
        """Read `region`: what is fitted needs no file, and scores by what it read."""
        with self._limited():
            self.region_ = read_region(self.region)

    def _check_constructor(self):
        names = ["image_size", "crop_size", "on_error", "n_jobs", "region", "verbose"]
        if type(self)._images_at_once is ImageInput._images_at_once:
            names.append("batch_size")
        require_attributes(self, names, "the constructor stores them")

    def _transform(self, X, regions=None, extract=None, *, scoring=True):
        """Features and skipped images."""
        check_is_fitted(self, "grid_shape_")
        X = self._checked_images(X)
        features = np.empty(
            (len(X), *self.grid_shape_, self.n_features_out_), np.float32
        )
        pooled = np.empty((len(X), self._n_pooled), np.float32)
        absent = np.ones(len(X), bool)
        reader = self._reader(X)
        for index, block in self._blocks(reader, regions, extract, scoring=scoring):
            features[index], absent[index] = block, False
            if self._n_pooled:
                pooled[index] = block.pooled
        features[absent], pooled[absent] = np.nan, np.nan
        if self._n_pooled:
            features = PatchArray(features, pooled, self._own_levels)
        return features, sorted(reader.skipped)

    def _fit_blocks(self, X, y=None, regions=None):
        """Fit, then yield positions and features of the normal images in blocks."""
        extract = self._fit_extract(X, y)
        X = self._checked_images(X)
        reader = self._reader(X)
        yield from self._blocks_in_order(reader, regions, extract, good_positions(X, y))
        self.skipped_ = sorted(reader.skipped)

    def _transform_blocks(self, X, y=None, regions=None):
        """Yield positions and features of the normal images in blocks."""
        check_is_fitted(self, "grid_shape_")
        X = self._checked_images(X)
        reader = self._reader(X)
        yield from self._blocks_in_order(reader, regions, None, good_positions(X, y))

    def _blocks_in_order(self, reader, regions, extract, indices):
        """Yield blocks in the order of the images, wherever these are cached.

        What a detector keeps of each image then stands in that order, too.
        """
        if Cache.of(self).folder is None:
            yield from self._blocks(reader, regions, extract, indices)
            return
        step = self._images_at_once()
        part = copy.copy(reader)  # with the same list of skipped images
        part.on_error = "raise" if reader.on_error == "raise" else "report"
        for lo in range(0, len(indices), step):
            blocks = self._blocks(part, regions, extract, indices[lo : lo + step])
            if found := list(blocks):
                index, block = _joined(found)
                order = np.argsort(index)
                yield index[order], block[order]
        self._warn_of_skipped(reader, len(indices))

    def _images_per_block(self, n_entries=2**24):
        """Images of a block for scoring: whole batches, of 64 MB or more together."""
        per_image = int(np.prod(self.grid_shape_)) * self.n_features_out_
        batch = self._images_at_once()
        return batch * -(-n_entries // (batch * per_image))

    def _scoring_blocks(self, reader, regions=None, n_images=None):
        """Yield indices and features of images, `n_images` or the last few at once.

        Every image is in one of the blocks; one that was skipped is NaN.
        """
        check_is_fitted(self, "grid_shape_")
        n_images = self._images_per_block() if n_images is None else n_images
        waiting, left = [], np.ones(len(reader), bool)
        for index, block in self._blocks(reader, regions, scoring=True):
            waiting.append((index, block))
            left[index] = False
            if sum(len(index) for index, _ in waiting) >= n_images:
                yield _joined(waiting)
                waiting = []
        if waiting:
            yield _joined(waiting)
        absent = np.flatnonzero(left)
        for lo in range(0, len(absent), n_images):
            yield absent[lo : lo + n_images], self._nothing(absent[lo : lo + n_images])

    def _nothing(self, index):
        """Features of images that could not be read."""
        shape = len(index), *self.grid_shape_, self.n_features_out_
        patches = np.full(shape, np.nan, np.float32)
        if not self._n_pooled:
            return patches
        pooled = np.full((len(index), self._n_pooled), np.nan, np.float32)
        return PatchArray(patches, pooled, self._own_levels)

    def _blocks(self, reader, regions, extract=None, indices=None, *, scoring=False):
        """Yield indices and the features of these images, the cached ones first.

        `extract` takes indices and their batch of images. To learn (without
        `scoring`), one image at least has to be readable.
        """
        indices = range(len(reader)) if indices is None else indices
        regions = self.regions(regions, len(reader))
        cache = Cache.of(self)
        with progress(len(indices), "features", self.verbose) as bar:
            keys, missing = cache.keys(reader, indices), []
            for lo in range(0, len(keys), self._images_at_once()):
                some = list(keys)[lo : lo + self._images_at_once()]
                index, rows, absent = cache.load(some, keys)
                missing += absent
                bar.update(len(index))
                if len(index):
                    yield index, regions.cut(self._unpacked(rows), index)
            missing = indices if cache.folder is None else missing
            for index, batch in reader.indexed_batches(self._images_at_once(), missing):
                with own_torch_state():
                    if extract is None:
                        block = self._extract(batch)
                    else:
                        block = extract(index, batch)
                self._check_block(block, len(index))
                cache.store(self._packed(block), index, keys)
                bar.update(len(index))
                yield index, regions.cut(block, index)
        self._warn_of_skipped(reader, len(indices), scoring=scoring)

    def _check_block(self, block, n):
        """Refuse what an `_extract` of the user's own returns in another shape."""
        wanted = (n, *self.grid_shape_, self.n_features_out_)
        if np.shape(block) != wanted:
            raise ValueError(
                f"{type(self).__name__}._extract returned the shape {np.shape(block)}, "
                f"expected {wanted} for {n} images: rows and columns of grid_shape_, "
                "then n_features_out_ channels."
            )

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
        check_is_fitted(self, "grid_shape_")
        return Regions(self.region_, each, n_images, self.window(), self._pixel_limit)

    def _fit_extractor(self, images):
        raise NotImplementedError(
            f"{type(self).__name__} defines no _fit_extractor(images): it learns from "
            "an ImageReader and sets grid_shape_, (rows, columns) of the patch grid, "
            "and n_features_out_, the channels of a patch."
        )

    def _extract(self, batch):
        raise NotImplementedError(
            f"{type(self).__name__} defines no _extract(batch): it returns float32 "
            "features (b, rows, columns, channels) of images (b, H, W, C) in [0, 1]."
        )

    def _signature(self):
        raise NotImplementedError(
            f"{type(self).__name__} has a cache_dir but defines no _signature(): it "
            "returns a text of everything that its features depend on beside the "
            "image."
        )


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

"""Base of the transformers from images to patch features."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from skad._checks import normal_positions, require_attributes
from skad._memory import check_features, explained_shortage, require_memory
from skad._patch_array import PatchArray
from skad._portable import Portable
from skad._progress import progress
from skad.base._image_input import ImageInput
from skad.features._cache import Cache
from skad.features._regions import Regions, read_region
from skad.images._batches import ImageReader
from skad.networks._torch_state import own_torch_state
from skad.synthesis._augmented import WithViews

_PART_ENTRIES = 2**24  # float32 features of a part that is scored: 64 MB

# From the indices and pixels of a batch of images to their features.
Extract = Callable[[NDArray[np.intp], NDArray[np.float32]], NDArray[np.float32]]


class PatchFeatureTransformer(Portable, ImageInput, TransformerMixin, BaseEstimator):
    """Base of the transformers from images to patch features.

    Subclasses define ``_fit(images)``, which learns from an `ImageReader` and sets
    `grid_shape_` and `n_features_out_`, and ``_extract(batch)``, from float32
    (b, H, W, C) in [0, 1] to float32 (b, h, w, d). One that caches defines
    ``_signature()``, a text of everything that its features depend on beside the
    image. One that describes whole images, too, sets ``_n_pooled``, the length of the
    descriptor, and ``_own_levels``, and extracts a `PatchArray`.
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

    def fit(self, X: Any, y: ArrayLike | None = None, regions: Any = None) -> Self:
        """Prepare the extractor on images.

        Parameters
        ----------
        X : sequence of images
            Paths, `PIL.Image`, arrays (H, W[, C]), one array (n, H, W[, C]) or
            a torch tensor (n, C, H, W); see `skad.images.read_image`.

        y : array-like of shape (n,), default=None
            +1 for normal, -1 for anomalous. Filters are learned from normal images
            only.

        regions : sequence of n masks, default=None
            As in `transform`. For what is learned from patches, such as the axes of
            ``PatchFeatures(reduction="pca")``.

        Returns
        -------
        self : object
            The fitted transformer.

        Raises
        ------
        ValueError
            If X is empty, no image is normal, or a parameter is out of range.

        skad.images.ImageError
            If an image cannot be read; it names position, file and reason.
        """
        images = self._validated_reader(X, regions)
        with own_torch_state():
            self._fit_images(images, y)
        return self

    def fit_transform(
        self, X: Any, y: ArrayLike | None = None, regions: Any = None
    ) -> NDArray[np.float32]:
        """Fit, then extract the features of the same images.

        Like ``fit(X, y).transform(X)``; images that could not be read are
        listed in `skipped_` as pairs of position and reason.

        Parameters
        ----------
        X : sequence of images
            As in `fit`.

        y : array-like of shape (n,), default=None
            As in `fit`.

        regions : sequence of n masks, default=None
            As in `transform`.

        Returns
        -------
        features : ndarray of shape (n, h, w, d), float32
            As of `transform`.

        Raises
        ------
        ValueError
            As `fit`, or if `regions` does not fit to X.

        skad.images.ImageError
            As `transform`.
        """
        images = self._validated_reader(X, regions)
        with own_torch_state():
            extract = self._fit_images(images, y)
            features = self._all_features(images, regions, extract, scoring=False)
        self.skipped_ = sorted(images.skipped)
        return features

    def transform(self, X: Any, regions: Any = None) -> NDArray[np.float32]:
        """Extract patch features.

        Parameters
        ----------
        X : sequence of images
            As in `fit`.

        regions : sequence of n masks, default=None
            For each image a mask, as `skad.images.read_mask` takes it, or None for
            the whole image; True or not zero is looked at, beside what `region`
            leaves out of every image.

        Returns
        -------
        features : ndarray of shape (n, h, w, d), float32
            A patch that lies outside the region by more than half is NaN. With
            ``on_error="skip"`` an image that could not be read is all NaN, and
            a `SkippedImageWarning` lists it. Where a descriptor of the whole image
            travels along, a `PatchArray`.

        Raises
        ------
        sklearn.exceptions.NotFittedError
            If the transformer is not fitted.

        ValueError
            If X is empty, or `regions` does not fit to it.

        skad.images.ImageError
            If an image cannot be read; it names position, file and reason.
        """
        images = self._checked_reader(X)
        with own_torch_state():
            return self._all_features(images, regions, scoring=True)

    # -- fitting ------------------------------------------------------------------

    def _validated_reader(self, X: Any, regions: Any = None) -> ImageReader:
        """Check parameters and images; returns the reader of these."""
        self._validate_params()
        self._check_constructor()
        images = self._checked_reader(X)
        self._fit_region()
        self._set_regions(images, regions)
        return images

    def _set_regions(self, images: ImageReader, each: Any) -> None:
        """Have a reader carry what a fit looks at in its images."""
        images.regions = None
        if each is not None or self.region_ is not None:
            images.regions = Regions(self.region_, each, len(images), self._pixel_limit)

    def _fit_images(self, images: ImageReader, y: ArrayLike | None) -> Extract | None:
        """Fit; returns how to extract the features of the same images.

        None where that is by `_extract`, as of any other images.
        """
        self._fit_normal(images, y)
        return None

    def _fit_normal(self, images: ImageReader, y: ArrayLike | None) -> Any:
        """Call `_fit` with the normal images; returns what it does."""
        # A part of the reader, not of X: errors name the places in X.
        normal = images[normal_positions(images, y)]
        with explained_shortage(*self._shortage()):
            learned = self._fit(normal)
        require_attributes(
            self, ("grid_shape_", "n_features_out_"), "_fit(images) sets them"
        )
        return learned

    def _fit_region(self) -> None:
        """Read `region`: what is fitted needs no file, and scores by what it read."""
        if self.region is None:
            self.region_ = None
            return
        with self._limited():
            self.region_ = read_region(self.region)

    def _check_constructor(self) -> None:
        names = ["image_size", "crop_size", "on_error", "n_jobs", "region", "verbose"]
        if type(self)._images_at_once is ImageInput._images_at_once:
            names.append("batch_size")
        require_attributes(self, names, "the constructor stores them")

    # -- extraction ---------------------------------------------------------------

    def _all_features(
        self,
        images: ImageReader,
        regions: Any = None,
        extract: Extract | None = None,
        *,
        scoring: bool,
    ) -> NDArray[np.float32]:
        """Features of all images in one array; NaN of those that cannot be read."""
        check_is_fitted(self, "grid_shape_")
        n = len(images)
        shape = n, *self.grid_shape_, self.n_features_out_
        _require_memory(shape)
        if not scoring:
            check_features(shape)
        features = np.empty(shape, np.float32)
        pooled = np.empty((n, self._n_pooled), np.float32)
        absent = np.ones(n, bool)
        for index, batch in self._feature_batches(
            images, regions, extract, scoring=scoring
        ):
            features[index], absent[index] = batch, False
            if self._n_pooled:
                described: Any = batch
                pooled[index] = described.pooled
        features[absent], pooled[absent] = np.nan, np.nan
        if self._n_pooled:
            return PatchArray(features, pooled, self._own_levels)
        return features

    def _features_of_views(
        self,
        X: Any,
        y: ArrayLike | None,
        regions: Any,
        augmentation: Any,
        *,
        fit: bool,
        n_before: int = 0,
    ) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
        """Features of normal images, each followed by its augmented views.

        `n_before` is the number of images that were learned from before.

        Returns
        -------
        features : ndarray of shape (n * (1 + n_views), h, w, d), float32
            Where an image could not be read, it and its views are NaN.

        positions : ndarray of shape (n,)
            Of the images in X.
        """
        images = self._validated_reader(X, regions) if fit else self._checked_reader(X)
        normal = normal_positions(images, y)
        with own_torch_state():
            if fit:
                self._fit_images(images, y)
            checked = self.regions(regions, len(images))
            each = None if checked is None else checked.each
            images = images[normal]
            X = WithViews(images, augmentation, n_before)
            views = self._reader(X)
            if views.on_error == "skip":
                views.on_error = "report"  # images are reported, not their views
            each = X.regions(None if each is None else [each[i] for i in normal])
            features = self._all_features(views, each, scoring=False)
        images.skipped = [
            (int(normal[k // X.n_rows]), reason)
            for k, reason in views.skipped
            if k % X.n_rows == 0
        ]
        self._warn_of_skipped(images, len(images))
        if fit:
            self.skipped_ = sorted(images.skipped)
        _complete(features, X.n_rows)
        return features, normal

    def _fit_batches(
        self, X: Any, y: ArrayLike | None = None, regions: Any = None
    ) -> NormalBatches:
        """Batches of the normal images; the first pass over these fits before."""

        def prepare():
            images = self._validated_reader(X, regions)
            return images, self._fit_images(images, y)

        return NormalBatches(self, prepare, y, regions, sets_skipped=True)

    def _normal_batches(
        self, X: Any, y: ArrayLike | None = None, regions: Any = None
    ) -> NormalBatches:
        """Batches of the normal images, for a transformer that is fitted."""
        check_is_fitted(self, "grid_shape_")
        return NormalBatches(self, lambda: (self._checked_reader(X), None), y, regions)

    def _ordered_batches(self, images, regions, extract, indices):
        """Yield batches in the order of the images, wherever these are cached.

        What a detector keeps of each image then stands in that order, too.
        """
        if not Cache.is_configured(self):
            yield from self._feature_batches(images, regions, extract, indices)
            return
        step = self._images_at_once()
        part = copy.copy(images)  # with the same list of skipped images
        part.on_error = "raise" if images.on_error == "raise" else "report"
        for lo in range(0, len(indices), step):
            some = indices[lo : lo + step]
            if found := list(self._feature_batches(part, regions, extract, some)):
                index, features = _joined(found)
                order = np.argsort(index)
                yield index[order], features[order]
        self._warn_of_skipped(images, len(indices))

    def _images_per_part(self) -> int:
        """Images of a part that is scored: whole batches, of 64 MB or more together."""
        per_image = int(np.prod(self.grid_shape_)) * self.n_features_out_
        batch = self._images_at_once()
        return batch * -(-_PART_ENTRIES // (batch * per_image))

    def _scoring_parts(
        self, images: ImageReader, regions: Any = None, n_images: int | None = None
    ) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float32]]]:
        """Yield indices and features of images, `n_images` or the last few at once.

        Every image is in one of the parts; one that was skipped is NaN.
        """
        check_is_fitted(self, "grid_shape_")
        n_images = self._images_per_part() if n_images is None else n_images
        waiting: list = []
        left = np.ones(len(images), bool)
        for index, batch in self._feature_batches(images, regions, scoring=True):
            waiting.append((index, batch))
            left[index] = False
            if sum(len(index) for index, _ in waiting) >= n_images:
                yield _joined(waiting)
                waiting = []
        if waiting:
            yield _joined(waiting)
        absent = np.flatnonzero(left)
        for lo in range(0, len(absent), n_images):
            some = absent[lo : lo + n_images]
            yield some, self._absent_features(len(some))

    def _map_parts(
        self,
        function: Callable[[NDArray[np.float32]], NDArray[Any]],
        images: ImageReader,
        regions: Any = None,
    ) -> NDArray[Any] | None:
        """Apply a function to the features of images, some images at a time."""
        result = None
        with own_torch_state():
            for index, features in self._scoring_parts(images, regions):
                part = function(features)
                if result is None:
                    result = np.empty((len(images), *part.shape[1:]), part.dtype)
                result[index] = part
        return result

    def _absent_features(self, n: int) -> NDArray[np.float32]:
        """Features of n images that could not be read."""
        shape = n, *self.grid_shape_, self.n_features_out_
        patches = np.full(shape, np.nan, np.float32)
        if not self._n_pooled:
            return patches
        pooled = np.full((n, self._n_pooled), np.nan, np.float32)
        return PatchArray(patches, pooled, self._own_levels)

    def _feature_batches(
        self,
        images: ImageReader,
        regions: Any = None,
        extract: Extract | None = None,
        indices: Iterable[int] | None = None,
        *,
        scoring: bool = False,
    ) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float32]]]:
        """Yield indices and the features of these images, the cached ones first.

        To learn (without `scoring`), one image at least has to be readable. Whoever
        takes these batches does so in `own_torch_state`, as for all methods here that
        yield features.
        """
        missing = list(range(len(images)) if indices is None else indices)
        n_images, keys = len(missing), {}
        cut = self.regions(regions, len(images))
        cache = Cache.of(self) if Cache.is_configured(self) else None
        bar = progress(n_images, "features", self.verbose)
        with bar, explained_shortage(*self._shortage()):
            if cache is not None:
                keys = cache.keys(images, missing)
                missing = []
                for index, rows, absent in cache.loaded(keys, self._images_at_once()):
                    missing += absent
                    bar.update(len(index))
                    if len(index):
                        yield index, self._cut(cut, self._unpacked(rows), index, images)
            extract = self._extraction() if extract is None else extract
            for index, batch in images.indexed_batches(self._images_at_once(), missing):
                features = extract(index, batch)
                self._check_features(features, len(index))
                if cache is not None:
                    cache.store(self._packed(features), index, keys)
                bar.update(len(index))
                yield index, self._cut(cut, features, index, images)
        self._warn_of_skipped(images, n_images, scoring=scoring)

    def _cut(
        self,
        looked_at: Regions | None,
        features: NDArray[np.float32],
        index: NDArray[np.intp],
        images: ImageReader,
    ) -> NDArray[np.float32]:
        """Features of some images, NaN outside of their regions."""
        if not looked_at:
            return features
        sizes = self._sizes_that_count(images, index)
        return looked_at.cut(features, index, [self.window(size) for size in sizes])

    def _extraction(self) -> Extract:
        """Return the function that extracts features, for one pass over images."""
        return lambda index, batch: self._extract(batch)

    def _shortage(self) -> tuple[str, str]:
        """What to say if memory is too short for a batch."""
        names = [n for n in ("batch_size", "tile") if hasattr(self, n)]
        given = [f"{name}={getattr(self, name)!r}" for name in ("image_size", *names)]
        advice = f"Reduce {' or '.join(given)}."
        return f"{type(self).__name__} on a batch of images", advice

    def _check_features(self, features: NDArray[np.float32], n: int) -> None:
        """Refuse what an `_extract` of the user's own returns in another shape."""
        expected = n, *self.grid_shape_, self.n_features_out_
        if np.shape(features) != expected:
            raise ValueError(
                f"{type(self).__name__}._extract returned the shape "
                f"{np.shape(features)}, expected {expected} for {n} images: rows and "
                "columns of grid_shape_, then n_features_out_ channels."
            )

    def _packed(self, features: Any) -> NDArray[np.float32]:
        """One row per image: its patches, then its descriptor if there is one."""
        rows = np.asarray(features).reshape(len(features), -1)
        return np.hstack([rows, features.pooled]) if self._n_pooled else rows

    def _unpacked(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        patches = rows[:, : rows.shape[1] - self._n_pooled]
        patches = patches.reshape(len(rows), *self.grid_shape_, self.n_features_out_)
        if not self._n_pooled:
            return patches
        return PatchArray(patches, rows[:, -self._n_pooled :], self._own_levels)

    def regions(self, each: Any, n_images: int) -> Regions | None:
        """Tell what to look at in each of some images.

        Parameters
        ----------
        each : sequence of n masks, or None
            As the argument `regions` of `transform`.

        n_images : int
            Number of images n.

        Returns
        -------
        regions : object or None
            None where everything is looked at; ``inside(i, grid)`` tells which
            cells of a grid over image i are.

        Raises
        ------
        ValueError
            If `each` is no sequence of `n_images` masks.
        """
        check_is_fitted(self, "grid_shape_")
        if each is None and self.region_ is None:
            return None
        return Regions(self.region_, each, n_images, self._pixel_limit)

    # -- hooks --------------------------------------------------------------------

    def _fit(self, images: ImageReader) -> Any:
        raise NotImplementedError(
            f"{type(self).__name__} defines no _fit(images): it learns from an "
            "ImageReader and sets grid_shape_, (rows, columns) of the patch grid, "
            "and n_features_out_, the channels of a patch."
        )

    def _extract(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        raise NotImplementedError(
            f"{type(self).__name__} defines no _extract(batch): it returns float32 "
            "features (b, rows, columns, channels) of images (b, H, W, C) in [0, 1]."
        )

    def _signature(self) -> str:
        raise NotImplementedError(
            f"{type(self).__name__} has a cache_dir but defines no _signature(): it "
            "returns a text of everything that its features depend on beside the "
            "image."
        )


def _require_memory(shape):
    """Raise if features of this shape (n, h, w, d), float32, exceed all memory."""
    n, height, width, n_channels = shape
    require_memory(
        4 * math.prod(shape),
        f"an array of the features of {n} images ({height} x {width} patches of "
        f"{n_channels} channels, float32)",
        "In a skad.Pipeline, PatchCoreDetector(bank_size=...) and PaDiMDetector right "
        "after the features take them block by block; partial_fit takes a part of the "
        "images at a time. Or reduce image_size, the channels (target_dim, layers), or "
        "the number of images.",
    )


def _complete(features: Any, n_rows: int) -> None:
    """Have an image in place of a view that shows nothing of its region.

    Where an image is NaN, so are all of its views.
    """
    absent = np.isnan(features[..., 0]).all(axis=(1, 2))
    first = np.arange(len(features)) // n_rows * n_rows
    absent = np.flatnonzero(absent | absent[first])
    features[absent] = np.asarray(features)[first[absent]]
    if getattr(features, "pooled", None) is not None:
        features.pooled[absent] = features.pooled[first[absent]]


class NormalBatches:
    """Positions and features of normal images, in batches, as often as is asked for.

    Each pass reads the images again, or takes their features from the cache. The
    features are the same; only the first pass warns of images that were skipped.

    Parameters
    ----------
    transformer : PatchFeatureTransformer
        What gives the features. Whoever iterates does so in `own_torch_state`.

    prepare : callable
        Called by the first pass; gives the `ImageReader` of all images, and how to
        extract their features, as `_fit_images` does.

    y : array-like of shape (n,), or None
        As in `fit`.

    regions : sequence of n masks, or None
        As in `transform`.

    sets_skipped : bool, default=False
        Whether the first pass sets `skipped_` of the transformer.
    """

    def __init__(
        self,
        transformer: PatchFeatureTransformer,
        prepare: Callable[[], tuple[ImageReader, Extract | None]],
        y: ArrayLike | None,
        regions: Any,
        *,
        sets_skipped: bool = False,
    ) -> None:
        self._transformer = transformer
        self._prepare = prepare
        self._y = y
        self._regions = regions
        self._sets_skipped = sets_skipped
        self._prepared: tuple[ImageReader, Extract | None] | None = None

    @property
    def n_images(self) -> int | None:
        """Number of normal images, as far as they can be read; None before a pass."""
        if self._prepared is None:
            return None
        return len(normal_positions(self._prepared[0], self._y))

    def __iter__(self) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float32]]]:
        is_first = self._prepared is None
        if self._prepared is None:
            self._prepared = self._prepare()
        images, extract = self._prepared
        normal = normal_positions(images, self._y)
        if not is_first:
            images = images[:]  # with a list of skipped images of its own
            if images.on_error == "skip":
                images.on_error = "report"
        yield from self._transformer._ordered_batches(
            images, self._regions, extract, normal
        )
        if is_first and self._sets_skipped:
            self._transformer.skipped_ = sorted(images.skipped)


def _joined(batches):
    """Indices and features of several batches as of one."""
    if len(batches) == 1:
        return batches[0]
    index = np.concatenate([index for index, _ in batches])
    patches = np.concatenate([np.asarray(features) for _, features in batches])
    first = batches[0][1]
    if isinstance(first, PatchArray):
        pooled = np.concatenate([features.pooled for _, features in batches])
        patches = PatchArray(patches, pooled, first.levels)
    return index, patches

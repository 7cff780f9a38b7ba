"""Patch features of large images, tile by tile, stitched into one grid."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import lru_cache
from itertools import pairwise
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.utils._param_validation import Interval

from skad._checks import check_size
from skad._frame import WHOLE, Frame, Window
from skad._patch_array import PatchArray
from skad.features._base import Extract, PatchFeatureTransformer
from skad.features._fused import FusedFeatures
from skad.features._network import PatchFeatures
from skad.features._pcanet import STRIDE, PCANetFeatures
from skad.features._regions import Regions
from skad.features._spd import SPDPatchFeatures
from skad.images import ImageError
from skad.images._batches import ImageReader, NamedImages, n_threads
from skad.images._errors import Source
from skad.images._read import as_path

_BATCHES_AT_ONCE = (
    4  # full batches of tiles that the images read at once are enough for
)
_KEPT_IMAGES = 2  # that tiles to learn from are cut from


def _of_features(name: str) -> property:
    return property(lambda self: getattr(self._wrapped(), name, None))


class TiledFeatures(PatchFeatureTransformer):
    """Patch features of large images, which pass the network in tiles.

    A defect of ten pixels is gone once an image of 4,000 is resized to 224. Here images
    keep their pixels: each is cut into tiles, the tiles pass another transformer in
    batches, and their patch grids are put together to one grid of the whole image.
    What comes out are patch features like others, so that every detector, region, map
    and threshold is one of whole images: a false-alarm rate of 5 % is that of images,
    not of tiles.

    Parameters
    ----------
    features : PatchFeatureTransformer, default=None
        The transformer that tiles pass, whose `image_size` becomes that of a tile.
        None is ``PatchFeatures("skad_small")``. It also says how images are read:
        `region`, `batch_size`, `cache_dir`, `on_error`, `n_jobs` and `verbose` are of
        whole images.

    image_size : int or (int, int), default=None
        Every image is resized to exactly this height and width, in pixels. None takes
        images as they are, which then are all of one size.

    tile : int or (int, int), default=None
        Height and width of a tile in pixels. None is `image_size` of `features`.

    overlap : int, default=0
        Pixels that neighbouring tiles have in common, at least. See the notes.

    Attributes
    ----------
    features_ : PatchFeatureTransformer
        The fitted copy of `features` that tiles pass.

    image_size_ : (int, int)
        Height and width of the images that tiles are cut from, in pixels.

    grid_shape_ : (int, int)
        Rows and columns of the patch grid of a whole image.

    n_features_out_ : int
        Channels of a patch feature.

    region_ : ndarray of shape (H, W), bool, or None
        The mask that `region` of `features` was when `fit` read it.

    skipped_ : list of (int, str)
        Images that `fit_transform` could not read, and why.

    See Also
    --------
    PatchFeatures : A larger `image_size` there takes whole images through the network,
        and the memory for that.

    Notes
    -----
    The first tile lies in the top left corner, each next one ``tile - overlap`` pixels
    further, and the last one ends where the image ends: it may have more in common with
    its neighbour. No tile is padded. All tiles lie on the patch grid, so that sides of
    images and tiles, and `overlap`, are multiples of the stride, the pixels from patch
    to patch.

    Where tiles overlap, a patch is that of the tile in which it lies further inside:
    the border between two tiles is in the middle of what they have in common. Towards
    its own border a tile knows less of a patch's surroundings. The mean of both would
    keep half of that error, and patches averaged over two tiles vary less than others,
    which shows as a seam. With an `overlap` of twice the distance that a patch sees,
    a network of convolutions gives the features of the whole image. With 0, patches
    beside a seam see the padding of the network instead of the other tile. Normal
    images have the same seams, so detectors know them, but a defect that two tiles
    share is seen in halves.

    `fit` learns from the tiles of the normal images: a `PatchFeatures` finds out the
    layout of its network, `PCANetFeatures` learns its filters, and the statistics of
    each position *of a tile*. Descriptors of whole images, as of
    ``PatchFeatures(pooled=True)``, are the mean over their tiles.

    Memory is that of some images to be cut, of one batch of tiles and of the grids
    that are asked for, whatever the number of images. A grid of 512 x 256 patches with
    128 channels has 64 MB: choose few channels and a detector that does not keep all
    patches.

    Examples
    --------
    >>> from skad import PatchFeatures, TiledFeatures
    >>> from skad.datasets import make_textures
    >>> images = make_textures(n_normal=2, n_anomalous=0, size=192, random_state=0)
    >>> features = PatchFeatures("skad_small", image_size=64)
    >>> tiled = TiledFeatures(features, overlap=32).fit(images.train)
    >>> tiled.transform(images.train).shape
    (2, 24, 24, 128)
    """

    _parameter_constraints = {
        "features": [PatchFeatureTransformer, None],
        "image_size": [Interval(Integral, 1, None, closed="left"), tuple, list, None],
        "tile": [Interval(Integral, 1, None, closed="left"), tuple, list, None],
        "overlap": [Interval(Integral, 0, None, closed="left")],
    }

    crop_size = None
    region, cache_dir = _of_features("region"), _of_features("cache_dir")
    on_error, n_jobs = _of_features("on_error"), _of_features("n_jobs")
    verbose = _of_features("verbose")

    def __init__(
        self,
        features: PatchFeatureTransformer | None = None,
        image_size: int | tuple[int, int] | None = None,
        *,
        tile: int | tuple[int, int] | None = None,
        overlap: int = 0,
    ) -> None:
        self.features = features
        self.image_size = image_size
        self.tile = tile
        self.overlap = overlap

    def _wrapped(self) -> PatchFeatureTransformer:
        """The transformer that tiles pass, unfitted."""
        return PatchFeatures("skad_small") if self.features is None else self.features

    # -- images -------------------------------------------------------------------

    def _frame(self) -> Frame:
        if self.image_size is not None:
            size = check_size(self.image_size, "image_size", allow_int=True)
            return Frame(size, None)
        if not hasattr(self, "image_size_"):
            raise ValueError(
                "image_size=None: the size of the images is known from fit on only; "
                "pass an image_size."
            )
        return Frame(self.image_size_, None)

    def _n_channels(self) -> int:
        return self._wrapped()._n_channels()

    def _images_at_once(self) -> int:
        """Images whose tiles fill some batches."""
        batch = self.features_._images_at_once()
        return -(-_BATCHES_AT_ONCE * batch // self._tiling.n_tiles)

    def _validated_reader(self, X: Any, regions: Any = None) -> ImageReader:
        self._validate_params()
        self._check_features_to_wrap()
        if self.image_size is None:
            self.image_size_ = self._common_size(X)
        else:
            self.image_size_ = check_size(self.image_size, "image_size", allow_int=True)
        return super()._validated_reader(X, regions)

    def _common_size(self, X: Any) -> tuple[int, int]:
        """Size of the first image that can be read."""
        any_frame, images = Frame((1, 1), None), self._checked_images(X)
        reader = self._reader_of(ImageReader, images, any_frame, "raise")
        failed = None
        for index in range(len(reader)):
            try:
                size = reader.original_size(index)
            except ImageError as error:
                if self.on_error == "raise":
                    raise
                failed = failed or error
            else:
                assert size is not None  # the reader raises
                return size
        raise ImageError(
            f"none of the {len(reader)} images could be read; the first: {failed}"
        )

    def _reader(self, X: Sequence[Any]) -> ImageReader:
        kind = _ReaderOfOneSize if self.image_size is None else ImageReader
        return self._reader_of(kind, X, self._frame(), self.on_error)

    def _reader_of(
        self, kind: type, X: Sequence[Any], frame: Frame, on_error: str
    ) -> ImageReader:
        return kind(
            X,
            frame,
            on_error,
            n_threads(self.n_jobs),
            self._n_channels(),
            pixel_limit=self._pixel_limit,
        )

    # -- fitting ------------------------------------------------------------------

    def _fit_images(self, images: ImageReader, y: ArrayLike | None) -> Extract:
        """Fit on tiles; returns how to extract the features of the same images."""
        tile = self._tile()
        tiling = Tiling.of(self.image_size_, tile, self.overlap)
        features = _with_image_size(self._wrapped(), tile)
        if (grid := _grid_before_fit(features)) is not None:
            self._on_grid(tiling, grid)  # an error comes before the work
        tiles = features._validated_reader(_Tiles(images, tiling))
        tiles.regions = None
        if images.regions is not None:
            tiles.regions = _RegionsOfTiles(images.regions, tiling)
        if tiles.on_error == "skip":
            tiles.on_error = "report"  # whole images are reported
        labels = None if y is None else np.repeat(np.asarray(y), tiling.n_tiles)
        extract = features._fit_images(tiles, labels) or features._extraction()
        self._tiling = self._on_grid(tiling, features.grid_shape_)
        self.features_ = features
        self.grid_shape_ = self._tiling.grid_shape
        self.n_features_out_ = features.n_features_out_
        self._n_pooled = features._n_pooled
        # Where levels were on coarser grids, borders of tiles may cut their cells.
        self._own_levels = tuple(
            (n_channels, self.grid_shape_) for n_channels, _ in features._own_levels
        )
        return lambda index, batch: self._stitched(extract, index, batch)

    def _tile(self) -> tuple[int, int]:
        """Height and width of a tile, which fits into an image."""
        if self.tile is None:
            name, given = "image_size of features", self._wrapped().image_size
        else:
            name, given = "tile", self.tile
        tile = check_size(given, name, allow_int=True)
        image, told = self.image_size_, f"image_size={self.image_size!r}"
        if tile[0] > image[0] or tile[1] > image[1]:
            largest = min(tile[0], image[0]), min(tile[1], image[1])
            raise ValueError(
                f"{name}={given!r} is larger than the images, which are "
                f"{image[0]} x {image[1]} pixels ({told}); pass a tile of at most "
                f"{largest}, or a larger image_size."
            )
        if self.overlap >= min(tile):
            raise ValueError(
                f"overlap={self.overlap} leaves nothing of a tile of {tile[0]} x "
                f"{tile[1]} pixels; pass less than {min(tile)}, such as a quarter."
            )
        return tile

    def _on_grid(self, tiling: Tiling, grid: tuple[int, int]) -> Tiling:
        """The tiles with their patches; all must lie on one grid."""
        tile, stride = tiling.tile, []
        for side, n_cells in zip(tile, grid, strict=True):
            if side % n_cells:
                likely = _likely_stride(side, n_cells)
                low, high = _around(side, likely)
                raise ValueError(
                    f"tile={tile}: {side} pixels have {n_cells} patches, no whole "
                    f"number of pixels from patch to patch; pass {low} or {high}, "
                    f"multiples of a stride of {likely} pixels."
                )
            stride.append(side // n_cells)
        next_size = tuple(
            -(-side // step) * step
            for side, step in zip(tiling.image, stride, strict=True)
        )
        if tiling.image != next_size:
            raise ValueError(
                f"image_size={self.image_size!r}: images of {tiling.image[0]} x "
                f"{tiling.image[1]} pixels are no multiple of the stride of the "
                f"patches, {stride[0]} x {stride[1]} pixels; pass "
                f"image_size={next_size}."
            )
        for step in stride:
            if self.overlap % step:
                low, high = _around(self.overlap, step)
                raise ValueError(
                    f"overlap={self.overlap} is no multiple of the stride of the "
                    f"patches, {step} pixels; pass {low} or {high}."
                )
        return tiling.with_stride((stride[0], stride[1]))

    def _check_features_to_wrap(self) -> None:
        features = self._wrapped()
        if features._resize != "exact":
            raise ValueError(
                f"features has resize={features._resize!r}, but every tile is taken as "
                "it is; pass resize='exact'."
            )
        if features.crop_size is not None:
            raise ValueError(
                f"features has crop_size={features.crop_size!r}, which would leave out "
                "a part of every tile; pass crop_size=None, and a region to look at a "
                "part of the images only."
            )

    # -- extraction ---------------------------------------------------------------

    def _extraction(self) -> Extract:
        extract = self.features_._extraction()
        return lambda index, batch: self._stitched(extract, index, batch)

    def _extract(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return self._extraction()(np.arange(len(batch)), batch)

    def _stitched(
        self, extract: Extract, index: NDArray[np.intp], batch: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Grids of whole images, from a function that extracts those of tiles."""
        tiling, step = self._tiling, self.features_._images_at_once()
        grids = np.empty(
            (len(batch), *self.grid_shape_, self.n_features_out_), np.float32
        )
        pooled = np.zeros((len(batch), self._n_pooled), np.float32)
        places = [(i, k) for i in range(len(batch)) for k in range(tiling.n_tiles)]
        for lo in range(0, len(places), step):
            some = places[lo : lo + step]
            pixels = np.stack([tiling.cut(batch[i], k) for i, k in some])
            numbers = np.array([index[i] * tiling.n_tiles + k for i, k in some])
            found: Any = extract(numbers, pixels)
            self.features_._check_features(found, len(some))
            for (i, k), patches in zip(some, np.asarray(found), strict=True):
                in_grid, in_tile = tiling.inner(k)
                grids[i][in_grid] = patches[in_tile]
            if self._n_pooled:
                images = [i for i, _ in some]
                np.add.at(pooled, images, found.pooled / tiling.n_tiles)
        if not self._n_pooled:
            return grids
        return PatchArray(grids, pooled, self._own_levels)

    def _signature(self) -> str:
        return f"{self._tiling} {self.features_._signature()}"


class Tiling:
    """Where the tiles of an image lie, and what of each is put into its patch grid.

    Parameters
    ----------
    image, tile : (int, int)
        Height and width in pixels.

    starts : (tuple of int, tuple of int)
        First rows and first columns of the tiles, in pixels.

    stride : (int, int), default=(1, 1)
        Pixels from patch to patch.
    """

    def __init__(
        self,
        image: tuple[int, int],
        tile: tuple[int, int],
        starts: tuple[tuple[int, ...], tuple[int, ...]],
        stride: tuple[int, int] = (1, 1),
    ) -> None:
        self.image, self.tile, self.starts, self.stride = image, tile, starts, stride
        rows, columns = (
            _inner_parts(first, side, step)
            for first, side, step in zip(starts, tile, stride, strict=True)
        )
        self._inner = [
            tuple(zip(row, column, strict=True)) for row in rows for column in columns
        ]

    @classmethod
    def of(cls, image: tuple[int, int], tile: tuple[int, int], overlap: int) -> Tiling:
        """Tiles of an image that have at least `overlap` pixels in common."""
        tops, lefts = (
            (*range(0, side - length, length - overlap), side - length)
            for side, length in zip(image, tile, strict=True)
        )
        return cls(image, tile, (tops, lefts))

    def with_stride(self, stride: tuple[int, int]) -> Tiling:
        """The same tiles, with patches of another stride."""
        return Tiling(self.image, self.tile, self.starts, stride)

    def __repr__(self) -> str:
        return f"Tiling({self.image}, {self.tile}, {self.starts}, {self.stride})"

    @property
    def n_tiles(self) -> int:
        """Tiles of one image."""
        return len(self._inner)

    @property
    def grid_shape(self) -> tuple[int, int]:
        """Rows and columns of the patch grid of an image."""
        return self.image[0] // self.stride[0], self.image[1] // self.stride[1]

    def cut(self, image: NDArray[Any], k: int) -> NDArray[Any]:
        """Tile k of an image (H, W, C), a view."""
        row, column = divmod(k, len(self.starts[1]))
        top, left = self.starts[0][row], self.starts[1][column]
        return image[top : top + self.tile[0], left : left + self.tile[1]]

    def window(self, k: int) -> Window:
        """The part of an image that tile k is, as fractions."""
        row, column = divmod(k, len(self.starts[1]))
        starts = self.starts[0][row], self.starts[1][column]
        (top, bottom), (left, right) = (
            (start / side, (start + length) / side)
            for start, length, side in zip(starts, self.tile, self.image, strict=True)
        )
        return (top, bottom), (left, right)

    def inner(self, k: int) -> tuple[tuple[slice, ...], ...]:
        """Patches that tile k gives: where in the image's grid, where in its own."""
        return self._inner[k]


def _inner_parts(
    starts: tuple[int, ...], length: int, stride: int
) -> list[tuple[slice, slice]]:
    """Which patches along one axis each tile gives: in the image's grid, in its own.

    From the middle of what a tile has in common with the one before it to the middle
    of what it has in common with the next one.
    """
    cells, n_cells = [start // stride for start in starts], length // stride
    middles = [(one + n_cells + other) // 2 for one, other in pairwise(cells)]
    ends = [*middles, cells[-1] + n_cells]
    return [
        (slice(first, end), slice(first - cell, end - cell))
        for cell, first, end in zip(cells, [0, *middles], ends, strict=True)
    ]


class _Tiles(NamedImages):
    """The tiles of images, one after the other, cut when they are asked for."""

    def __init__(self, images: ImageReader, tiling: Tiling) -> None:
        self.names = _TileNames(images, tiling.n_tiles)
        self._n_images, self._tiling = len(images), tiling
        self._read, self._lock = lru_cache(_KEPT_IMAGES)(images.read), threading.Lock()

    def __len__(self) -> int:
        return self._n_images * self._tiling.n_tiles

    def __getitem__(self, position: Any) -> Any:
        index, k = divmod(int(position), self._tiling.n_tiles)
        with self._lock:  # threads that want tiles of one image read it once
            image = self._read(index)
        return self._tiling.cut(image, k)


class _TileNames(Sequence):
    """Names of tiles in messages."""

    def __init__(self, images: ImageReader, n_tiles: int) -> None:
        self._images, self._n_tiles = images, n_tiles

    def __len__(self) -> int:
        return len(self._images) * self._n_tiles

    def __getitem__(self, position: Any) -> Any:
        index, k = divmod(position, self._n_tiles)
        return f"tile {k} of {self._images.item(index)[1]}"


class _RegionsOfTiles(Regions):
    """What is looked at in each tile, by the regions of the images."""

    def __init__(self, of_images: Regions, tiling: Tiling) -> None:
        super().__init__(of_images.common, None, 0)
        self.each = of_images.each
        self._of_images, self._tiling = of_images, tiling

    def inside(
        self, i: int, grid: tuple[int, ...], window: Window = WHOLE
    ) -> NDArray[np.bool_]:
        """Tell which cells of a grid over tile i, counted over all images, are."""
        index, k = divmod(i, self._tiling.n_tiles)
        return self._of_images.inside(index, grid, self._tiling.window(k))


class _ReaderOfOneSize(ImageReader):
    """A reader that resizes nothing, and refuses images of another size."""

    def _reading(self, index: int) -> Callable[[], tuple[NDArray[np.float32], Any]]:
        read = super()._reading(index)
        expected: Any = self.frame.size

        def read_of_one_size() -> Any:
            image, size = read()
            if size != expected:
                item, where = self.item(index)
                raise Source(where, as_path(item)).error(
                    f"the image is {size[0]} x {size[1]} pixels, but with "
                    f"image_size=None all are as in fit, {expected[0]} x {expected[1]}",
                    "set image_size of TiledFeatures, to which all images are resized",
                )
            return image, size

        return read_of_one_size


def _with_image_size(
    features: PatchFeatureTransformer, size: tuple[int, int]
) -> PatchFeatureTransformer:
    """An unfitted copy for images of another size."""
    if isinstance(features, FusedFeatures):
        first, second = (
            _with_image_size(member, size) for member in features._members()
        )
        return clone(features).set_params(first=first, second=second)
    return clone(features).set_params(image_size=size)


def _grid_before_fit(features: PatchFeatureTransformer) -> tuple[int, int] | None:
    """Patch grid of a transformer that learns for long; None where `fit` is quick."""
    if isinstance(features, FusedFeatures):
        found = map(_grid_before_fit, features._members())
        return next((grid for grid in found if grid is not None), None)
    if isinstance(features, PCANetFeatures):
        height, width = features._input_size()
        return max(1, height // STRIDE), max(1, width // STRIDE)
    if isinstance(features, SPDPatchFeatures):
        names = PatchFeatures._get_param_names()
        same = PatchFeatures(**{name: getattr(features, name) for name in names})
        same.set_params(region=None, n_components=None, reduction="random")
        black = np.zeros((1, *same._input_size(), same._n_channels()), np.float32)
        return same.fit(black).grid_shape_
    return None


def _around(value: int, step: int) -> tuple[int, int]:
    """The multiples of a step below and above a value."""
    low = value // step * step
    return low, low + step


def _likely_stride(side: int, n_cells: int) -> int:
    """The stride of a network that makes so many patches of a side.

    Of those that do, by rounding down or up, the one that halves most often.
    """
    fitting = [
        stride
        for stride in range(1, side + 1)
        if n_cells in (side // stride, -(-side // stride))
    ]
    return max(fitting, key=lambda stride: stride & -stride, default=1)

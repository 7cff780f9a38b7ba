"""Images in batches: read, resized and cropped in threads, ahead of their use."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import joblib
import numpy as np
from numpy.typing import NDArray

from skad._frame import Frame
from skad._memory import available_memory, explained_shortage
from skad.images._errors import ImageError
from skad.images._files import image_size
from skad.images._read import PILLOW_LIMIT, as_path, carried_limit, read_model_input

_WAITING_PER_THREAD = 4  # images that are read ahead
_WAITING_BYTES = 2**28  # of them, as many images as these or two
_KEPT_BYTES = 2**30  # of images that training asks for over and over


class NamedImages(Sequence):
    """Images with what the user knows each of them as.

    For those that were taken from one or several arguments: errors name their place
    there.

    Parameters
    ----------
    items : sequence
        Images as `skad.images.read_image` takes them.

    names : sequence of str
        Such as "X[3]".
    """

    def __init__(self, items: Sequence[Any], names: Sequence[str]) -> None:
        self.items = items
        self.names = names

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, i: Any) -> Any:
        return self.items[i]

    def __getstate__(self) -> dict[str, Any]:
        # A path of this system cannot be loaded on another one.
        items = [item if (p := as_path(item)) is None else p for item in self.items]
        return {"items": items, "names": self.names}


class ImageReader:
    """A sequence of images of one size, read lazily.

    Indexed by an integer or boolean array, it gives a reader of those images.

    Parameters
    ----------
    X : sequence
        Images as `skad.images.check_images` returns them.

    frame : Frame
        What every image is resized to, and the centre that is kept.

    on_error : {"raise", "skip", "report"}
        What to do about an image that cannot be read: raise the error; leave the image
        out and list it in `skipped`; or the same where the caller reports on it, so
        that nothing else warns.

    n_threads : int
        Threads that read ahead.

    n_channels : int, default=3
        Channels C of the images, as in `skad.images.read_image`.

    name : str, default="X"
        What messages call X.

    pixel_limit : int or None
        The limit that came with the estimator, see `skad.images._read.pixel_limit`.

    Attributes
    ----------
    skipped : list of (int, str)
        Position in X of each image that could not be read so far, and why.

    positions : ndarray of int
        Positions of the images in X.

    regions : object or None
        What a fit looks at in each image of X: the `Regions` of features, or None.
    """

    regions: Any = None

    def __init__(
        self,
        X: Any,
        frame: Frame,
        on_error: str,
        n_threads: int,
        n_channels: int = 3,
        *,
        name: str = "X",
        pixel_limit: int | None = PILLOW_LIMIT,
    ) -> None:
        self.X = X
        self.frame = frame
        self.on_error = on_error
        self.n_threads = n_threads
        self.n_channels = n_channels
        self.name = name
        self.pixel_limit = pixel_limit
        self.skipped: list[tuple[int, str]] = []
        self.positions = np.arange(len(X))
        self._sizes: dict[int, tuple[int, int]] = {}  # of images read, by position

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, indices: Any) -> ImageReader:
        part = copy.copy(self)
        part.skipped = []
        part.positions = self.positions[indices]
        return part

    def item(self, index: int) -> tuple[Any, str]:
        """One image as passed, and what to call it in messages."""
        position = int(self.positions[index])
        return self.X[position], self._name(position)

    def _name(self, position: int) -> str:
        if isinstance(self.X, NamedImages):
            return self.X.names[position]
        return f"{self.name}[{position}]"

    def read(self, index: int) -> NDArray[np.float32]:
        """One image, float32 (H, W, C) in [0, 1]."""
        return self._received(index, *self._reading(index)())

    def _reading(self, index: int) -> Callable[[], tuple[NDArray[np.float32], Any]]:
        """Function for a thread that reads an image and tells its original size."""
        position = int(self.positions[index])
        return partial(
            read_model_input,
            self.X,
            position,
            self._name(position),
            self.frame,
            self.n_channels,
            self.pixel_limit,
        )

    def _received(
        self, index: int, image: NDArray[np.float32], size: tuple[int, int]
    ) -> NDArray[np.float32]:
        """Take note of the original size of an image that was read; gives the image."""
        self._sizes[int(self.positions[index])] = size
        return image

    def original_size(self, index: int) -> tuple[int, int] | None:
        """Height and width of an image as passed, in pixels.

        None if it cannot be read and `on_error` is not "raise". An image that was read
        before is not opened again.
        """
        known = self._sizes.get(int(self.positions[index]))
        if known is not None:
            return known
        item, where = self.item(index)
        try:
            with carried_limit(self.pixel_limit):
                return image_size(item, where=where)
        except ImageError:
            if self.on_error == "raise":
                raise
            return None

    def original_sizes(self) -> list[tuple[int, int] | None]:
        """`original_size` of every image."""
        return [self.original_size(index) for index in range(len(self))]

    def each(
        self, function: Callable[[int], Any], indices: Iterable[int]
    ) -> Iterator[tuple[int, Any]]:
        """Yield (index, function(index)) in order; bad images are left out."""
        return self._in_threads((index, partial(function, index)) for index in indices)

    def _in_threads(
        self, calls: Iterable[tuple[int, Callable[[], Any]]]
    ) -> Iterator[tuple[int, Any]]:
        """Yield (index, call()) in order; bad images are left out."""
        most = self._n_waiting()
        with ThreadPoolExecutor(self.n_threads) as pool:
            waiting: deque[tuple[int, Future]] = deque()
            for index, call in calls:
                waiting.append((index, pool.submit(call)))
                if len(waiting) >= most:
                    yield from self._first(waiting)
            while waiting:
                yield from self._first(waiting)

    def _n_waiting(self) -> int:
        """Images that are read ahead: few large ones, for each is held in memory."""
        size, _ = self.frame
        height, width = (size, size) if isinstance(size, int) else size
        fitting = _WAITING_BYTES // (4 * height * width * self.n_channels)
        return min(_WAITING_PER_THREAD * self.n_threads, max(2, fitting))

    def _first(self, waiting: deque[tuple[int, Future]]) -> Iterator[tuple[int, Any]]:
        """Yield the result that was asked for first, if its image can be read."""
        index, future = waiting.popleft()
        try:
            yield index, future.result()
        except ImageError as error:
            if self.on_error == "raise":
                for _, later in waiting:
                    later.cancel()
                raise
            self.skipped.append((int(self.positions[index]), str(error)))

    def indexed_batches(
        self, batch_size: int, indices: Iterable[int] | None = None
    ) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float32]]]:
        """Yield (indices, float32 (b, H, W, C)) for the images that can be read."""
        members: list[int] = []
        batch: list[NDArray[np.float32]] = []
        indices = range(len(self)) if indices is None else indices
        readings = ((index, self._reading(index)) for index in indices)
        what = f"a batch of {batch_size} images"
        with explained_shortage(what, "Reduce batch_size or image_size."):
            for index, result in self._in_threads(readings):
                members.append(index)
                batch.append(self._received(index, *result))
                if len(batch) == batch_size:
                    yield np.array(members), np.stack(batch)
                    members, batch = [], []
            if batch:
                yield np.array(members), np.stack(batch)

    def batches(self, batch_size: int) -> Iterator[NDArray[np.float32]]:
        """Yield float32 (b, H, W, C) for the images that can be read."""
        for _, batch in self.indexed_batches(batch_size):
            yield batch


def remembered(
    reader: ImageReader, limit: float = _KEPT_BYTES
) -> Callable[[int], NDArray[np.float32]]:
    """Give a function like ``reader.read`` that keeps the images that it has read.

    For training, which asks for the same ones over and over.

    Parameters
    ----------
    reader : ImageReader
    limit : float, default=2**30
        Bytes that the kept images take at most; not more than half of those that are
        left now.

    Returns
    -------
    read : callable
        From an index to an image, float32 (H, W, C) in [0, 1], which must not be
        written to.
    """
    kept: dict[int, NDArray[np.float32]] = {}
    limit = min(limit, available_memory() / 2)

    def read(index: int) -> NDArray[np.float32]:
        if index in kept:
            return kept[index]
        image = np.ascontiguousarray(reader.read(index))  # not a view of more
        if (len(kept) + 1) * image.nbytes <= limit:
            kept[index] = image
        return image

    return read


def n_threads(n_jobs: int | None) -> int:
    """Number of threads that read images for a scikit-learn `n_jobs`.

    None is up to four: reading runs beside the network, which uses the other cores.
    """
    if n_jobs is None:
        return min(4, joblib.cpu_count())
    return int(joblib.effective_n_jobs(n_jobs))

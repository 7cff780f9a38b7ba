"""Images in batches: read, resized and cropped in threads, ahead of their use."""

import copy
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from skad.images._errors import ImageError
from skad.images._geometry import center_crop_box, resize_image, to_float
from skad.images._kinds import as_path
from skad.images._limits import PILLOW_LIMIT, carried_limit
from skad.images._read import read_image


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

    def __init__(self, items, names):
        self.items = items
        self.names = names

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        return self.items[i]

    def __getstate__(self):
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

    image_size : (int, int)
        Every image is resized to this height and width.

    crop_size : (int, int) or None
        The centre of the resized image that is kept.

    on_error : {"raise", "skip"}
        What to do about an image that cannot be read.

    n_threads : int
        Threads that read ahead.

    n_channels : int
        Channels C of the images, as in `skad.images.read_image`.

    name : str
        What messages call X.

    pixel_limit : int or None
        The limit that came with the estimator, see `skad.images._limits`.

    Attributes
    ----------
    skipped : list of (int, str)
        Position in X of each image that could not be read so far, and why.
    """

    def __init__(
        self,
        X,
        image_size,
        crop_size,
        on_error,
        n_threads,
        n_channels=3,
        *,
        name="X",
        pixel_limit=PILLOW_LIMIT,
    ):
        self.X = X
        self.image_size = image_size
        self.crop_size = crop_size
        self.on_error = on_error
        self.n_threads = n_threads
        self.n_channels = n_channels
        self.name = name
        self.pixel_limit = pixel_limit
        self.skipped = []
        self._positions = np.arange(len(X))

    def __len__(self):
        return len(self._positions)

    def __getitem__(self, indices):
        part = copy.copy(self)
        part.skipped = []
        part._positions = self._positions[indices]
        return part

    @property
    def positions(self):
        """Positions of the images in X."""
        return self._positions

    def item(self, index):
        """One image as passed, and what to call it in messages."""
        position = int(self._positions[index])
        if isinstance(self.X, NamedImages):
            return self.X[position], self.X.names[position]
        return self.X[position], f"{self.name}[{position}]"

    def read(self, index):
        """One image, float32 (H, W, C) in [0, 1]."""
        item, where = self.item(index)
        with carried_limit(self.pixel_limit):
            image = read_image(item, where=where, n_channels=self.n_channels)
        image = resize_image(image, self.image_size)
        if self.crop_size is not None:
            top, left = center_crop_box(self.image_size, self.crop_size)
            height, width = self.crop_size
            image = image[top : top + height, left : left + width]
        return to_float(image, self.n_channels)

    def each(self, function, indices):
        """Yield (index, function(index)) in order; bad images are left out."""
        with ThreadPoolExecutor(self.n_threads) as pool:
            waiting: deque = deque()
            indices = iter(indices)
            for index in indices:
                waiting.append((index, pool.submit(function, index)))
                if len(waiting) < 4 * self.n_threads:
                    continue
                yield from self._first(waiting)
            while waiting:
                yield from self._first(waiting)

    def _first(self, waiting):
        index, future = waiting.popleft()
        try:
            yield index, future.result()
        except ImageError as error:
            if self.on_error == "raise":
                for _, later in waiting:
                    later.cancel()
                raise
            self.skipped.append((int(self._positions[index]), str(error)))

    def indexed_batches(self, batch_size, indices=None):
        """Yield (indices, float32 (b, H, W, C)) for the images that can be read."""
        if indices is None:
            indices = range(len(self))
        members, batch = [], []
        for index, image in self.each(self.read, indices):
            members.append(index)
            batch.append(image)
            if len(batch) == batch_size:
                yield np.array(members), np.stack(batch)
                members, batch = [], []
        if batch:
            yield np.array(members), np.stack(batch)

    def batches(self, batch_size):
        """Yield float32 (b, H, W, C) for the images that can be read."""
        for _, batch in self.indexed_batches(batch_size):
            yield batch


def remembered(reader, limit=2**30):
    """A function like ``reader.read`` that keeps images, as many as fit a gigabyte.

    For training, which asks for the same ones over and over. They must not be
    written to.
    """
    kept: dict[int, np.ndarray] = {}

    def read(index):
        if index in kept:
            return kept[index]
        image = np.ascontiguousarray(reader.read(index))  # not a view of more
        if (len(kept) + 1) * image.nbytes <= limit:
            kept[index] = image
        return image

    return read


def n_threads(n_jobs):
    """Number of reading threads for a scikit-learn `n_jobs`."""
    cores = os.cpu_count() or 1
    if n_jobs is None:
        return min(4, cores)
    return max(1, cores + 1 + n_jobs) if n_jobs < 0 else n_jobs

"""Several passes over the same images, which keep what they made of some of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from skad._kept import size_in_bytes

_KEPT_BYTES = 2**29  # of what a pass leaves to the next


class Passes:
    """Passes over images in one order, each of which keeps values for the next.

    It keeps those of the first images in the order, as many as half a gigabyte holds.

    Parameters
    ----------
    images : ImageReader

    order : ndarray of int
        Indices of the images.

    batch_size : int
        Images that are read before something is made of them.
    """

    def __init__(self, images: Any, order: np.ndarray, batch_size: int) -> None:
        self.images = images
        self.order = order
        self.batch_size = batch_size
        self._kept: deque[tuple[list[int], list[Any]]] = deque()

    def batches(
        self,
        read: Callable[[np.ndarray], list[Any]],
        update: Callable[[Any], Any],
        n_images: int | None = None,
    ) -> Iterator[tuple[list[int], list[Any]]]:
        """Yield indices and values per batch of the first `n_images` or of all images.

        `update` makes a value from that of the pass before where that was kept, `read`
        makes those of a batch (b, H, W, c) otherwise.
        """
        room, known = _KEPT_BYTES, self._kept
        self._kept = deque()
        for index, values in self._values(known, read, update, self.order[:n_images]):
            room -= size_in_bytes(values)
            if room >= 0:
                self._kept.append((index, values))
            yield index, values

    def _values(
        self,
        known: deque[tuple[list[int], list[Any]]],
        read: Callable[[np.ndarray], list[Any]],
        update: Callable[[Any], Any],
        order: np.ndarray,
    ) -> Iterator[tuple[list[int], list[Any]]]:
        start = 0
        while known:
            index, values = known.popleft()
            start = np.flatnonzero(order == index[-1])[0] + 1
            yield index, list(map(update, values))
        for index, batch in self.images.indexed_batches(self.batch_size, order[start:]):
            yield index.tolist(), read(batch)

    def kept(self) -> dict[int, Any]:
        """Return the kept values by the index of their image."""
        return {
            index: value
            for indices, values in self._kept
            for index, value in zip(indices, values, strict=True)
        }

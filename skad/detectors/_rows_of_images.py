"""Some rows of many images, in arrays that have room for all of them from the start."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike


class RowsOfImages:
    """Rows of images, and values beside each row, added image by image.

    Memory is taken once, and none of it later: small arrays of each image would lie
    scattered between the large ones of each batch, which could then not be freed.

    Parameters
    ----------
    room : mapping of (int, int)
        By image, the number of its rows at most.

    **columns : (tuple of int, dtype)
        By name, shape and dtype of what belongs to a row.
    """

    def __init__(
        self, room: Mapping[int, int], **columns: tuple[tuple[int, ...], DTypeLike]
    ) -> None:
        ends = np.cumsum(list(room.values()), dtype=np.intp).tolist()
        self._places = dict(zip(room, zip([0, *ends], ends, strict=False), strict=True))
        n = ends[-1] if ends else 0
        # Written to, so that memory is short now rather than later.
        self._columns: dict[str, np.ndarray] = {}
        for name, (shape, dtype) in columns.items():
            self._columns[name] = np.empty((n, *shape), dtype)
            self._columns[name].fill(0)
        self._n: dict[int, int] = {}  # rows by image

    def __contains__(self, image: int) -> bool:
        return image in self._n

    def __iter__(self) -> Iterator[int]:
        """Yield the images that rows were added of, ascending."""
        yield from sorted(self._n)

    def __getitem__(self, image: int) -> tuple[np.ndarray, ...]:
        """What was added of an image: views, one for each column."""
        start = self._places[image][0]
        rows = slice(start, start + self._n[image])
        return tuple(column[rows] for column in self._columns.values())

    def is_full(self, image: int) -> bool:
        """Whether no more rows of an image can be added."""
        start, end = self._places[image]
        return start + self._n.get(image, 0) >= end

    def add(self, image: int, *values: Any) -> None:
        """Add rows of an image: an array for each column."""
        start = self._places[image][0] + self._n.get(image, 0)
        end = start + len(values[0])
        if end > self._places[image][1]:
            raise ValueError(f"there is no room for {len(values[0])} rows of an image.")
        for column, new in zip(self._columns.values(), values, strict=True):
            column[start:end] = new
        self._n[image] = end - self._places[image][0]

    def compact(self) -> "RowsOfImages":
        """The same, without room for more."""
        columns = {
            name: (column.shape[1:], column.dtype)
            for name, column in self._columns.items()
        }
        result = RowsOfImages(self._n, **columns)
        for image in self:
            result.add(image, *self[image])
        return result

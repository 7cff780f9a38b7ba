"""Images, or features, in parts: which images each part has, and keys of them."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import _num_samples

from skad._checks import normal_positions
from skad.images import content_key
from skad.images._containers import refuse_no_sequence

_SEED = 0  # of the order in which images are dealt out to parts


class Parts:
    """Normal images of X in parts of about equal size.

    Images are dealt out to the parts at random, always in the same way: each part then
    looks like every other one, even where X is sorted by product or by day. Within a
    part they keep their order, so that a single part is X without its anomalous images.

    Parameters
    ----------
    X : sequence of images, or ndarray of patch features
        What is split. Paths become absolute, for workers run in other folders.
    y : array-like of shape (n,) or None
        Images labelled -1 belong to no part.
    part_size : int
        Images of a part at most.

    Attributes
    ----------
    positions : list of ndarray of int
        Ascending positions in X of the images of each part.
    """

    def __init__(self, X: Any, y: Any, part_size: int) -> None:
        self._X = _indexable(X)
        chosen = normal_positions(self._X, y)
        order = np.random.default_rng(_SEED).permutation(chosen)
        n_parts = -(-len(order) // part_size)
        self.positions = [np.sort(part) for part in np.array_split(order, n_parts)]
        smallest = min(map(len, self.positions))
        if smallest < 2 and n_parts > 1:
            raise ValueError(
                f"part_size={part_size} makes {n_parts} parts of {len(order)} normal "
                "images, and one of them has a single image, from which nothing can "
                "be held out; use a larger part_size."
            )

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, number: int) -> Any:
        positions = self.positions[number]
        if isinstance(self._X, list):
            return [_absolute(self._X[i]) for i in positions]
        return self._X[positions]

    def renumbered(self, text: str, number: int) -> str:
        """A message about images of a part, with the places that these have in X."""
        positions = self.positions[number]

        def place(found: re.Match[str]) -> str:
            i = int(found[1])
            return f"X[{positions[i]}]" if i < len(positions) else found[0]

        return re.sub(r"\bX\[(\d+)\]", place, text)

    def key(self, number: int) -> bytes:
        """Digest of the images of a part.

        Of a file, its path, its size and the time of its last change count.
        """
        return items_key(self[number])


def items_key(items: Any) -> bytes:
    """Digest of the images of one part, as `Parts` gives them."""
    digest = blake2b(digest_size=16)
    if isinstance(items, np.ndarray) and items.dtype != object:
        digest.update(f"{items.dtype.str} {items.shape}".encode())
        digest.update(np.ascontiguousarray(items).data)
        return digest.digest()
    for item in items:
        text = file_state(item) if isinstance(item, str) else content_key(item)
        digest.update(text.encode("utf-8", "surrogateescape") + b"\0")
    return digest.digest()


def file_state(path: str) -> str:
    """A file's path, its size and the time of its last change."""
    try:
        state = os.stat(path)
    except OSError:  # not there, or not on this machine
        return path
    return f"{path}\0{state.st_size}\0{state.st_mtime_ns}"


def unreadable_files(items: Any) -> list[str]:
    """Paths among the images that this process cannot read."""
    if isinstance(items, np.ndarray):
        return []
    paths = [item for item in items if isinstance(item, str)]
    return [path for path in paths if not os.access(path, os.R_OK)]


def _indexable(X: Any) -> list[Any] | NDArray[Any]:
    """X as a list of images, or as an array that is split along its first axis."""
    if hasattr(X, "to_numpy"):  # a Series or a DataFrame
        X = X.to_numpy()
    refuse_no_sequence(X)
    if getattr(X, "ndim", 1) > 1 and hasattr(X, "dtype"):
        if len(X) == 0:
            raise ValueError("X is empty: found 0 images.")
        if isinstance(X, np.ndarray):
            return X
        return list(X)  # images in a tensor
    if not isinstance(X, Sequence | np.ndarray):
        raise TypeError(
            f"X is of type {type(X).__name__}; pass a list of images, or an array: "
            "images are dealt out to parts at random."
        )
    if _num_samples(X) == 0:
        raise ValueError("X is empty: found 0 images.")
    return list(X)


def _absolute(item: Any) -> Any:
    """An image; if it is a path, one that means the same in any folder."""
    if isinstance(item, (str, os.PathLike)):
        return os.path.abspath(os.fspath(item))
    return item

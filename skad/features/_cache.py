"""Cache of features on disk, so that each image is extracted once."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skad._user_warning import warn_user
from skad.images import content_key
from skad.images._batches import ImageReader


class Cache:
    """Features on disk, one file per image.

    Parameters
    ----------
    folder : Path
        Where the files are; created when it is needed.

    signature : str
        All that features depend on beside the content of the image.
    """

    def __init__(self, folder: Path, signature: str) -> None:
        self.folder = folder
        self.signature = signature
        self.gone = False  # whether the folder cannot be written to

    @staticmethod
    def is_configured(transformer: Any) -> bool:
        """Whether a transformer has a folder for features."""
        return getattr(transformer, "cache_dir", None) is not None

    @classmethod
    def of(cls, transformer: Any) -> Cache:
        """Give the cache of a fitted transformer that has a `cache_dir`."""
        return cls(Path(transformer.cache_dir), transformer._signature())

    def keys(self, images: ImageReader, indices: Iterable[int]) -> dict[int, str]:
        """Key of every image that can be read, by index."""

        def content_of(i: int) -> str | None:
            item, where = images.item(i)
            return content_key(item, where=where)

        return {
            index: sha256(f"{self.signature}\n{content}".encode()).hexdigest()
            for index, content in images.each(content_of, indices)
        }

    def loaded(
        self, keys: dict[int, str], n_at_once: int
    ) -> Iterator[tuple[NDArray[np.intp], NDArray[np.float32], list[int]]]:
        """Yield indices on disk, their rows, and the indices that are not there.

        So many indices at a time as `n_at_once` says, in the order of `keys`.
        """
        indices = list(keys)
        for lo in range(0, len(indices), n_at_once):
            found, rows, missing = [], [], []
            for index in indices[lo : lo + n_at_once]:
                try:
                    rows.append(np.load(self._path(keys[index])))
                    found.append(index)
                except (OSError, ValueError, EOFError):  # absent, or cut short
                    missing.append(index)
            yield np.array(found, np.intp), np.array(rows), missing

    def store(
        self, rows: NDArray[np.float32], indices: Iterable[int], keys: dict[int, str]
    ) -> None:
        """Write the rows to files; a folder that cannot be written to is no error."""
        if self.gone:
            return
        try:
            for index, row in zip(indices, rows, strict=True):
                self._write(self._path(keys[index]), row)
        except OSError as error:
            self.gone = True
            warn_user(
                f"cache_dir={str(self.folder)!r} cannot be written to: {error}. "
                "Features are extracted anew each time; set_params(cache_dir=None) "
                "says that this is meant."
            )

    def _write(self, path: Path, row: NDArray[np.float32]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, suffix=".partial")
        with os.fdopen(handle, "wb") as file:
            np.save(file, row)
        os.replace(partial, path)  # readers see a whole file or none

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.npy"

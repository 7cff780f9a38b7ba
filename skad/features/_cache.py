"""Features on disk: each image is extracted once, whoever asks."""

import os
import tempfile
import warnings
from hashlib import sha256
from pathlib import Path

import numpy as np

from skad.images import content_key
from skad.networks._torch_state import own_torch_state


class Cache:
    """Features on disk, one file per image; without a folder it does nothing."""

    def __init__(self, folder, signature):
        self.folder = folder
        self.signature = signature
        self.gone = False

    @classmethod
    def of(cls, transformer):
        folder = getattr(transformer, "cache_dir", None)
        if folder is None:
            return cls(None, "")
        with own_torch_state():
            return cls(Path(folder), transformer._signature())

    def keys(self, reader, indices):
        """Key of every image that can be read, by index; none without a folder."""
        if self.folder is None:
            return {}

        def content_of(i):
            item, where = reader.item(i)
            return content_key(item, where=where)

        return {
            index: sha256(f"{self.signature}\n{content}".encode()).hexdigest()
            for index, content in reader.each(content_of, indices)
        }

    def load(self, indices, keys):
        """Indices that are on disk, their rows, and the indices that are not."""
        found, rows, missing = [], [], []
        for index in indices:
            try:
                rows.append(np.load(self._path(keys[index])))
                found.append(index)
            except (OSError, ValueError, EOFError):  # absent, or cut short
                missing.append(index)
        return np.array(found, np.intp), np.array(rows), missing

    def store(self, rows, indices, keys):
        """Keep the rows; a folder that cannot be written to is no reason to stop."""
        if not keys or self.gone:
            return
        try:
            for index, row in zip(indices, rows, strict=True):
                self._write(self._path(keys[index]), row)
        except OSError as error:
            self.gone = True
            warnings.warn(
                f"cache_dir={str(self.folder)!r} cannot be written to: {error}. "
                "Features are extracted anew each time; set_params(cache_dir=None) "
                "says that this is meant.",
                stacklevel=6,
            )

    def _write(self, path, row):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, partial = tempfile.mkstemp(dir=path.parent, suffix=".partial")
        with os.fdopen(handle, "wb") as file:
            np.save(file, row)
        os.replace(partial, path)  # readers see a whole file or none

    def _path(self, key):
        return self.folder / key[:2] / f"{key}.npy"

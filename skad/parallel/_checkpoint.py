"""Checkpoints of a job on many workers: its fitted parts, in files."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable
from hashlib import blake2b
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator

import skad
from skad._user_warning import warn_user
from skad.parallel._parts import file_state

# Parameters that do not change what is fitted.
_WITHOUT_EFFECT = {"verbose", "n_jobs", "cache_dir", "checkpoint_dir", "memory"}


class Checkpoint:
    """Folder of fitted objects under keys of all that they depend on.

    A file is named after its key, and is there as a whole or not at all. A file of
    another job has another name, and one that cannot be read counts as not there.

    Parameters
    ----------
    folder : path or None
        None saves nothing.
    """

    def __init__(self, folder: str | os.PathLike[str] | None) -> None:
        self.folder = None if folder is None else Path(folder).absolute()
        self._used: set[Path] = set()
        if self.folder is None:
            return
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ValueError(
                f"checkpoint_dir={str(folder)!r} is not a folder that can be made: "
                f"{error}."
            ) from error

    def load(self, key: str) -> Any:
        """Load the object of a key, or None."""
        if self.folder is None:
            return None
        path = self._path(key)
        if not path.exists():
            return None
        try:
            saved = joblib.load(path)
            if saved["key"] != key:
                raise ValueError("it holds something else than its name says")
        except Exception as error:  # whatever a damaged file makes of it
            warn_user(
                f"the checkpoint {str(path)!r} cannot be used, and its part is fitted "
                f"again: {type(error).__name__}: {error}"
            )
            return None
        self._used.add(path)
        return saved["value"]

    def save(self, key: str, value: Any) -> None:
        """Save an object under a key; a reader finds all of the file or none."""
        if self.folder is None:
            return
        handle, partial = tempfile.mkstemp(dir=self.folder, suffix=".partial")
        try:
            with os.fdopen(handle, "wb") as stream:
                joblib.dump({"key": key, "value": value}, stream)
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(partial, self._path(key))
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
        self._used.add(self._path(key))

    def remove_used(self) -> None:
        """Remove what this job has saved or loaded."""
        for path in self._used:
            path.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / f"part-{key}.joblib"


def joined_key(*pieces: bytes) -> str:
    """Key of what depends on several things, and on this version of skad."""
    digest = blake2b(skad.__version__.encode(), digest_size=16)
    for piece in pieces:
        digest.update(len(piece).to_bytes(8, "little") + piece)
    return digest.hexdigest()


def settings_key(model: Any) -> bytes:
    """Digest of an estimator's class and of its parameters that change its fit."""
    digest = blake2b(digest_size=16)
    for piece in _described(model):
        digest.update(piece.encode("utf-8", "surrogateescape") + b"\0")
    return digest.digest()


def _described(value: Any) -> Iterable[str]:
    """Texts that are equal for equal settings, in this process and in others."""
    kind = type(value)
    yield f"{kind.__module__}.{kind.__qualname__}"
    if isinstance(value, FrozenEstimator):
        yield _hash(value.estimator)
    elif isinstance(value, BaseEstimator):
        for name, setting in sorted(value.get_params(deep=False).items()):
            if name not in _WITHOUT_EFFECT:
                yield name
                yield from _described(setting)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _described(item)
    elif isinstance(value, dict):
        for name, item in sorted(value.items(), key=lambda pair: repr(pair[0])):
            yield repr(name)
            yield from _described(item)
    elif isinstance(value, (str, os.PathLike)):
        yield file_state(os.fspath(value))
    elif value is None or isinstance(value, (bool, int, float, np.generic)):
        yield repr(value)
    elif hasattr(value, "state_dict"):  # a network
        for name, tensor in value.state_dict().items():
            yield f"{name} {_hash(tensor.detach().cpu().numpy())}"
    elif callable(value) and hasattr(value, "__qualname__"):
        yield f"{value.__module__}.{value.__qualname__}"
    else:
        yield _hash(value)


def _hash(value: Any) -> str:
    """Digest of an object; one that cannot be pickled is never found again."""
    try:
        return joblib.hash(value)
    except Exception:
        return os.urandom(16).hex()

"""Load a model from a file that anybody may have written."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from typing import Any, BinaryIO
from zipfile import ZIP_STORED, BadZipFile, ZipFile

import skad
from skad._optional import optional
from skad._user_warning import warn_user
from skad.persistence._info import FORMAT, read_info
from skad.persistence._trees import check_trees
from skad.persistence._trusted import refusal, trusted


def load(path: str | PathLike[str]) -> Any:
    """Load a model that `save` wrote.

    The file may come from anybody: what it holds is checked before anything is made of
    it, nothing in it is run, and a file that is damaged or holds anything else than a
    model is refused.

    Parameters
    ----------
    path : path
        The file.

    Returns
    -------
    model : estimator
        It gives the same scores, labels, p-values and maps, bit for bit, with the same
        versions of skad and what it is built on, on the same machine.

    Raises
    ------
    ImportError
        If skops is not installed.

    FileNotFoundError
        If there is no such file.

    ValueError
        If the file is no model that `save` wrote, is damaged, or holds types that no
        model of skad holds.

    Warns
    -----
    UserWarning
        If another minor or major version of skad wrote the file. scikit-learn warns,
        with an `InconsistentVersionWarning`, of another version of its own.

    See Also
    --------
    save : Writes such a file.
    model_info : What a file says of its model, without loading it.

    Notes
    -----
    A model is not made safe by this: whoever wrote the file chose what it calls
    normal, as with every model.

    Examples
    --------
    >>> import skad, tempfile
    >>> from skad.datasets import make_textures
    >>> data = make_textures(n_normal=30, n_anomalous=2, size=64, random_state=0)
    >>> features = skad.PatchFeatures("skad_small", image_size=64)
    >>> model = skad.make_pipeline(features, skad.SubspaceDetector()).fit(data.train)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     skad.save(model, f"{folder}/part.skad")
    ...     loaded = skad.load(f"{folder}/part.skad")
    >>> loaded.predict(data.test).shape
    (4,)
    """
    io = optional("skops.io", "skad.load", "line")
    name = os.fspath(path)
    with opened(path) as (stream, archive):
        _warn_of_version(name, read_info(archive)["versions"]["skad"])
        try:
            reason = refusal(json.loads(archive.read("schema.json")))
            if reason is None:
                stream.seek(0)
                model = io.load(stream, trusted=trusted())
                check_trees(model)
        # Whatever skops, NumPy and constructors raise about content that is no model.
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            raise ValueError(_refused(name, reason)) from error
    if reason is not None:
        raise ValueError(_refused(name, reason))
    return model


def _refused(name: str, reason: str) -> str:
    return f"{name!r} was not loaded: {reason}."


@contextmanager
def opened(path: str | PathLike[str]) -> Iterator[tuple[BinaryIO, ZipFile]]:
    """Open a file of `save`; refuse others, and say what they are."""
    name = os.fspath(path)
    if os.path.isdir(path):
        raise ValueError(_refused(name, "it is a folder"))
    try:
        stream = open(path, "rb")  # noqa: SIM115
    except FileNotFoundError as error:
        raise FileNotFoundError(f"there is no file {name!r}.") from error
    with stream:
        try:
            archive = ZipFile(stream)
        except (BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise ValueError(_refused(name, _what_it_is(stream))) from error
        with archive:
            try:
                reason = _wrong_archive(archive, os.fstat(stream.fileno()).st_size)
            except Exception as error:
                reason = f"it is damaged ({error})"
                raise ValueError(_refused(name, reason)) from error
            if reason is not None:
                raise ValueError(_refused(name, reason))
            yield stream, archive


def _what_it_is(stream: BinaryIO) -> str:
    """What a file that is no archive may be."""
    stream.seek(0)
    start = stream.read(4)
    if not start:
        return "it is empty"
    if start[:2] == b"PK":
        return "it is damaged, or only a part of a file"
    if start[0] == 0x80 or start[0] == 0x78:
        return (
            "it is no file of skad.save, but perhaps one of pickle or joblib, which "
            "runs what is in it: load it with joblib.load only if you trust whoever "
            "sent it, then save it with skad.save"
        )
    return "it is no file of skad.save"


def _wrong_archive(archive: ZipFile, size: int) -> str | None:
    """Why an archive is none of `save`, or None; it reads the description only."""
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    if not {"skad.json", "schema.json"} <= set(names):
        return "it is an archive, but no file of skad.save"
    if len(set(names)) < len(names):
        return "it holds several files of one name"
    # Nothing is compressed, so that nothing grows while it is read.
    if any(entry.compress_type != ZIP_STORED for entry in entries):
        return "it holds compressed files, which skad.save does not write"
    if sum(entry.file_size for entry in entries) > size:
        return "it claims to hold more than its size"
    info = read_info(archive)
    if not isinstance(info, dict) or not isinstance(info.get("format"), int):
        return "its description is damaged"
    if info["format"] > FORMAT:
        return (
            f"it is of format {info['format']}, written by a later version of skad; "
            "install that"
        )
    if not isinstance(info["versions"]["skad"], str):
        return "its description is damaged"
    return None


def _warn_of_version(name: str, version: str) -> None:
    """Warn where another minor or major version wrote the file."""
    if version.split(".")[:2] != skad.__version__.split(".")[:2]:
        warn_user(
            f"{name!r} was saved with skad {version}, and this is skad "
            f"{skad.__version__}: scores may differ. Install the same minor version, "
            "or fit and calibrate again."
        )

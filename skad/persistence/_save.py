"""Write a model into one file, as arrays and text."""

from __future__ import annotations

import json
import ntpath
import os
import posixpath
import tempfile
from contextlib import suppress
from os import PathLike
from pathlib import Path
from shutil import copyfileobj
from typing import Any
from uuid import uuid4
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from sklearn.base import BaseEstimator

from skad._optional import optional
from skad.persistence._info import described
from skad.persistence._objects import objects
from skad.persistence._trees import check_trees
from skad.persistence._trusted import name_of, nodes, refusal, trusted

# Parameters that name working folders, which another machine does not have.
_FOLDERS = ("cache_dir", "checkpoint_dir", "memory")
_NOTHING = {
    "__class__": "str",
    "__module__": "builtins",
    "__loader__": "JsonNode",
    "content": "null",
    "is_json": True,
}
_JOBLIB = (
    "save it with joblib.dump instead, and load it only where you trust whoever "
    "sends it"
)


def save(model: Any, path: str | PathLike[str]) -> None:
    """Save a model in one file that holds arrays and text, and no code.

    Parameters
    ----------
    model : estimator
        An estimator of skad, fitted or not, a pipeline, a search, or an estimator of
        scikit-learn. It stays as it is.

    path : path
        The file, by custom with the ending ".skad". It appears when it is whole: a
        file that was there before stays until then.

    Raises
    ------
    ImportError
        If skops is not installed.

    TypeError
        If the model holds what such a file cannot: a network of your own, a function,
        or an object of another package.

    OSError
        If the file cannot be written.

    See Also
    --------
    load : Loads such a file, in any process and on any machine.
    model_info : What the file says of the model.

    Notes
    -----
    The file holds no path of this machine: folders, such as `cache_dir`, become None,
    and of other paths, such as `weights`, the name of the file is left. A fitted model
    needs none of them.

    Networks of your own, functions and objects of other packages are code. Save models
    that hold them with `joblib.dump`; whoever loads such a file runs what is in it.

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
    >>> bool((loaded.score_samples(data.test) == model.score_samples(data.test)).all())
    True
    """
    io = optional("skops.io", "skad.save", "line")
    if not isinstance(model, BaseEstimator):
        raise TypeError(
            f"model is of type {type(model).__name__}; skad.save takes an estimator, "
            "such as a fitted pipeline."
        )
    _refuse_modules(model)
    path = Path(path)
    if path.is_dir():
        raise IsADirectoryError(f"path={str(path)!r} is a folder; name a file in it.")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {str(path.parent)!r}; make it.")
    info = described(model)
    with tempfile.TemporaryFile(dir=path.parent) as raw:
        try:
            io.dump(model, raw)
        except (TypeError, ValueError, AttributeError) as error:
            raise TypeError(f"model cannot be saved: {error} For it, {_JOBLIB}.") from (
                error
            )
        with ZipFile(raw) as source:
            schema = json.loads(source.read("schema.json"))
            files = _made_portable(schema)
            reason = refusal(schema)
            if reason is None:
                known = {*trusted(), "numpy.memmap"}
                unknown = set(io.get_untrusted_types(file=raw)) - known
                if unknown:
                    reason = f"it holds {', '.join(sorted(unknown))}"
            if reason is not None:
                raise TypeError(f"model cannot be saved: {reason}; {_JOBLIB}.")
            _write(path, source, schema, files, info)


def _refuse_modules(model: Any) -> None:
    """Refuse networks of the user's own, which are code, and trees as `load` does."""
    for value, place in objects(model):
        if hasattr(value, "state_dict") and hasattr(value, "parameters"):
            raise TypeError(
                f"{place} is a network of your own ({type(value).__name__}), whose "
                f"code a file of skad.save cannot hold; {_JOBLIB}."
            )
    try:
        check_trees(model)
    except ValueError as error:
        raise TypeError(f"model cannot be saved: {error}.") from error


def _made_portable(schema: dict[str, Any]) -> dict[str, str]:
    """Take what belongs to this process out of a schema.

    Addresses in memory become numbers, so that equal models give equal files. Returns
    the new names of the files of arrays, by their old ones.
    """
    numbers: dict[Any, int] = {}
    files: dict[str, str] = {}
    for node, _ in nodes(schema):
        loader = node["__loader__"]
        if loader == "DictNode":
            content = node["content"]
            for key in _FOLDERS:
                if key in content:
                    content[key] = dict(_NOTHING)
        elif loader == "JsonNode":
            node.pop("__id__", None)
            node["content"] = _without_folder(node["content"])
        elif loader == "NdArrayNode" and name_of(node) == "numpy.memmap":
            node["__module__"], node["__class__"] = "numpy", "ndarray"
        if "__id__" in node:
            node["__id__"] = numbers.setdefault(node["__id__"], len(numbers) + 1)
        if "file" in node:
            name = f"{len(files) + 1}{Path(node['file']).suffix}"
            node["file"] = files.setdefault(node["file"], name)
    return files


def _without_folder(content: str) -> str:
    """A text of JSON; where it is an absolute path, the name of the file."""
    if not content.startswith('"'):
        return content
    value = json.loads(content)
    source, colon, place = value.rpartition("local-dir:")
    for module in (posixpath, ntpath):
        if module.isabs(place) and len(place) > 1:
            return json.dumps(f"{source}{colon}{module.basename(place)}")
    return content


def _write(
    path: Path,
    source: ZipFile,
    schema: dict[str, Any],
    files: dict[str, str],
    info: dict[str, Any],
) -> None:
    """Write the file beside its place, and move it there when it is whole."""
    temporary = path.with_name(f".{path.name}-{uuid4().hex}")
    try:
        with open(temporary, "xb") as stream:
            with ZipFile(stream, "w", ZIP_STORED) as target:
                for name, content in (("skad.json", info), ("schema.json", schema)):
                    text = json.dumps(content, separators=(",", ":")).encode()
                    target.writestr(ZipInfo(name), text)
                for old, new in files.items():
                    entry = ZipInfo(new)
                    entry.file_size = source.getinfo(old).file_size
                    with source.open(old) as part, target.open(entry, "w") as copy:
                        copyfileobj(part, copy)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise

"""Score images on many workers: what data engines call on their partitions."""

from __future__ import annotations

import os
import pickle
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

import skad
from skad._kept import ByteBounded
from skad.inspection import inspect
from skad.persistence import load

_INPUTS = ("image", "path")


class _Loaded(NamedTuple):
    """A model of this process, and about how many bytes it takes."""

    model: Any
    nbytes: int


# Models by file or content. The one used last stays, whatever its size.
_LOADED = ByteBounded(2**30, keep_last=True)


class Scorer:
    """Score the images of one partition; made to be sent to workers.

    A function of a batch, which pickles. Each process loads the model at its first
    call, and once only. What it says of an image depends on that image alone, not on
    the others of its partition.

    Parameters
    ----------
    model_or_path : estimator or path
        A fitted detector of skad that takes images, a pipeline that ends in one, a
        search that was fitted, or the file of one of these, as `skad.save` wrote it.
        A path is made absolute, and must lead to the file on every machine. An
        estimator travels with every copy of the scorer: for a large one, pass a path.

    Raises
    ------
    TypeError
        If the estimator does not end in a detector of skad.

    sklearn.exceptions.NotFittedError
        If it is not fitted.

    See Also
    --------
    fit_parts : Fits a model on many workers.
    skad.inspect : Maps, masks and defects, too, in one process.

    Notes
    -----
    Networks compute several images at once, and may round differently in another
    partition: scores agree to about six digits.

    Examples
    --------
    >>> from skad import PatchFeatures, SubspaceDetector, make_pipeline
    >>> from skad.datasets import make_textures
    >>> from skad.parallel import Scorer
    >>> data = make_textures(n_normal=30, n_anomalous=2, size=64, random_state=0)
    >>> features = PatchFeatures("skad_small", image_size=64)
    >>> model = make_pipeline(features, SubspaceDetector()).fit(data.train)
    >>> scorer = Scorer(model)
    >>> answer = scorer({"image": data.test[:3]})
    >>> sorted(answer)
    ['decision', 'error', 'label', 'p_value', 'score']
    >>> answer = scorer({"path": ["no_such_file.png"]})
    >>> answer["score"], answer["label"]
    (array([nan]), array([0]))
    """

    def __init__(self, model_or_path: Any) -> None:
        self._version = skad.__version__
        self._path: str | None = None
        self._model: Any = None
        self._pickled: bytes | None = None  # of the model, in a copy that travelled
        self._key: bytes | None = None
        if isinstance(model_or_path, (str, os.PathLike)):
            self._path = os.path.abspath(os.fspath(model_or_path))
        else:
            inspect(model_or_path, iter(()), maps=False)  # refuses what it cannot use
            self._model = model_or_path

    def __repr__(self) -> str:
        if self._path is not None:
            return f"Scorer({self._path!r})"
        shown = "..." if self._model is None else type(self._model).__name__
        return f"Scorer({shown})"

    def __call__(self, batch: Any) -> dict[str, NDArray[Any]]:
        """Score the images of a batch.

        Parameters
        ----------
        batch : mapping or DataFrame
            Has a column "path" of files, or a column "image" of images: arrays
            (H, W[, C]), PIL images, or one array (n, H, W[, C]). Where it has both,
            images are taken. Other columns do not matter.

        Returns
        -------
        answer : dict of ndarray of shape (n,)
            "score", "decision" and "p_value", float64, as of `score_samples`,
            `decision_function` and `p_value`; "label", int64, as of `predict`; and
            "error", object: None, or why an image could not be read. Such an image has
            label 0, and NaN elsewhere.

        Raises
        ------
        ValueError
            If the batch has neither column.

        FileNotFoundError
            If there is no file of the model on this machine.

        ImportError
            If the model is a file, and skops is not installed.

        RuntimeError
            If this process has another version of skad than the one that made the
            scorer.
        """
        images = _images(batch)
        model = self._loaded()
        found = list(inspect(model, images, maps=False)) if len(images) else []
        answer: dict[str, NDArray[Any]] = {
            name: np.array([getattr(one, name) for one in found], np.float64)
            for name in ("score", "decision", "p_value")
        }
        answer["label"] = np.array([one.label for one in found], np.int64)
        answer["error"] = np.array([_reason(one) for one in found], object)
        return answer

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        if self._model is not None:
            state["_pickled"] = _dumps(self._model)
            state["_key"] = blake2b(state["_pickled"], digest_size=16).digest()
            state["_model"] = None
        return state

    def _loaded(self) -> Any:
        """The model, from memory if this process has loaded it before."""
        if self._version != skad.__version__:
            raise RuntimeError(
                f"this process has skad {skad.__version__}, and the one that made the "
                f"Scorer has {self._version}; install the same version on all machines."
            )
        if self._model is not None:
            return self._model
        if self._pickled is not None:
            pickled = self._pickled
            return _LOADED.get(
                self._key, lambda: _Loaded(pickle.loads(pickled), len(pickled))
            ).model
        path = str(self._path)
        try:
            state = os.stat(path)
        except OSError as error:
            raise FileNotFoundError(
                f"there is no file of a model at {path!r} on this machine; put it on a "
                "disk that all machines share, or pass the model itself to Scorer."
            ) from error
        key = path, state.st_mtime_ns, state.st_size
        return _LOADED.get(key, lambda: _Loaded(load(path), state.st_size)).model


def _dumps(model: Any) -> bytes:
    """Pickle a model, with classes of the user's script where cloudpickle is there."""
    try:
        import cloudpickle
    except ImportError:
        return pickle.dumps(model)
    return cloudpickle.dumps(model)


def _images(batch: Any) -> Any:
    """The images of a batch, a list or an array."""
    is_list = isinstance(batch, (str, bytes, list, tuple, np.ndarray))
    if is_list or not (hasattr(batch, "__contains__") or hasattr(batch, "__iter__")):
        raise TypeError(
            f"the batch is of type {type(batch).__name__}; Scorer takes a mapping or a "
            "DataFrame with a column 'path' of files, or 'image' of arrays or PIL "
            "images, such as {'path': skad.images.list_images(folder)}."
        )
    name = next((name for name in _INPUTS if name in batch), None)
    if name is None:
        known = ", ".join(map(repr, batch)) if hasattr(batch, "__iter__") else batch
        raise ValueError(
            f"the batch has the columns {known or 'of none'}; Scorer takes 'path', "
            "files, or 'image', arrays or PIL images."
        )
    images = batch[name]
    if isinstance(images, np.ndarray) and images.dtype != object and images.ndim > 1:
        return images
    return list(images)


def _reason(inspection: Any) -> str | None:
    """Why an image could not be read, without its place in the partition."""
    if inspection.error is None:
        return None
    text = inspection.error.removeprefix(f"X[{inspection.index}]")
    return text.removeprefix(f" ({str(inspection.source)!r})").removeprefix(": ")

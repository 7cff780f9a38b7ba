"""Labelled images of many classes, of which one is taken as normal: CIFAR-10."""

from __future__ import annotations

import codecs
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import Bunch

from skad.datasets._bunch import GOOD, Item, counts_of, make_bunch
from skad.datasets._counts import CIFAR10_CLASSES, warn_of_counts
from skad.datasets._finding import child, existing
from skad.datasets._folders import Root

CIFAR10 = "CIFAR-10"
_FOLDERS = ("cifar-10-batches-py", "cifar-10-batches-bin")
_SHAPE = (3, 32, 32)


def one_class_split(
    X_train: Any, y_train: Any, X_test: Any, y_test: Any, normal: Any
) -> Bunch:
    """Take one class of labelled images as normal, and all others as anomalous.

    This is how methods are compared on CIFAR-10: learn from the training images of one
    class, and tell its test images from those of all other classes.

    Parameters
    ----------
    X_train : array or sequence of images
        Training images of all classes, as arrays or paths.
    y_train : array-like
        One label for each of them, of any type.
    X_test : array or sequence of images
        Test images of all classes.
    y_test : array-like
        One label for each of them.
    normal : scalar
        The label of the normal class.

    Returns
    -------
    data : Bunch
        As `load_mvtec` returns it; `train` and `test` are of the type of `X_train` and
        `X_test`: arrays stay arrays. `masks` is None, for there are no masks;
        `defect_types` are "good" and the labels as text; `category` is `normal` as
        text.

    Raises
    ------
    ValueError
        If images and labels differ in number, or no label is `normal`.

    Examples
    --------
    >>> import numpy as np
    >>> from skad.datasets import one_class_split
    >>> X, y = np.zeros((4, 8, 8, 3), np.uint8), ["cat", "dog", "dog", "ship"]
    >>> data = one_class_split(X, y, X, y, normal="dog")
    >>> data.train.shape, data.y_test
    ((2, 8, 8, 3), array([-1,  1,  1, -1]))
    """
    labels = _labels("y_train", y_train, X_train, normal)
    tested = _labels("y_test", y_test, X_test, normal)
    kinds = [GOOD if label == normal else str(label) for label in tested]
    chosen = [i for i, label in enumerate(labels) if label == normal]
    train = (
        X_train[chosen] if hasattr(X_train, "shape") else [X_train[i] for i in chosen]
    )
    data = make_bunch(
        "one class",
        str(normal),
        train,
        [Item(i, kind) for i, kind in enumerate(kinds)],
        has_masks=False,
        check_counts=False,
    )
    data.test = X_test
    return data


def load_cifar10(root: Root, category: str) -> Bunch:
    """Read CIFAR-10 with one class as normal, and all others as anomalous.

    The layout is ``cifar-10-batches-py/data_batch_1`` or
    ``cifar-10-batches-bin/data_batch_1.bin``, and so on. Of the files of the former,
    which are pickled, nothing but arrays is loaded.

    Parameters
    ----------
    root : path
        Folder of the data set, or the folder that it is in.
    category : str
        The normal class: "airplane", "automobile", "bird", "cat", "deer", "dog",
        "frog", "horse", "ship" or "truck".

    Returns
    -------
    data : Bunch
        As `one_class_split` returns it; `train` and `test` are arrays
        (n, 32, 32, 3) of uint8, 15 and 31 MB.

    Raises
    ------
    FileNotFoundError
        If a file is missing.
    ValueError
        If there is no such class, or a file is damaged.

    References
    ----------
    Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009.

    Examples
    --------
    >>> from skad.datasets import load_cifar10
    >>> data = load_cifar10("data", "ship")  # doctest: +SKIP
    >>> data.train.shape, data.test.shape  # doctest: +SKIP
    ((5000, 32, 32, 3), (10000, 32, 32, 3))
    """
    if category not in CIFAR10_CLASSES:
        known = ", ".join(CIFAR10_CLASSES)
        raise ValueError(f"category={category!r} is not one of {known}.")
    folder = cifar10_folder(Path(root)) or existing(
        child(Path(root), _FOLDERS[0]), "Folder of the batches"
    )
    wanted = CIFAR10_CLASSES.index(category)
    train, trained = zip(
        *(_batch(folder, f"data_batch_{k}", wanted) for k in range(1, 6)), strict=True
    )
    test, tested = _batch(folder, "test_batch", None)
    data = one_class_split(
        np.concatenate(train),
        np.array(CIFAR10_CLASSES)[np.concatenate(trained)],
        test,
        np.array(CIFAR10_CLASSES)[tested],
        normal=category,
    )
    data.layout = CIFAR10
    warn_of_counts(CIFAR10, category, counts_of(data))
    return data


def cifar10_folder(root: Path) -> Path | None:
    """Folder of the batches: the one passed, or one in it."""
    for folder in (root, *(root / name for name in _FOLDERS)):
        if any(
            (folder / name).is_file() for name in ("data_batch_1", "data_batch_1.bin")
        ):
            return folder
    return None


def _labels(name: str, y: Any, X: Any, normal: Any) -> list[Any]:
    labels = np.asarray(y).tolist()
    if not isinstance(labels, list) or len(labels) != len(X):
        raise ValueError(
            f"{name} must have one label for each image, got {np.size(y)} labels for "
            f"{len(X)} images."
        )
    if normal not in labels:
        some = ", ".join(map(repr, sorted(set(labels), key=str)[:10]))
        raise ValueError(
            f"normal={normal!r} does not occur in {name}, which has {some}."
        )
    return labels


def _batch(
    folder: Path, name: str, wanted: int | None
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (n, 32, 32, 3) and labels of a file, all or those of one class."""
    binary = folder / f"{name}.bin"
    path = binary if binary.is_file() else folder / name
    if not path.is_file():
        raise FileNotFoundError(f"Batch not found: {path}.")
    rows, labels = _binary(path) if path == binary else _pickled(path)
    chosen = slice(None) if wanted is None else labels == wanted
    images = rows[chosen].reshape(-1, *_SHAPE).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(images), labels[chosen]


def _binary(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    content = np.fromfile(path, dtype=np.uint8)
    n_values = 1 + int(np.prod(_SHAPE))
    if content.size == 0 or content.size % n_values:
        raise ValueError(f"{path} must have rows of {n_values} bytes: it is damaged.")
    rows = content.reshape(-1, n_values)
    return rows[:, 1:], rows[:, 0].astype(np.int64)


def _pickled(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    try:
        with path.open("rb") as stream:
            batch = _ArraysOnly(stream, encoding="latin1").load()
        rows, labels = np.asarray(batch["data"]), np.asarray(batch["labels"])
        if rows.dtype != np.uint8 or rows.shape != (len(labels), np.prod(_SHAPE)):
            raise ValueError(f"its data are {rows.shape} of {rows.dtype}")
    except (
        pickle.UnpicklingError,
        EOFError,
        LookupError,
        TypeError,
        ValueError,
    ) as err:
        raise ValueError(f"{path} is no batch of {CIFAR10}: {err}.") from err
    return rows, labels.astype(np.int64)


class _ArraysOnly(pickle.Unpickler):
    """Loads arrays, and refuses all else that a pickle may run."""

    def __init__(self, stream: io.BufferedReader, encoding: str) -> None:
        super().__init__(stream, encoding=encoding)

    def find_class(self, module: str, name: str) -> Any:
        """Find the names that a pickled array needs."""
        if name == "_reconstruct" and module.endswith("core.multiarray"):
            return np.ndarray(0).__reduce__()[0]
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        if (module, name) == ("_codecs", "encode"):  # how later Pythons write bytes
            return codecs.encode
        raise pickle.UnpicklingError(f"{module}.{name} is not loaded")

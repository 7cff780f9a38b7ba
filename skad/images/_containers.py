"""The argument X: a sequence of images, checked without reading any."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skad.images._arrays import (
    CHANNELS,
    CONVERTED,
    accepted_channels,
    channel_counts,
    dtype_problem,
    has_base,
    is_tensor,
    tensor_to_numpy,
)
from skad.images._errors import Source
from skad.images._files import list_images
from skad.images._read import as_path, refuse_item

_EXPECTED_X = (
    "a list of images (paths, PIL images, arrays or tensors), one array (n, H, W) "
    "or (n, H, W, 1|3|4), or one torch tensor (n, C, H, W)"
)


def check_images(X: Any, name: str = "X", *, n_channels: int = 3) -> Any:
    """Check that an argument is a sequence of images, without reading any.

    Of a list, tuple, object array or Series the types of the items are looked at;
    no file is opened and no pixel read, so errors in the content of one image
    appear when `read_image` reaches it.

    Parameters
    ----------
    X : sequence of images, ndarray or torch.Tensor
        Images as `read_image` takes them, in a list, tuple, other
        `collections.abc.Sequence`, pandas Series or array of strings or objects; or
        one array (n, H, W) or (n, H, W, 1|3|4); or one tensor (n, C, H, W).
    name : str, default="X"
        Name of the argument in error messages.
    n_channels : int, default=3
        Channels that the images are read for, as in `read_image`. Where it is
        neither 1 nor 3, an array is (n, H, W, n_channels).

    Returns
    -------
    sequence
        `X`, or a view of it, with ``len`` and an index from 0.

    Raises
    ------
    TypeError
        X is a single path, a single PIL image, a mapping, a generator or another
        object that is no sequence of images.
    ValueError
        X is empty, or an array of a shape or dtype that images do not have.
    ImageError
        An item is of a type that is no image.

    Examples
    --------
    >>> from skad.images import check_images
    >>> len(check_images(["a.png", "b.png"]))
    2
    >>> check_images("a.png")
    Traceback (most recent call last):
        ...
    TypeError: X is a single path, 'a.png'; wrap it in a list, or list the files \
of a folder with skad.images.list_images(folder).
    """
    if isinstance(X, np.ndarray):
        return _check_array(X, name, n_channels)
    if not isinstance(X, list | tuple):
        if is_tensor(X):
            return _check_tensor(X, name, n_channels)
        X = _as_sequence(X, name)
    if len(X) == 0:
        raise ValueError(_empty(name))
    if isinstance(X, list | tuple | np.ndarray):
        _check_item_types(X, name)
    return X


def _as_sequence(X: Any, name: str) -> Any:
    """Values of a pandas Series or Index; any other sequence as it is."""
    if has_base(type(X), "pandas", "Series") or has_base(type(X), "pandas", "Index"):
        return X.to_numpy(dtype=object)
    if not isinstance(X, Sequence) or isinstance(X, str | bytes | bytearray):
        raise TypeError(f"{name} is {_container_problem(X)}.")
    return X


def refuse_no_sequence(X: Any, name: str = "X", expected: str = _EXPECTED_X) -> None:
    """Refuse what is no sequence of samples: a path, one image, what has no length.

    For those who count the samples before anyone reads them. `expected` is what to
    pass instead.
    """
    is_none = isinstance(X, str | bytes | bytearray | Mapping | Set)
    if is_none or not any(hasattr(X, a) for a in ("__len__", "shape", "__array__")):
        raise TypeError(f"{name} is {_container_problem(X, expected)}.")


def images_or_folder(images: Any, name: str) -> Any:
    """Check an argument that is a sequence of images, or the path of a folder.

    A folder is looked through with all folders in it.
    """
    path = as_path(images)
    if path is None:
        return check_images(images, name)
    try:
        return list_images(path, nested=True)
    except OSError as error:
        raise ValueError(
            f"{name}={path!r} is no folder of images: {error} Pass a folder, or a "
            "sequence of images."
        ) from error


def _container_problem(X: Any, expected: str = _EXPECTED_X) -> str:
    """Say what X is and what to do instead."""
    kind = type(X)
    if isinstance(X, str | os.PathLike):
        return (
            f"a single path, {os.fspath(X)!r}; wrap it in a list, or list the files "
            "of a folder with skad.images.list_images(folder)"
        )
    if isinstance(X, Image.Image):
        return "a single PIL image; wrap it in a list"
    if has_base(kind, "pandas", "DataFrame"):
        return "a DataFrame; pass its column of paths or images"
    if kind.__module__.startswith("scipy.sparse"):
        return f"a sparse matrix; pass {expected}"
    if isinstance(X, Mapping):
        return f"a {kind.__name__}; pass one of its values, or a list of them"
    if isinstance(X, Set):
        return f"a {kind.__name__}, which has no order; pass it sorted, as a list"
    if isinstance(X, Iterator):
        return f"a {kind.__name__}, which can be read only once; pass a list of it"
    return f"{'None' if X is None else f'of type {kind.__name__}'}; pass {expected}"


def _empty(name: str) -> str:
    return (
        f"{name} is empty: found 0 images; check the folder or the pattern that "
        "made the list."
    )


def _check_item_types(X: Sequence[Any] | NDArray[Any], name: str) -> None:
    bad = {kind for kind in set(map(type, X)) if not _is_item_type(kind)}
    if bad:
        place = next(i for i, item in enumerate(X) if type(item) in bad)
        refuse_item(X[place], Source(f"{name}[{place}]"))


def _is_item_type(kind: type) -> bool:
    """Whether instances of `kind` can be one image."""
    known = (str, os.PathLike, Image.Image, np.ndarray)
    return issubclass(kind, known) or has_base(kind, "torch", "Tensor")


def _check_array(X: NDArray[Any], name: str, n_channels: int) -> NDArray[Any]:
    if isinstance(X, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array; use {name}.filled(value).")
    if X.size == 0:
        raise ValueError(_empty(name) + f" Its shape is {X.shape}.")
    if X.dtype.kind == "U" and X.ndim == 1:
        return X
    if X.dtype == object and X.ndim == 1:
        _check_item_types(X, name)
        return X
    if X.dtype.kind in "UO":
        raise ValueError(
            f"{name} is an array of dtype {X.dtype} and shape {X.shape}; pass a "
            "1-D array or a list of images, or an array of numbers (np.stack)."
        )
    if problem := dtype_problem(X.dtype):
        raise ValueError(f"{name}: {problem[0]}; {problem[1]}.")
    if n_channels in CONVERTED:
        _check_array_shape(X.shape, name)
    else:
        _check_bands_shape(X.shape, name, n_channels)
    return X


def _check_array_shape(shape: tuple[int, ...], name: str) -> None:
    channels_last = len(shape) == 4 and shape[3] in CHANNELS
    if channels_last or (len(shape) == 3 and shape[2] not in CHANNELS):
        return
    hint = "pass (n, H, W) or (n, H, W, 1|3|4)"
    if len(shape) == 2:
        hint = f"for one grey image use {name}[np.newaxis]; features are no images"
    elif len(shape) == 3:
        hint = (
            f"this looks like one image (H, W, C): use {name}[np.newaxis]; for grey "
            f"images of this width use {name}[..., np.newaxis]"
        )
    elif len(shape) == 4 and shape[1] in CHANNELS:
        hint = (
            "this looks like (n, C, H, W), but channels come last in numpy arrays: "
            f"use {name}.transpose(0, 2, 3, 1)"
        )
    raise ValueError(f"{name} is an array of shape {shape}; {hint}.")


def _check_bands_shape(shape: tuple[int, ...], name: str, n_channels: int) -> None:
    if len(shape) == 4 and shape[3] == n_channels:
        return
    hint = f"pass (n, H, W, {n_channels}), for the images have {n_channels} channels"
    if len(shape) == 3 and shape[2] == n_channels:
        hint = f"this looks like one image (H, W, C): use {name}[np.newaxis]"
    elif len(shape) == 4 and shape[1] == n_channels:
        hint = f"channels come last: use {name}.transpose(0, 2, 3, 1)"
    raise ValueError(f"{name} is an array of shape {shape}; {hint}.")


def _check_tensor(X: Any, name: str, n_channels: int) -> NDArray[Any]:
    known = accepted_channels(n_channels)
    shape = tuple(X.shape)
    if 0 in shape:
        raise ValueError(_empty(name) + f" Its shape is {shape}.")
    if len(shape) == 4 and shape[1] in known:
        array = tensor_to_numpy(X, Source(name)).transpose(0, 2, 3, 1)
        if problem := dtype_problem(array.dtype):
            raise ValueError(f"{name}: {problem[0]}; {problem[1]}.")
        return array
    hint = f"pass (n, C, H, W) with C {channel_counts(n_channels)}"
    if len(shape) == 3:
        hint += f"; for one image use {name}[None], for grey images {name}[:, None]"
    elif len(shape) == 4 and shape[3] in known:
        hint = (
            "in a torch tensor channels come first, (n, C, H, W): "
            f"use {name}.permute(0, 3, 1, 2)"
        )
    raise ValueError(f"{name} is a torch tensor of shape {shape}; {hint}.")

"""Checks of labels, scores, masks and maps, shared by all metrics."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from copy import copy
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import UndefinedMetricWarning

from skad._checks import check_labels
from skad._user_warning import warn_user
from skad.images import ImageError, read_mask
from skad.images._arrays import is_tensor, tensor_to_numpy
from skad.images._errors import Source
from skad.images._masks import is_list_of_files
from skad.images._read import opened_array

_FILE_TYPES = (str, os.PathLike)


class Pair(NamedTuple):
    """One image: its map and, where it has a defect, its mask."""

    map: NDArray[Any]
    mask: NDArray[np.bool_] | None


def warn_undefined(metric: str, reason: str) -> float:
    """Warn that a metric has no value, and return NaN for it.

    Parameters
    ----------
    metric : str
        What is undefined, as the caller knows it.
    reason : str
        Why.

    Returns
    -------
    nan : float
        Not a number.
    """
    warn_user(
        f"{metric} is undefined: {reason}. NaN is returned.", UndefinedMetricWarning
    )
    return float("nan")


def why_undefined(n_defective: int, n_normal: int) -> str | None:
    """Explain why a pixel metric has no value.

    Parameters
    ----------
    n_defective, n_normal : int
        Numbers of pixels.

    Returns
    -------
    reason : str or None
        None where it lacks nothing.
    """
    if n_defective == 0:
        return "no pixel of masks is defective"
    return "no pixel of masks is normal" if n_normal == 0 else None


def check_labels_and_scores(
    y: Any, scores: Any
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Validate what the image metrics take.

    Parameters
    ----------
    y : array-like of shape (n_images,)
        +1 for normal, -1 for defective images.
    scores : array-like of shape (n_images,)
        Larger for normal images.

    Returns
    -------
    defective : ndarray of shape (n_images,), dtype bool
        Which images are defective.
    anomaly : ndarray of shape (n_images,), dtype float64
        The scores with their sign turned: larger is more anomalous.
    """
    labels, values = check_labels(y), np.asarray(scores)
    if values.ndim != 1:
        raise ValueError(
            f"scores has shape {values.shape}; expected one score per image."
        )
    if labels.size == 0:
        raise ValueError("y is empty: pass at least one image.")
    if labels.size != values.size:
        raise ValueError(
            f"y and scores must have one value per image each, got {labels.size} "
            f"labels and {values.size} scores."
        )
    if values.dtype.kind not in "iuf":
        raise ValueError(f"scores must be real numbers, got the dtype {values.dtype}.")
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
        raise ValueError(
            f"scores must be finite, but scores[{bad[0]}] is {values[bad[0]]} "
            f"({bad.size} such value(s)). Leave out images that were not scored, for "
            "example those skipped while reading."
        )
    return labels == -1, -values.astype(np.float64)


def _sequence(name: str, items: Any) -> Sequence[Any] | NDArray[Any]:
    """Take the outer sequence of masks or maps apart from single arrays."""
    if isinstance(items, np.ndarray) and items.dtype != object:
        if items.ndim != 3:
            hint = (
                f"pass {name}[None] for a single image"
                if items.ndim == 2
                else "drop the channel axis"
            )
            raise ValueError(
                f"{name} must have the shape (n_images, height, width), got "
                f"{items.shape}: {hint}."
            )
        return items
    if isinstance(items, (str, bytes, os.PathLike)) or not hasattr(items, "__len__"):
        raise ValueError(
            f"{name} must be an array (n_images, height, width) or a list with one "
            f"entry per image, got {type(items).__name__}."
        )
    if not isinstance(items, (Sequence, np.ndarray)):  # a tensor, a pandas Series
        return list(items)
    return items


def read_masks(
    masks: Any, *, stacks: bool = False, name: str = "masks"
) -> list[NDArray[np.bool_] | None]:
    """Read and check masks.

    Parameters
    ----------
    masks : ndarray of shape (n_images, height, width) or list
        A list holds masks as `skad.images.read_mask` takes them, or None, where None
        is a normal image.
    stacks : bool, default=False
        Whether an entry may also be a stack (n_defects, height, width).
    name : str, default="masks"
        Name of the argument in error messages.

    Returns
    -------
    masks : list of ndarray of dtype bool, or None
        Arrays also for masks that mark nothing, so that their size is known.
    """
    items = _sequence(name, masks)
    return [_read_mask(item, f"{name}[{i}]", stacks) for i, item in enumerate(items)]


def _read_mask(item: Any, where: str, stacks: bool) -> NDArray[np.bool_] | None:
    if item is None:
        return None
    if stacks and _is_stack(item):
        return _stack(list(item), where)
    return read_mask(item, where=where)


def _in_files(item: Any) -> bool:
    """Whether a mask can be read again whenever it is looked at."""
    on_disk = isinstance(item, (*_FILE_TYPES, np.memmap))
    return on_disk or is_list_of_files(item)


def _is_stack(item: Any) -> bool:
    """Whether an entry is several masks, not one."""
    if isinstance(item, list | tuple):  # a list of rows is one mask
        return len(item) > 0 and np.ndim(item[0]) != 1
    return getattr(item, "ndim", None) == 3


def _stack(items: Sequence[Any], where: str) -> NDArray[np.bool_]:
    """One channel per defect, from one mask each."""
    channels = [
        _read_mask(item, f"{where}[{k}]", False) for k, item in enumerate(items)
    ]
    shapes = {channel.shape for channel in channels if channel is not None}
    if len(shapes) != 1 or any(channel is None for channel in channels):
        raise ValueError(
            f"{where} must hold one mask per defect, all of one size; got the sizes "
            f"{sorted(shapes)}."
        )
    return np.stack([channel for channel in channels if channel is not None])


def _load_map(item: Any, i: int) -> Any:
    """Open a map that is a file; its pixels are read where they are looked at."""
    if is_tensor(item):
        return tensor_to_numpy(item, Source(f"maps[{i}]"))
    if not isinstance(item, _FILE_TYPES):
        return item
    source = Source(f"maps[{i}]", os.fspath(item))
    try:
        with opened_array(source) as stored:
            return stored
    except ImageError as error:
        raise ValueError(
            f"maps[{i}] must be an array (height, width) or the path of a .npy file; "
            f"cannot read {os.fspath(item)!r}: {error}"
        ) from error


def _check_map(item: Any, i: int) -> NDArray[Any]:
    if item is None:
        raise ValueError(f"maps[{i}] must be an array (height, width), got None.")
    array = np.asarray(item)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(
            f"maps[{i}] must have the shape (height, width), got {array.shape}."
        )
    if array.dtype.kind not in "iuf":
        raise ValueError(
            f"maps[{i}] must hold real numbers, got the dtype {array.dtype}. Pass the "
            "map itself, not a mask made from it."
        )
    # Extremes propagate NaN, and cost less than a boolean array of the map's size.
    if not (np.isfinite(array.max()) and np.isfinite(array.min())):
        n_bad = np.count_nonzero(~np.isfinite(array))
        what = "no finite value" if n_bad == array.size else f"{n_bad} NaN or infinite"
        raise ValueError(
            f"maps[{i}] must be finite, but has {what} pixel(s) of {array.size}. "
            "An image that could not be read has an all-NaN map: leave it out of both "
            "masks and maps."
        )
    return array


class Pairs(Sequence[Pair]):
    """Checked images, of which those that are files are read when looked at.

    Parameters
    ----------
    maps : sequence of (ndarray or path)
        One per image.
    masks : sequence of (ndarray, path or None)
        One per image.
    dtype : dtype
        What all maps are given out as.
    is_defective : ndarray of shape (n_images,), bool
        Which images have a mask that marks something.
    stacks : bool, default=False
        Whether a mask may be a stack with one channel per defect.
    """

    def __init__(
        self,
        maps: Sequence[Any] | NDArray[Any],
        masks: Sequence[Any] | NDArray[Any],
        dtype: Any,
        is_defective: NDArray[np.bool_],
        stacks: bool = False,
    ) -> None:
        self._maps, self._masks, self._dtype = maps, masks, dtype
        self._stacks = stacks
        self.is_defective = is_defective
        self._positions = np.arange(len(maps))
        self._report: Callable[[], object] | None = None

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, i: Any) -> Any:
        i = self._positions[i]
        if self._report is not None:
            self._report()
        array = np.asarray(_load_map(self._maps[i], i)).astype(self._dtype, copy=False)
        if not self.is_defective[i]:
            return Pair(array, None)
        return Pair(array, _read_mask(self._masks[i], f"masks[{i}]", self._stacks))

    def reporting(self, report: Callable[[], object]) -> Pairs:
        """Call a function whenever an image is looked at."""
        copied = copy(self)
        copied._report = report
        return copied

    def only(self, *, defective: bool) -> Pairs:
        """Keep the images that have a defect, or those that have none."""
        kept = copy(self)
        kept._positions = np.flatnonzero(self.is_defective == defective)
        return kept

    def defective(self) -> Iterator[tuple[int, Pair]]:
        """Go through the images that have a defect, with their positions."""
        for i in np.flatnonzero(self.is_defective):
            yield int(i), self[i]


def check_pairs(masks: Any, maps: Any, *, stacks: bool = False) -> Pairs:
    """Check masks against maps.

    Parameters
    ----------
    masks : ndarray of shape (n_images, height, width), list, or None
        None: all images are normal.
    maps : ndarray of shape (n_images, height, width) or sequence
        The anomaly maps: arrays, or paths of .npy files. An array, a list or a tuple
        is taken as it is; of another sequence each map is fetched when it is looked
        at, two or three times.
    stacks : bool, default=False
        Whether a mask may be a stack with one channel per defect.

    Returns
    -------
    pairs : Pairs
        One per image; the mask of a normal image is None.
    """
    items = _sequence("maps", maps)
    if len(items) == 0:
        raise ValueError("maps is empty: pass at least one image.")
    marks = [None] * len(items) if masks is None else _sequence("masks", masks)
    in_memory = isinstance(items, (list, tuple, np.ndarray))
    kept_maps, kept_masks, dtypes, shapes = [], [], {np.dtype(np.float32)}, []
    for i in range(len(items)):
        array = _check_map(_load_map(items[i], i), i)
        dtypes.add(array.dtype)
        shapes.append(array.shape)
        kept_maps.append(items[i] if isinstance(items[i], _FILE_TYPES) else array)
        if not in_memory:
            kept_maps.clear()
    if len(marks) != len(items):
        raise ValueError(
            f"masks and maps must have one entry per image each, got {len(marks)} "
            f"masks and {len(items)} maps. A normal image has None as its mask."
        )
    is_defective = np.zeros(len(items), dtype=bool)
    for i, shape in enumerate(shapes):
        mask = _read_mask(marks[i], f"masks[{i}]", stacks)
        kept_masks.append(marks[i] if _in_files(marks[i]) else mask)
        if mask is None:
            continue
        if mask.shape[-2:] != shape:
            raise ValueError(
                f"masks[{i}] has the size {mask.shape[-2:]}, but maps[{i}] has "
                f"{shape}. Compute the map at the size of the mask: "
                f"anomaly_map(X, size={mask.shape[-2:]})."
            )
        is_defective[i] = mask.any()
    dtype = np.result_type(*dtypes)
    return Pairs(
        kept_maps if in_memory else items, kept_masks, dtype, is_defective, stacks
    )


def check_max_fpr(max_fpr: Any) -> float:
    """Validate the limit of the false-positive rate.

    Parameters
    ----------
    max_fpr : float
        The value to check.

    Returns
    -------
    max_fpr : float
        The same, in (0, 1].
    """
    try:
        value = float(max_fpr)
    except (TypeError, ValueError):
        value = float("nan")
    if not 0 < value <= 1:
        raise ValueError(f"max_fpr must be a number in (0, 1], got {max_fpr!r}.")
    return value

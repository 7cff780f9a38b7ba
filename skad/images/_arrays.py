"""One image given as an array: checks, and the normal form."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from skad.images._errors import Source
from skad.images._kinds import tensor_to_numpy

CHANNELS = (1, 3, 4)
# Arithmetic such as resizing moves a float past 0 or 1 by rounding alone.
ROUNDING = 1e-6


def dtype_problem(dtype: np.dtype[Any]) -> tuple[str, str] | None:
    """Problem and hint for an element type that is no image, else None."""
    if dtype.kind in "bf" or (dtype.kind == "u" and dtype.itemsize <= 2):
        return None
    if dtype.kind in "iu":
        hint = "use .astype(np.uint8) for values 0..255, np.uint16 for 0..65535"
    elif dtype.kind == "c":
        hint = "pass its magnitude, scaled to [0, 1]"
    else:
        hint = "pass numbers: uint8, uint16, bool, or float in [0, 1]"
    return f"the array has dtype {dtype}, which has no known value range", hint


def array_view(array: NDArray[Any], source: Source) -> NDArray[Any]:
    """View with axes (H, W, C), C 1, 3 or 4, after the checks of shape and dtype."""
    if isinstance(array, np.ma.MaskedArray):
        raise source.error(
            "the array is a masked array", "fill the masked pixels with .filled(value)"
        )
    if array.ndim == 2:
        array = array[..., np.newaxis]
    if array.ndim != 3:
        raise source.error(
            f"the array has {array.ndim} dimensions, shape {array.shape}",
            "one image is (H, W) or (H, W, 1|3|4)",
        )
    if min(array.shape) == 0:
        raise source.error(
            f"the array is empty, shape {array.shape}",
            "an image has at least one pixel",
        )
    if array.shape[2] not in CHANNELS:
        hint = "one image is (H, W) or (H, W, 1|3|4)"
        if array.shape[0] in CHANNELS and array.shape[2] > 4:
            hint = "channels come last: use .transpose(1, 2, 0)"
        raise source.error(f"the array has shape {array.shape}", hint)
    problem = dtype_problem(array.dtype)
    if problem is not None:
        raise source.error(*problem)
    return array


def tensor_view(tensor: Any, source: Source) -> NDArray[Any]:
    """View of a tensor (C, H, W) or (H, W) as an array (H, W, C)."""
    shape = tuple(tensor.shape)
    if len(shape) == 3 and shape[0] not in CHANNELS:
        hint = "one image is a tensor (C, H, W) with C 1, 3 or 4"
        if shape[2] in CHANNELS:
            hint = "in a torch tensor channels come first: use .permute(2, 0, 1)"
        raise source.error(f"the torch tensor has shape {shape}", hint)
    if len(shape) not in (2, 3):
        raise source.error(
            f"the torch tensor has {len(shape)} dimensions, shape {shape}",
            "one image is a tensor (C, H, W) with C 1, 3 or 4",
        )
    array = tensor_to_numpy(tensor, source)
    return array_view(array.transpose(1, 2, 0) if array.ndim == 3 else array, source)


def normal_form(view: NDArray[Any], source: Source) -> NDArray[Any]:
    """Drop alpha and bring an array (H, W, C) to uint8, or float32 in [0, 1]."""
    if view.shape[2] == 4:
        view = view[..., :3]
    if view.dtype == bool:
        return view.astype(np.uint8) * np.uint8(255)
    if view.dtype == np.uint8:
        return np.ascontiguousarray(view)
    if view.dtype.kind == "u":
        return view.astype(np.float32) / np.float32(65535)
    return unit_floats(view, source)


def unit_floats(values: NDArray[Any], source: Source) -> NDArray[np.float32]:
    """Float32 of values that must lie in [0, 1]."""
    with np.errstate(invalid="ignore"):
        low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        count = int(np.count_nonzero(~np.isfinite(values)))
        raise source.error(
            f"{count} values are NaN or infinite",
            "replace them, for example with np.nan_to_num, or remove the image",
        )
    if low < -ROUNDING or high > 1 + ROUNDING:
        raise source.error(
            f"float values reach from {low:.6g} to {high:.6g}, outside [0, 1]",
            _scaling_hint(low, high),
        )
    result = np.ascontiguousarray(values, dtype=np.float32)
    return result.clip(0, 1) if low < 0 or high > 1 else result


def _scaling_hint(low: float, high: float) -> str:
    if low < -ROUNDING:
        return "if mean and standard deviation were removed, undo that, else rescale"
    if high <= 255 + ROUNDING:
        return "divide by 255, or use .astype(np.uint8) if they are grey levels"
    if high <= 65535 + ROUNDING:
        return "divide by 65535 if they are 16-bit grey levels"
    return "divide by the largest value the camera can give"

"""One image given as an array or a tensor: checks, and the normal form."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from skad.images._errors import Source

CHANNELS = (1, 3, 4)
# Grey and colour become one another; other numbers of channels are kept as they are.
CONVERTED = (1, 3)
# Arithmetic such as resizing moves a float past 0 or 1 by rounding alone.
ROUNDING = 1e-6


def has_base(kind: type, module: str, name: str) -> bool:
    """Whether a class or a base of it is called `name` in package `module`."""
    return any(
        base.__name__ == name and base.__module__.split(".")[0] == module
        for base in kind.__mro__
    )


def is_tensor(x: object) -> bool:
    """Whether `x` is a torch tensor, also of a subclass such as Parameter."""
    return has_base(type(x), "torch", "Tensor")


def accepted_channels(n_channels: int | None) -> tuple[int, ...]:
    """Numbers of channels of an array where `n_channels`, or any, are asked for."""
    if n_channels is None or n_channels in CONVERTED:
        return CHANNELS
    return (n_channels,)


def array_form(n_channels: int | None) -> str:
    """Shapes of one array, for messages."""
    known = accepted_channels(n_channels)
    return "(H, W) or (H, W, 1|3|4)" if known is CHANNELS else f"(H, W, {n_channels})"


def channel_counts(n_channels: int | None) -> str:
    """Numbers of channels, for messages."""
    return "1, 3 or 4" if accepted_channels(n_channels) is CHANNELS else str(n_channels)


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


def array_view(
    array: NDArray[Any], source: Source, n_channels: int | None = 3
) -> NDArray[Any]:
    """View with axes (H, W, C) after the checks of shape and dtype.

    Any number of channels passes where `n_channels` is None.
    """
    if isinstance(array, np.ma.MaskedArray):
        raise source.error(
            "the array is a masked array", "fill the masked pixels with .filled(value)"
        )
    if array.ndim == 2:
        array = array[..., np.newaxis]
    if array.ndim != 3:
        raise source.error(
            f"the array has {array.ndim} dimensions, shape {array.shape}",
            f"one image is {array_form(n_channels)}",
        )
    if min(array.shape) == 0:
        raise source.error(
            f"the array is empty, shape {array.shape}",
            "an image has at least one pixel",
        )
    _check_array_channels(array, source, n_channels)
    problem = dtype_problem(array.dtype)
    if problem is not None:
        raise source.error(*problem)
    return array


def _check_array_channels(
    array: NDArray[Any], source: Source, n_channels: int | None
) -> None:
    known = accepted_channels(n_channels)
    if array.shape[2] in known:
        return
    if array.shape[0] in known and array.shape[2] > 4:
        raise source.error(
            f"the array has shape {array.shape}",
            "channels come last: use .transpose(1, 2, 0)",
        )
    if n_channels in CONVERTED:
        raise source.error(
            f"the array has shape {array.shape}",
            f"one image is {array_form(n_channels)}",
        )
    if n_channels is not None:
        check_channels(array, source, n_channels)


def check_channels(array: NDArray[Any], source: Source, n_channels: int) -> None:
    """Refuse pixels (H, W, C) that do not become `n_channels` channels."""
    found = array.shape[2]
    if n_channels in CONVERTED or found == n_channels:
        return
    raise source.error(
        f"the image has {found} channel{'s' if found > 1 else ''}, "
        f"expected {n_channels}",
        f"pass an array (H, W, {n_channels}) or a .npy file of one, or take a network "
        f"for {found} (in_chans={found})",
    )


def tensor_view(
    tensor: Any, source: Source, n_channels: int | None = 3
) -> NDArray[Any]:
    """View of a tensor (C, H, W) or (H, W) as an array (H, W, C)."""
    shape = tuple(tensor.shape)
    known = accepted_channels(n_channels)
    form = f"one image is a tensor (C, H, W) with C {channel_counts(n_channels)}"
    if len(shape) not in (2, 3):
        raise source.error(
            f"the torch tensor has {len(shape)} dimensions, shape {shape}", form
        )
    if len(shape) == 3 and shape[0] not in known:
        if shape[2] in known:
            form = "in a torch tensor channels come first: use .permute(2, 0, 1)"
        if shape[2] in known or n_channels in CONVERTED:
            raise source.error(f"the torch tensor has shape {shape}", form)
    array = tensor_to_numpy(tensor, source)
    array = array.transpose(1, 2, 0) if array.ndim == 3 else array
    return array_view(array, source, n_channels)


def tensor_to_numpy(tensor: Any, source: Source) -> NDArray[Any]:
    """Array of a tensor from any device, axes as they are."""
    try:
        tensor = tensor.detach().cpu()
        if str(tensor.dtype) == "torch.bfloat16":  # a type that numpy lacks
            tensor = tensor.float()
        return np.asarray(tensor.numpy())
    except (TypeError, RuntimeError, NotImplementedError) as err:
        raise source.error(
            f"the torch tensor cannot become a numpy array ({err})",
            "pass a dense tensor of an ordinary type",
        ) from err


def normal_form(
    view: NDArray[Any], source: Source, n_channels: int = 3
) -> NDArray[Any]:
    """Bring an array (H, W, C) to uint8, or float32 in [0, 1].

    Alpha is dropped where `n_channels` are grey or colour.
    """
    if view.shape[2] == 4 and n_channels in CONVERTED:
        view = view[..., :3]
    return unit_range(view, source)


def unit_range(values: NDArray[Any], source: Source) -> NDArray[Any]:
    """Bring bool, integer or float pixels (H, W, C) to the normal form.

    That is uint8 wherever all values are 8-bit levels, whatever dtype holds them, for
    the same pixels must be resized with the same rounding. All others are float32.
    """
    if values.dtype == bool:
        return values.astype(np.uint8) * np.uint8(255)
    if values.dtype == np.uint8:
        return np.ascontiguousarray(values)
    if values.dtype.kind == "f":
        tolerance = max(ROUNDING, float(np.finfo(values.dtype).eps) / 2)
        floats = unit_floats(values, source)
    else:
        low, high = int(values.min()), int(values.max())
        if low < 0 or high > 65535:
            raise source.error(
                f"integer values reach from {low} to {high}, outside 16 bits",
                "rescale to 0..65535 or to float in [0, 1]",
            )
        tolerance = ROUNDING
        floats = values.astype(np.float32, order="C") / np.float32(65535)
    levels = _eight_bit_levels(floats, tolerance)
    return floats if levels is None else levels


def _eight_bit_levels(
    floats: NDArray[np.float32], tolerance: float
) -> NDArray[np.uint8] | None:
    """Grey levels of floats that are all multiples of 1 / 255, else None.

    Neighbours among 16-bit levels are fifteen times as far apart as `ROUNDING`.
    """
    levels = np.empty(floats.shape, np.uint8)
    # Some rows at a time: they stay in the cache, and the first ones settle most.
    n_rows = max(1, 2**16 // floats[0].size)
    for first in range(0, len(floats), n_rows):
        rows = slice(first, first + n_rows)
        scaled = floats[rows] * np.float32(255)
        nearest = np.rint(scaled)
        scaled -= nearest
        if np.abs(scaled, out=scaled).max() > 255 * tolerance:
            return None
        levels[rows] = nearest
    return levels


def unit_floats(values: NDArray[Any], source: Source) -> NDArray[np.float32]:
    """Float32 of values that must lie in [0, 1]."""
    if values.dtype.itemsize == 2:  # numpy is slow with these
        values = values.astype(np.float32)
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

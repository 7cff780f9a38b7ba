"""Resize and crop images in their normal form, and convert them to floats."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skad._checks import check_size
from skad._frame import central_offset, short_side
from skad.images._read import floats, resized

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def resize_image(
    image: NDArray[Any], size: tuple[int, int], *, resample: str = "bilinear"
) -> NDArray[Any]:
    """Resize an image with antialiasing; the aspect ratio may change.

    Parameters
    ----------
    image : ndarray of shape (H, W, C)
        Normal form: uint8 or float32 in [0, 1]; see `read_image`.
    size : tuple of int
        Height and width of the result.
    resample : {"bilinear", "bicubic", "lanczos", "nearest"}, default="bilinear"
        Filter of Pillow. Float results are clipped to [0, 1].

    Returns
    -------
    ndarray of shape (H, W, C)
        Same dtype; `image` itself when it already has this size.

    Raises
    ------
    ValueError
        The image is not in normal form, or `size` or `resample` is not valid.

    Examples
    --------
    >>> import numpy as np
    >>> from skad.images import resize_image
    >>> resize_image(np.zeros((8, 6, 3), dtype=np.uint8), (4, 3)).shape
    (4, 3, 3)
    """
    height, width = check_size(size)
    if resample not in _FILTERS:
        raise ValueError(
            f"resample must be one of {sorted(_FILTERS)}, got {resample!r}."
        )
    _check_normal_form(image)
    return resized(image, height, width, _FILTERS[resample])


def _check_normal_form(image: Any) -> None:
    if not isinstance(image, np.ndarray):
        raise ValueError(
            f"image must be an array, got {type(image).__name__}; use read_image first."
        )
    shape_ok = image.ndim == 3 and min(image.shape) > 0
    if not shape_ok or image.dtype not in (np.uint8, np.float32):
        raise ValueError(
            "image must be (H, W, C) of uint8 or float32, got shape "
            f"{image.shape} and dtype {image.dtype}; use read_image first."
        )


def resize_short_side(size: tuple[int, int], short: int) -> tuple[int, int]:
    """Size of an image after its short side became `short`, aspect ratio kept.

    Parameters
    ----------
    size : tuple of int
        (H, W) of the image.
    short : int
        Length of the short side.

    Returns
    -------
    tuple of int
        New (H, W); the long side is rounded down.

    Examples
    --------
    >>> from skad.images import resize_short_side
    >>> resize_short_side((75, 90), 64)
    (64, 76)
    """
    height, width = check_size(size)
    if isinstance(short, bool) or int(short) != short or short < 1:
        raise ValueError(f"short must be a positive whole number, got {short!r}.")
    return short_side((height, width), int(short))


def center_crop_box(
    size: tuple[int, int], crop: int | tuple[int, int]
) -> tuple[int, int]:
    """Top left corner of the central window of an image.

    Parameters
    ----------
    size : tuple of int
        (H, W) of the image.
    crop : int or tuple of int
        Side of a square window, or its (H, W).

    Returns
    -------
    tuple of int
        (top, left). Half pixels are rounded to the even side.

    Raises
    ------
    ValueError
        The window is larger than the image.

    Examples
    --------
    >>> from skad.images import center_crop_box
    >>> center_crop_box((64, 76), 56)
    (4, 10)
    >>> center_crop_box((9, 11), (8, 8))
    (0, 2)
    """
    height, width = check_size(size)
    crop_height, crop_width = check_size(crop, "crop", allow_int=True)
    if crop_height > height or crop_width > width:
        raise ValueError(
            f"crop {(crop_height, crop_width)} is larger than the image size "
            f"{(height, width)}; crop less or resize to a larger size first."
        )
    return central_offset((height, width), (crop_height, crop_width))


def to_float(image: NDArray[Any], n_channels: int = 3) -> NDArray[np.float32]:
    """Convert an image to float channels in [0, 1], three unless told otherwise.

    Parameters
    ----------
    image : ndarray of shape (H, W, C)
        Normal form: uint8 or float32 in [0, 1], C 1 or `n_channels`; see
        `read_image`.
    n_channels : int, default=3
        Number of channels.

    Returns
    -------
    ndarray of shape (H, W, n_channels), float32
        Grey is repeated. It may share memory with a float `image`.

    Raises
    ------
    ValueError
        The image is not in normal form, or has another number of channels.

    Examples
    --------
    >>> import numpy as np
    >>> from skad.images import to_float
    >>> to_float(np.full((1, 1, 1), 255, dtype=np.uint8))
    array([[[1., 1., 1.]]], dtype=float32)
    """
    _check_normal_form(image)
    if image.shape[2] not in (1, n_channels):
        raise ValueError(
            f"image must have 1 or n_channels={n_channels} channels, got shape "
            f"{image.shape}; use read_image with the same n_channels first."
        )
    return floats(image, n_channels)

"""Small pictures of images, maps and masks, as data URLs for a page."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable
from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

LONGEST_SIDE = 384  # pixels of a thumbnail
_HEAT_SIDE = 96  # pixels of a heat map: maps are smooth
# Largest files in bytes. Base64 adds a third, so that 1,000 images take 25 MB at most.
_IMAGE_BYTES = 12_000
_HEAT_BYTES = 3_000
_MASK_BYTES = 1_200
_QUALITIES = (80, 60, 40, 25)

# Colours of a heat map: multiples of the threshold, and red, green, blue, opacity.
_HEAT_STOPS = np.array(
    [
        [0.0, 255, 225, 90, 0],
        [0.5, 255, 205, 60, 45],
        [1.0, 255, 140, 0, 100],
        [2.0, 235, 50, 20, 115],
        [3.0, 200, 0, 60, 125],
    ]
)
_N_HEAT_LEVELS = 64
FOUND_COLOR = (225, 0, 110, 115)  # of masks of the model
TRUE_COLOR = (0, 165, 200, 115)  # of masks that the user passed


def picture(image: NDArray[Any]) -> str:
    """Data URL of a thumbnail of an image (H, W, C) as `read_image` returns it."""
    image = shown(image)
    whole = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)

    def files() -> Iterable[bytes]:
        for side in _sides(LONGEST_SIDE):
            small = whole.resize(
                _fitting(image.shape, side)[::-1],
                Image.Resampling.BILINEAR,
                reducing_gap=2.0,
            )
            for quality in _QUALITIES:
                yield _encoded(small, "JPEG", quality=quality, optimize=True)

    return _url(_smallest_fitting(files(), _IMAGE_BYTES), "jpeg")


def shown(image: NDArray[Any]) -> NDArray[np.uint8]:
    """An image (H, W, C) as `read_image` returns it, with 1 or 3 channels of 8 bits.

    An image with more bits is shown up to its brightest value, since sensors often use
    a small part of the range.
    """
    image = image[..., : 1 if image.shape[2] == 2 else 3]  # without opacity
    if image.dtype == np.uint8:
        return image
    return np.rint(255 * image / max(float(image.max()), 1e-9)).astype(np.uint8)


def heat_map(anomaly_map: NDArray[Any], usual: float, threshold: float) -> str:
    """Data URL of a heat map: clear at a usual value, orange at the threshold."""
    levels, palette = heat_levels(anomaly_map, usual, threshold)
    return _of_levels(levels, palette, _HEAT_SIDE, _HEAT_BYTES)


def heat_levels(
    anomaly_map: NDArray[Any], usual: float, threshold: float
) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Positions (H, W) in a palette, and the palette (n, 4): red, green, blue, opacity.

    All of the palette is from 0 to 255.
    """
    colors = _HEAT_STOPS[:, 1:]
    places = np.linspace(0, _HEAT_STOPS[-1, 0], _N_HEAT_LEVELS)
    palette = np.stack(
        [np.interp(places, _HEAT_STOPS[:, 0], channel) for channel in colors.T], axis=1
    )
    span = max(threshold - usual, 1e-9 * max(abs(threshold), 1.0))
    share = (anomaly_map - usual) / (span * _HEAT_STOPS[-1, 0])
    levels = np.rint(np.clip(share, 0, 1) * (_N_HEAT_LEVELS - 1)).astype(np.uint8)
    return levels, palette


def mask_picture(mask: NDArray[np.bool_], color: tuple[int, ...]) -> str:
    """Data URL of a mask in a colour, clear elsewhere."""
    palette = np.array([[0, 0, 0, 0], color])
    return _of_levels(mask.astype(np.uint8), palette, LONGEST_SIDE, _MASK_BYTES)


def shrunk(array: NDArray[Any], shape: tuple[int, int]) -> NDArray[Any]:
    """An array (H, W) at a smaller shape; each value is the largest of its cell.

    So the smallest defect stays visible.
    """
    for axis, n_cells in enumerate(shape):
        starts = np.arange(n_cells) * array.shape[axis] // n_cells
        array = np.maximum.reduceat(array, starts, axis=axis)
    return array


def _of_levels(
    levels: NDArray[np.uint8], palette: NDArray[Any], side: int, limit: int
) -> str:
    """Data URL of an array of positions in a palette of (n, 4) colours."""
    palette = np.rint(palette).astype(np.uint8)
    bits = 1 if len(palette) == 2 else 8

    def files() -> Iterable[bytes]:
        for longest in _sides(side):
            small = shrunk(levels, _fitting(levels.shape, longest))
            image = Image.fromarray(small)
            image.putpalette(palette[:, :3].tobytes())
            opacity = palette[:, 3].tobytes()
            yield _encoded(image, "PNG", bits=bits, transparency=opacity, optimize=True)

    return _url(_smallest_fitting(files(), limit), "png")


def _sides(longest: int) -> list[int]:
    """Sides to try, each two thirds of the one before."""
    return [round(longest * (2 / 3) ** k) for k in range(6)]


def _fitting(shape: tuple[int, ...], longest: int) -> tuple[int, int]:
    """Height and width with a longest side, of the same proportions; never larger."""
    scale = min(1.0, longest / max(shape[:2]))
    return max(1, round(shape[0] * scale)), max(1, round(shape[1] * scale))


def _smallest_fitting(files: Iterable[bytes], limit: int) -> bytes:
    """The first file within the limit, or the last one."""
    file = b""
    for file in files:
        if len(file) <= limit:
            break
    return file


def _encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _url(file: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{b64encode(file).decode()}"

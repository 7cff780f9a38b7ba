"""One image held by Pillow: orientation, frames, modes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from skad.images._errors import ImageError, Source

ORIENTATION = 0x0112
# Their further frames are previews, depth maps or layers of the first one.
COMPOSITE_FORMATS = ("MPO", "PSD")
# Modes whose bands are kept where so many channels are wanted.
STORED_BANDS = {"LA": 2, "RGBA": 4, "RGBX": 4, "CMYK": 4}


@contextmanager
def decoding(source: Source) -> Iterator[None]:
    """Turn whatever a decoder raises into an `ImageError`."""
    try:
        yield
    except (ImageError, MemoryError):
        raise
    # Decoders meet damaged data with OSError, SyntaxError, struct.error,
    # IndexError and more, so no shorter list would be complete.
    except Exception as err:
        hint = "it is truncated or damaged: replace it or remove it"
        if source.path is None:
            hint += " (a PIL image must still be open, or loaded with .load())"
        raise source.error(
            f"the image cannot be decoded ({type(err).__name__}: {err})", hint
        ) from err


def check_single_frame(image: Image.Image, source: Source) -> None:
    """Refuse animations and multi-page files: one frame would be a guess."""
    try:
        several = bool(getattr(image, "is_animated", False))
    except Exception:  # a loaded image whose file is closed shows one frame only
        return
    if not several or image.format in COMPOSITE_FORMATS:
        return
    raise source.error(
        f"the {image.format} image has {getattr(image, 'n_frames', 'several')} frames",
        "save the frame that is meant as a file of its own, or pass a PIL image: "
        "image.seek(i), then image.copy()",
    )


def orientation(exif_of: Any) -> int:
    """EXIF orientation 1 to 8 from a ``getexif`` method; 1 when there is none."""
    try:
        value = exif_of().get(ORIENTATION, 1)
    except Exception:  # unreadable EXIF does not make the pixels unreadable
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def oriented_size(image: Image.Image, turn: int) -> tuple[int, int]:
    """(H, W) of an image after orientation `turn` is applied."""
    width, height = image.size
    if turn < 5:
        return height, width
    if isinstance(image, TiffImageFile):
        # Newer Pillow already reports the turned size, older the stored one.
        return int(image.tag_v2[256]), int(image.tag_v2[257])
    return width, height


def apply_orientation(array: NDArray[Any], turn: int) -> NDArray[Any]:
    """Turn and mirror stored pixels (H, W, C) as EXIF orientation says."""
    if turn in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if turn in (3, 4, 7, 8):
        array = array[::-1]
    if turn in (2, 3, 6, 7):
        array = array[:, ::-1]
    return np.ascontiguousarray(array)


def pixels(
    image: Image.Image, source: Source, n_channels: int | None = 3
) -> NDArray[Any]:
    """Give stored pixels (H, W, C) in the value range of the mode.

    C is 1 or 3, or `n_channels` if the image has so many bands; None keeps all bands.
    """
    image.load()  # numpy would hide an error in here behind an array of one object
    mode = image.mode
    kept = mode in STORED_BANDS and n_channels in (None, STORED_BANDS[mode])
    if kept or mode in ("RGB", "L", "I", "F") or mode.startswith("I;16"):
        array = np.asarray(image)
    elif mode == "La":
        array = np.asarray(image.convert("LA"))[..., :1]
    else:
        array = np.asarray(image.convert("L" if mode in ("1", "LA") else "RGB"))
    if array.size == 0:
        raise source.error(
            f"the image is empty, size {image.size}", "an image has at least one pixel"
        )
    return array[..., np.newaxis] if array.ndim == 2 else array


def luminance(image: NDArray[Any]) -> NDArray[Any]:
    """Grey (H, W, 1) of an image in normal form, with the weights of Pillow."""
    if image.shape[2] == 1:
        return image
    if image.dtype == np.uint8:
        return np.asarray(Image.fromarray(image).convert("L"))[..., np.newaxis]
    if (image == image[..., :1]).all():  # the weights would change the last bits
        return np.ascontiguousarray(image[..., :1])
    grey = image @ np.array([[0.299], [0.587], [0.114]], dtype=np.float32)
    return grey.clip(0, 1)  # the weights add up to 1 but for rounding

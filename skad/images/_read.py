"""One image of any kind in, its normal form, size or content key out."""

from __future__ import annotations

import hashlib
import threading
from contextlib import nullcontext
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from skad.images._arrays import (
    array_view,
    check_channels,
    normal_form,
    tensor_view,
    unit_range,
)
from skad.images._errors import Source
from skad.images._files import (
    file_digest,
    is_array_file,
    opened_array,
    opened_image,
    png_has_late_exif,
)
from skad.images._kinds import ITEM_KINDS, as_path, is_tensor, type_name
from skad.images._pillow import (
    apply_orientation,
    check_single_frame,
    decoding,
    luminance,
    orientation,
    oriented_size,
    pixels,
)

# Pillow loads a file on first use, and one object may stand in a list twice.
_LAZY_IMAGES = threading.Lock()


def read_image(item: Any, *, where: str = "X[0]", n_channels: int = 3) -> NDArray[Any]:
    """Read one image of any supported kind.

    A transparency channel is dropped, not blended with a background. Palette, CMYK,
    YCbCr, LAB and HSV become RGB; grey stays one channel. 16-bit grey keeps its range
    (divided by 65535, so 12-bit data in 16-bit files stays dark); Pillow reads 16-bit
    colour files with 8 bits per channel. Colour profiles are not applied. With
    `n_channels` other than 1 and 3, alpha and CMYK are channels like others, and
    nothing becomes RGB.

    The same pixels give the same result, whatever holds them. An image all of whose
    values are 8-bit levels, which are multiples of 257 in uint16 and of 1 / 255 in
    floats (within rounding), is uint8; any other one keeps its range as float32.

    The EXIF orientation that a file or a PIL image carries is applied. A PIL image
    that was turned upright before must not carry it any more, or it is turned a
    second time: ``PIL.ImageOps.exif_transpose`` removes it, ``Image.rotate`` and
    ``Image.transpose`` do not. Arrays and tensors carry none, nor do .npy files.

    Parameters
    ----------
    item : str, Path, PIL.Image.Image, ndarray or torch.Tensor
        A file, an image of Pillow, an array (H, W) or (H, W, 1|3|4) of uint8,
        uint16, bool or float in [0, 1], or a tensor (C, H, W) of these types.
        A file whose name ends in .npy holds such an array.
        Integer images of Pillow (modes I and I;16) count as 16-bit grey.
    where : str, default="X[0]"
        Name of the item in error messages.
    n_channels : int, default=3
        Channels that the image is read for. With 3, grey stays one channel, which
        `to_float` repeats; with 1, colour becomes grey by its luminance; with any
        other number, arrays are (H, W, n_channels).

    Returns
    -------
    ndarray of shape (H, W, C)
        C is `n_channels`, or 1 where 3 are wanted and the image is grey; uint8, or
        float32 in [0, 1]. It may share memory with `item`, or be read-only: copy it
        before writing to it.

    Raises
    ------
    ImageError
        The item cannot be read, is damaged, has several frames, more pixels than
        ``PIL.Image.MAX_IMAGE_PIXELS``, values outside its range, or another number
        of channels.

    Examples
    --------
    >>> import numpy as np
    >>> from skad.images import read_image
    >>> image = read_image(np.array([[0, 13107], [26214, 65534]], dtype=np.uint16))
    >>> image.shape, image.dtype.name, float(image[0, 1, 0])
    ((2, 2, 1), 'float32', 0.2)
    >>> read_image(np.array([[0.0, 0.2], [0.4, 1.0]]))[..., 0]
    array([[  0,  51],
           [102, 255]], dtype=uint8)
    """
    image = _read(item, Source(where, as_path(item)), n_channels)
    return luminance(image) if n_channels == 1 else image


def _read(item: Any, source: Source, n_channels: int) -> NDArray[Any]:
    if source.path is not None and is_array_file(source.path):
        with opened_array(source) as stored:
            view = np.array(array_view(stored, source, n_channels))
            return normal_form(view, source, n_channels)
    if source.path is not None:
        with opened_image(source) as (image, _):
            array = oriented_pixels(image, source, n_channels)
    elif isinstance(item, Image.Image):
        array = oriented_pixels_of_object(item, source, n_channels)
    else:
        view = item_view(item, source, n_channels)
        return normal_form(view, source, n_channels)
    check_channels(array, source, n_channels)
    return unit_range(array, source)


def oriented_pixels(
    image: Image.Image, source: Source, n_channels: int | None = 3
) -> NDArray[Any]:
    """Decode to upright pixels in the value range of the image mode."""
    with decoding(source):
        check_single_frame(image, source)
        array = pixels(image, source, n_channels)
        if isinstance(image, TiffImageFile):  # Pillow has turned these while decoding
            return array
        return apply_orientation(array, orientation(image.getexif))


def oriented_pixels_of_object(
    image: Image.Image, source: Source, n_channels: int | None = 3
) -> NDArray[Any]:
    """Do the same for an image of the caller, which other threads may be reading."""
    with _LAZY_IMAGES if isinstance(image, ImageFile) else nullcontext():
        return oriented_pixels(image, source, n_channels)


def item_view(item: Any, source: Source, n_channels: int | None) -> NDArray[Any]:
    """Array or tensor as a view (H, W, C); anything else is an error."""
    if isinstance(item, np.ndarray):
        return array_view(item, source, n_channels)
    if is_tensor(item):
        return tensor_view(item, source, n_channels)
    refuse_item(item, source)


def refuse_item(item: object, source: Source) -> NoReturn:
    """Raise the error for an item that is no image."""
    hint = f"an image is {ITEM_KINDS}"
    if isinstance(item, bytes | bytearray):
        hint = "use PIL.Image.open(io.BytesIO(data)) for an encoded image"
    elif hasattr(item, "read"):
        hint = "pass its path, or PIL.Image.open(stream)"
    elif isinstance(item, list | tuple):
        hint = "use np.asarray(...) if it holds pixels; lists are not nested"
    raise source.error(f"{type_name(item)} is no image", hint)


def image_size(item: Any, *, where: str = "X[0]") -> tuple[int, int]:
    """Tell height and width of an image, reading no more of a file than needed.

    Parameters
    ----------
    item : str, Path, PIL.Image.Image, ndarray or torch.Tensor
        As for `read_image`, with any number of channels.
    where : str, default="X[0]"
        Name of the item in error messages.

    Returns
    -------
    tuple of int
        (H, W) after EXIF orientation, the same that `read_image` gives.

    Raises
    ------
    ImageError
        The item is no image, or the header of its file cannot be read. Damage
        behind the header is not seen.

    Examples
    --------
    >>> from PIL import Image
    >>> from skad.images import image_size
    >>> image_size(Image.new("RGB", (640, 480)))
    (480, 640)
    """
    path = as_path(item)
    source = Source(where, path)
    if isinstance(item, Image.Image):
        with _LAZY_IMAGES if isinstance(item, ImageFile) else nullcontext():
            size = oriented_size(item, orientation(item.getexif))
    elif path is not None:
        size = _file_size(source)
    else:
        size = item_view(item, source, None).shape[:2]
    if min(size) < 1:
        raise source.error(
            f"the image is empty, height and width {size}",
            "an image has at least one pixel",
        )
    return size


def _file_size(source: Source) -> tuple[int, int]:
    if is_array_file(source.path or ""):
        with opened_array(source) as array:
            return array_view(array, source, None).shape[:2]
    with opened_image(source) as (image, stream), decoding(source):
        if image.format == "PNG" and png_has_late_exif(stream):
            image.load()
        # The method of PNG images itself would decode all pixels.
        return oriented_size(image, orientation(lambda: Image.Image.getexif(image)))


def content_key(item: Any, *, where: str = "X[0]") -> str:
    """Compute a key that is equal for equal content, to find repeated images.

    The same picture as a file and as an array has two different keys.

    Parameters
    ----------
    item : str, Path, PIL.Image.Image, ndarray or torch.Tensor
        As for `read_image`, with any number of channels. Of a file the bytes count,
        not the decoded pixels.
    where : str, default="X[0]"
        Name of the item in error messages.

    Returns
    -------
    str
        32 hexadecimal digits (BLAKE2b of 128 bits).

    Raises
    ------
    ImageError
        The item is no image or its file cannot be opened.

    Examples
    --------
    >>> import numpy as np
    >>> from skad.images import content_key
    >>> image = np.zeros((4, 4), dtype=np.uint8)
    >>> content_key(image) == content_key(image.copy())
    True
    >>> content_key(image) == content_key(image + 1)
    False
    """
    path = as_path(item)
    source = Source(where, path)
    if path is not None:
        return file_digest(source)
    if isinstance(item, Image.Image):
        array = oriented_pixels_of_object(item, source, None)
    else:
        array = item_view(item, source, None)
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{array.dtype.str} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()

"""One image: open its file, decode and turn the pixels, bring them to a model's size.

All that happens to an image file is here, so that reading one leads through one source
file of skad: those of arrays and tensors are checked in `_arrays`.
"""

from __future__ import annotations

import os
import stat
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from skad._frame import Frame, central_offset
from skad.images._arrays import (
    CONVERTED,
    array_view,
    check_channels,
    is_tensor,
    normal_form,
    tensor_view,
    unit_range,
)
from skad.images._errors import ImageError, Source

ITEM_KINDS = (
    "a path, a PIL image, an array (H, W) or (H, W, 1|3|4), or a torch tensor (C, H, W)"
)

REPLACE = "replace the file or remove it from the list"
ORIENTATION = 0x0112
# Their further frames are previews, depth maps or layers of the first one.
COMPOSITE_FORMATS = ("MPO", "PSD")
# Modes whose bands are kept where so many channels are asked for.
STORED_BANDS = {"LA": 2, "RGBA": 4, "RGBX": 4, "CMYK": 4}

# Pillow loads a file on first use, and one object may stand in a list twice.
_LAZY_IMAGES = threading.Lock()

# What Pillow starts with: a quarter of a gigabyte at three bytes per pixel.
PILLOW_LIMIT = 1024 * 1024 * 1024 // 4 // 3

_carried: ContextVar[int | None] = ContextVar("skad_pixel_limit", default=PILLOW_LIMIT)


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
        C is `n_channels`, or 1 where 3 are asked for and the image is grey; uint8, or
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
    image = _in_normal_form(item, Source(where, as_path(item)), n_channels)
    return luminance(image) if n_channels == 1 else image


def _in_normal_form(item: Any, source: Source, n_channels: int) -> NDArray[Any]:
    """Pixels (H, W, C) as uint8 or float32; colour where grey is asked for, too."""
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
    if array.dtype == np.uint8 and n_channels in CONVERTED:
        return np.ascontiguousarray(array)  # as of nearly every file
    check_channels(array, source, n_channels)
    return unit_range(array, source)


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


def as_path(item: object) -> str | None:
    """Text of a path item, None for everything else."""
    if isinstance(item, str | os.PathLike):
        return str(os.fsdecode(item))
    return None


def type_name(x: object) -> str:
    """Short name of the type of `x` with its article, for messages."""
    if x is None:
        return "None"
    name = type(x).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


# -- files ----------------------------------------------------------------------


@contextmanager
def opened_bytes(source: Source) -> Iterator[BinaryIO]:
    """Stream of a regular file that is not empty."""
    path = Path(source.path or "")
    try:
        _check_regular(path, source)
        stream = path.open("rb")
    except FileNotFoundError as err:
        hint = "check the spelling"
        if not path.is_absolute():
            hint += f"; the path is relative to the working folder {str(Path.cwd())!r}"
        raise source.error("there is no such file", hint) from err
    except PermissionError as err:
        raise source.error(
            "permission to read the file is denied", "change its access rights"
        ) from err
    except (OSError, ValueError) as err:
        if isinstance(err, ImageError):
            raise
        raise source.error(
            f"the file cannot be opened ({err})", "check the path"
        ) from err
    with stream:
        yield stream


def _check_regular(path: Path, source: Source) -> None:
    status = path.stat()
    if stat.S_ISDIR(status.st_mode):
        raise source.error(
            "the path is a folder",
            "list its files with skad.images.list_images(folder)",
        )
    # Opening a named pipe would wait for ever.
    if not stat.S_ISREG(status.st_mode):
        raise source.error("the path is not a regular file", "pass an image file")
    if status.st_size == 0:
        raise source.error("the file is empty (0 bytes)", REPLACE)


@contextmanager
def opened_image(source: Source) -> Iterator[tuple[Image.Image, BinaryIO]]:
    """Image with its header read and its pixels not yet decoded, and its stream."""
    with opened_bytes(source) as stream:
        image = _read_header(stream, source)
        _check_pixel_count(image, source)
        yield image, stream


def is_array_file(path: str) -> bool:
    """Whether a file holds an array, by its name."""
    return path.lower().endswith(".npy")


@contextmanager
def opened_array(source: Source) -> Iterator[NDArray[Any]]:
    """Array of a .npy file with its header read and its values still in the file."""
    with opened_bytes(source), decoding(source):
        # Mapped, for a header that promises more than the file holds is found out
        # before memory is asked for. Copy what is kept: the file may change.
        yield np.lib.format.open_memmap(source.path or "", mode="r")


def _read_header(stream: BinaryIO, source: Source) -> Image.Image:
    # A stream, not the path: Pillow 13 maps uncompressed TIFF files that it opened
    # by path into memory with the wrong row length if they are turned.
    with decoding(source):
        image = _identified(stream)
    if image is None:
        stream.seek(0)
        raise source.error(
            f"this is no image that Pillow knows: it starts with {stream.read(8)!r}",
            "it is truncated, damaged or of another type than its name says, "
            "or its format needs a Pillow plugin",
        )
    return image


def _identified(stream: BinaryIO) -> Image.Image | None:
    """Image of the first format of Pillow that takes the stream.

    As ``PIL.Image.open``, which refuses large images by a limit of the process,
    where here the limit may be another one.
    """
    prefix = stream.read(16)
    for register in (Image.preinit, Image.init):
        register()
        for name in Image.ID:
            factory, accept = Image.OPEN[name]
            accepted = True if accept is None else accept(prefix)
            if not accepted or isinstance(accepted, str):  # a str says what it lacks
                continue
            stream.seek(0)
            try:
                return factory(stream, "")
            except (SyntaxError, IndexError, TypeError, struct.error):
                continue  # looks like this format, but is none
    return None


# -- the largest image that is read --------------------------------------------


def pixel_limit() -> int | None:
    """Largest number of pixels of an image that is read here; None is no limit.

    ``PIL.Image.MAX_IMAGE_PIXELS`` counts where this process has set it. Where it is
    what Pillow starts with, the limit that came with the estimator counts.
    """
    own = Image.MAX_IMAGE_PIXELS
    return _carried.get() if own == PILLOW_LIMIT else own


@contextmanager
def carried_limit(limit: int | None) -> Iterator[None]:
    """Let this limit be the one that came with the estimator."""
    token = _carried.set(limit)
    try:
        yield
    finally:
        _carried.reset(token)


class CarriesPixelLimit:
    """Mixin of estimators that read images: takes Pillow's limit to other processes.

    A worker process of joblib, or the one that loads a model, starts with Pillow's own
    limit, not with the one that the user has set where the estimator comes from.
    """

    _pixel_limit: int | None = PILLOW_LIMIT

    def _limited(self) -> Any:
        """Context in which images are read for this estimator."""
        return carried_limit(self._pixel_limit)

    def __getstate__(self) -> dict[str, Any]:
        inherited: Any = super().__getstate__()
        state = dict(inherited)
        state.pop("_pixel_limit", None)
        with self._limited():
            limit = pixel_limit()
        return state if limit == PILLOW_LIMIT else {**state, "_pixel_limit": limit}

    def __sklearn_clone__(self) -> Any:
        estimator: Any = super()
        copy = estimator.__sklearn_clone__()
        if "_pixel_limit" in vars(self):
            copy._pixel_limit = self._pixel_limit
        return copy


def _check_pixel_count(image: Image.Image, source: Source) -> None:
    limit, count = pixel_limit(), image.size[0] * image.size[1]
    if limit is not None and count > limit:
        raise _bomb(
            f"Image size ({count} pixels) exceeds limit of {limit} pixels", source
        )


def _bomb(reason: str, source: Source) -> ImageError:
    return source.error(
        f"the header announces a very large image, perhaps a decompression bomb "
        f"({reason.rstrip('.')})",
        "make the image smaller, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust it; "
        "it holds for worker processes, too",
    )


# -- images held by Pillow ------------------------------------------------------


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
    with one_at_a_time(image):
        return oriented_pixels(image, source, n_channels)


def one_at_a_time(image: Image.Image) -> AbstractContextManager[Any]:
    """Context in which no other thread loads an image that Pillow has not loaded."""
    return _LAZY_IMAGES if isinstance(image, ImageFile) else nullcontext()


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


# -- from the normal form to the input of a model --------------------------------


def read_model_input(
    images: Sequence[Any],
    position: int,
    where: str,
    frame: Frame,
    n_channels: int,
    limit: int | None,
) -> tuple[NDArray[np.float32], tuple[int, int]]:
    """Read one of several images as a model takes it, and tell its size before that.

    `limit` is the largest number of pixels that came with the estimator.
    """
    with carried_limit(limit):
        image = read_image(images[position], where=where, n_channels=n_channels)
    return model_input(image, frame, n_channels), (image.shape[0], image.shape[1])


def model_input(
    image: NDArray[Any],
    frame: Frame,
    n_channels: int = 3,
) -> NDArray[np.float32]:
    """Bring an image to the size, the crop and the channels that a model takes.

    Parameters
    ----------
    image : ndarray of shape (H, W, C)
        Normal form; see `read_image`.
    frame : Frame
        What the image is resized to, and the centre that is kept.
    n_channels : int, default=3
        Wanted number of channels.

    Returns
    -------
    ndarray of shape (h, w, n_channels), float32
        Values in [0, 1]. It may be a view.
    """
    size, crop = frame
    if isinstance(size, int):
        size = frame.resized((image.shape[0], image.shape[1]))
    image = resized(image, *size, Image.Resampling.BILINEAR)
    if crop is not None:
        top, left = central_offset(size, crop)
        image = image[top : top + crop[0], left : left + crop[1]]
    return floats(image, n_channels)


def resized(
    image: NDArray[Any], height: int, width: int, resample: Image.Resampling
) -> NDArray[Any]:
    """Resize an image that has been checked.

    Pillow weighs the pixels around each new one by the filter, whose width grows with
    the factor by which an image shrinks: that is what antialiasing means. It keeps 8
    bits per channel, and resizes colour channels together; a fourth channel it would
    take for alpha and weigh the others with it, and floats it knows for one channel
    only, so these are resized channel by channel. The filters with negative weights
    overshoot: floats are clipped.
    """
    if image.shape[:2] == (height, width):
        return image
    if image.dtype == np.uint8 and image.shape[2] in CONVERTED:
        stored = Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)
        result = np.asarray(stored.resize((width, height), resample))
        return result.reshape(height, width, image.shape[2])
    result = np.empty((height, width, image.shape[2]), dtype=image.dtype)
    for channel in range(image.shape[2]):
        plane = Image.fromarray(np.ascontiguousarray(image[..., channel]))
        result[..., channel] = np.asarray(plane.resize((width, height), resample))
    return result if image.dtype == np.uint8 else np.clip(result, 0, 1, out=result)


def floats(image: NDArray[Any], n_channels: int) -> NDArray[np.float32]:
    """Convert an image in normal form to float channels in [0, 1]; grey is repeated."""
    if image.dtype == np.uint8:
        image = np.divide(image, np.float32(255), dtype=np.float32)
    if image.shape[2] == n_channels:
        return image
    return np.repeat(image, n_channels, axis=2)

"""Image files: opening with a clear reason when it fails."""

from __future__ import annotations

import hashlib
import stat
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skad.images._errors import ImageError, Source
from skad.images._limits import pixel_limit
from skad.images._pillow import decoding

REPLACE = "replace the file or remove it from the list"


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


def png_has_late_exif(stream: BinaryIO) -> bool:
    """Whether EXIF or XMP follows the pixels, where Pillow meets it on load only."""
    names = (b"Raw profile type exif", b"XML:com.adobe.xmp")
    place, after_pixels, found = stream.tell(), False, False
    stream.seek(8)
    while not found and len(head := stream.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        after_pixels = after_pixels or kind == b"IDAT"
        start = stream.tell()
        if after_pixels and kind in (b"tEXt", b"zTXt", b"iTXt"):
            found = stream.read(min(length, 32)).startswith(names)
        found = found or (after_pixels and kind == b"eXIf")
        stream.seek(start + length + 4)
    stream.seek(place)
    return found


def file_digest(source: Source) -> str:
    """Hex digest of the bytes of a file, read in pieces."""
    digest = hashlib.blake2b(digest_size=16)
    with opened_bytes(source) as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()

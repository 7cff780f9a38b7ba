"""List folders of images; sizes and keys of files, without decoding pixels."""

from __future__ import annotations

import hashlib
import os
import re
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from skad.images._arrays import array_view
from skad.images._errors import Source
from skad.images._read import (
    as_path,
    decoding,
    is_array_file,
    item_view,
    one_at_a_time,
    opened_array,
    opened_bytes,
    opened_image,
    orientation,
    oriented_pixels_of_object,
    oriented_size,
)

# Pillow recognises files of these kinds, but needs other programs to decode them.
_UNDECODED_FORMATS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}


def list_images(folder: str | os.PathLike[str], *, nested: bool = False) -> list[Path]:
    """List the images of a folder in natural order.

    Every file counts whose name ends as one that `read_image` reads: the formats of
    Pillow and .npy, in capitals or not. Hidden files and folders do not count.

    Parameters
    ----------
    folder : path
        Where to look.
    nested : bool, default=False
        Whether to look into the folders in it, too.

    Returns
    -------
    paths : list of Path
        2.png comes before 10.png. No file is opened.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or no image in it.
    NotADirectoryError
        If the path is a file.

    Examples
    --------
    >>> from skad.images import list_images
    >>> paths = list_images("photos", nested=True)  # doctest: +SKIP
    """
    base = Path(folder)
    if base.is_file():
        raise NotADirectoryError(f"{str(base)!r} is a file; pass the folder it is in.")
    if not base.is_dir():
        raise FileNotFoundError(f"there is no folder {str(base)!r}; check the path.")
    found = find_images(base, nested=nested)
    if not found:
        raise FileNotFoundError(
            f"no images in the folder {str(base)!r}: expected files that end in "
            f"{some_suffixes()}."
        )
    return found


def find_images(folder: Path, *, nested: bool = False) -> list[Path]:
    """List the images of a folder that exists, but may hold none."""
    suffixes = image_suffixes()
    found: list[Path] = []
    seen: set[str] = set()
    for where, folders, names in os.walk(folder, onerror=_raised, followlinks=True):
        real = os.path.realpath(where)
        if real in seen:  # a link may lead back to where it stands
            folders[:] = []
            continue
        seen.add(real)
        folders[:] = [n for n in folders if nested and n[0] != "."]
        found += [
            Path(where, name)
            for name in names
            if name[0] != "." and Path(name).suffix.lower() in suffixes
        ]
    return sorted(found, key=natural_order)


def _raised(error: OSError) -> None:
    raise error


def image_suffixes() -> frozenset[str]:
    """Endings of the files that `read_image` reads, in lower case, with their dot."""
    known = Image.registered_extensions().items()
    readable = {
        s for s, kind in known if kind in Image.OPEN and kind not in _UNDECODED_FORMATS
    }
    return frozenset(readable | {".npy"})


def some_suffixes() -> str:
    """The usual endings, for messages."""
    return ".png, .jpg, .tif, .bmp, .npy or another format of Pillow"


def natural_order(path: Path) -> tuple[Any, ...]:
    """Key of an order by which 2 comes before 10."""
    key = []
    for name in path.parts:
        parts = [part for part in re.split(r"([0-9]+)", name.casefold()) if part]
        key.append(
            [(0, int(p), "") if p[0] in "0123456789" else (1, 0, p) for p in parts]
        )
    return key, path.parts  # names such as 1.png and 01.png are told apart


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
        with one_at_a_time(item):
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
        if image.format == "PNG" and _png_has_late_exif(stream):
            image.load()
        # The method of PNG images itself would decode all pixels.
        return oriented_size(image, orientation(lambda: Image.Image.getexif(image)))


def _png_has_late_exif(stream: BinaryIO) -> bool:
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
        return _file_digest(source)
    if isinstance(item, Image.Image):
        array = oriented_pixels_of_object(item, source, None)
    else:
        array = item_view(item, source, None)
    digest = hashlib.blake2b(digest_size=16)
    digest.update(f"{array.dtype.str} {array.shape}".encode())
    digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _file_digest(source: Source) -> str:
    """Hex digest of the bytes of a file, read in pieces."""
    digest = hashlib.blake2b(digest_size=16)
    with opened_bytes(source) as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()

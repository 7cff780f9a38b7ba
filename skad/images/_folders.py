"""Folders of images: which of their files count, and in which order."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from PIL import Image

from skad.images._containers import check_images
from skad.images._kinds import as_path

# Pillow recognises files of these kinds, but needs other programs to decode them.
_NO_PIXELS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}


def image_suffixes() -> frozenset[str]:
    """Endings of the files that `read_image` reads, in lower case, with their dot."""
    known = Image.registered_extensions().items()
    readable = {s for s, kind in known if kind in Image.OPEN and kind not in _NO_PIXELS}
    return frozenset(readable | {".npy"})


def natural_order(path: Path) -> tuple[Any, ...]:
    """Key of an order by which 2 comes before 10."""
    key = []
    for name in path.parts:
        parts = [part for part in re.split(r"([0-9]+)", name.casefold()) if part]
        key.append(
            [(0, int(p), "") if p[0] in "0123456789" else (1, 0, p) for p in parts]
        )
    return key, path.parts  # names such as 1.png and 01.png are told apart


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
    """Do the same for a folder that exists, but may hold no image."""
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


def some_suffixes() -> str:
    """The usual endings, for messages."""
    return ".png, .jpg, .tif, .bmp, .npy or another format of Pillow"


def images_or_folder(images: Any, name: str) -> Any:
    """Check an argument that is a sequence of images, or the path of a folder.

    A folder is looked through with all folders in it.
    """
    path = as_path(images)
    if path is None:
        return check_images(images, name)
    try:
        return list_images(path, nested=True)
    except OSError as error:
        raise ValueError(
            f"{name}={path!r} is no folder of images: {error} Pass a folder, or a "
            "sequence of images."
        ) from error

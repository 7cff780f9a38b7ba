"""Find folders, images and masks of a data set, and say what is there instead."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from skad.images._files import find_images, natural_order, some_suffixes


def folders_in(folder: Path) -> list[Path]:
    """List the folders in a folder in natural order, without hidden ones."""
    found = (p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    return sorted(found, key=natural_order)


def child(parent: Path, name: str) -> Path:
    """Path of an entry of a folder, in the capitals that it has there.

    Of ``train/good`` each part is looked up. The very name goes before one in other
    capitals; a name that is not there is returned as it is.
    """
    path = parent
    for part in Path(name).parts:
        wanted = path / part
        if not wanted.exists() and path.is_dir() and part != "..":
            same = (p for p in path.iterdir() if p.name.casefold() == part.casefold())
            wanted = min(same, key=natural_order, default=wanted)
        path = wanted
    return path


def existing(folder: Path, what: str) -> Path:
    """Require a folder, and say what is there instead."""
    if folder.is_dir():
        return folder
    parent = folder.parent
    there = [path.name for path in folders_in(parent)] if parent.is_dir() else []
    found = f"{parent} has the folders: {', '.join(there[:20]) or 'none'}"
    if not parent.is_dir():
        found = f"{parent} does not exist either"
    raise FileNotFoundError(f"{what} not found: {folder}. {found}.")


def images_in(folder: Path, *, required: bool = False) -> list[Path]:
    """List the images of a folder that has its images directly in it.

    Images in folders below it are an error: they would be left out unseen.
    """
    images = find_images(folder)
    for below in folders_in(folder):
        if deeper := find_images(below, nested=True):
            raise ValueError(
                f"{folder} must have its images directly in it, but there are images "
                f"in the folder {below.name!r}: {deeper[0]}. Move them up, or list the "
                "folder with load_folder(..., nested=True)."
            )
    return non_empty(images, folder) if required else images


def non_empty(images: list[Path], folder: Path) -> list[Path]:
    """Require at least one image."""
    if not images:
        raise FileNotFoundError(
            f"No images in {folder}: expected files that end in {some_suffixes()}."
        )
    return images


def images_by_stem(folder: Path) -> dict[str, list[Path]]:
    """Files of a folder by their names without suffix and without capitals."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in find_images(folder) if folder.is_dir() else ():
        found[path.stem.casefold()].append(path)
    return found


def find_by_stem(files: dict[str, list[Path]], *stems: str) -> Path | None:
    """Pick the first of several names that is there, of any format and capitals."""
    for stem in stems:
        # The very name goes before one in other capitals, and PNG before the rest.
        found = sorted(
            files.get(stem.casefold(), ()),
            key=lambda path: (path.stem != stem, path.suffix.lower() != ".png"),
        )
        if found:
            return found[0]
    return None

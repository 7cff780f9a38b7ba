"""Published folder layouts, read as lists of paths."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from sklearn.utils import Bunch

_SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"}


def _natural(path: Path) -> list[tuple[int, int, str]]:
    """Order by which 2 comes before 10."""
    parts = re.split(r"(\d+)", path.name.casefold())
    return [(0, int(p), "") if p.isdigit() else (1, 0, p) for p in parts if p]


def _images(folder: Path) -> list[Path]:
    files = (
        path
        for path in folder.iterdir()
        if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")
    )
    return sorted(files, key=_natural)


def _folders(folder: Path) -> list[Path]:
    found = (p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    return sorted(found, key=_natural)


def _existing(folder: Path, what: str) -> Path:
    """Require a folder, and say what is there instead."""
    if folder.is_dir():
        return folder
    parent = folder.parent
    there = [path.name for path in _folders(parent)] if parent.is_dir() else []
    seen = f"{parent} has the folders: {', '.join(there[:20]) or 'none'}"
    if not parent.is_dir():
        seen = f"{parent} does not exist either"
    raise FileNotFoundError(f"{what} not found: {folder}. {seen}.")


def _non_empty(images: list[Path], folder: Path) -> list[Path]:
    if not images:
        raise FileNotFoundError(
            f"No images in {folder}: expected files that end in "
            f"{', '.join(sorted(_SUFFIXES))}."
        )
    return images


def _find_mask(folder: Path, image: Path) -> Path | None:
    for stem in (f"{image.stem}_mask", image.stem):
        for suffix in (".png", *sorted(_SUFFIXES - {".png"})):
            path = folder / f"{stem}{suffix}"
            if path.is_file():
                return path
    return None


def _signs(kinds: Iterable[str]) -> np.ndarray:
    return np.array([1 if kind == "good" else -1 for kind in kinds], dtype=np.int64)


def load_mvtec(
    root: str | os.PathLike[str], category: str, *, require_masks: bool = True
) -> Bunch:
    """List the images of a category in the layout of MVTec AD.

    The layout is ``train/good``, ``test/good``, ``test/<defect>`` and
    ``ground_truth/<defect>/<name>_mask.png``. No image is opened.

    Parameters
    ----------
    root : path
        Folder of the data set.
    category : str
        Folder of one kind of object in it.
    require_masks : bool, default=True
        Whether each defective test image must have a mask. If False and one lacks,
        `masks` is None as a whole: a missing mask must not pass for a good image.

    Returns
    -------
    data : Bunch
        `train`, `test` : lists of Path in natural order;
        `y_train`, `y_test` : +1 for good, -1 for defective images;
        `masks` : list aligned with `test`, a Path, or None for a good image;
        `defect_types` : list aligned with `test`, names of the folders;
        `category` : str.

    Raises
    ------
    FileNotFoundError
        If a folder is missing or has no images, or a defective image has no mask.

    Examples
    --------
    >>> from skad.datasets import load_mvtec
    >>> data = load_mvtec("mvtec_ad", "bottle")  # doctest: +SKIP
    >>> len(data.train), len(data.test)  # doctest: +SKIP
    (209, 83)
    """
    base = _existing(Path(root) / category, "Category")
    good = _existing(base / "train" / "good", "Folder of good training images")
    train = _non_empty(_images(good), good)
    folders = _folders(_existing(base / "test", "Folder of test images"))
    pairs = [(path, folder.name) for folder in folders for path in _images(folder)]
    test = _non_empty([path for path, _ in pairs], base / "test")
    kinds = [kind for _, kind in pairs]
    return Bunch(
        train=train,
        test=test,
        y_train=_signs(["good"] * len(train)),
        y_test=_signs(kinds),
        masks=_masks(base / "ground_truth", pairs, require_masks),
        defect_types=kinds,
        category=category,
    )


def _masks(
    folder: Path, pairs: list[tuple[Path, str]], required: bool
) -> list[Path | None] | None:
    masks: list[Path | None] = []
    for image, kind in pairs:
        mask = None if kind == "good" else _find_mask(folder / kind, image)
        if mask is None and kind != "good":
            if not required:
                return None
            raise FileNotFoundError(
                f"The defective image {image} has no mask: expected "
                f"{folder / kind / image.stem}_mask.png. Pass require_masks=False to "
                "go without masks."
            )
        masks.append(mask)
    return masks


def load_visa(
    root: str | os.PathLike[str], category: str, *, split: str = "1cls"
) -> Bunch:
    """List the images of a category in the layout of VisA.

    The layout is ``<category>/Data/Images`` and ``<category>/Data/Masks``, with the
    split in ``split_csv/1cls.csv``, a table of object, split, label, image and mask.
    No image is opened.

    Parameters
    ----------
    root : path
        Folder of the data set.
    category : str
        One kind of object, as in the table.
    split : str, default="1cls"
        Name of the table. Tables that train on defective images are refused.

    Returns
    -------
    data : Bunch
        `train`, `test` : lists of Path in the order of the table;
        `y_train`, `y_test` : +1 for good, -1 for defective images;
        `masks` : list aligned with `test`, a Path, or None for a good image;
        `defect_types` : list aligned with `test`, "good" or "anomaly";
        `category` : str.

    Raises
    ------
    FileNotFoundError
        If the table is missing or names a file that is missing.
    ValueError
        If the table does not have the category, lacks a mask, or trains on defects.

    Examples
    --------
    >>> from skad.datasets import load_visa
    >>> data = load_visa("visa", "candle")  # doctest: +SKIP
    >>> len(data.train), len(data.test)  # doctest: +SKIP
    (900, 200)
    """
    base = Path(root)
    table = base / "split_csv" / f"{split}.csv"
    if not table.is_file():
        raise FileNotFoundError(f"Table of the split not found: {table}.")
    with table.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    known = sorted({row["object"] for row in rows})
    rows = [row for row in rows if row["object"] == category]
    if not rows:
        raise ValueError(
            f"category={category!r} is not in {table}, which has: {', '.join(known)}."
        )
    train = [row for row in rows if row["split"] == "train"]
    test = [row for row in rows if row["split"] == "test"]
    if any(row["label"] != "normal" for row in train):
        raise ValueError(f"split={split!r} trains on defective images: use '1cls'.")
    kinds = ["good" if row["label"] == "normal" else "anomaly" for row in test]
    return Bunch(
        train=[_file(base, row, "image") for row in train],
        test=[_file(base, row, "image") for row in test],
        y_train=_signs(["good"] * len(train)),
        y_test=_signs(kinds),
        masks=[
            None if kind == "good" else _file(base, row, "mask")
            for row, kind in zip(test, kinds, strict=True)
        ],
        defect_types=kinds,
        category=category,
    )


def _file(base: Path, row: dict[str, str], column: str) -> Path:
    if not row[column]:
        raise ValueError(f"The defective image {row['image']} has no {column}.")
    path = base / row[column]
    if not path.is_file():
        raise FileNotFoundError(f"File named in the table of the split: {path}.")
    return path

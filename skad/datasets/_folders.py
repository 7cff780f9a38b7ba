"""Published folder layouts, read as lists of paths."""

from __future__ import annotations

import codecs
import csv
import os
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from sklearn.utils import Bunch

from skad._user_warning import warn_user
from skad.images._files import find_images, natural_order, some_suffixes

_COLUMNS = ("object", "split", "label", "image", "mask")


def _folders(folder: Path) -> list[Path]:
    found = (p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    return sorted(found, key=natural_order)


def _existing(folder: Path, what: str) -> Path:
    """Require a folder, and say what is there instead."""
    if folder.is_dir():
        return folder
    parent = folder.parent
    there = [path.name for path in _folders(parent)] if parent.is_dir() else []
    found = f"{parent} has the folders: {', '.join(there[:20]) or 'none'}"
    if not parent.is_dir():
        found = f"{parent} does not exist either"
    raise FileNotFoundError(f"{what} not found: {folder}. {found}.")


def _non_empty(images: list[Path], folder: Path) -> list[Path]:
    if not images:
        raise FileNotFoundError(
            f"No images in {folder}: expected files that end in {some_suffixes()}."
        )
    return images


def _masks_by_stem(folder: Path) -> dict[str, list[Path]]:
    """Files of a folder by their names without suffix and without capitals."""
    found: dict[str, list[Path]] = defaultdict(list)
    for path in find_images(folder) if folder.is_dir() else ():
        found[path.stem.casefold()].append(path)
    return found


def _find_mask(masks: dict[str, list[Path]], image: Path) -> Path | None:
    """Mask of an image: name_mask or name, of any format and in any capitals."""
    for stem in (f"{image.stem}_mask", image.stem):
        # The very name goes before one in other capitals, and PNG before the rest.
        found = sorted(
            masks.get(stem.casefold(), ()),
            key=lambda path: (path.stem != stem, path.suffix.lower() != ".png"),
        )
        if found:
            return found[0]
    return None


def _labels(defect_types: Iterable[str]) -> np.ndarray:
    return np.array(
        [1 if name == "good" else -1 for name in defect_types], dtype=np.int64
    )


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
        Folder of one category of objects in it.
    require_masks : bool, default=True
        Whether each anomalous test image must have a mask. If False, those that have
        none are listed in `unmasked`, with a warning.

    Returns
    -------
    data : Bunch
        `train`, `test` : lists of Path in natural order;
        `y_train`, `y_test` : +1 for normal, -1 for anomalous images;
        `masks` : list aligned with `test`, a Path, or None for a normal image and for
        one in `unmasked`;
        `unmasked` : list of int, positions in `test` of anomalous images without a
        mask. Leave them out of pixel metrics, which take None for a normal image;
        `defect_types` : list aligned with `test`, names of the folders;
        `category` : str.

    Raises
    ------
    FileNotFoundError
        If a folder is missing or has no images, or an anomalous image has no mask.

    Notes
    -----
    Files count that end as an image that `skad.images.read_image` reads, in capitals or
    not; hidden ones do not. A mask may have another format than its image.

    Examples
    --------
    >>> from skad.datasets import load_mvtec
    >>> data = load_mvtec("mvtec_ad", "bottle")  # doctest: +SKIP
    >>> len(data.train), len(data.test)  # doctest: +SKIP
    (209, 83)
    """
    base = _existing(Path(root) / category, "Category")
    good = _existing(base / "train" / "good", "Folder of normal training images")
    train = _non_empty(find_images(good), good)
    folders = _folders(_existing(base / "test", "Folder of test images"))
    pairs = [(path, folder.name) for folder in folders for path in find_images(folder)]
    test = _non_empty([path for path, _ in pairs], base / "test")
    kinds = [kind for _, kind in pairs]
    masks, unmasked = _masks(base / "ground_truth", pairs, require_masks)
    return Bunch(
        train=train,
        test=test,
        y_train=_labels(["good"] * len(train)),
        y_test=_labels(kinds),
        masks=masks,
        unmasked=unmasked,
        defect_types=kinds,
        category=category,
    )


def _masks(
    folder: Path, pairs: list[tuple[Path, str]], required: bool
) -> tuple[list[Path | None], list[int]]:
    """Mask of each image, and the positions of anomalous images that have none."""
    kinds = {kind for _, kind in pairs}
    there = {kind: _masks_by_stem(folder / kind) for kind in kinds - {"good"}}
    masks: list[Path | None] = []
    unmasked = []
    for i, (image, kind) in enumerate(pairs):
        mask = None if kind == "good" else _find_mask(there[kind], image)
        if mask is None and kind != "good":
            if required:
                raise FileNotFoundError(
                    f"The anomalous image {image} has no mask: expected "
                    f"{folder / kind / image.stem}_mask.png. Pass require_masks=False "
                    "to go without masks."
                )
            unmasked.append(i)
        masks.append(mask)
    if unmasked:
        warn_user(
            f"{len(unmasked)} of {sum(kind != 'good' for _, kind in pairs)} anomalous "
            "images have no mask: leave the positions in `unmasked` out of pixel "
            "metrics, which take None for a normal image."
        )
    return masks, unmasked


def load_visa(
    root: str | os.PathLike[str], category: str, *, split: str = "1cls"
) -> Bunch:
    """List the images of a category in the layout of VisA.

    The layout is ``<category>/Data/Images`` and ``<category>/Data/Masks``, with the
    split in ``split_csv/1cls.csv``, a table of object, split, label, image and mask,
    also as spreadsheet programs save it: with semicolons or tabs, quotes, a byte-order
    mark. No image is opened.

    Parameters
    ----------
    root : path
        Folder of the data set.
    category : str
        One category of objects, as in the table.
    split : str, default="1cls"
        Name of the table. Tables that train on anomalous images are refused.

    Returns
    -------
    data : Bunch
        `train`, `test` : lists of Path in the order of the table;
        `y_train`, `y_test` : +1 for normal, -1 for anomalous images;
        `masks` : list aligned with `test`, a Path, or None for a normal image;
        `defect_types` : list aligned with `test`, "good" or "anomaly";
        `category` : str.

    Raises
    ------
    FileNotFoundError
        If the table is missing or names a file that is missing.
    ValueError
        If the table lacks a column, the category or a mask, or trains on anomalous
        images.

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
    rows = _read_table(table)
    known = sorted({row["object"] for row in rows})
    rows = [row for row in rows if row["object"] == category]
    if not rows:
        raise ValueError(
            f"category={category!r} is not in {table}, which has: {', '.join(known)}."
        )
    train = [row for row in rows if row["split"] == "train"]
    test = [row for row in rows if row["split"] == "test"]
    if any(row["label"] != "normal" for row in train):
        raise ValueError(f"split={split!r} trains on anomalous images: use '1cls'.")
    kinds = ["good" if row["label"] == "normal" else "anomaly" for row in test]
    return Bunch(
        train=[_file(base, row, "image") for row in train],
        test=[_file(base, row, "image") for row in test],
        y_train=_labels(["good"] * len(train)),
        y_test=_labels(kinds),
        masks=[
            None if kind == "good" else _file(base, row, "mask")
            for row, kind in zip(test, kinds, strict=True)
        ],
        defect_types=kinds,
        category=category,
    )


def _read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a table of text by the names of its columns."""
    lines = _decoded(path).splitlines()
    separator = None
    if lines and lines[0].lower().startswith("sep="):  # a hint that Excel writes
        separator = lines.pop(0)[4:5]
    if separator is None:
        separator = max(",;\t", key=(lines[0] if lines else "").count)
    table = [
        [cell.strip() for cell in row] for row in csv.reader(lines, delimiter=separator)
    ]
    heading = [name.casefold() for name in table[0]] if table else []
    missing = [name for name in _COLUMNS if name not in heading]
    if missing:
        raise ValueError(
            f"The table {path} has no column {', '.join(missing)}; its first line is "
            f"{lines[0] if lines else ''!r}."
        )
    full = (row + [""] * (len(heading) - len(row)) for row in table[1:] if any(row))
    rows = [dict(zip(heading, row, strict=False)) for row in full]
    return [
        {**row, "split": row["split"].lower(), "label": row["label"].lower()}
        for row in rows
    ]


def _decoded(path: Path) -> str:
    """Text of a file as UTF-8, or as what its byte-order mark says."""
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"The table {path} is no text in UTF-8: {error}.") from error


def _file(base: Path, row: dict[str, str], column: str) -> Path:
    if not row[column]:
        raise ValueError(f"The anomalous image {row['image']} has no {column}.")
    path = base / row[column].replace("\\", "/")
    if not path.is_file():
        raise FileNotFoundError(f"File named in the table of the split: {path}.")
    return path

"""VisA: a table says which image belongs to which part."""

from __future__ import annotations

import codecs
import csv
from pathlib import Path

from sklearn.utils import Bunch

from skad.datasets._bunch import GOOD, Item, make_bunch
from skad.datasets._folders import Root

_COLUMNS = ("object", "split", "label", "image", "mask")


def load_visa(
    root: Root, category: str, *, split: str = "1cls", require_masks: bool = True
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
        Name of the table: "1cls" trains on normal images only, "2cls_highshot" and
        "2cls_fewshot" on anomalous ones too.
    require_masks : bool, default=True
        Whether each anomalous image must have a mask.

    Returns
    -------
    data : Bunch
        As `load_mvtec` returns it, in the order of the table; `defect_types` are "good"
        and "anomaly";
        `anomalous`, `anomalous_masks` : the anomalous training images of the splits
        with two classes, and their masks. `train` is all normal in each split.

    Raises
    ------
    FileNotFoundError
        If the table is missing or names a file that is missing, or an anomalous image
        has no mask.
    ValueError
        If the table lacks a column, the category or a part of it.

    References
    ----------
    Zou et al., "SPot-the-Difference Self-Supervised Pre-training for Anomaly Detection
    and Segmentation", ECCV 2022. The images are under CC BY 4.0.

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
        there = sorted(path.stem for path in table.parent.glob("*.csv"))
        raise FileNotFoundError(
            f"Table of the split not found: {table}. There are: "
            f"{', '.join(there) or 'none'}."
        )
    rows = _rows_of(table, category)
    items = {part: _items(base, rows, part) for part in ("train", "test")}
    for part, found in items.items():
        if not any(item.kind == GOOD for item in found) and part == "train":
            raise ValueError(f"{table} has no normal training image of {category!r}.")
        if not found:
            raise ValueError(f"{table} has no {part} image of {category!r}.")
    return make_bunch(
        "VisA",
        category,
        [item.image for item in items["train"] if item.kind == GOOD],
        items["test"],
        anomalous=[item for item in items["train"] if item.kind != GOOD],
        require_masks=require_masks,
        check_counts=split == "1cls",
    )


def _rows_of(table: Path, category: str) -> list[dict[str, str]]:
    rows = _read_table(table)
    known = sorted({row["object"] for row in rows})
    rows = [row for row in rows if row["object"] == category]
    if not rows:
        raise ValueError(
            f"category={category!r} is not in {table}, which has: {', '.join(known)}."
        )
    return rows


def visa_categories(root: Path) -> list[str]:
    """Names of the categories in the tables of splits."""
    tables = sorted((root / "split_csv").glob("*.csv"))
    return sorted({row["object"] for row in _read_table(tables[0])}) if tables else []


def _items(base: Path, rows: list[dict[str, str]], part: str) -> list[Item]:
    return [
        Item(
            _file(base, row["image"]),
            GOOD if row["label"] == "normal" else "anomaly",
            _file(base, row["mask"])
            if row["mask"] and row["label"] != "normal"
            else None,
            "a path in the column mask of the table",
        )
        for row in rows
        if row["split"] == part
    ]


def _file(base: Path, name: str) -> Path:
    path = base / name.replace("\\", "/")
    if not path.is_file():
        raise FileNotFoundError(f"File named in the table of the split: {path}.")
    return path


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

"""Real-IAD: a file of JSON for each category says what belongs to which part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sklearn.utils import Bunch

from skad.datasets._bunch import GOOD, Item, make_bunch
from skad.datasets._finding import folders_in
from skad.datasets._folders import Root

TITLE = "Real-IAD"
_SPLITS = "realiad_jsons"


def load_real_iad(
    root: Root,
    category: str,
    *,
    split: str = "realiad_jsons",
    resolution: int | str | None = None,
    require_masks: bool = True,
) -> Bunch:
    """List the images of a category of Real-IAD, 30 products from five views.

    The layout is ``realiad_<resolution>/<category>`` with the images and masks, and
    ``<split>/<category>.json``, which may be in a folder ``realiad_jsons``. No image is
    opened.

    Parameters
    ----------
    root : path
        Folder of the data set.
    category : str
        One category of objects, as the file of its split is named.
    split : str, default="realiad_jsons"
        Folder of the split: "realiad_jsons" has all five views, "realiad_jsons_sv" the
        view from above, "realiad_jsons_fuiad_0.1" and so on have anomalous images among
        those to learn from.
    resolution : int or str, optional
        Which images: 256, 512, 1024 or "raw". By default those that are there; if
        there are several, one must be chosen.
    require_masks : bool, default=True
        Whether each anomalous image must have a mask.

    Returns
    -------
    data : Bunch
        As `load_mvtec` returns it, in the order of the file; `defect_types` are the
        codes of the data set, "good" for normal images;
        `anomalous`, `anomalous_masks` : the anomalous training images of the splits
        ``realiad_jsons_fuiad_*``. Learn from ``data.train + data.anomalous`` to repeat
        what they were made for, training data with unknown defects.

    Raises
    ------
    FileNotFoundError
        If the folder of the images, the split or a file named in it is missing, or an
        anomalous image has no mask.
    ValueError
        If the file of the split is damaged, or `resolution` must be chosen.

    References
    ----------
    Wang et al., "Real-IAD: A Real-World Multi-View Dataset for Benchmarking Versatile
    Industrial Anomaly Detection", CVPR 2024. The images are given on request, under
    CC BY-NC-SA 4.0, which rules out commercial use.

    Examples
    --------
    >>> from skad.datasets import load_real_iad
    >>> data = load_real_iad("Real-IAD", "audiojack")  # doctest: +SKIP
    """
    base = Path(root)
    images = _image_folder(base, resolution)
    path = _split_file(base, split, category)
    content = _read(path)
    meta = content.get("meta") or {}
    prefix, normal = meta.get("prefix", category), meta.get("normal_class", "OK")
    items = {
        part: [_item(images / prefix, path, row, normal) for row in content[part]]
        for part in ("train", "test")
    }
    train = [item.image for item in items["train"] if item.kind == GOOD]
    if not train or not items["test"]:
        raise ValueError(f"{path} has no normal training image, or no test image.")
    return make_bunch(
        TITLE,
        category,
        train,
        items["test"],
        anomalous=[item for item in items["train"] if item.kind != GOOD],
        require_masks=require_masks,
    )


def real_iad_splits(root: Path) -> list[Path]:
    """Folders of splits, also those inside of a folder of that name."""
    found = []
    for folder in folders_in(root):
        if folder.name.startswith(_SPLITS):
            inner = [f for f in folders_in(folder) if f.name.startswith(_SPLITS)]
            found += [f for f in (folder, *inner) if any(f.glob("*.json"))]
    return found


def real_iad_categories(root: Path) -> list[str]:
    """Names of the categories that have a split."""
    return sorted(
        {path.stem for f in real_iad_splits(root) for path in f.glob("*.json")}
    )


def _image_folder(base: Path, resolution: int | str | None) -> Path:
    if not base.is_dir():
        raise FileNotFoundError(f"Folder of the data set not found: {base}.")
    there = [
        folder.name.removeprefix("realiad_")
        for folder in folders_in(base)
        if folder.name.startswith("realiad_") and not folder.name.startswith(_SPLITS)
    ]
    if resolution is None and len(there) > 1:
        raise ValueError(
            f"{base} has images of several resolutions: pass resolution as one of "
            f"{', '.join(there)}."
        )
    wanted = str(resolution) if resolution is not None else "".join(there[:1])
    if wanted not in there:
        raise FileNotFoundError(
            f"Folder of the images not found: {base / f'realiad_{wanted or 1024}'}. "
            f"{base} has the resolutions: {', '.join(there) or 'none'}."
        )
    return base / f"realiad_{wanted}"


def _split_file(base: Path, split: str, category: str) -> Path:
    folders = real_iad_splits(base)
    found = [f / f"{category}.json" for f in folders if f.name == split]
    there = [path for path in found if path.is_file()]
    if there:
        return there[0]
    known = ", ".join(dict.fromkeys(folder.name for folder in folders)) or "none"
    categories = ", ".join(real_iad_categories(base)) or "none"
    raise FileNotFoundError(
        f"Split not found: {base / split / category}.json. {base} has the splits: "
        f"{known}; and the categories: {categories}."
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}.") from error
    if not isinstance(content, dict) or not all(
        isinstance(content.get(part), list) for part in ("train", "test")
    ):
        raise ValueError(f"{path} must be an object that has the lists train and test.")
    return content


def _item(folder: Path, source: Path, row: Any, normal: str) -> Item:
    try:
        image, kind, mask = (
            row["image_path"],
            row["anomaly_class"],
            row.get("mask_path"),
        )
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{source} has an entry without image_path and anomaly_class: {row!r}."
        ) from error
    normal_image = kind == normal
    return Item(
        _file(folder / image, source),
        GOOD if normal_image else kind,
        _file(folder / mask, source) if mask and not normal_image else None,
        f"a mask_path in {source}",
    )


def _file(path: Path, source: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"File named in {source}: {path}.")
    return path

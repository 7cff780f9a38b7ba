"""MVTec LOCO: one mask for each defect of an image, and saturation areas."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import Bunch

from skad.datasets._bunch import GOOD, Item, make_bunch
from skad.datasets._finding import child, existing, images_in
from skad.datasets._folders import (
    FolderLayout,
    Root,
    labelled_folders,
    normal_images,
    validation_images,
)
from skad.images import read_image

MVTEC_LOCO = FolderLayout("MVTec LOCO", validation="validation")
_CONFIG = "defects_config.json"
_CONFIG_KEYS = ("pixel_value", "saturation_threshold", "relative_saturation")


def load_mvtec_loco(root: Root, category: str, *, require_masks: bool = True) -> Bunch:
    """List the images of a category of MVTec LOCO, logical and structural anomalies.

    The layout is ``train/good``, ``validation/good``, ``test/good``,
    ``test/logical_anomalies``, ``test/structural_anomalies``,
    ``ground_truth/<type>/<name>/000.png``, with one mask for each defect of an image,
    and ``defects_config.json``. No image is opened.

    Parameters
    ----------
    root : path
        Folder of the data set.
    category : str
        Folder of one category of objects in it.
    require_masks : bool, default=True
        Whether each anomalous image must have a mask.

    Returns
    -------
    data : Bunch
        As `load_mvtec` returns it, but for
        `masks` : list aligned with `test`, a list of Path, one for each defect, or None
        for a normal image. `skad.metrics.spro_score` takes the defects one by one; all
        else takes them together as one mask;
        `validation` : list of Path, the normal images of ``validation/good``;
        `defects_config` : list of dict, what the file says about each type of defect,
        for `saturation_areas`.

    Raises
    ------
    FileNotFoundError
        If a folder or ``defects_config.json`` is missing, or a folder has no images, or
        an anomalous image has no mask.
    ValueError
        If images lie in folders below those of the layout, or the file is damaged.

    References
    ----------
    Bergmann et al., "Beyond Dents and Scratches: Logical Constraints in Unsupervised
    Anomaly Detection and Localization", IJCV 2022. The images are under
    CC BY-NC-SA 4.0, which rules out commercial use.

    Examples
    --------
    >>> from skad.datasets import load_mvtec_loco, saturation_areas
    >>> from skad.metrics import spro_score
    >>> data = load_mvtec_loco("mvtec_loco", "pushpins")  # doctest: +SKIP
    >>> maps = model.fit(data.train).anomaly_map(data.test)  # doctest: +SKIP
    >>> spro_score(data.masks, maps, saturation_areas(data))  # doctest: +SKIP
    """
    base = existing(child(Path(root), category), "Category")
    config = _read_config(child(base, _CONFIG))
    truth = child(base, MVTEC_LOCO.ground_truth)
    test = [
        _item(truth, *found) for found in labelled_folders(base, MVTEC_LOCO, "test")
    ]
    return make_bunch(
        MVTEC_LOCO.title,
        category,
        normal_images(base, "train/good", "training"),
        test,
        validation=validation_images(base, MVTEC_LOCO),
        require_masks=require_masks,
        defects_config=config,
    )


def saturation_areas(data: Bunch) -> list[NDArray[np.float64] | None]:
    """Compute what `skad.metrics.spro_score` takes as saturation areas.

    Each mask of an image of MVTec LOCO has one grey value, which tells the type of the
    defect, and ``defects_config.json`` tells from what area on a defect of that type
    counts as found: a fraction of its area, or a number of pixels. The masks are read
    for this, one at a time.

    Parameters
    ----------
    data : Bunch
        What `load_mvtec_loco` returned.

    Returns
    -------
    areas : list
        For each test image an array with one area for each defect, in pixels, or None
        for an image without masks.

    Raises
    ------
    ValueError
        If `data` is of another data set, or a mask is empty or has a grey value that
        ``defects_config.json`` does not have.

    Examples
    --------
    >>> from skad.datasets import load_mvtec_loco, saturation_areas
    >>> data = load_mvtec_loco("mvtec_loco", "pushpins")  # doctest: +SKIP
    >>> saturation_areas(data)[-1]  # doctest: +SKIP
    array([6300.])
    """
    if "defects_config" not in data:
        raise ValueError(
            "data has no defects_config: saturation areas are defined for MVTec LOCO. "
            "Pass what load_mvtec_loco returned."
        )
    by_value = {int(entry["pixel_value"]): entry for entry in data.defects_config}
    return [
        None
        if masks is None
        else np.array([_saturation_area(path, by_value) for path in masks])
        for masks in data.masks
    ]


def _item(truth: Path, image: Path, folder: str, kind: str) -> Item:
    if kind == GOOD:
        return Item(image, kind)
    where = child(child(truth, folder), image.stem)
    masks = images_in(where) if where.is_dir() else []
    return Item(image, kind, masks or None, str(where / "000.png"))


def _read_config(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(
            f"Saturation areas not found: {path}. Take the file from the download of "
            "MVTec LOCO, or read the folder with load_mvtec."
        )
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}.") from error
    if not isinstance(entries, list) or not all(map(_is_entry, entries)):
        raise ValueError(
            f"{path} must be a list of objects that have {', '.join(_CONFIG_KEYS)}."
        )
    return entries


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and all(key in entry for key in _CONFIG_KEYS)


def _saturation_area(path: Path, by_value: dict[int, dict[str, Any]]) -> float:
    grey = read_image(path, where=str(path))[..., 0]
    values = np.unique(grey[grey > 0]).tolist()
    if len(values) != 1 or values[0] not in by_value:
        raise ValueError(
            f"The mask {path} must have one grey value besides 0, of those in "
            f"{_CONFIG} ({_some(sorted(by_value))}), got {_some(values)}."
        )
    area = float(np.count_nonzero(grey))
    entry = by_value[values[0]]
    threshold = float(entry["saturation_threshold"])
    return threshold * area if entry["relative_saturation"] else min(threshold, area)


def _some(values: Sequence[int]) -> str:
    return ", ".join(map(str, values[:20])) or "none"

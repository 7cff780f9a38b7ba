"""Data sets with masks beside the images: KolektorSDD, KolektorSDD2 and DAGM."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sklearn.utils import Bunch

from skad.datasets._bunch import GOOD, Item, make_bunch
from skad.datasets._finding import (
    child,
    existing,
    find_by_stem,
    folders_in,
    images_by_stem,
    images_in,
    non_empty,
)
from skad.datasets._folders import Root
from skad.datasets._sampling import sampled_positions
from skad.images import read_mask
from skad.images._files import find_images

DEFECT = "defect"


def load_kolektor(
    root: Root, *, test_size: float = 1 / 3, random_state: Any = 0
) -> Bunch:
    """List the images of KolektorSDD, surfaces of electrical commutators.

    The layout is ``kos01/Part0.jpg`` and ``kos01/Part0_label.bmp``, one folder for each
    commutator. Each image has a mask, which is empty for a normal image: all masks are
    read. The data set has no split into training and test images, so commutators are
    sampled; all images of one are in the same part.

    Parameters
    ----------
    root : path
        Folder of the data set.
    test_size : float, default=1/3
        Fraction of the commutators whose images are test images, in (0, 1). One third
        is that of the authors, who validate three-fold.
    random_state : int, RandomState instance or None, default=0
        Seed of the split.

    Returns
    -------
    data : Bunch
        As `load_mvtec` returns it; `defect_types` are "good" and "defect";
        `anomalous`, `anomalous_masks` : anomalous images of the commutators to train
        on, and their masks; `category` is empty.

    Raises
    ------
    FileNotFoundError
        If there are no commutators, or an image has no mask.
    ValueError
        If `test_size` leaves no commutator for a part.

    References
    ----------
    Tabernik et al., "Segmentation-based deep-learning approach for surface-defect
    detection", Journal of Intelligent Manufacturing 31, 2020. The images are under
    CC BY-NC-SA 4.0, which rules out commercial use.

    Examples
    --------
    >>> from skad.datasets import load_kolektor
    >>> data = load_kolektor("KolektorSDD")  # doctest: +SKIP
    """
    base = existing(Path(root), "Folder of the data set")
    folders = [f for f in folders_in(base) if is_commutator(f)]
    if not folders:
        raise FileNotFoundError(
            f"No folders kos01, kos02, ... in {base}: pass the folder they are in."
        )
    tested = sampled_positions(len(folders), test_size, random_state, "commutators")
    items = [list(_pairs(folder, "_label")) for folder in folders]
    test = [item for i, found in enumerate(items) if i in tested for item in found]
    rest = [item for i, found in enumerate(items) if i not in tested for item in found]
    return _of_parts("KolektorSDD", "", rest, test)


def load_kolektor2(root: Root) -> Bunch:
    """List the images of KolektorSDD2, surfaces of production items.

    The layout is ``train/10000.png`` and ``train/10000_GT.png``, and the same in
    ``test``. Each image has a mask, which is empty for a normal image: all masks are
    read.

    Parameters
    ----------
    root : path
        Folder of the data set.

    Returns
    -------
    data : Bunch
        As `load_mvtec` returns it; `defect_types` are "good" and "defect";
        `anomalous`, `anomalous_masks` : anomalous training images and their masks;
        `category` is empty.

    Raises
    ------
    FileNotFoundError
        If a folder is missing or has no images, or an image has no mask.

    References
    ----------
    Bozic et al., "Mixed supervision for surface-defect detection: from weakly to fully
    supervised learning", Computers in Industry 129, 2021. The images are under
    CC BY-NC-SA 4.0, which rules out commercial use.

    Examples
    --------
    >>> from skad.datasets import load_kolektor2
    >>> data = load_kolektor2("KolektorSDD2")  # doctest: +SKIP
    >>> len(data.train), len(data.anomalous), len(data.test)  # doctest: +SKIP
    (2085, 246, 1004)
    """
    train, test = (
        list(_pairs(existing(child(Path(root), part), f"Folder of {what}"), "_GT"))
        for part, what in (("train", "training images"), ("test", "test images"))
    )
    return _of_parts("KolektorSDD2", "", train, test)


def load_dagm(root: Root, category: str) -> Bunch:
    """List the images of a class of DAGM 2007, generated textures.

    The layout is ``Class1/Train/0001.PNG`` and ``Class1/Train/Label/0576_label.PNG``,
    and the same in ``Test``. An image is anomalous if it has a mask, an ellipse around
    the defect. No image is opened.

    Parameters
    ----------
    root : path
        Folder of the data set.
    category : str
        Folder of one class in it, "Class1" to "Class10".

    Returns
    -------
    data : Bunch
        As `load_mvtec` returns it; `defect_types` are "good" and "defect";
        `anomalous`, `anomalous_masks` : anomalous training images and their masks.

    Raises
    ------
    FileNotFoundError
        If a folder is missing or has no images, or a mask has no image.

    References
    ----------
    Wieler and Hahn, "Weakly Supervised Learning for Industrial Optical Inspection",
    DAGM Symposium 2007.

    Examples
    --------
    >>> from skad.datasets import load_dagm
    >>> data = load_dagm("DAGM2007", "Class1")  # doctest: +SKIP
    >>> len(data.train) + len(data.anomalous), len(data.test)  # doctest: +SKIP
    (575, 575)
    """
    base = existing(child(Path(root), category), "Category")
    train, test = (
        list(_with_labels(existing(child(base, part), f"Folder of {what}")))
        for part, what in (("Train", "training images"), ("Test", "test images"))
    )
    return _of_parts("DAGM", category, train, test)


def is_commutator(folder: Path) -> bool:
    """Whether a folder is named as those of KolektorSDD."""
    return re.fullmatch(r"kos\d+", folder.name, re.IGNORECASE) is not None


def _of_parts(title: str, category: str, train: list[Item], test: list[Item]) -> Bunch:
    normal = [item.image for item in train if item.kind == GOOD]
    if not normal or not test:
        raise FileNotFoundError(
            f"{title} has {len(normal)} normal training images and {len(test)} test "
            "images here: there must be some of both."
        )
    return make_bunch(
        title,
        category,
        normal,
        test,
        anomalous=[item for item in train if item.kind != GOOD],
    )


def _pairs(folder: Path, suffix: str) -> Iterator[Item]:
    """Images and the masks beside them, named as they are with a suffix."""
    files = images_by_stem(folder)
    images = [
        p for p in images_in(folder) if suffix.casefold() not in p.stem.casefold()
    ]
    for image in non_empty(images, folder):
        mask = find_by_stem(files, f"{image.stem}{suffix}")
        if mask is None:
            raise FileNotFoundError(
                f"The image {image} has no mask: expected {image.stem}{suffix} beside "
                "it. Whether an image is normal is known from its mask alone."
            )
        anomalous = bool(read_mask(mask, where=str(mask)).any())
        yield Item(image, DEFECT, mask) if anomalous else Item(image, GOOD)


def _with_labels(folder: Path) -> Iterator[Item]:
    """Images and the masks in the folder Label, for anomalous ones."""
    masks = images_by_stem(child(folder, "Label"))
    images = non_empty(find_images(folder), folder)
    stems = {f"{image.stem}_label".casefold() for image in images}
    if spare := sorted(masks.keys() - stems):
        raise FileNotFoundError(
            f"The mask {masks[spare[0]][0]} has no image in {folder} "
            f"({len(spare)} such mask(s)): the copy is incomplete."
        )
    for image in images:
        mask = find_by_stem(masks, f"{image.stem}_label")
        yield Item(image, GOOD if mask is None else DEFECT, mask)

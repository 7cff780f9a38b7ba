"""Data sets with a folder for each type of image: MVTec AD and its like."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from sklearn.utils import Bunch

from skad._user_warning import warn_user
from skad.datasets._bunch import GOOD, Item, make_bunch
from skad.datasets._counts import PUBLISHED
from skad.datasets._finding import (
    child,
    existing,
    find_by_stem,
    folders_in,
    images_by_stem,
    images_in,
    non_empty,
)

Root = str | os.PathLike[str]


class FolderLayout(NamedTuple):
    """Folders of a category, and the name of those with normal images."""

    title: str
    normal: str = "good"
    test: str = "test"
    ground_truth: str = "ground_truth"
    validation: str = ""


MVTEC_AD = FolderLayout("MVTec AD")
MPDD = FolderLayout("MPDD")
BTAD = FolderLayout("BTAD", normal="ok")


def load_mvtec(root: Root, category: str, *, require_masks: bool = True) -> Bunch:
    """List the images of a category in the layout of MVTec AD.

    The layout is ``train/good``, ``test/good``, ``test/<defect>`` and
    ``ground_truth/<defect>/<name>_mask.png``. Many data sets are published in it, and
    your own images may be. No image is opened.

    Parameters
    ----------
    root : path
        Folder of the data set.
    category : str
        Folder of one category of objects in it.
    require_masks : bool, default=True
        Whether each anomalous image must have a mask. If False, those that have none
        are listed in `unmasked`, with a warning.

    Returns
    -------
    data : Bunch
        What all data sets have. To learn from normal images take `train` alone.

        `train`, `test` : lists of Path in natural order; `train` is all normal;
        `y_train`, `y_test` : +1 for normal, -1 for anomalous images;
        `masks` : list aligned with `test`, a Path, or None for a normal image and for
        one in `unmasked`;
        `unmasked` : list of int, positions in `test` of anomalous images without a
        mask. Leave them out of pixel metrics, which take None for a normal image;
        `defect_types` : list aligned with `test`, names of the folders, "good" for
        normal images;
        `anomalous`, `anomalous_masks`, `anomalous_types` : anomalous images that the
        data set gives for training, here none;
        `validation` : list of Path, normal images for validation, here none;
        `category`, `layout` : str, the category and which data set was read.

    Raises
    ------
    FileNotFoundError
        If a folder is missing or has no images, or an anomalous image has no mask.
    ValueError
        If images lie in folders below those of the layout.

    Warns
    -----
    UserWarning
        If a mask has no image, or if `root` has two or more categories of MVTec AD and
        this one has other numbers of images than were published.

    Notes
    -----
    Files count that end as an image that `skad.images.read_image` reads, in capitals or
    not, as folders may be; hidden ones do not. A mask may have another format than its
    image, and may be named as its image is.

    References
    ----------
    Bergmann et al., "The MVTec Anomaly Detection Dataset", IJCV 2021. The images are
    under CC BY-NC-SA 4.0, which rules out commercial use.

    Examples
    --------
    >>> from skad.datasets import load_mvtec
    >>> data = load_mvtec("mvtec_ad", "bottle")  # doctest: +SKIP
    >>> len(data.train), len(data.test)  # doctest: +SKIP
    (209, 83)
    """
    base = Path(root)
    # One's own data may have a category named "tile": two names are no coincidence.
    known = PUBLISHED[MVTEC_AD.title].counts
    there = {p.name for p in folders_in(base)} if base.is_dir() else set()
    return load_folders(
        MVTEC_AD,
        root,
        category,
        require_masks=require_masks,
        check_counts=len(known.keys() & there) > 1,
    )


def load_mpdd(root: Root, category: str, *, require_masks: bool = True) -> Bunch:
    """List the images of a category of MPDD, painted metal parts.

    The layout is that of MVTec AD. No image is opened.

    Parameters
    ----------
    root : path
        Folder of the data set, which has the folder ``bracket_black``.
    category : str
        Folder of one category of objects in it.
    require_masks : bool, default=True
        Whether each anomalous image must have a mask.

    Returns
    -------
    data : Bunch
        As `load_mvtec` returns it.

    Raises
    ------
    FileNotFoundError
        If a folder is missing or has no images, or an anomalous image has no mask.
    ValueError
        If images lie in folders below those of the layout.

    References
    ----------
    Jezek et al., "Deep learning-based defect detection of metal parts: evaluating
    current methods in complex conditions", ICUMT 2021. The images are under
    CC BY-NC-SA 4.0, which rules out commercial use.

    Examples
    --------
    >>> from skad.datasets import load_mpdd
    >>> data = load_mpdd("MPDD", "tubes")  # doctest: +SKIP
    >>> len(data.train), len(data.test)  # doctest: +SKIP
    (122, 101)
    """
    return load_folders(MPDD, root, category, require_masks=require_masks)


def load_btad(root: Root, category: str, *, require_masks: bool = True) -> Bunch:
    """List the images of a category of BTAD, three industrial products.

    The layout is ``train/ok``, ``test/ok``, ``test/ko`` and ``ground_truth/ko``. No
    image is opened.

    Parameters
    ----------
    root : path
        Folder of the data set, which has the folders ``01``, ``02`` and ``03``.
    category : str
        One of these.
    require_masks : bool, default=True
        Whether each anomalous image must have a mask.

    Returns
    -------
    data : Bunch
        As `load_mvtec` returns it; `defect_types` are "good" and "ko".

    Raises
    ------
    FileNotFoundError
        If a folder is missing or has no images, or an anomalous image has no mask.
    ValueError
        If images lie in folders below those of the layout.

    References
    ----------
    Mishra et al., "VT-ADL: A Vision Transformer Network for Image Anomaly Detection and
    Localization", ISIE 2021. The images are under CC BY-NC-SA 4.0, which rules out
    commercial use.

    Examples
    --------
    >>> from skad.datasets import load_btad
    >>> data = load_btad("BTech_Dataset_transformed", "01")  # doctest: +SKIP
    >>> len(data.train), len(data.test)  # doctest: +SKIP
    (400, 70)
    """
    return load_folders(BTAD, root, category, require_masks=require_masks)


def load_folders(
    layout: FolderLayout,
    root: Root,
    category: str,
    *,
    require_masks: bool = True,
    check_counts: bool = True,
) -> Bunch:
    """List the images of a category whose folders are as described."""
    base = existing(child(Path(root), category), "Category")
    test = labelled_folders(base, layout, f"{layout.test}")
    return make_bunch(
        layout.title,
        category,
        normal_images(base, f"train/{layout.normal}", "training"),
        list(masked_items(child(base, layout.ground_truth), test)),
        validation=validation_images(base, layout),
        require_masks=require_masks,
        check_counts=check_counts,
    )


def normal_images(base: Path, folder: str, part: str) -> list[Path]:
    """List the normal images of a part, which must be there."""
    good = existing(child(base, folder), f"Folder of normal {part} images")
    return images_in(good, required=True)


def validation_images(base: Path, layout: FolderLayout) -> list[Path]:
    """List the normal images for validation, where the data set has them."""
    if not layout.validation:
        return []
    return normal_images(base, f"{layout.validation}/{layout.normal}", "validation")


def labelled_folders(
    base: Path, layout: FolderLayout, folder: str
) -> list[tuple[Path, str, str]]:
    """List images, names of their folders and types: "good" for normal ones."""
    where = existing(child(base, folder), "Folder of test images")
    folders = [f for f in folders_in(where) if f.name != layout.ground_truth]
    found = [
        (image, of.name, GOOD if of.name.casefold() == layout.normal else of.name)
        for of in folders
        for image in images_in(of)
    ]
    non_empty([image for image, _, _ in found], where)
    return found


def masked_items(
    ground_truth: Path, images: Iterable[tuple[Path, str, str]]
) -> Iterable[Item]:
    """Give each anomalous image its mask: name_mask or name, of any format."""
    masks: dict[str, dict[str, list[Path]]] = {}
    taken: set[tuple[str, str]] = set()
    for image, folder, kind in images:
        if kind == GOOD:
            yield Item(image, kind)
            continue
        where = child(ground_truth, folder)
        if folder not in masks:
            masks[folder] = images_by_stem(where)
        names = f"{image.stem}_mask", image.stem
        taken.update((folder, name.casefold()) for name in names)
        mask = find_by_stem(masks[folder], *names)
        yield Item(image, kind, mask, f"{where / image.stem}_mask.png")
    _warn_of_spare_masks(masks, taken)


def _warn_of_spare_masks(
    masks: dict[str, dict[str, list[Path]]], taken: set[tuple[str, str]]
) -> None:
    spare = [
        paths[0]
        for folder, files in masks.items()
        for stem, paths in files.items()
        if (folder, stem) not in taken
    ]
    if spare:
        warn_user(
            f"{len(spare)} mask(s) have no image, the first is {spare[0]}: images may "
            "be missing, or have other names than their masks."
        )

"""Recognise the layout of a folder, and read it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from sklearn.utils import Bunch

from skad.datasets._any_folder import load_folder
from skad.datasets._beside import (
    is_commutator,
    load_dagm,
    load_kolektor,
    load_kolektor2,
)
from skad.datasets._counts import CIFAR10_CLASSES, PUBLISHED
from skad.datasets._finding import child, existing, folders_in
from skad.datasets._folders import Root, load_btad, load_mpdd, load_mvtec
from skad.datasets._mvtec_ad2 import load_mvtec_ad2
from skad.datasets._mvtec_loco import load_mvtec_loco
from skad.datasets._one_class import cifar10_folder, load_cifar10
from skad.datasets._real_iad import (
    load_real_iad,
    real_iad_categories,
    real_iad_splits,
)
from skad.datasets._shanghaitech import load_shanghaitech
from skad.datasets._visa import load_visa, visa_categories
from skad.images._files import find_images


class _Kind(NamedTuple):
    """How to see that a folder has a layout, what to read it with, its categories."""

    loader: Callable[..., Bunch]
    categories: Callable[[Path], list[str]]
    takes_category: bool = True


def load(root: Root, category: str | None = None, **options: Any) -> Bunch:
    """Recognise the layout of a folder, and list its images.

    What is recognised: MVTec AD and all data sets in its layout, MVTec LOCO, MVTec
    AD 2, VisA, BTAD, MPDD, KolektorSDD, KolektorSDD2, DAGM, Real-IAD, ShanghaiTech
    Campus, CIFAR-10, and a folder that has a folder ``good`` and others with images.

    Parameters
    ----------
    root : path
        Folder of a data set, or of one of its categories.
    category : str, optional
        One category, where the data set has several: see `list_categories`.
    **options : dict
        Passed on to the function that reads this layout, for example ``split=`` of
        `load_visa`.

    Returns
    -------
    data : Bunch
        As `load_mvtec` returns it; `layout` says which data set was recognised.

    Raises
    ------
    FileNotFoundError
        If there is no such folder, or the function that reads it misses a file.
    ValueError
        If the layout is not recognised, or `category` must be chosen.

    Examples
    --------
    >>> from skad.datasets import load
    >>> data = load("mvtec_ad", "bottle")  # doctest: +SKIP
    >>> data.layout, len(data.train)  # doctest: +SKIP
    ('MVTec AD', 209)
    """
    base = existing(Path(root), "Folder of the data set")
    kind = _recognised(base)
    if kind is None:
        kind = _of_category(base)
        if kind is None:
            raise ValueError(_unknown(base))
        whole = Path(os.path.abspath(base))  # of "." the name, too
        base, category = whole.parent, category or whole.name
    if not kind.takes_category:
        return kind.loader(base, **_scene(kind, category), **options)
    names = kind.categories(base)
    if category is None and len(names) == 1:
        category = names[0]
    if category is None:
        raise ValueError(
            f"category is missing: {base} has several, {', '.join(names)}. Pass one."
        )
    return kind.loader(base, category, **options)


def list_categories(root: Root) -> list[str]:
    """List the categories of a data set whose layout is recognised.

    Parameters
    ----------
    root : path
        Folder of a data set, as for `load`.

    Returns
    -------
    names : list of str
        What `load` takes as `category`. Empty where the data set is one.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If the layout is not recognised.

    Examples
    --------
    >>> from skad.datasets import list_categories
    >>> list_categories("BTech_Dataset_transformed")  # doctest: +SKIP
    ['01', '02', '03']
    """
    base = existing(Path(root), "Folder of the data set")
    kind = _recognised(base)
    if kind is None:
        raise ValueError(_unknown(base))
    return kind.categories(base)


def _scene(kind: _Kind, category: str | None) -> dict[str, str]:
    if category is None:
        return {}
    if kind.loader is load_shanghaitech:
        return {"scene": category}
    raise ValueError(f"category={category!r}: this data set has no categories.")


def _recognised(base: Path) -> _Kind | None:
    """Layout of a data set, by what only it has."""
    names = [folder.name for folder in folders_in(base)]
    if any(child(base, "split_csv").glob("*.csv")):
        return _Kind(load_visa, visa_categories)
    if real_iad_splits(base):
        return _Kind(load_real_iad, real_iad_categories)
    if cifar10_folder(base) is not None:
        return _Kind(load_cifar10, lambda _: list(CIFAR10_CLASSES))
    if child(base, "testing/frames").is_dir():
        return _Kind(load_shanghaitech, _scenes, takes_category=False)
    if any(is_commutator(base / name) for name in names):
        return _Kind(load_kolektor, lambda _: [], takes_category=False)
    if _has_pairs(child(base, "train")) and _has_pairs(child(base, "test")):
        return _Kind(load_kolektor2, lambda _: [], takes_category=False)
    kinds = {name: _of_category(base / name) for name in names}
    found = {name: kind for name, kind in kinds.items() if kind is not None}
    if found:
        loader = next(iter(found.values())).loader
        if loader is load_mvtec and PUBLISHED["MPDD"].counts.keys() & found.keys():
            loader = load_mpdd
        return _Kind(loader, lambda _: list(found))
    if child(base, "good").is_dir() and len(names) > 1:
        return _Kind(load_folder, lambda _: [], takes_category=False)
    return None


def _of_category(folder: Path) -> _Kind | None:
    """Layout of the data set that a folder is a category of."""
    loader: Callable[..., Bunch] | None = None
    if child(folder, "test_public").is_dir():
        loader = load_mvtec_ad2
    elif child(folder, "defects_config.json").is_file():
        loader = load_mvtec_loco
    elif not child(folder, "test").is_dir() or not child(folder, "train").is_dir():
        loader = None
    elif child(folder, "train/ok").is_dir():
        loader = load_btad
    elif child(folder, "train/good").is_dir():
        loader = load_mvtec
    elif find_images(child(folder, "train")) and folder.name.casefold().startswith(
        "class"
    ):
        loader = load_dagm
    return None if loader is None else _Kind(loader, lambda _: [folder.name])


def _has_pairs(folder: Path) -> bool:
    return folder.is_dir() and any(
        path.stem.casefold().endswith("_gt") for path in find_images(folder)
    )


def _scenes(base: Path) -> list[str]:
    videos = folders_in(child(base, "testing/frames"))
    return sorted({video.name.partition("_")[0] for video in videos})


def _unknown(base: Path) -> str:
    names = [folder.name for folder in folders_in(base)]
    hint = ""
    below = [name for name in names if _recognised(base / name) is not None]
    if below:
        hint = f" Its folder {below[0]!r} has a known one: pass {base / below[0]}."
    return (
        f"The layout of {base} is not known; it has the folders: "
        f"{', '.join(names[:20]) or 'none'}.{hint} Known layouts are in the "
        "documentation of skad.datasets.load; for other folders say which is which "
        "with load_folder."
    )

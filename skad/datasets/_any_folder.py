"""One's own images: a folder of normal ones, and folders of defects."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from sklearn.utils import Bunch

from skad.datasets._bunch import GOOD, Item, make_bunch
from skad.datasets._finding import child, existing, folders_in, images_in, non_empty
from skad.datasets._folders import Root
from skad.datasets._sampling import sampled_positions
from skad.images._files import find_images

TITLE = "folder"
_NAMES_OF_MASKS = (
    "mask",
    "masks",
    "ground_truth",
    "groundtruth",
    "gt",
    "label",
    "labels",
)


def load_folder(
    root: Root,
    *,
    normal: str = "good",
    anomalous: str | Sequence[str] | None = None,
    test_normal: str | None = None,
    masks: str | None = None,
    nested: bool = False,
    test_size: float = 0.2,
    random_state: Any = 0,
    require_masks: bool = True,
) -> Bunch:
    """List your own images: a folder of normal ones, and folders of defects.

    No image is opened.

    Parameters
    ----------
    root : path
        The folder that has all others.
    normal : str, default="good"
        Folder of normal images in it, for example "good" or "train/ok".
    anomalous : str or list of str, optional
        Folders of anomalous images, one for each type of defect. By default all folders
        of `root` that have images and are named nowhere else in the call.
    test_normal : str, optional
        Folder of normal test images. By default a fraction of `normal` is sampled.
    masks : str, optional
        Where the mask of an anomalous image is, below `root`: a path in which
        ``{folder}`` stands for the folder of the image, ``{stem}`` for its name without
        suffix and ``*`` for any text, such as ``"masks/{folder}/{stem}_mask.*"``. All
        files that match are masks of the image, one for each of its defects.
    nested : bool, default=False
        Whether to look into folders inside of these, too. ``{folder}`` then has them:
        "crack/monday".
    test_size : float, default=0.2
        Fraction of the normal images that become test images, in (0, 1), where
        `test_normal` is not given.
    random_state : int, RandomState instance or None, default=0
        Seed of the split.
    require_masks : bool, default=True
        Whether each anomalous image must have a mask, where `masks` is given.

    Returns
    -------
    data : Bunch
        As `load_mvtec` returns it, with the normal test images first; `defect_types`
        are the names of the folders, "good" for normal images; `masks` is None without
        `masks`, otherwise an entry is a Path, or a list of Path where several files
        match.

    Raises
    ------
    FileNotFoundError
        If a folder is missing or has no images, or an anomalous image has no mask.
    ValueError
        If images lie in folders below and `nested` is False, `masks` has no
        ``{stem}`` or is not given where a folder is named as if it had masks, or
        `test_size` leaves no image for a part.

    Examples
    --------
    >>> from skad.datasets import load_folder
    >>> data = load_folder(
    ...     "photos", normal="ok", masks="masks/{folder}/{stem}.*"
    ... )  # doctest: +SKIP
    """
    base = existing(Path(root), "Folder of the data set")
    _check_pattern(masks)
    good = child(base, normal)
    named = [normal, *([test_normal] if test_normal else ())]
    folders = _anomalous_folders(base, anomalous, named, masks)
    train = _images(existing(good, "Folder of normal images"), nested)
    if test_normal is None:
        chosen = sampled_positions(len(train), test_size, random_state, "normal images")
        tested = [path for i, path in enumerate(train) if i in chosen]
        train = [path for i, path in enumerate(train) if i not in chosen]
    else:
        where = existing(child(base, test_normal), "Folder of normal test images")
        tested = _images(where, nested)
    test = [Item(path, GOOD) for path in tested]
    for folder in folders:
        test += _items(base, folder, _images(folder, nested), masks)
    return make_bunch(
        TITLE,
        base.name,
        train,
        test,
        has_masks=masks is not None,
        require_masks=require_masks,
        check_counts=False,
    )


def _check_pattern(masks: str | None) -> None:
    if masks is None:
        return
    try:
        masks.format(folder="", stem="")
    except (LookupError, ValueError, AttributeError) as error:
        raise ValueError(
            f"masks={masks!r} must be a path with {{folder}} and {{stem}}: {error}."
        ) from error
    if "{stem}" not in masks:
        raise ValueError(f"masks={masks!r} must have {{stem}}, the name of the image.")


def _images(folder: Path, nested: bool) -> list[Path]:
    if nested:
        return non_empty(find_images(folder, nested=True), folder)
    return images_in(folder, required=True)


def _anomalous_folders(
    base: Path,
    given: str | Sequence[str] | None,
    named: Iterable[str],
    masks: str | None,
) -> list[Path]:
    if given is not None:
        names = [given] if isinstance(given, str) else given
        return [existing(child(base, n), "Folder of anomalous images") for n in names]
    used = [_literal(Path(name).parts[0]) for name in named]
    if masks and Path(masks).parts[0] != "{folder}":  # else masks lie beside images
        used.append(Path(masks).parts[0].format(folder="*", stem="*"))
    found = [
        folder
        for folder in folders_in(base)
        if not any(_matches(folder.name, pattern) for pattern in used)
        and find_images(folder, nested=True)
    ]
    like_masks = [f.name for f in found if f.name.casefold() in _NAMES_OF_MASKS]
    if like_masks:
        raise ValueError(
            f"Are there masks in the folder {like_masks[0]!r} of {base}? Say where the "
            f"mask of an image is, for example "
            f"masks='{like_masks[0]}/{{folder}}/{{stem}}.*', or name the folders of "
            "anomalous images: anomalous=[...]."
        )
    return found


def _items(
    base: Path, folder: Path, images: Sequence[Path], masks: str | None
) -> list[Item]:
    kind = folder.relative_to(base).as_posix()
    if masks is None:
        return [Item(image, kind) for image in images]
    listed: dict[Path, list[Path]] = {}
    found = {image: _masks_of(base, image, masks, listed) for image in images}
    used = {mask for files in found.values() for mask in files}
    return [
        Item(image, kind, _one_or_all(files), _shown(base, image, masks))
        for image, files in found.items()
        if image not in used  # a mask that lies beside its image
    ]


def _masks_of(
    base: Path, image: Path, masks: str, listed: dict[Path, list[Path]]
) -> list[Path]:
    """List the masks of an image; what a folder has is looked up once."""
    where = image.parent.relative_to(base).as_posix()
    expected = Path(masks.format(folder=where, stem=_literal(image.stem)))
    home = child(base, str(expected.parent))
    if home not in listed:
        listed[home] = find_images(home) if home.is_dir() else []
    return [p for p in listed[home] if _matches(p.name, expected.name) and p != image]


def _one_or_all(files: list[Path]) -> Path | list[Path] | None:
    return files[0] if len(files) == 1 else files or None


def _shown(base: Path, image: Path, masks: str) -> str:
    where = image.parent.relative_to(base).as_posix()
    return str(base / masks.format(folder=where, stem=image.stem))


def _literal(text: str) -> str:
    """Escape what has a meaning in patterns."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in text)


def _matches(name: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(name.casefold(), pattern.casefold())

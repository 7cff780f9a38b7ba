"""ShanghaiTech Campus: frames of videos, with the masks of a video in one array."""

from __future__ import annotations

from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import Bunch

from skad.datasets._bunch import GOOD, Item, counts_of, make_bunch
from skad.datasets._counts import warn_of_counts
from skad.datasets._finding import child, existing, folders_in, images_in
from skad.datasets._folders import Root

TITLE = "ShanghaiTech Campus"


def load_shanghaitech(
    root: Root,
    scene: str | int | None = None,
    *,
    every: int = 5,
    require_masks: bool = True,
) -> Bunch:
    """List frames of ShanghaiTech Campus (STC), videos of pedestrians.

    The layout is ``training/frames/01_001/``, ``testing/frames/01_0014/``,
    ``testing/test_frame_mask/01_0014.npy`` with one number for each frame, 0 if it is
    normal, and ``testing/test_pixel_mask/01_0014.npy``, an array (frames, height,
    width). The training part is published as videos: save their frames as images, in
    one folder for each video. No image is opened.

    Parameters
    ----------
    root : path
        Folder of the data set.
    scene : str or int, optional
        Number of one scene, 1 to 13. By default all.
    every : int, default=5
        Take every n-th frame of each video, from the first on. 5 is what the papers of
        PatchCore and CAVGA take (mSTC); 1 takes all.
    require_masks : bool, default=True
        Whether each anomalous frame must have a mask.

    Returns
    -------
    data : Bunch
        As `load_mvtec` returns it, in the order of the frames; `defect_types` are
        "good" and "anomaly";
        `masks` : list aligned with `test`, for an anomalous frame an array (H, W) that
        is read from its file when it is looked at, as `numpy.load` maps it to memory;
        `videos` : list aligned with `test`, names of the videos;
        `category` : the scene as two digits, or empty.

    Raises
    ------
    FileNotFoundError
        If a folder is missing or has no images, or a video of the test part has no
        labels or no masks.
    ValueError
        If `every` is no positive integer, there is no such scene, or a video has other
        numbers of frames, labels and masks.

    References
    ----------
    Liu et al., "Future Frame Prediction for Anomaly Detection", CVPR 2018. Roth et al.,
    "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022, for `every`.

    Examples
    --------
    >>> from skad.datasets import load_shanghaitech
    >>> data = load_shanghaitech("shanghaitech", scene=1)  # doctest: +SKIP
    """
    if not isinstance(every, Integral) or isinstance(every, bool) or every < 1:
        raise ValueError(f"every={every!r} must be an integer from 1 on.")
    category = "" if scene is None else f"{int(scene):02d}"
    base = Path(root)
    trained = _videos(base, "training", category)
    tested = _videos(base, "testing", category)
    frames = [images_in(video, required=True) for video in trained]
    test, videos = [], []
    n_tested = 0
    for video in tested:
        found = _test_items(video, child(base, "testing"), require_masks)
        n_tested += len(found)
        test += found[::every]
        videos += [video.name] * len(found[::every])
    data = make_bunch(
        TITLE,
        category,
        [path for video in frames for path in video[::every]],
        test,
        require_masks=require_masks,
        check_counts=False,
        videos=videos,
    )
    counts = {"training": sum(map(len, frames)), "test": n_tested}
    warn_of_counts(TITLE, category, counts_of(data) | counts)
    return data


def _videos(base: Path, part: str, scene: str) -> list[Path]:
    where = existing(
        child(base, f"{part}/frames"), f"Folder of the frames of the {part} part"
    )
    there = folders_in(where)
    found = [f for f in there if f.name.startswith(f"{scene}_" if scene else "")]
    if not found:
        scenes = sorted({folder.name.partition("_")[0] for folder in there})
        raise ValueError(
            f"No videos of the scene {scene or 'any'} in {where}, which has the "
            f"scenes: {', '.join(scenes) or 'none'}."
        )
    return found


def _test_items(video: Path, testing: Path, require_masks: bool) -> list[Item]:
    images = images_in(video, required=True)
    labels = _array(child(testing, f"test_frame_mask/{video.name}.npy"))
    path = child(testing, f"test_pixel_mask/{video.name}.npy")
    masks = _array(path) if require_masks or path.is_file() else None
    for what, array in (("labels", labels), ("masks", masks)):
        if array is not None and len(array) != len(images):
            raise ValueError(
                f"The video {video} has {len(images)} frames, but {len(array)} {what}."
            )
    return [_item(image, i, labels, masks) for i, image in enumerate(images)]


def _item(
    image: Path, i: int, labels: NDArray[Any], masks: NDArray[Any] | None
) -> Item:
    if not labels[i]:
        return Item(image, GOOD)
    mask = None if masks is None else masks[i]
    return Item(image, "anomaly", mask, "an array in testing/test_pixel_mask")


def _array(path: Path) -> NDArray[Any]:
    if not path.is_file():
        raise FileNotFoundError(f"Labels or masks of a video not found: {path}.")
    array: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    return array

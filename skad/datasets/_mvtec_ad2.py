"""MVTec AD 2: a public test set with masks, and two private ones without labels."""

from __future__ import annotations

from pathlib import Path

from sklearn.utils import Bunch

from skad.datasets._bunch import make_bunch
from skad.datasets._finding import child, existing
from skad.datasets._folders import (
    FolderLayout,
    Root,
    labelled_folders,
    masked_items,
    normal_images,
    validation_images,
)
from skad.images._files import find_images

MVTEC_AD_2 = FolderLayout("MVTec AD 2", test="test_public", validation="validation")


def load_mvtec_ad2(root: Root, category: str, *, require_masks: bool = True) -> Bunch:
    """List the images of a category of MVTec AD 2.

    The layout is ``train/good``, ``validation/good``, ``test_public/good``,
    ``test_public/bad``, ``test_public/ground_truth/bad/<name>_mask.png``,
    ``test_private`` and ``test_private_mixed``. No image is opened.

    Parameters
    ----------
    root : path
        Folder of the data set.
    category : str
        Folder of one category of objects in it.
    require_masks : bool, default=True
        Whether each anomalous image of the public test set must have a mask.

    Returns
    -------
    data : Bunch
        As `load_mvtec` returns it; `test` is the public test set, and
        `validation` : list of Path, the normal images of ``validation/good``;
        `private`, `private_mixed` : lists of Path, test images whose labels only the
        evaluation server of the authors knows; the latter under mixed light. Empty
        where the folder is missing.

    Raises
    ------
    FileNotFoundError
        If a folder is missing or has no images, or an anomalous image has no mask.
    ValueError
        If images lie in folders below those of the layout.

    References
    ----------
    Heckler-Kram et al., "The MVTec AD 2 Dataset: Advanced Scenarios for Unsupervised
    Anomaly Detection", arXiv:2503.21622, 2025. The images are under CC BY-NC-SA 4.0,
    which rules out commercial use.

    Examples
    --------
    >>> from skad.datasets import load_mvtec_ad2
    >>> data = load_mvtec_ad2("mvtec_ad_2", "vial")  # doctest: +SKIP
    >>> scores = model.fit(data.train).score_samples(data.private)  # doctest: +SKIP
    """
    base = existing(child(Path(root), category), "Category")
    test = child(base, MVTEC_AD_2.test)
    truth = child(test, MVTEC_AD_2.ground_truth)
    return make_bunch(
        MVTEC_AD_2.title,
        category,
        normal_images(base, "train/good", "training"),
        list(masked_items(truth, labelled_folders(base, MVTEC_AD_2, test.name))),
        validation=validation_images(base, MVTEC_AD_2),
        require_masks=require_masks,
        private=_unlabelled(child(base, "test_private")),
        private_mixed=_unlabelled(child(base, "test_private_mixed")),
    )


def _unlabelled(folder: Path) -> list[Path]:
    return find_images(folder, nested=True) if folder.is_dir() else []

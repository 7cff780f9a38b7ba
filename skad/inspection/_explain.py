"""Which training patch the worst patch of an image came nearest to."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from skad._chain import Chain
from skad._frame import WHOLE


@dataclass(frozen=True)
class Explanation:
    """The worst patch of an image, and the training patch nearest to it.

    Parameters
    ----------
    index : int
        Position of the image in X.

    patch : (int, int)
        Row and column of its worst patch on the patch grid.

    bbox : (int, int, int, int) or None
        Top, left, bottom and right of that patch in the pixels of the image, the last
        two exclusive, so that ``image[top:bottom, left:right]`` shows it. The network
        sees a larger part of the image around it. None where the model takes patch
        features.

    training_index : int
        Position of the nearest training image among those that were learned from, in
        their order. Images with the label -1 and images that could not be read are not
        counted.

    training_patch : (int, int)
        Row and column of the nearest patch in that image.

    training_region : (float, float, float, float) or None
        Top, left, bottom and right of that patch, as shares of the height and of the
        width of the training image. None with features of ``resize="short"``, where it
        depends on the size of that image, which the model does not keep.

    distance : float
        Distance of the two patches.

    training_view : int, default=0
        0 for the training image itself. If the model was fitted with augmentation, k
        is the k-th augmented view of it: patch and region are then of that view.
    """

    index: int
    patch: tuple[int, int]
    bbox: tuple[int, int, int, int] | None
    training_index: int
    training_patch: tuple[int, int]
    training_region: tuple[float, float, float, float] | None
    distance: float
    training_view: int = 0


def explain(model: Any, X: Any) -> list[Explanation | None]:
    """Name the training image and place that the worst patch of each image resembles.

    The worst patch is the one with the largest score on the patch grid. The training
    patch nearest to it is the most similar one that the memory bank keeps: to look at
    both side by side shows what the model misses in the image, and, for a defect that
    it takes for normal, which training image taught it so.

    Parameters
    ----------
    model : estimator
        A fitted `PatchCoreDetector`, a pipeline that ends in one, a search that was
        fitted, or a `FrozenEstimator` around any of these.

    X : sequence of images, or ndarray of patch features
        What the model's `predict` takes.

    Returns
    -------
    explanations : list of Explanation or None
        One per image, in the order of X; None for an image that was skipped because it
        could not be read, or of which nothing lies inside of its region.

    Raises
    ------
    sklearn.exceptions.NotFittedError
        If the model is not fitted.

    TypeError
        If the model does not end in a `PatchCoreDetector`. Other detectors do not keep
        training patches with their places.

    See Also
    --------
    skad.inspection.suspects : Which training images are unlike the others.

    Examples
    --------
    >>> import numpy as np
    >>> from skad import PatchCoreDetector
    >>> from skad.inspection import explain
    >>> rng = np.random.default_rng(0)
    >>> normal = rng.normal(size=(20, 4, 4, 8))
    >>> normal[13, 3, 0] += 6  # a scratch that nobody saw
    >>> detector = PatchCoreDetector().fit(normal)
    >>> new = rng.normal(size=(1, 4, 4, 8))
    >>> new[0, 2, 1] += 8  # a deeper one
    >>> found = explain(detector, new)[0]
    >>> found.patch, found.training_index, found.training_patch
    ((2, 1), 13, (3, 0))
    """
    chain = Chain(model)
    detector = chain.final
    if not hasattr(detector, "_nearest_training_patches"):
        raise TypeError(
            f"model ends in {type(detector).__name__}, which keeps no training patches "
            "with their places; explain needs a PatchCoreDetector, alone or at the end "
            "of a pipeline."
        )
    check_is_fitted(detector, "bank_")
    found = chain.ask("_nearest_training_patches", X)
    grid = detector.calibration_maps_.shape[1:]
    sizes = [None] * len(found)
    if chain.images is not None:
        sizes = chain.images.image_sizes(chain.entering(X))
    return [
        None
        if np.isnan(row[0])
        else _explanation(i, row, grid, chain, size, detector._n_per_image)
        for i, (row, size) in enumerate(zip(found, sizes, strict=True))
    ]


def _explanation(
    index: int, found: Any, grid: Any, chain: Chain, size: Any, n_per_image: int
) -> Explanation:
    window = WHOLE if chain.images is None else chain.window(size)
    worst, nearest = found[:2].astype(int)
    sample, nearest = divmod(nearest, grid[0] * grid[1])
    image, view = divmod(int(sample), n_per_image)
    patch, training_patch = _place(worst, grid), _place(nearest, grid)
    return Explanation(
        index=index,
        patch=patch,
        bbox=None if size is None else _bbox(_region(patch, grid, window), size),
        training_index=image,
        training_patch=training_patch,
        training_region=(
            None if chain.windows_vary() else _region(training_patch, grid, window)
        ),
        distance=float(found[2]),
        training_view=view,
    )


def _place(position: Any, grid: Any) -> tuple[int, int]:
    """Row and column of a position among the flattened patches of a grid."""
    row, column = np.unravel_index(position, grid)
    return int(row), int(column)


def _region(patch: Any, grid: Any, window: Any) -> tuple[float, float, float, float]:
    """Top, left, bottom and right of a patch, as shares of the sides of an image."""
    edges = []
    for place, n_cells, (start, stop) in zip(patch, grid, window, strict=True):
        side = (stop - start) / n_cells
        edges.append((start + place * side, start + (place + 1) * side))
    (top, bottom), (left, right) = edges
    return top, left, bottom, right


def _bbox(region: Any, size: Any) -> tuple[int, int, int, int]:
    """Pixels of an image of a size that a region touches, at least one."""
    top, left, bottom, right = region
    height, width = size
    # Shares that fall on the edge of a pixel are a rounding error off.
    first = np.floor(np.array([top * height, left * width]) + 1e-6)
    last = np.ceil(np.array([bottom * height, right * width]) - 1e-6)
    last = np.maximum(last, first + 1)
    return int(first[0]), int(first[1]), int(last[0]), int(last[1])

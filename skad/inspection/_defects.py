"""The defects of a mask, one by one."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage

from skad.images import read_mask

_EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)


@dataclass(frozen=True)
class Defect:
    """One connected region of anomalous pixels.

    Parameters
    ----------
    area : int
        Number of its pixels, 1 or more.

    bbox : (int, int, int, int)
        Top, left, bottom and right of the smallest box around it; rows ``top`` to
        ``bottom - 1`` and columns ``left`` to ``right - 1``, so that
        ``image[top:bottom, left:right]`` shows it.

    centroid : (float, float)
        Mean row and mean column of its pixels, from 0.

    peak : float or None
        Largest value of the anomaly map inside; None without a map.
    """

    area: int
    bbox: tuple[int, int, int, int]
    centroid: tuple[float, float]
    peak: float | None


def find_defects(
    mask: Any, anomaly_map: ArrayLike | None = None, *, min_area: int = 1
) -> list[Defect]:
    """List the connected regions of a mask.

    Pixels that touch at a side or at a corner belong to one region.

    Parameters
    ----------
    mask : array-like of shape (H, W), or what else `skad.images.read_mask` takes
        True, or not zero, where anomalous: one of `predict_mask`, or a file.

    anomaly_map : array-like of shape (H, W), default=None
        Map of the same image, from which the peak of each defect is taken.

    min_area : int, default=1
        Regions of fewer pixels are left out; 1 or more.

    Returns
    -------
    defects : list of Defect
        The largest first; of equal ones, the topmost.

    Raises
    ------
    ValueError
        If `mask` is no mask, the shapes do not fit together, or `min_area` is no
        positive integer.

    Examples
    --------
    >>> import numpy as np
    >>> from skad.inspection import find_defects
    >>> mask = np.zeros((6, 8), bool)
    >>> mask[1:3, 2:5] = mask[3, 5] = True
    >>> mask[5, 0] = True
    >>> [defect.area for defect in find_defects(mask)]
    [7, 1]
    >>> find_defects(mask, min_area=2)[0].bbox
    (1, 2, 4, 6)
    """
    if getattr(mask, "ndim", 2) != 2:
        raise ValueError(f"mask has shape {mask.shape}; expected (height, width).")
    mask = read_mask(mask, where="mask")
    if isinstance(min_area, bool) or not isinstance(min_area, Integral) or min_area < 1:
        raise ValueError(f"min_area={min_area!r} must be a positive integer.")
    if anomaly_map is not None:
        anomaly_map = np.asarray(anomaly_map)
        if anomaly_map.shape != mask.shape:
            raise ValueError(
                f"anomaly_map has shape {anomaly_map.shape}, but mask {mask.shape}; "
                "take both of one image at one size."
            )
    labels, _ = ndimage.label(mask, structure=_EIGHT_CONNECTED)
    defects = [
        _defect(labels, number, box, anomaly_map)
        for number, box in enumerate(ndimage.find_objects(labels), start=1)
    ]
    kept = [defect for defect in defects if defect.area >= min_area]
    return sorted(kept, key=lambda defect: (-defect.area, defect.bbox))


def _defect(
    labels: np.ndarray,
    number: int,
    box: tuple[slice, slice],
    anomaly_map: np.ndarray | None,
) -> Defect:
    inside = labels[box] == number
    rows, columns = np.nonzero(inside)
    top, left = box[0].start, box[1].start
    peak = None if anomaly_map is None else float(anomaly_map[box][inside].max())
    return Defect(
        area=len(rows),
        bbox=(top, left, box[0].stop, box[1].stop),
        centroid=(float(top + rows.mean()), float(left + columns.mean())),
        peak=peak,
    )

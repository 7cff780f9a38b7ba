"""Defective pixels: their scores, the region each belongs to, and its weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from skad.metrics._validation import Pairs

_EIGHT_CONNECTED = np.ones((3, 3), dtype=bool)


class DefectPixels(NamedTuple):
    """Scores of the defective pixels of all images, image by image.

    Attributes
    ----------
    scores : ndarray of shape (n_pixels,)
        The scores.
    weights : ndarray of shape (n_pixels,)
        What each pixel adds to the mean over regions of the fraction found; the sum is
        1. Empty if regions were not asked for.
    images : ndarray of shape (n_defective_images,)
        Positions of the images with a defect.
    n_pixels : ndarray of shape (n_defective_images,)
        How many defective pixels each of them has.
    """

    scores: NDArray[Any]
    weights: NDArray[np.float64]
    images: NDArray[np.intp]
    n_pixels: NDArray[np.intp]


def bounding_box(mask: NDArray[np.bool_]) -> tuple[slice, slice]:
    """Find the smallest box that holds all of a mask.

    Parameters
    ----------
    mask : ndarray of shape (height, width)
        With at least one True.

    Returns
    -------
    box : tuple of slice
        To index the mask with.
    """
    rows = np.flatnonzero(mask.any(axis=1))
    columns = np.flatnonzero(mask[rows[0] : rows[-1] + 1].any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _shares(mask: NDArray[np.bool_]) -> tuple[NDArray[np.float64], int]:
    """One over the area of its connected region, for each pixel of a mask."""
    labels, n_regions = ndimage.label(mask, structure=_EIGHT_CONNECTED)
    of_pixel = labels[mask]
    areas = np.bincount(of_pixel, minlength=n_regions + 1)
    return 1 / areas[of_pixel], n_regions


def defect_pixels(pairs: Pairs, *, regions: bool = False) -> DefectPixels:
    """Collect the defective pixels of all images.

    Parameters
    ----------
    pairs : Pairs
        Images; masks without channels.
    regions : bool, default=False
        Whether to weigh the pixels by their connected regions.

    Returns
    -------
    pixels : DefectPixels
        The pixels.
    """
    images, scores, weights, n_regions = [], [], [], 0
    for i, (array, mask) in pairs.defective():
        assert mask is not None
        box = bounding_box(mask)  # labelling the rest would cost more than the rest
        inside = mask[box]
        images.append(i)
        scores.append(array[box][inside])
        if regions:
            share, n = _shares(inside)
            weights.append(share)
            n_regions += n
    return DefectPixels(
        np.concatenate(scores) if scores else np.empty(0),
        np.concatenate(weights) / n_regions if weights else np.empty(0),
        np.array(images, dtype=np.intp),
        np.array([part.size for part in scores], dtype=np.intp),
    )


def saturated_pixels(
    pairs: Pairs, areas: Sequence[NDArray[np.float64] | float | None]
) -> DefectPixels:
    """Collect the pixels that count until their defect is saturated.

    Of a defect only the highest scores matter, as many as its saturation area has
    pixels; a fractional area gives the last of them a fractional weight.

    Parameters
    ----------
    pairs : Pairs
        Images; a mask may be a stack with one channel per defect.
    areas : sequence
        For each image one saturation area per defect, in pixels; a float stands for
        a fraction of each defect's area.

    Returns
    -------
    pixels : DefectPixels
        Defects that share a pixel each have it.
    """
    images, scores, weights, n_regions = [], [], [], 0
    for i, (array, mask) in pairs.defective():
        assert mask is not None
        found = [np.sort(array[channel])[::-1] for channel in split_defects(mask)]
        for area, part in zip(_per_defect(areas[i], found, i), found, strict=True):
            kept = part[: int(np.ceil(area))]
            share = np.full(kept.size, 1 / area)
            share[-1] = (area - (kept.size - 1)) / area
            scores.append(kept)
            weights.append(share)
            images.append(i)
            n_regions += 1
    return DefectPixels(
        np.concatenate(scores) if scores else np.empty(0),
        np.concatenate(weights) / n_regions if weights else np.empty(0),
        np.array(images, dtype=np.intp),
        np.array([part.size for part in scores], dtype=np.intp),
    )


def split_defects(mask: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """Take the defects of one mask apart.

    Parameters
    ----------
    mask : ndarray of shape (height, width) or (n_defects, height, width)
        Connected regions of the former, channels of the latter.

    Returns
    -------
    defects : list of ndarray of shape (height, width)
        Without channels that mark nothing.
    """
    if mask.ndim == 2:
        labels, n = ndimage.label(mask, structure=_EIGHT_CONNECTED)
        return [labels == k for k in range(1, n + 1)]
    return [channel for channel in mask if channel.any()]


def _per_defect(
    areas: NDArray[np.float64] | float | None, found: list[NDArray[Any]], i: int
) -> NDArray[np.float64]:
    sizes = np.array([part.size for part in found], dtype=np.float64)
    if areas is None:
        return sizes
    if isinstance(areas, float):
        return areas * sizes
    if areas.size not in (1, sizes.size):
        raise ValueError(
            f"saturation_areas[{i}] must have one area for each of the {sizes.size} "
            f"defect(s) of masks[{i}], got {areas.size}. Pass the mask as a stack "
            "(n_defects, height, width) to say which defect is which."
        )
    return np.minimum(np.broadcast_to(areas, sizes.shape), sizes)

"""Regions of interest: patches outside are neither learned from nor scored."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skad._frame import WHOLE, Window
from skad._patch_array import PatchArray
from skad.images import read_mask
from skad.images._arrays import has_base
from skad.images._read import PILLOW_LIMIT, carried_limit


def read_region(region: Any) -> NDArray[np.bool_] | None:
    """Read the mask that holds for all images: bool (H, W), or None."""
    if region is None:
        return None
    mask = read_mask(region, where="region")
    if not mask.any():
        raise ValueError(
            "region is empty: it must be True, or not zero, where to look."
        )
    return np.array(mask)  # what the user has may change


class Regions:
    """The regions of n images: one for all, one for each, or both.

    Parameters
    ----------
    common : ndarray of shape (H, W), bool, or None
        What to look at in every image, as `read_region` gives it.

    each : sequence of n masks, or None
        What to look at in each image; None entries mean everywhere.

    n : int
        Number of images.

    pixel_limit : int or None
        The limit that came with the estimator, see `skad.images._read.pixel_limit`.
    """

    def __init__(
        self,
        common: NDArray[np.bool_] | None,
        each: Any,
        n: int,
        pixel_limit: int | None = PILLOW_LIMIT,
    ) -> None:
        self.each = each
        self.common = common
        self.pixel_limit = pixel_limit
        if each is None:
            return
        if getattr(each, "ndim", 3) == 2:
            raise ValueError(
                "regions is one mask, but expected one for each image; a mask for all "
                "images is the parameter `region` of the transformer."
            )
        if isinstance(each, str | os.PathLike) or not hasattr(each, "__len__"):
            raise ValueError(
                f"regions={each!r} is no sequence of masks; pass one for each image, "
                "or a mask for all images as the parameter `region`."
            )
        if len(each) != n:
            raise ValueError(f"regions has {len(each)} entries for {n} images.")
        if has_base(type(each), "pandas", "Series"):  # its index is no position
            self.each = each.to_numpy(dtype=object)

    def __bool__(self) -> bool:
        return self.common is not None or self.each is not None

    def cut(
        self,
        features: NDArray[np.float32],
        index: Sequence[int] | NDArray[np.intp],
        windows: Sequence[Window],
    ) -> NDArray[np.float32]:
        """Features of some images, NaN for patches that lie mostly outside.

        `windows` are the parts of these images that their patch grids cover.
        """
        if not self:
            return features
        grid = features.shape[1:3]
        outside = ~np.stack(
            [self.inside(i, grid, one) for i, one in zip(index, windows, strict=True)]
        )
        patches = np.array(features)
        patches[outside] = np.nan
        if isinstance(features, PatchArray):
            return PatchArray(patches, features.pooled, features.levels)
        return patches

    def inside(
        self,
        i: int,
        grid: tuple[int, ...],
        window: Window = WHOLE,
    ) -> NDArray[np.bool_]:
        """Tell which cells of a grid over a window lie in the region of image i."""
        inside = np.ones(grid, bool)
        if self.common is not None:
            inside &= _covered(self.common, grid, window)
        if self.each is not None and self.each[i] is not None:
            with carried_limit(self.pixel_limit):
                mask = read_mask(self.each[i], where=f"regions[{i}]")
            inside &= _covered(mask, grid, window)
        return inside


def _covered(mask: np.ndarray, grid: tuple[int, ...], window: Any) -> np.ndarray:
    """Cells of a grid of which at least half the area is True.

    A box filter of Pillow averages the mask over each cell; cells need not begin or
    end at pixels, which then count in part.
    """
    (top, bottom), (left, right) = window
    height, width = mask.shape
    box = left * width, top * height, right * width, bottom * height
    values = Image.fromarray(mask.astype(np.float32))
    share = values.resize((grid[1], grid[0]), Image.Resampling.BOX, box=box)
    return np.asarray(share) >= 0.5

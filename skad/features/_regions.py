"""Regions of interest: what lies outside is neither learned from nor scored."""

import os

import numpy as np
from PIL import Image

from skad._patch_array import PatchArray
from skad.images import read_mask
from skad.images._arrays import has_base
from skad.images._read import PILLOW_LIMIT, carried_limit


def read_region(region):
    """The mask of all images that a transformer keeps: bool (H, W), or None."""
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

    window : ((float, float), (float, float))
        The part of an image that the patch grid covers.

    pixel_limit : int or None
        The limit that came with the estimator, see `skad.images._read`.
    """

    def __init__(self, common, each, n, window, pixel_limit=PILLOW_LIMIT):
        self.window = window
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

    def __bool__(self):
        return self.common is not None or self.each is not None

    def cut(self, block, index):
        """Features of some images, NaN for patches that lie mostly outside."""
        if not self:
            return block
        outside = ~np.stack(
            [self.inside(i, block.shape[1:3], self.window) for i in index]
        )
        patches = np.array(block)
        patches[outside] = np.nan
        if isinstance(block, PatchArray):
            return PatchArray(patches, block.pooled, block.levels)
        return patches

    def inside(self, i, grid, window=((0.0, 1.0), (0.0, 1.0))):
        """Which cells of a grid over a window lie in the region of image i."""
        inside = np.ones(grid, bool)
        if self.common is not None:
            inside &= _covered(self.common, grid, window)
        if self.each is not None and self.each[i] is not None:
            with carried_limit(self.pixel_limit):
                mask = read_mask(self.each[i], where=f"regions[{i}]")
            inside &= _covered(mask, grid, window)
        return inside


def _covered(mask, grid, window):
    """Cells of which at least half the area is True."""
    (top, bottom), (left, right) = window
    height, width = mask.shape
    box = left * width, top * height, right * width, bottom * height
    picture = Image.fromarray(mask.astype(np.float32))
    share = picture.resize((grid[1], grid[0]), Image.Resampling.BOX, box=box)
    return np.asarray(share) >= 0.5

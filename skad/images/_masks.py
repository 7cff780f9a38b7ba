"""Ground-truth masks and regions of interest: what a mask may be, and how it is read.

All of skad reads masks by `read_mask`: those of metrics, of known defects in training
and synthesis, and regions of interest. A mask is

- a file that Pillow can open, or an array of NumPy in a file whose name ends in .npy;
- a list of such files, of one size: what any of them marks;
- an image of Pillow;
- an array (H, W) or (H, W, 1|3|4), or a nested list (H, W);
- a tensor of torch, (H, W) or (C, H, W);

with whole numbers from 0 on, in any dtype: bool, integers, or floats without a
fraction. Zero is normal (or outside of the region), every other value is anomalous (or
inside). So 0 and 1, 0 and 255, and one number for each type of defect mean the same.
Channels must be equal; a fourth one, transparency, is ignored. A palette image is
anomalous where its colour is not black. EXIF orientation is applied, as to images.
Height and width are those of the image as passed, where the caller knows them.

Refused, with an error that names the mask, are values that could be read in two ways:
fractions (probabilities or anomaly maps), NaN, negative numbers, differing channels,
JPEG files with values between 0 and 255, other shapes, and another size than the image.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skad.images._arrays import is_tensor, tensor_to_numpy
from skad.images._errors import Source
from skad.images._read import (
    as_path,
    is_array_file,
    opened_array,
    opened_image,
    oriented_pixels,
    oriented_pixels_of_object,
    type_name,
)


def read_mask(
    item: Any, *, where: str = "masks[0]", size: tuple[int, int] | None = None
) -> NDArray[np.bool_]:
    """Read a mask: every value other than zero is anomalous.

    A mask holds whole numbers from 0 on, in any dtype, and only zero is normal: 0 and
    1, 0 and 255, one value for each type of defect, or grey values along a smoothed
    edge. The same values give the same mask, whatever holds them. What could be read
    in two ways is refused.

    EXIF orientation is applied and a transparency channel dropped, as for images.

    Parameters
    ----------
    item : str, Path, PIL.Image.Image, ndarray, torch.Tensor or list
        A file, an image of Pillow, or an array (H, W) or (H, W, 1|3|4) of bool,
        integers or floats; a tensor (H, W) or (C, H, W); a list of H lists of W
        values; a list of files, one for each defect of the image, which are read as
        one mask. A file whose name ends in .npy holds such an array. Colour is accepted
        when the channels are equal; a palette image is anomalous wherever its colour
        is not black.
    where : str, default="masks[0]"
        Name of the item in error messages.
    size : tuple of int, optional
        (H, W) of the image, which the mask must have.

    Returns
    -------
    ndarray of shape (H, W), bool
        True is anomalous. It may share memory with `item`.

    Raises
    ------
    ImageError
        The item cannot be read, is no mask (fractions, negative values, colours, a
        JPEG file with compression noise) or has another size than `size`.

    Examples
    --------
    >>> import numpy as np
    >>> from skad.images import read_mask
    >>> read_mask(np.array([[0, 255], [0, 0]], dtype=np.uint8))
    array([[False,  True],
           [False, False]])
    >>> read_mask([[0.0, 7.0], [1.0, 0.0]])
    array([[False,  True],
           [ True, False]])
    """
    if is_list_of_files(item):
        return _union([read_mask(path, where=where, size=size) for path in item], where)
    path = as_path(item)
    source = Source(where, path)
    if path is not None and is_array_file(path):
        with opened_array(source) as stored:
            mask = _mask_of_array(_mask_array(np.array(stored), source), source)
    elif path is not None:
        with opened_image(source) as (image, _):
            mask = _mask_of_pillow(image, oriented_pixels(image, source), source)
    elif isinstance(item, Image.Image):
        mask = _mask_of_pillow(item, oriented_pixels_of_object(item, source), source)
    else:
        mask = _mask_of_array(_mask_array(item, source), source)
    if size is not None and mask.shape != tuple(size):
        raise source.error(
            f"the mask has height and width {mask.shape}, its image {tuple(size)}",
            "pass the mask in the size of the image as it was given",
        )
    return mask


def is_list_of_files(item: Any) -> bool:
    """Whether a mask is given as several files of one image."""
    return (
        isinstance(item, list | tuple)
        and len(item) > 0
        and all(as_path(path) is not None for path in item)
    )


def _union(masks: list[NDArray[np.bool_]], where: str) -> NDArray[np.bool_]:
    """Mark what any of several masks marks."""
    sizes = {mask.shape for mask in masks}
    if len(sizes) > 1:
        raise Source(where).error(
            f"the masks of one image differ in height and width: {sorted(sizes)}",
            "pass masks in the size of the image",
        )
    return np.asarray(np.logical_or.reduce(masks))


def _mask_of_pillow(
    image: Image.Image, array: NDArray[Any], source: Source
) -> NDArray[np.bool_]:
    if image.mode in ("P", "PA"):
        return np.asarray(array.any(axis=2))
    if image.format in ("JPEG", "MPO") and not np.isin(array, (0, 255)).all():
        raise source.error(
            "the JPEG mask has values between 0 and 255, which compression adds "
            "around every edge",
            "save masks as PNG, or pass an array with a threshold: values > 127",
        )
    return _mask_of_array(array, source)


def _mask_array(item: Any, source: Source) -> NDArray[Any]:
    if is_tensor(item):
        array = tensor_to_numpy(item, source)
        array = array.transpose(1, 2, 0) if array.ndim == 3 else array
    elif isinstance(item, np.ndarray) and not isinstance(item, np.ma.MaskedArray):
        array = item
    elif isinstance(item, list | tuple):
        array = _array_of_lists(item, source)
    else:
        raise source.error(
            f"{type_name(item)} is no mask",
            "a mask is a path, a PIL image, an array (H, W) or a torch tensor",
        )
    shape = array.shape
    if array.ndim == 2:
        array = array[..., np.newaxis]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or array.size == 0:
        raise source.error(
            f"the mask has shape {shape}", "a mask is (H, W), one value per pixel"
        )
    return array[..., :3]


def _array_of_lists(item: Any, source: Source) -> NDArray[Any]:
    try:
        return np.asarray(item)
    except ValueError as err:
        raise source.error(
            f"the {type_name(item).split()[1]} is no mask, its parts differ in shape",
            "a mask is (H, W), one value per pixel",
        ) from err


def _mask_of_array(array: NDArray[Any], source: Source) -> NDArray[np.bool_]:
    if array.dtype.kind not in "biuf":
        raise source.error(
            f"the mask has dtype {array.dtype}", "use bool, integers, or floats 0 and 1"
        )
    if array.dtype.kind in "if":
        _check_whole_numbers(array, source)
    if (array[..., 1:] != array[..., :1]).any():
        raise source.error(
            "the mask has colours (its channels differ)",
            "check that it is not the image itself; pass one channel",
        )
    mask = array[..., 0]
    return np.asarray(mask if mask.dtype == bool else mask != 0)


def _check_whole_numbers(array: NDArray[Any], source: Source) -> None:
    if array.dtype.kind == "f" and not (
        np.isfinite(array).all() and (np.rint(array) == array).all()
    ):
        raise source.error(
            "the mask has float values that are no whole numbers",
            "choose a threshold, for example mask > 0.5; anomaly maps are no masks",
        )
    if array.min() < 0:
        raise source.error(
            f"the mask has negative values, down to {array.min()}",
            "use 0 for normal pixels and a positive number for anomalous ones",
        )

"""Reading images and masks from files, arrays, tensors and images of Pillow.

The normal form of one image is an array (H, W, C) of uint8, or of float32 in [0, 1];
C is 1 or 3 unless another number is asked for. Nothing here needs torch; tensors are
recognised by their type.
"""

from skad.images._containers import check_images
from skad.images._errors import ImageError
from skad.images._files import content_key, image_size, list_images
from skad.images._masks import read_mask
from skad.images._read import read_image
from skad.images._resize import (
    center_crop_box,
    resize_image,
    resize_short_side,
    to_float,
)

__all__ = [
    "ImageError",
    "center_crop_box",
    "check_images",
    "content_key",
    "image_size",
    "list_images",
    "read_image",
    "read_mask",
    "resize_image",
    "resize_short_side",
    "to_float",
]

"""What the syntheses share: images as floats, boxes, and colours that are changed."""

import numpy as np

_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)


def as_float(image, name="image"):
    """An image as float32 (H, W, C) in [0, 1].

    Raises
    ------
    ValueError
        If it is anything else.
    """
    image = np.asarray(image)
    if image.ndim != 3 or 0 in image.shape:
        raise ValueError(
            f"{name} has shape {image.shape}: expected one image (H, W, C). A batch is "
            "a loop over its images."
        )
    if image.dtype == np.uint8:
        return image.astype(np.float32) / 255
    if image.dtype.kind != "f" or not (
        np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1
    ):
        raise ValueError(
            f"{name} is {image.dtype} and not in [0, 1]; pass uint8, or floats from 0 "
            "to 1."
        )
    return image.astype(np.float32)


def random_box(shape, rng, area, aspect):
    """Height and width of a box that covers a share of an image.

    `aspect` bounds height over width, drawn evenly among upright and lying boxes.
    """
    height, width = shape[:2]
    n_pixels = rng.uniform(*area) * height * width
    lying = rng.random() < 0.5
    ratio = rng.uniform(aspect[0], 1) if lying else rng.uniform(1, aspect[1])
    h, w = np.sqrt(n_pixels * ratio), np.sqrt(n_pixels / ratio)
    return (
        int(np.clip(round(h), 1, height)),
        int(np.clip(round(w), 1, width)),
    )


def random_corner(shape, box, rng):
    """Where a box lies that is inside of an image."""
    return tuple(int(rng.integers(s - b + 1)) for s, b in zip(shape, box, strict=False))


def jittered(image, rng, strength):
    """Brightness, contrast and saturation changed by random factors, in that order.

    Each factor is uniform in 1 - `strength` to 1 + `strength`.
    """
    for kind in ("brightness", "contrast", "saturation"):
        factor = np.float32(rng.uniform(max(0, 1 - strength), 1 + strength))
        image = recoloured(image, kind, factor)
    return image


def recoloured(image, kind, factor):
    """An image whose brightness, contrast or saturation is multiplied."""
    origin = np.float32(0)
    if kind == "contrast":
        origin = grey(image).mean()
    elif kind == "saturation":
        origin = grey(image)[..., None]
    return np.clip(origin + factor * (image - origin), 0, 1)


def grey(image):
    """Luminance (H, W) of an image of any number of channels."""
    if image.shape[-1] == 3:
        return image @ _LUMINANCE
    return image.mean(axis=-1)

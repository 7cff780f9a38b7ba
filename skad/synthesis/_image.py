"""Helpers of all synthetic anomalies: float images, random boxes, colour jitter."""

from typing import Any

import numpy as np

_LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)


def as_float(image: Any, name: str = "image") -> np.ndarray:
    """Convert an image to float32 (H, W, C) in [0, 1].

    Raises
    ------
    ValueError
        If it is anything else than uint8, or floats in [0, 1], of shape (H, W, C).
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


def random_box(
    shape: tuple[int, ...],
    rng: np.random.Generator,
    area: tuple[float, float],
    aspect: tuple[float, float],
) -> tuple[int, int]:
    """Sample height and width of a box that covers a share of an image.

    `aspect` bounds height over width, sampled evenly among upright and lying boxes.
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


def random_corner(
    shape: tuple[int, ...], box: tuple[int, ...], rng: np.random.Generator
) -> tuple[int, int]:
    """Sample the top left corner of a box that lies inside of an image."""
    return int(rng.integers(shape[0] - box[0] + 1)), int(
        rng.integers(shape[1] - box[1] + 1)
    )


def jittered(
    image: np.ndarray, rng: np.random.Generator, strength: float
) -> np.ndarray:
    """Change brightness, contrast and saturation by random factors, in that order.

    Each factor is uniform in 1 - `strength` to 1 + `strength`.
    """
    for change in ("brightness", "contrast", "saturation"):
        factor = np.float32(rng.uniform(max(0, 1 - strength), 1 + strength))
        image = recoloured(image, change, factor)
    return image


def recoloured(image: np.ndarray, change: str, factor: np.float32) -> np.ndarray:
    """Multiply "brightness", "contrast" or "saturation" of an image by a factor."""
    origin: Any = np.float32(0)
    if change == "contrast":
        origin = grey(image).mean()
    elif change == "saturation":
        origin = grey(image)[..., None]
    return np.clip(origin + factor * (image - origin), 0, 1)


def grey(image: np.ndarray) -> np.ndarray:
    """Luminance (H, W) of an image of any number of channels."""
    if image.shape[-1] == 3:
        return image @ _LUMINANCE
    return np.asarray(image.mean(axis=-1))

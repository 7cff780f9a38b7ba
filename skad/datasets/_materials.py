"""Procedural materials: each call renders another piece of the same material.

All lengths are in units of 1/256 of the shorter side, so that a picture of another size
shows the same scene. Images are float32 (height, width, 3), about in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray
from scipy import ndimage

Array = NDArray[np.float32]
Shape = tuple[int, int]


def unit(shape: Shape) -> float:
    """Length of one unit in pixels.

    Parameters
    ----------
    shape : tuple of int
        Height and width.

    Returns
    -------
    unit : float
        In pixels.
    """
    return min(shape) / 256


def noise(rng: RandomState, shape: Shape, sigma: float | tuple[float, float]) -> Array:
    """Gaussian noise of a given smoothness, with zero mean and unit variance.

    Parameters
    ----------
    rng : RandomState
        Source of randomness.
    shape : tuple of int
        Height and width.
    sigma : float or tuple of float
        Smoothing in pixels, one for both axes or one each.

    Returns
    -------
    field : ndarray of shape (height, width)
        Periodic at the borders, so that these look like the rest.
    """
    white = rng.standard_normal(shape).astype(np.float32)
    smooth = ndimage.gaussian_filter(white, sigma, mode="wrap", truncate=3)
    return smooth / max(float(smooth.std()), 1e-6)


def undulation(rng: RandomState, shape: Shape, cells: int) -> Array:
    """Slow random variation over the picture.

    Parameters
    ----------
    rng : RandomState
        Source of randomness.
    shape : tuple of int
        Height and width.
    cells : int
        About how many independent values fit along a side.

    Returns
    -------
    field : ndarray of shape (height, width)
        About standard normal, smooth.
    """
    coarse = rng.standard_normal((cells + 3, cells + 3)).astype(np.float32)
    grid = np.meshgrid(
        *(np.linspace(1, cells + 1, n, dtype=np.float32) for n in shape), indexing="ij"
    )
    return ndimage.map_coordinates(coarse, grid, order=3, mode="nearest")


def rotated(rng: RandomState, shape: Shape, degrees: float) -> tuple[Array, Array]:
    """Coordinates of a piece, rotated by a small random angle.

    Parameters
    ----------
    rng : RandomState
        Source of randomness.
    shape : tuple of int
        Height and width.
    degrees : float
        Standard deviation of the rotation.

    Returns
    -------
    x, y : ndarray of shape (height, width)
        In pixels, with a random origin.
    """
    angle = np.deg2rad(degrees * rng.standard_normal())
    y, x = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    shift = rng.uniform(0, 1000, size=2).astype(np.float32)
    return cos * x + sin * y + shift[0], cos * y - sin * x + shift[1]


def colored(weight: Array, low: Sequence[float], high: Sequence[float]) -> Array:
    """Mix two colours.

    Parameters
    ----------
    weight : ndarray of shape (height, width)
        0 gives the first colour, 1 the second.
    low, high : sequence of 3 floats
        Red, green and blue in [0, 1].

    Returns
    -------
    image : ndarray of shape (height, width, 3)
        The mixture.
    """
    first, second = np.array(low, np.float32), np.array(high, np.float32)
    return first + weight[..., None] * (second - first)


class Weave:
    """A plain weave of dark warp and light weft yarns.

    Parameters
    ----------
    rng : RandomState
        Source of randomness.
    shape : tuple of int
        Height and width.

    Attributes
    ----------
    x, y : ndarray of shape (height, width)
        Position in yarns: the integer part is the number of a warp or weft yarn.
    """

    warp = ((0.10, 0.15, 0.24), (0.36, 0.46, 0.58))
    weft = ((0.42, 0.40, 0.35), (0.90, 0.86, 0.77))
    ground = (0.05, 0.05, 0.07)

    def __init__(self, rng: RandomState, shape: Shape) -> None:
        pitch = 11 * unit(shape)
        x, y = rotated(rng, shape, 1.2)
        bend = [2.2 * unit(shape) * undulation(rng, shape, 4) for _ in range(2)]
        self.x, self.y = (x + bend[0]) / pitch, (y + bend[1]) / pitch
        # Yarns differ a little in thickness, shade and place.
        self.shades = 1 + 0.07 * rng.standard_normal((2, 512)).astype(np.float32)
        self.thickness = 1 + 0.06 * rng.standard_normal((2, 512)).astype(np.float32)
        blur = 0.7 * unit(shape)
        self.fibres = (
            noise(rng, shape, (5 * blur, blur)),
            noise(rng, shape, (blur, 5 * blur)),
        )

    def yarn(self, axis: int) -> tuple[Array, Array, NDArray[np.intp]]:
        """Height and light of the yarns of one direction.

        Parameters
        ----------
        axis : int
            0 for warp (upright), 1 for weft.

        Returns
        -------
        height, light, number : ndarray of shape (height, width)
            Height is negative where there is no yarn.
        """
        across, along = (self.x, self.y) if axis == 0 else (self.y, self.x)
        number = np.floor(across).astype(np.intp)
        offset = 2 * (across - number) - 1
        round_ = 1 - (offset / (0.93 * self.thickness[axis][number % 512])) ** 2
        crossing = np.pi * (along - 0.5 + number + axis)
        height = round_ + 0.75 * np.cos(crossing)
        light = 0.42 + 0.42 * np.clip(round_, 0, 1) + 0.16 * np.cos(crossing)
        light -= 0.13 * offset  # the lamp stands to one side
        light *= self.shades[axis][number % 512]
        light += 0.055 * self.fibres[axis]
        return np.where(round_ > 0, height, -2), np.clip(light, 0, 1.2), number

    def render(self, without: NDArray[np.bool_] | None = None) -> Array:
        """Render the weave.

        Parameters
        ----------
        without : ndarray of shape (height, width), optional
            Where warp yarns are missing.

        Returns
        -------
        image : ndarray of shape (height, width, 3)
            The picture.
        """
        warp_height, warp_light, _ = self.yarn(0)
        weft_height, weft_light, _ = self.yarn(1)
        if without is not None:
            warp_height = np.where(without, -2, warp_height)
        image = np.where(
            (warp_height > weft_height)[..., None],
            colored(warp_light, *self.warp),
            colored(weft_light, *self.weft),
        )
        top = np.maximum(warp_height, weft_height)
        depth = np.clip(0.55 + 0.45 * top, 0.0, 1)[..., None]  # gaps lie in shadow
        ground = np.array(self.ground, np.float32)
        return np.asarray(ground * (1 - depth) + image * depth, np.float32)


def weave(rng: RandomState, shape: Shape) -> Array:
    """Render woven fabric.

    Parameters
    ----------
    rng : RandomState
        Source of randomness.
    shape : tuple of int
        Height and width.

    Returns
    -------
    image : ndarray of shape (height, width, 3)
        The picture.
    """
    return Weave(rng, shape).render()


def metal(rng: RandomState, shape: Shape) -> Array:
    """Render brushed metal.

    Parameters
    ----------
    rng : RandomState
        Source of randomness.
    shape : tuple of int
        Height and width.

    Returns
    -------
    image : ndarray of shape (height, width, 3)
        The picture.
    """
    u = unit(shape)
    lines = (
        0.50 * noise(rng, shape, (0.5 * u, 70 * u))
        + 0.38 * noise(rng, shape, (0.9 * u, 22 * u))
        + 0.30 * noise(rng, shape, (3.0 * u, 110 * u))
    )
    tilt = rng.normal(0, 0.012)
    slanted = ndimage.affine_transform(
        lines, [[1, tilt], [0, 1]], order=1, mode="grid-wrap"
    )
    # A soft reflection of the lamp runs along the brushing.
    y = np.linspace(-1, 1, shape[0], dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, shape[1], dtype=np.float32)[None]
    centre = rng.normal(-0.15, 0.2) + 0.06 * x
    gleam = np.exp(-(((y - centre) / 0.55) ** 2))
    light = 0.47 + 0.20 * gleam + 0.075 * slanted * (0.75 + 0.5 * gleam)
    light += 0.012 * undulation(rng, shape, 5)
    return colored(np.clip(light, 0, 1), (0.03, 0.035, 0.05), (0.97, 0.975, 0.98))


def granite(rng: RandomState, shape: Shape) -> Array:
    """Render polished granite.

    Parameters
    ----------
    rng : RandomState
        Source of randomness.
    shape : tuple of int
        Height and width.

    Returns
    -------
    image : ndarray of shape (height, width, 3)
        The picture.
    """
    u = unit(shape)
    coarse, middle = noise(rng, shape, 4.5 * u), noise(rng, shape, 2.6 * u)
    fine = noise(rng, shape, 1.1 * u)
    image = colored(
        np.clip(0.55 + 0.16 * coarse + 0.07 * fine, 0, 1),
        (0.45, 0.43, 0.44),
        (0.80, 0.77, 0.75),
    )
    feldspar = _soft(coarse + 0.45 * middle + 0.25 * fine - 1.05, 0.25)
    image = _paint(
        image,
        feldspar,
        np.array((0.79, 0.60, 0.53), np.float32) + 0.03 * fine[..., None],
    )
    quartz = _soft(middle - 0.5 * coarse + 0.3 * fine - 1.35, 0.25)
    image = _paint(
        image, quartz, np.array((0.90, 0.90, 0.90), np.float32) + 0.02 * fine[..., None]
    )
    mica = _soft(noise(rng, shape, 1.7 * u) + 0.4 * fine - 1.75, 0.3)
    return _paint(
        image, mica, np.array((0.13, 0.12, 0.14), np.float32) + 0.04 * fine[..., None]
    )


def _soft(field: NDArray[np.floating], width: float) -> Array:
    """Turn a signed field into opacity, with a soft edge."""
    return np.clip(field / width + 0.5, 0, 1)


def _paint(image: Array, opacity: Array, color: Array) -> Array:
    return image + opacity[..., None] * (color - image)

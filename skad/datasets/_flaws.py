"""Procedural defects: each takes a picture and returns it with a defect, and its mask.

Strengths vary and blend with the material, so that some defects are hard to see.
"""

from __future__ import annotations

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray
from scipy import ndimage

from skad.datasets._materials import Array, Shape, Weave, noise, undulation, unit

Flawed = tuple[Array, NDArray[np.bool_]]
_VISIBLE_CHANGE = 0.25  # opacity from which a pixel belongs to the mask


def _center(rng: RandomState, shape: Shape, margin: float = 0.2) -> NDArray[np.float64]:
    """Sample a point away from the border."""
    return (margin + (1 - 2 * margin) * rng.uniform(size=2)) * shape


def _radius(shape: Shape, at: NDArray[np.float64]) -> Array:
    y, x = np.ogrid[: shape[0], : shape[1]]
    return np.hypot(y - at[0], x - at[1]).astype(np.float32)


def _blob(rng: RandomState, shape: Shape, radius: float, roughness: float) -> Array:
    """Distance into an irregular disc, in pixels: positive inside."""
    at = _center(rng, shape)
    y, x = np.ogrid[: shape[0], : shape[1]]
    stretch = rng.uniform(0.65, 1.0)
    angle = rng.uniform(0, np.pi)
    along = np.cos(angle) * (x - at[1]) + np.sin(angle) * (y - at[0])
    across = np.cos(angle) * (y - at[0]) - np.sin(angle) * (x - at[1])
    distance = np.hypot(along, across / stretch).astype(np.float32)
    wobble = undulation(rng, shape, 9) + 0.5 * undulation(rng, shape, 22)
    return radius * (1 + roughness * wobble) - distance


def _path(rng: RandomState, shape: Shape, length: float, jitter: float) -> NDArray:
    """Sample a slightly bent line: its points, about one per pixel."""
    n = max(int(length), 4)
    heading = rng.uniform(0, 2 * np.pi) + np.linspace(-1, 1, n) * rng.normal(0, 0.35)
    if jitter:
        turns = np.repeat(rng.normal(0, jitter, n // 6 + 1), 6)[:n]
        heading = heading + ndimage.gaussian_filter1d(turns, 1.5)
    steps = np.stack([np.sin(heading), np.cos(heading)], axis=1)
    points = np.cumsum(steps, axis=0)
    return points - points.mean(axis=0) + _center(rng, shape, 0.3)


def _distance_to(points: NDArray, shape: Shape) -> tuple[Array, Array]:
    """Distance of each pixel to a path, and how far along (0 to 1) its foot lies."""
    rounded = np.round(points).astype(int)
    inside = ((rounded >= 0) & (rounded < shape)).all(axis=1)
    far = np.ones(shape, dtype=bool)
    along = np.zeros(shape, dtype=np.float32)
    rows, columns = rounded[inside].T
    far[rows, columns] = False
    along[rows, columns] = np.linspace(0, 1, len(points))[inside]
    distance, foot = ndimage.distance_transform_edt(far, return_indices=True)
    return distance.astype(np.float32), along[tuple(foot)]


def _mix(image: Array, opacity: Array, color: Array | float) -> Array:
    return image + opacity[..., None] * (color - image)


def _mask(opacity: Array) -> NDArray[np.bool_]:
    """Mask of the pixels that changed visibly, at least one."""
    return opacity >= min(_VISIBLE_CHANGE, float(opacity.max()))


def scratch(rng: RandomState, image: Array) -> Flawed:
    """Scratch: a bright bent line with a dark edge, thinner towards its ends."""
    shape = image.shape[:2]
    u = unit(shape)
    points = _path(rng, shape, rng.uniform(60, 150) * u, 0.0)
    distance, along = _distance_to(points, shape)
    width = u * rng.uniform(0.9, 1.7) * np.sqrt(np.clip(4 * along * (1 - along), 0, 1))
    skips = np.clip(1.1 + 0.5 * undulation(rng, shape, 16), 0.25, 1)
    opacity = np.clip(width + 0.8 - distance, 0, 1) * skips * (width > 0.2 * u)
    edge = np.clip(width + 2.2 * u - distance, 0, 1) * skips * (width > 0.2 * u)
    strength = rng.uniform(0.55, 0.95)
    dark = _mix(image, 0.45 * strength * edge, image * 0.45)
    return _mix(dark, strength * opacity, 0.93), _mask(np.maximum(opacity, 0.6 * edge))


def crack(rng: RandomState, image: Array) -> Flawed:
    """Crack: a thin, jagged dark line, sometimes with a branch."""
    shape = image.shape[:2]
    u = unit(shape)
    trunk = _path(rng, shape, rng.uniform(70, 160) * u, 0.6)
    opacity = np.zeros(shape, dtype=np.float32)
    branches = [trunk]
    for _ in range(rng.randint(0, 3)):
        branch = _path(rng, shape, rng.uniform(20, 50) * u, 0.6)
        branches.append(branch - branch[0] + trunk[rng.randint(len(trunk))])
    for points in branches:
        distance, along = _distance_to(points, shape)
        width = u * rng.uniform(0.5, 1.1) * (1.1 - along)
        opacity = np.maximum(opacity, np.clip(width + 0.9 - distance, 0, 1))
    opacity *= np.clip(0.95 + 0.25 * undulation(rng, shape, 14), 0.4, 1)
    lip = np.roll(opacity, (1, 1), axis=(0, 1)) * 0.25
    image = _mix(image, lip, 0.95)
    return _mix(image, opacity * rng.uniform(0.7, 0.95), 0.07), _mask(opacity)


def stain(rng: RandomState, image: Array) -> Flawed:
    """Stain: a translucent patch with a darker rim."""
    shape = image.shape[:2]
    u = unit(shape)
    inside = _blob(rng, shape, rng.uniform(14, 34) * u, 0.16)
    body = np.clip(inside / (3 * u) + 0.5, 0, 1)
    rim = np.exp(-(((inside - 2 * u) / (2.2 * u)) ** 2))
    tint = np.array(
        [(0.62, 0.42, 0.24), (0.30, 0.30, 0.34), (0.50, 0.52, 0.32)], np.float32
    )
    color = tint[rng.randint(len(tint))]
    cloudy = 1 + 0.15 * undulation(rng, shape, 8)
    amount = rng.uniform(0.45, 0.8) * np.clip(0.72 * body * cloudy + 0.4 * rim, 0, 1)
    return image * (1 - amount[..., None] * (1 - color)), _mask(body)


def spots(rng: RandomState, image: Array) -> Flawed:
    """Spots: a few specks of dirt or paint."""
    shape = image.shape[:2]
    u = unit(shape)
    palette = np.array(
        [(0.08, 0.07, 0.06), (0.93, 0.92, 0.88), (0.46, 0.16, 0.10)], np.float32
    )
    color = palette[rng.randint(len(palette))]
    first = _center(rng, shape)
    total = np.zeros(shape, dtype=np.float32)
    for _ in range(rng.randint(2, 6)):
        at = first + rng.normal(0, 20, size=2) * u
        radius = rng.uniform(2.0, 6.5) * u
        wobble = 1 + 0.16 * undulation(rng, shape, 24)
        opacity = np.clip((radius * wobble - _radius(shape, at)) / u + 0.5, 0, 1)
        total = np.maximum(total, opacity)
    if not total.any():  # all specks fell beside the picture
        total = np.clip(4 * u - _radius(shape, first), 0, 1)
    grain = np.clip(1 + 0.12 * noise(rng, shape, 0.8 * u), 0, 1)
    return _mix(image, rng.uniform(0.6, 0.95) * total * grain, color), _mask(total)


def dent(rng: RandomState, image: Array) -> Flawed:
    """Dent: a hollow that is dark towards the lamp and bright away from it."""
    shape = image.shape[:2]
    u = unit(shape)
    radius = rng.uniform(10, 22) * u
    inside = _blob(rng, shape, radius, 0.08)
    depth = np.clip(inside / radius + 0.25, 0, 1) ** 1.5
    slope_y, slope_x = np.gradient(ndimage.gaussian_filter(depth, 1.5 * u))
    angle = rng.uniform(-0.5, 0.5)
    shade = radius * (np.cos(angle) * slope_y + np.sin(angle) * slope_x)
    shift = 2.5 * u * depth
    rows, columns = np.mgrid[: shape[0], : shape[1]].astype(np.float32)
    bent = np.stack(
        [
            ndimage.map_coordinates(
                image[..., k], [rows + shift, columns], order=1, mode="nearest"
            )
            for k in range(3)
        ],
        axis=-1,
    )
    strength = rng.uniform(0.14, 0.26)
    return bent + strength * np.clip(shade, -2, 2)[..., None], inside > -0.1 * radius


def tear(rng: RandomState, image: Array) -> Flawed:
    """Tear: a dark hole with a frayed edge."""
    shape = image.shape[:2]
    u = unit(shape)
    inside = _blob(rng, shape, rng.uniform(7, 16) * u, 0.25)
    inside = inside + 1.6 * u * noise(rng, shape, 1.3 * u)
    hole = np.clip(inside / u + 0.5, 0, 1)
    shadow = np.clip(inside / (5 * u) + 0.8, 0, 1)
    fluff = np.clip(noise(rng, shape, (0.6 * u, 1.2 * u)) - 1.0, 0, 1) * (shadow > 0.2)
    image = _mix(image, 0.5 * shadow, image * 0.5)
    image = _mix(image, 0.92 * hole, np.array((0.05, 0.045, 0.05), np.float32))
    return _mix(image, 0.5 * fluff, 0.8), _mask(hole)


def missing_yarn(rng: RandomState, shape: Shape) -> Flawed:
    """Missing yarn: one or two warp yarns end, the weft lies open."""
    cloth = Weave(rng, shape)
    row, column = _center(rng, shape, 0.3).astype(int)
    first = np.floor(cloth.x[row, column])
    number = np.floor(cloth.x)
    gap = (number >= first) & (number < first + rng.randint(1, 3))
    half = rng.uniform(2.5, 7.5)
    gap &= np.abs(cloth.y - cloth.y[row, column]) < half
    return cloth.render(without=gap), gap

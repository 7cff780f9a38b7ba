"""Generated pictures of materials with defects, for examples and tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
from numpy.random import RandomState
from numpy.typing import NDArray
from sklearn.utils import Bunch, check_random_state

from skad._checks import check_size
from skad.datasets import _flaws, _materials
from skad.datasets._flaws import Flawed
from skad.datasets._materials import Array, Shape

_MATERIALS: dict[str, Callable[[RandomState, Shape], Array]] = {
    "fabric": _materials.weave,
    "metal": _materials.metal,
    "granite": _materials.granite,
}
_FLAWS: dict[str, tuple[str, ...]] = {
    "fabric": ("missing_yarn", "spots", "stain", "tear"),
    "metal": ("dent", "scratch", "spots", "stain"),
    "granite": ("crack", "scratch", "spots", "stain"),
}


def make_textures(
    n_normal: int = 60,
    n_anomalous: int = 20,
    *,
    n_test_normal: int | None = None,
    texture: str = "fabric",
    size: int | tuple[int, int] = 256,
    defect_types: Sequence[str] | None = None,
    random_state: int | RandomState | None = None,
) -> Bunch:
    """Generate pictures of a material, normal ones and some with defects.

    Every picture is another piece of the same material: place, rotation, bending,
    light and noise vary. Defects differ in type, size and strength.

    Parameters
    ----------
    n_normal : int, default=60
        Number of normal images to learn from.
    n_anomalous : int, default=20
        Number of test images with a defect.
    n_test_normal : int, optional
        Number of normal test images; by default as many as `n_anomalous`.
    texture : {"fabric", "metal", "granite"}, default="fabric"
        The material: woven fabric, brushed metal or polished granite.
    size : int or tuple of int, default=256
        Height and width, at least 32. The scene is scaled to it.
    defect_types : sequence of str, optional
        Types of defects, taken in turn. Fabric has "missing_yarn", "spots", "stain" and
        "tear", metal "dent", "scratch", "spots" and "stain", granite "crack",
        "scratch", "spots" and "stain". By default all types of the material.
    random_state : int, RandomState instance or None, default=None
        Pass an int for the same images, bit for bit, on every call.

    Returns
    -------
    data : Bunch
        `train` : uint8 array (n_normal, height, width, 3), normal images;
        `test` : uint8 array (n_test, height, width, 3), normal images first;
        `y_train`, `y_test` : +1 for normal, -1 for defective images;
        `masks` : bool array (n_test, height, width), True is defective;
        `defect_types` : list of length n_test, "good" or the type of defect.

    Raises
    ------
    ValueError
        If a number is negative, the size too small, or a name unknown.

    Examples
    --------
    >>> from skad.datasets import make_textures
    >>> data = make_textures(4, 2, size=64, random_state=0)
    >>> data.train.shape, data.test.shape
    ((4, 64, 64, 3), (4, 64, 64, 3))
    >>> data.defect_types
    ['good', 'good', 'missing_yarn', 'spots']
    """
    shape = _check_size(size)
    n_normal_test = n_anomalous if n_test_normal is None else n_test_normal
    numbers = {
        "n_normal": n_normal,
        "n_anomalous": n_anomalous,
        "n_test_normal": n_normal_test,
    }
    for name, number in numbers.items():
        if not isinstance(number, Integral) or number < 0:
            raise ValueError(f"{name} must be an integer >= 0, got {number!r}.")
    types = _check_defect_types(texture, defect_types)
    # One seed per image: an image does not depend on how many others there are.
    rng = check_random_state(random_state)
    seeds = [rng.randint(2**31 - 1, size=2**16 - 1) for _ in range(3)]
    flaws = [types[i % len(types)] for i in range(n_anomalous)]
    pictures: list[tuple[int, str | None]]
    pictures = [(seeds[1][i % (2**16 - 1)], None) for i in range(n_normal_test)]
    pictures += [(seeds[2][i % (2**16 - 1)], flaw) for i, flaw in enumerate(flaws)]
    train = np.empty((n_normal, *shape, 3), dtype=np.uint8)
    for i in range(n_normal):
        train[i], _ = _picture(seeds[0][i % (2**16 - 1)], texture, shape, None)
    test = np.empty((len(pictures), *shape, 3), dtype=np.uint8)
    masks = np.zeros((len(pictures), *shape), dtype=bool)
    for i, (seed, flaw) in enumerate(pictures):
        test[i], masks[i] = _picture(seed, texture, shape, flaw)
    return Bunch(
        train=train,
        test=test,
        y_train=np.ones(n_normal, dtype=np.int64),
        y_test=np.repeat(
            np.array([1, -1], dtype=np.int64), [n_normal_test, n_anomalous]
        ),
        masks=masks,
        defect_types=["good"] * n_normal_test + flaws,
    )


def _check_size(size: Any) -> Shape:
    height, width = check_size(size, allow_int=True)
    if min(height, width) < 32:
        raise ValueError(f"size={size!r} must be at least 32 pixels high and wide.")
    return height, width


def _check_defect_types(texture: str, names: Sequence[str] | None) -> Sequence[str]:
    if texture not in _MATERIALS:
        raise ValueError(
            f"texture must be one of {', '.join(_MATERIALS)}, got {texture!r}."
        )
    known = _FLAWS[texture]
    if names is None:
        return known
    unknown = [name for name in names if name not in known]
    if isinstance(names, str) or unknown or not names:
        raise ValueError(
            f"defect_types must be a list of names, of {', '.join(known)} for "
            f"{texture}, got {names!r}."
        )
    return names


def _picture(
    seed: int, texture: str, shape: Shape, flaw: str | None
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Render one photograph: material, defect, light, sensor."""
    rng = RandomState(seed)
    image, mask = _scene(rng, texture, shape, flaw)
    lit = image * _light(rng, shape)[..., None]
    noisy = 255 * lit + rng.normal(0, 2.2, size=(*shape, 1)).astype(np.float32)
    return np.clip(np.round(noisy), 0, 255).astype(np.uint8), mask


def _scene(rng: RandomState, texture: str, shape: Shape, flaw: str | None) -> Flawed:
    if flaw == "missing_yarn":
        return _flaws.missing_yarn(rng, shape)
    image = _MATERIALS[texture](rng, shape)
    if flaw is None:
        return image, np.zeros(shape, dtype=bool)
    return getattr(_flaws, flaw)(rng, image)


def _light(rng: RandomState, shape: Shape) -> Array:
    """Exposure, fall-off to one side and to the corners."""
    y = np.linspace(-1, 1, shape[0], dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, shape[1], dtype=np.float32)[None]
    tilt = rng.normal(0, 0.045, size=2).astype(np.float32)
    corners = np.float32(rng.uniform(0.03, 0.09))
    exposure = np.float32(rng.normal(1, 0.035))
    return exposure * (1 + tilt[0] * x + tilt[1] * y - corners * (x**2 + y**2))

"""From patch grids to pixels: upsampling, smoothing and undoing a crop.

Upsampling and Gaussian smoothing are linear and separable, so both together are
one small matrix per image axis: a map of any size costs two thin matrix products.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from scipy.ndimage import gaussian_filter1d

from skad._frame import WHOLE, Window
from skad._kept import byte_bounded
from skad._matrices import product
from skad._memory import require_memory


def render(
    grids: np.ndarray,
    size: tuple[int, int],
    *,
    sigma: float = 4.0,
    window: Window = WHOLE,
    interpolation: str = "bilinear",
) -> np.ndarray:
    """Render patch grids at pixel size.

    Interpolation with half-pixel centres, then a Gaussian with `scipy.ndimage`
    borders (edge pixels repeated).

    Parameters
    ----------
    grids : ndarray of shape (n, h, w)
        Patch scores, larger is more anomalous.

    size : (int, int)
        Height and width of the result in pixels.

    sigma : float, default=4.0
        Standard deviation of the Gaussian in pixels of the result; 0 leaves
        it out.

    window : ((float, float), (float, float)), default=((0, 1), (0, 1))
        The part of the image that the grid covers, as fractions of its height
        and of its width. Outside, each map takes the smallest score of its
        grid: what the model did not get must not exceed a threshold.

    interpolation : {"bilinear", "bicubic"}, default="bilinear"
        "bicubic" is Keys' cubic convolution with a = -0.75, as in torch; it
        may overshoot the range of the grid.

    Returns
    -------
    maps : ndarray of shape (n, H, W), float32

    Examples
    --------
    >>> import numpy as np
    >>> from skad._maps import render
    >>> render(np.array([[[0.0, 1.0]]]), (1, 4), sigma=0)
    array([[[0.  , 0.25, 0.75, 1.  ]]], dtype=float32)
    """
    height, width = size
    (rows, top), (cols, left) = _operators(
        grids.shape[1:], size, sigma, window, interpolation
    )
    maps = np.empty((len(grids), height, width), np.float32)
    if len(rows) < height or len(cols) < width:
        maps[:] = grids.min(axis=(1, 2))[:, None, None]
    covered = maps[:, top : top + len(rows), left : left + len(cols)]
    for pixels, grid in zip(covered, np.asarray(grids, np.float32), strict=True):
        pixels[...] = product(product(rows, grid), cols.T)
    return maps


def axis_operators(
    grid: Sequence[int],
    size: tuple[int, int],
    sigma: float,
    window: Window,
    interpolation: str,
) -> tuple[Any, ...]:
    """Matrices from the rows and from the columns of a grid to those of pixels.

    Only pixels inside of the window have a row in them.
    """
    operators = _operators(grid, size, sigma, window, interpolation)
    return tuple(operator for operator, _ in operators)


def _operators(
    grid: Sequence[int],
    size: tuple[int, int],
    sigma: float,
    window: Window,
    interpolation: str,
) -> tuple[Any, ...]:
    kernel = _KERNELS[interpolation]
    return tuple(
        _axis_operator(n_cells, n_pixels, start, stop, sigma, kernel)
        for n_cells, n_pixels, (start, stop) in zip(grid, size, window, strict=True)
    )


def render_each(
    render_grids: Callable[..., np.ndarray],
    grids: np.ndarray,
    sizes: Sequence[tuple[int, int] | None],
    windows: Sequence[Window],
    unknown: Callable[[], tuple[int, int]],
) -> np.ndarray | list[np.ndarray]:
    """Render each patch grid at the size of its image.

    Parameters
    ----------
    render_grids : callable
        ``render_grids(grids, size, window=window)``, as `render`.

    grids : ndarray of shape (n, h, w)

    sizes : sequence of n (int, int) or None
        None for an image that could not be read: its grid is NaN. It takes the first
        size that is known, so that one such image leaves the others in one array.

    windows : sequence of n ((float, float), (float, float))
        As `window` in `render`, for each image.

    unknown : callable
        Gives the size of all maps where none is known.

    Returns
    -------
    maps : ndarray of shape (n, H, W), float32, or list of (H, W) arrays
        A list where sizes differ.
    """
    known = [size for size in sizes if size is not None] or [unknown()]
    sizes = [known[0] if size is None else size for size in sizes]
    if len(set(sizes)) == len(set(windows)) == 1:
        return render_grids(grids, sizes[0], window=windows[0])
    maps = [
        render_grids(grids[i : i + 1], size, window=window)[0]
        for i, (size, window) in enumerate(zip(sizes, windows, strict=True))
    ]
    return np.stack(maps) if len(set(sizes)) == 1 else maps


def require_memory_for_maps(sizes: Sequence[tuple[int, int] | None]) -> None:
    """Refuse maps of these sizes (H, W) where memory cannot hold them together."""
    require_memory(
        4.0 * sum(size[0] * size[1] for size in sizes if size is not None),
        f"an array of {len(sizes)} anomaly maps",
        "Take skad.inspect, which gives one map at a time; or pass fewer images, or a "
        "smaller size=(height, width).",
    )


def masks_above(
    maps: np.ndarray | list[np.ndarray],
    threshold: Callable[[Any, Window], float],
    windows: Sequence[Window],
) -> np.ndarray | list[np.ndarray]:
    """Mark where each map exceeds ``threshold(size, window)``."""
    shapes = [(m.shape, window) for m, window in zip(maps, windows, strict=True)]
    thresholds = {shape: threshold(*shape) for shape in set(shapes)}
    masks = [m > thresholds[shape] for m, shape in zip(maps, shapes, strict=True)]
    return np.stack(masks) if isinstance(maps, np.ndarray) else masks


@byte_bounded(2**26)
def _axis_operator(
    n_cells: int,
    n_pixels: int,
    start: float,
    stop: float,
    sigma: float,
    kernel: Callable[..., Any],
) -> tuple[Any, int]:
    """Matrix (pixels inside the window, cells) and the first such pixel."""
    position = (np.arange(n_pixels) + 0.5) / n_pixels
    inside = np.flatnonzero((position >= start) & (position < stop))
    if len(inside) == 0:  # a window thinner than one pixel
        inside = np.array([int((start + stop) / 2 * n_pixels)])
    cell = (position[inside] - start) / (stop - start) * n_cells - 0.5
    low = np.floor(cell).astype(int)
    operator = np.zeros((len(inside), n_cells))
    for offset, weights in kernel(cell - low):  # cells beyond the edge repeat it
        at = np.clip(low + offset, 0, n_cells - 1)
        np.add.at(operator, (np.arange(len(inside)), at), weights)
    if sigma > 0:
        operator = gaussian_filter1d(operator, sigma, axis=0, mode="reflect")
    operator = operator.astype(np.float32)
    operator.flags.writeable = False
    return operator, int(inside[0])


def _linear(t: np.ndarray) -> tuple[tuple[int, np.ndarray], ...]:
    """Offsets of cells and their weights, at a fraction t behind the first cell."""
    return (0, 1 - t), (1, t)


def _cubic(t: np.ndarray, a: float = -0.75) -> tuple[tuple[int, np.ndarray], ...]:
    """As `_linear`, for the cubic convolution of R. G. Keys (1981) with a = -0.75."""

    def near(x: np.ndarray) -> np.ndarray:
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x: np.ndarray) -> np.ndarray:
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    return (-1, far(1 + t)), (0, near(t)), (1, near(1 - t)), (2, far(2 - t))


_KERNELS = {"bilinear": _linear, "bicubic": _cubic}

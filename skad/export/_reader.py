"""From raw images to what a model gets, as Pillow and skad compute it.

Pillow resizes in two passes, one along each axis. A pass is a matrix product with
weights that are rounded to 22 binary places, and its result is rounded to 8 bits. In
float64 such products of integers are exact, so that no pixel differs. Which axis comes
first depends on the sizes and on Pillow's version; a probe image tells.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image
from torch import nn

from skad._frame import Frame, central_offset
from skad.images._read import resized

_PRECISION_BITS = 22  # of Pillow's weights
_SCALE = 2**_PRECISION_BITS
_OUTPUTS_AT_ONCE = 16  # new pixels that are computed from one block of old ones
# Pillow's weights of red, green and blue in a grey value, in 1 / 65536.
_LUMINANCE = (19595, 38470, 7471)


class Reader(nn.Module):
    """Raw images as a model gets them: float32 (n, h, w, c) in [0, 1].

    It does to uint8 (n, H, W, C) what `skad.images` does when it reads images. C is 3
    for models of grey or colour images, else their number of channels c.

    Parameters
    ----------
    raw : (int, int)
        Height and width of the raw images.

    frame : Frame
        What they are resized to, and the centre that is kept.

    n_channels : int
        Channels c of the model.
    """

    def __init__(
        self,
        raw: tuple[int, int],
        frame: Frame,
        n_channels: int,
    ) -> None:
        super().__init__()
        self.is_grey = n_channels == 1
        size = frame.resized(raw)
        self.resize = Resize(raw, size, 3 if n_channels == 3 else 1)
        self.size, self.crop = size, frame.crop

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Images (n, h, w, c) from raw ones (n, H, W, C)."""
        x = self.resize(_grey(image) if self.is_grey else image)
        if self.crop is not None:
            top, left = central_offset(self.size, self.crop)
            x = x[:, top : top + self.crop[0], left : left + self.crop[1]]
        return x.to(torch.float32) / 255.0


def _grey(x: torch.Tensor) -> torch.Tensor:
    """Pillow's grey (n, H, W, 1), uint8, from colour (n, H, W, 3)."""
    weights = torch.tensor(_LUMINANCE, dtype=torch.int32)
    total = (x.to(torch.int32) * weights).sum(dim=3, keepdim=True, dtype=torch.int32)
    rounded = torch.div(total + 32768, 65536, rounding_mode="trunc")
    return rounded.to(torch.uint8)


class Resize(nn.Module):
    """Pillow's bilinear resize of uint8 (n, H, W, c) to another height and width.

    Parameters
    ----------
    raw, size : (int, int)
        Height and width before and after.

    n_channels : int
        Channels that Pillow resizes together, 1 or 3.
    """

    def __init__(
        self, raw: tuple[int, int], size: tuple[int, int], n_channels: int
    ) -> None:
        super().__init__()
        self.size = size
        self.columns = _pass(raw[1], size[1])
        self.rows = _pass(raw[0], size[0])
        self.rows_first = False
        if self.columns is None or self.rows is None:
            return
        probe = np.random.default_rng(0).integers(0, 256, (*raw, n_channels), np.uint8)
        known = resized(probe, *size, Image.Resampling.BILINEAR)
        for rows_first in (False, True):
            self.rows_first = rows_first
            found = self(torch.from_numpy(probe[None]))[0].numpy()
            if np.array_equal(found, known):
                return
        raise NotImplementedError(
            f"to_onnx: Pillow {PIL.__version__} resizes {raw} to {size} in a way that "
            "skad does not know; install another version of Pillow, or export for "
            f"images of image_size={size}."
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images (n, h, w, c), uint8."""
        if self.rows_first:
            return self._along_columns(self._along_rows(x))
        return self._along_rows(self._along_columns(x))

    def _along_columns(self, x: torch.Tensor) -> torch.Tensor:
        if self.columns is None:
            return x
        n, height, width, c = x.shape
        x = x.permute(0, 2, 1, 3).reshape(n, width, height * c)
        x = self.columns(x).reshape(n, self.size[1], height, c)
        return x.permute(0, 2, 1, 3)

    def _along_rows(self, x: torch.Tensor) -> torch.Tensor:
        if self.rows is None:
            return x
        n, height, width, c = x.shape
        x = self.rows(x.reshape(n, height, width * c))
        return x.reshape(n, self.size[0], width, c)


def _pass(n_old: int, n_new: int) -> "ResizePass | None":
    """Pass along one axis; None where Pillow leaves the axis as it is."""
    return None if n_old == n_new else ResizePass(n_old, n_new)


class ResizePass(nn.Module):
    """Pillow's bilinear resize along the second axis of (n, length, others).

    New pixels are computed some at a time, each block from the old pixels around it: a
    matrix over all old pixels would be zero for most of them.

    Parameters
    ----------
    n_old, n_new : int
        Length of the axis before and after.
    """

    old: torch.Tensor
    weights: torch.Tensor

    def __init__(self, n_old: int, n_new: int) -> None:
        super().__init__()
        self.n_new = n_new
        first, table = pillow_weights(n_old, n_new)
        starts = np.arange(0, n_new, _OUTPUTS_AT_ONCE)
        stops = np.minimum(starts + _OUTPUTS_AT_ONCE, n_new)
        lows = first[starts]
        length = max(
            int(first[stop - 1]) + table.shape[1] - int(low)
            for low, stop in zip(lows, stops, strict=True)
        )
        weights = np.zeros((len(starts), _OUTPUTS_AT_ONCE, length))
        for block, (start, stop) in enumerate(zip(starts, stops, strict=True)):
            for new in range(start, stop):
                at = first[new] - lows[block]
                weights[block, new - start, at : at + table.shape[1]] = table[new]
        # Where a block reaches beyond the edge, its weights are zero there.
        old = np.minimum(lows[:, None] + np.arange(length), n_old - 1)
        self.length = length
        self.register_buffer("old", torch.from_numpy(old.ravel()))
        self.register_buffer("weights", torch.from_numpy(weights))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """New pixels (n, n_new, others), whole numbers from 0 to 255, as uint8."""
        blocks = x.index_select(1, self.old)
        blocks = blocks.reshape(x.shape[0], -1, self.length, x.shape[2])
        total = torch.matmul(self.weights, blocks.to(torch.float64))
        total = total.reshape(x.shape[0], -1, x.shape[2])[:, : self.n_new]
        rounded = torch.floor((total + _SCALE / 2) / _SCALE)
        return rounded.clamp(0, 255).to(torch.uint8)


def pillow_weights(n_old: int, n_new: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights of old pixels in each new one, as Pillow's bilinear filter has them.

    Parameters
    ----------
    n_old, n_new : int
        Number of pixels before and after.

    Returns
    -------
    first : ndarray of shape (n_new,), int64
        First old pixel that counts.

    weights : ndarray of shape (n_new, k), float64
        Of this pixel and the next ones: whole numbers, in units of 2^-22.
    """
    scale = n_old / n_new
    stretch = max(scale, 1.0)
    first = np.zeros(n_new, np.int64)
    rows: list[list[float]] = []
    for new in range(n_new):
        centre = (new + 0.5) * scale
        low = max(int(centre - stretch + 0.5), 0)
        high = min(int(centre + stretch + 0.5), n_old)
        reach = 1.0 / stretch
        values = [
            max(0.0, 1.0 - abs((old - centre + 0.5) * reach))
            for old in range(low, high)
        ]
        first[new] = low
        rows.append(_in_units(values))
    weights = np.zeros((n_new, max(map(len, rows))))
    for new, values in enumerate(rows):
        weights[new, : len(values)] = values
    return first, weights


def _in_units(values: Sequence[float]) -> list[float]:
    """Weights that sum to about 2^22, rounded half up."""
    total: Any = 0.0
    for value in values:
        total += value
    factor = 1.0 / total if total else 1.0
    return [math.floor(0.5 + value * factor * _SCALE) for value in values]

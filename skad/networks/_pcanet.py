"""The stages of PCANet: filter, split by sign, halve; all responses on one grid."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch.nn.functional import (
    adaptive_avg_pool2d,
    avg_pool2d,
    conv2d,
    interpolate,
    pad,
)


def one_by_one(batch: np.ndarray) -> Iterator[torch.Tensor]:
    """Yield images (b, H, W, c) as tensors (1, c, H, W), centred around zero.

    The stages are several times faster so: what they make of one image fits into the
    cache of a processor, and channels that lie innermost are filtered side by side.
    """
    for x in torch.from_numpy(np.ascontiguousarray(batch)).split(1):
        yield x.permute(0, 3, 1, 2) - 0.5


class Stages:
    """Images on their way through the stages.

    Parameters
    ----------
    x : torch.Tensor of shape (b, c, H, W)
        Images; afterwards the input of the next stage.

    stride : int
        Pixels from cell to cell of the grid on which the responses meet.
    """

    def __init__(self, x: torch.Tensor, stride: int) -> None:
        self.x = x
        self._grid = max(1, x.shape[2] // stride), max(1, x.shape[3] // stride)
        self._on_grid: list[torch.Tensor] = []

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in (self.x, *self._on_grid))

    def advance(self, filters: np.ndarray) -> Stages:
        """Apply a stage with filters (n, c, k, k); returns itself."""
        self.x = _stage(self.x, torch.from_numpy(filters), first=not self._on_grid)
        self._on_grid.append(_resized(self.x, self._grid))
        return self

    def responses(self) -> torch.Tensor:
        """Smoothed responses of all stages on the grid, (b, h, w, n_responses)."""
        stacked = torch.cat(self._on_grid, dim=1)
        padded = pad(stacked, (1, 1, 1, 1), mode="replicate")
        return avg_pool2d(padded, 3, 1).permute(0, 2, 3, 1)


def _stage(x: torch.Tensor, filters: torch.Tensor, first: bool) -> torch.Tensor:
    """Filter, split responses by sign, halve the resolution."""
    size = filters.shape[-1]
    padded = pad(x, (size // 2,) * 4, mode="reflect")
    response = conv2d(padded, filters)
    positive = avg_pool2d(response.relu(), 2)
    # Negative parts are positive ones less responses, in the mean of a cell, too.
    parts = [positive, positive - avg_pool2d(response, 2)]
    if first:  # its filters see no brightness, so brightness goes along
        parts.append(_brightness(padded, size))
    return torch.cat(parts, dim=1)


def _brightness(padded: torch.Tensor, size: int) -> torch.Tensor:
    """Mean over a window, then over cells of 2 x 2, by one filter for both."""
    side = torch.ones(size + 1, dtype=padded.dtype)
    side[1:-1] = 2
    n_channels = padded.shape[1]
    box = (torch.outer(side, side) / (2 * size) ** 2).expand(n_channels, 1, -1, -1)
    return conv2d(padded, box, stride=2, groups=n_channels)


def _resized(output: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    if output.shape[2] >= grid[0] and output.shape[3] >= grid[1]:
        return adaptive_avg_pool2d(output, grid)
    return interpolate(output, size=grid, mode="bilinear")


def patches(
    x: torch.Tensor, rows: np.ndarray, columns: np.ndarray, size: int
) -> np.ndarray:
    """Patches of size x size of an image (1, c, H, W) by their corners, flattened."""
    image = x[0].permute(1, 2, 0).numpy()
    views = np.lib.stride_tricks.sliding_window_view(image, (size, size), axis=(0, 1))
    return views[rows, columns].reshape(len(rows), -1)

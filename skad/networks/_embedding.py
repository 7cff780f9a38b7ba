"""From feature maps of several levels to one embedding per patch.

All embeddings are linear. The official PatchCore code unfolds p x p
patches and pools the flattened (channel, row, column) axis twice; pooling of
neighbours in a fixed order is a grouped convolution with fixed weights, which
needs no unfolded copy.
"""

from collections.abc import Sequence
from math import gcd

import numpy as np
import torch
from torch.nn.functional import avg_pool2d, conv2d, interpolate

from skad._kept import byte_bounded


def mean1d(
    levels: Sequence[torch.Tensor],
    grid: tuple[int, int],
    patch_size: int,
    pretrain_dim: int,
    target_dim: int,
    stride: int = 1,
) -> torch.Tensor:
    """Embedding of the official PatchCore implementation.

    Every level's p x p patches, around every `stride`-th position, are average-pooled
    to `pretrain_dim` entries, brought to one grid, concatenated, and pooled to
    `target_dim`.
    """
    # Where the second pooling joins entries of one level only, it comes first:
    # the convolution then makes, and the grid repeats, a fraction of the entries.
    n_entries = len(levels) * pretrain_dim
    joined = 1
    if n_entries % target_dim == 0 and target_dim % len(levels) == 0:
        joined = n_entries // target_dim
    n_each = pretrain_dim // joined
    pooled = []
    for level in levels:
        weight, groups = _pooling(level.shape[1], patch_size, n_each, joined)
        weight = torch.as_tensor(weight, dtype=level.dtype, device=level.device)
        patches = conv2d(
            level, weight, stride=stride, padding=patch_size // 2, groups=groups
        )
        pooled.append(_to_grid(patches, grid))
    stacked = torch.cat(pooled, dim=1)
    if stacked.shape[1] == target_dim:
        return stacked
    weight, groups = _pooling(stacked.shape[1], 1, target_dim)
    weight = torch.as_tensor(weight, dtype=stacked.dtype, device=stacked.device)
    return conv2d(stacked, weight, groups=groups)


def concat(
    levels: Sequence[torch.Tensor],
    grid: tuple[int, int],
    patch_size: int,
    stride: int = 1,
) -> torch.Tensor:
    """Channels of all levels, each averaged over p x p patches.

    The zero padding counts in the average at the border, as in the official
    code.
    """
    return torch.cat(_neighbourhoods(levels, grid, patch_size, stride), dim=1)


def mean(
    levels: Sequence[torch.Tensor],
    grid: tuple[int, int],
    patch_size: int,
    stride: int = 1,
) -> torch.Tensor:
    """The mean over levels of as many channels of what `concat` joins."""
    parts = _neighbourhoods(levels, grid, patch_size, stride)
    return torch.stack(parts).mean(dim=0)


def _neighbourhoods(
    levels: Sequence[torch.Tensor], grid: tuple[int, int], patch_size: int, stride: int
) -> list[torch.Tensor]:
    """Averages of each level over p x p patches, on one grid."""
    return [
        _to_grid(avg_pool2d(level, patch_size, stride, patch_size // 2), grid)
        for level in levels
    ]


def replicate(levels: Sequence[torch.Tensor], grid: tuple[int, int]) -> torch.Tensor:
    """Channels of all levels, coarse ones repeated to the grid (PaDiM)."""
    return torch.cat(
        [interpolate(level, size=grid, mode="nearest") for level in levels], dim=1
    )


def _to_grid(level: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    if tuple(level.shape[2:]) == tuple(grid):
        return level
    return interpolate(level, size=grid, mode="bilinear", align_corners=False)


@byte_bounded(2**26)
def _pooling(
    n_channels: int, patch_size: int, n_out: int, joined: int = 1
) -> tuple[np.ndarray, int]:
    """Adaptive average pooling over flattened patches, as convolution weights.

    Of n = `n_out` * `joined` outputs, output i averages the entries from
    floor(i K / n) up to ceil((i + 1) K / n) of the K flattened ones; so many
    neighbours as are `joined` are averaged in turn. The pattern repeats with the
    greatest common divisor of channels and outputs, which makes the groups.
    """
    groups = gcd(n_channels, n_out)
    channels, outputs = n_channels // groups, n_out * joined // groups
    entries = channels * patch_size**2
    weight = np.zeros((outputs, entries))
    for i in range(outputs):
        start, stop = i * entries // outputs, -(-(i + 1) * entries // outputs)
        weight[i, start:stop] = 1 / (stop - start)
    weight = weight.reshape(-1, joined, channels, patch_size, patch_size).mean(axis=1)
    return np.tile(weight, (groups, 1, 1, 1)), groups

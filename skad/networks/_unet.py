"""Networks and losses of DRAEM (Zavrtanik et al., ICCV 2021).

An autoencoder restores images, and a U-Net compares what it restored with what it got.
Sections and equations are those of the paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

# Channels on the way down, and on the way up those of the convolution after each
# doubling and of the two that follow; in multiples of the first.
_RECONSTRUCTIVE = (1, 2, 4, 8, 8), ((8, 8, 4), (4, 4, 2), (2, 2, 1), (1, 1, 1))
_DISCRIMINATIVE = (
    (1, 2, 4, 8, 8, 8),
    ((8, 8, 8), (4, 4, 4), (2, 2, 2), (1, 1, 1), (1, 1, 1)),
)
# Channels that both networks begin with.
_WIDTHS = {"full": (128, 64), "tiny": (16, 8)}


def draem_networks(model: str) -> nn.ModuleDict:
    """Both networks, ``reconstructive`` and ``discriminative``.

    Parameters
    ----------
    model : {"full", "tiny"}

    Returns
    -------
    networks : torch.nn.ModuleDict
    """
    reconstructive_width, discriminative_width = _WIDTHS[model]
    return nn.ModuleDict(
        {
            "reconstructive": reconstructive(reconstructive_width),
            "discriminative": discriminative(discriminative_width),
        }
    )


def reconstructive(width: int = 128) -> Hourglass:
    """Images (b, 3, H, W) to images of that size, through a sixteenth of it.

    Parameters
    ----------
    width : int, default=128
        Channels that it begins with.

    Returns
    -------
    network : Hourglass
    """
    return Hourglass(3, 3, width, *_RECONSTRUCTIVE, skip_connections=False)


def discriminative(width: int = 64) -> Hourglass:
    """Pairs of images (b, 6, H, W) to logits of two classes (b, 2, H, W).

    Parameters
    ----------
    width : int, default=64
        Channels that it begins with.

    Returns
    -------
    network : Hourglass
    """
    return Hourglass(6, 2, width, *_DISCRIMINATIVE, skip_connections=True)


class Hourglass(nn.Module):
    """Convolutions at falling and then at rising resolutions.

    Parameters
    ----------
    n_in, n_out : int
        Channels of input and output.

    width : int
        What the numbers of `down` and `up` are multiples of.

    down : tuple of int
        Channels at each resolution on the way down.

    up : tuple of (int, int, int)
        Channels of the three convolutions at each resolution on the way up.

    skip_connections : bool
        Whether the feature maps on the way down are concatenated to those of the same
        size on the way up, as in a U-Net.
    """

    def __init__(
        self,
        n_in: int,
        n_out: int,
        width: int,
        down: Sequence[int],
        up: Any,
        *,
        skip_connections: bool,
    ) -> None:
        super().__init__()
        self.skip_connections = skip_connections
        widths = [n_in, *(width * k for k in down)]
        self.down = nn.ModuleList(_convolutions(a, b, b) for a, b in pairwise(widths))
        self.up, self.join = nn.ModuleList(), nn.ModuleList()
        n = widths[-1]
        for skipped, (first, *rest) in zip(widths[-2:0:-1], up, strict=True):
            self.up.append(_convolutions(n, width * first))
            joined = width * first + (skipped if skip_connections else 0)
            n = width * rest[-1]
            self.join.append(_convolutions(joined, *(width * k for k in rest)))
        self.last = nn.Conv2d(n, n_out, 3, padding=1)
        self.apply(_initialize)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Feature maps (b, n_in, H, W) to maps (b, n_out, H, W)."""
        maps = []
        for i, block in enumerate(self.down):
            x = block(functional.max_pool2d(x, 2) if i else x)
            maps.append(x)
        for up, join, skipped in zip(self.up, self.join, maps[-2::-1], strict=True):
            # To the size of that map: sides need not be powers of two.
            x = functional.interpolate(
                x, skipped.shape[2:], mode="bilinear", align_corners=True
            )
            x = up(x)
            x = join(torch.cat([x, skipped], dim=1) if self.skip_connections else x)
        return self.last(x)


def _convolutions(n_in: int, *widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for n_out in widths:
        layers += [
            nn.Conv2d(n_in, n_out, 3, padding=1),
            nn.BatchNorm2d(n_out),
            nn.ReLU(inplace=True),
        ]
        n_in = n_out
    return nn.Sequential(*layers)


def _initialize(module: nn.Module) -> None:
    """Initial weights as in the code that the authors published."""
    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)


# -- what the networks give ------------------------------------------------------


def restore_and_compare(
    networks: Any, images: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The images as restored, and logits of normal and anomalous for each pixel.

    Parameters
    ----------
    networks : torch.nn.ModuleDict
        Of `draem_networks`.

    images : torch.Tensor of shape (b, 3, H, W)
        In [0, 1].

    Returns
    -------
    restored : torch.Tensor of shape (b, 3, H, W)

    logits : torch.Tensor of shape (b, 2, H, W)
    """
    restored = networks["reconstructive"](images)
    return restored, networks["discriminative"](torch.cat([restored, images], dim=1))


def channels_first(images: np.ndarray, device: Any) -> torch.Tensor:
    """Images (b, H, W, 3) of NumPy as a tensor (b, 3, H, W), as they are."""
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2)


@torch.inference_mode()
def restored_images(networks: Any, images: np.ndarray, device: Any) -> np.ndarray:
    """Images (b, H, W, 3) in [0, 1] as the first network restores them."""
    restored, _ = restore_and_compare(networks, channels_first(images, device))
    return restored.clamp(0, 1).permute(0, 2, 3, 1).cpu().numpy()


@torch.inference_mode()
def scores_and_maps(
    networks: Any, images: np.ndarray, device: Any
) -> tuple[np.ndarray, np.ndarray]:
    """Scores (b,), float64, and maps at a quarter of the size, float32.

    Parameters
    ----------
    networks : torch.nn.ModuleDict
        Of `draem_networks`, in evaluation mode.

    images : ndarray of shape (b, H, W, 3), float32
        In [0, 1].

    device : torch.device

    Returns
    -------
    scores : ndarray of shape (b,), float64

    maps : ndarray of shape (b, ceil(H / 4), ceil(W / 4)), float32
        Probabilities that a pixel is anomalous; means of 4 x 4 pixels.
    """
    scores, maps = answers_of(networks, channels_first(images, device))
    return scores.cpu().double().numpy(), maps.cpu().numpy()


def answers_of(
    networks: Any, images: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """As `scores_and_maps`, of images (b, 3, H, W), as tensors of float32."""
    _, logits = restore_and_compare(networks, images)
    maps = logits.softmax(dim=1)[:, 1]
    scores = largest_mean(maps)
    size = -(-maps.shape[1] // 4), -(-maps.shape[2] // 4)
    return scores, functional.adaptive_avg_pool2d(maps, size)


def largest_mean(maps: torch.Tensor) -> torch.Tensor:
    """Largest mean over 21 x 21 pixels of each map (b, H, W), zeros around it."""
    means = functional.avg_pool2d(maps[:, None], 21, stride=1, padding=10)
    return means.amax(dim=(1, 2, 3))


# -- losses ----------------------------------------------------------------------


def adam(networks: Any, learning_rate: float) -> torch.optim.Adam:
    """The optimizer of both networks."""
    return torch.optim.Adam(networks.parameters(), learning_rate)


def training_loss(networks: Any, device: Any, samples: Any) -> torch.Tensor:
    """Loss of a training step, for samples (normal image, augmented image, mask)."""
    normal, augmented, masks = (
        torch.from_numpy(np.stack(part)).to(device)
        for part in zip(*samples, strict=True)
    )
    normal, augmented = normal.permute(0, 3, 1, 2), augmented.permute(0, 3, 1, 2)
    return draem_loss(networks, normal, augmented, masks)


def draem_loss(
    networks: Any, normal: torch.Tensor, augmented: torch.Tensor, masks: torch.Tensor
) -> torch.Tensor:
    """Loss of restoration and of segmentation (Equation 5).

    Parameters
    ----------
    networks : torch.nn.ModuleDict
        Of `draem_networks`.

    normal : torch.Tensor of shape (b, 3, H, W)
        Normal images in [0, 1].

    augmented : torch.Tensor of shape (b, 3, H, W)
        The same with synthetic anomalies.

    masks : torch.Tensor of shape (b, H, W)
        1 or True where an image was changed.

    Returns
    -------
    loss : torch.Tensor
        One number.
    """
    restored, logits = restore_and_compare(networks, augmented)
    return (
        functional.mse_loss(restored, normal)
        + (1 - ssim(restored, normal))
        + focal_loss(logits.softmax(dim=1), masks)
    )


def ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Mean structural similarity of images (b, c, H, W) in [0, 1] (Equation 1).

    A Gaussian window of 11 pixels and sigma 1.5, with zeros outside of the images. As
    the window is a product of one along each side, smoothing is a product with a matrix
    on the left and one on the right, which takes a tenth of the time of convolutions of
    one channel.
    """
    down = _smoothing(a.shape[2], a)
    right = _smoothing(a.shape[3], a).T
    stacked = torch.stack([a, b, a * a, b * b, a * b])
    mean_a, mean_b, square_a, square_b, product = down @ stacked @ right
    means = mean_a * mean_b
    squares = mean_a.square() + mean_b.square()
    c1, c2 = 0.01**2, 0.03**2
    similar = (2 * means + c1) * (2 * (product - means) + c2)
    return (similar / ((squares + c1) * (square_a + square_b - squares + c2))).mean()


def _smoothing(n: int, like: torch.Tensor) -> torch.Tensor:
    """A matrix (n, n) whose rows are the window at each position, cut at the borders.

    Of the dtype and on the device of the tensor `like`.
    """
    offsets = torch.arange(-5, 6, dtype=like.dtype, device=like.device)
    window = torch.exp(-offsets.square() / (2 * 1.5**2))
    window = window / window.sum()
    at = torch.arange(n, dtype=like.dtype, device=like.device)
    return (window * (at[:, None, None] + offsets == at[:, None])).sum(dim=2)


def focal_loss(
    probabilities: torch.Tensor,
    masks: torch.Tensor,
    gamma: float = 2.0,
    smooth: float = 1e-5,
) -> torch.Tensor:
    """Focal loss of class probabilities (b, 2, H, W) for masks (b, H, W).

    Labels are clipped to `smooth` from 0 and 1.
    """
    anomalous = masks.to(probabilities.dtype).clamp(smooth, 1 - smooth)
    normal = 1 - anomalous
    of_class = normal * probabilities[:, 0] + anomalous * probabilities[:, 1] + smooth
    return -((1 - of_class) ** gamma * of_class.log()).mean()

"""Images as tensors: normalised channel by channel, with the channels in front."""

from typing import Any

import numpy as np
import torch

from skad.networks._weights import IMAGENET_MEAN, IMAGENET_STD


def normalized(
    images: np.ndarray,
    device: Any = "cpu",
    mean: Any = IMAGENET_MEAN,
    std: Any = IMAGENET_STD,
    *,
    dtype: torch.dtype = torch.float32,
    in_place: bool = False,
) -> torch.Tensor:
    """Images as a network takes them: ``(images - mean) / std`` in a tensor.

    Parameters
    ----------
    images : ndarray of shape (b, H, W, c), float32
        In [0, 1].

    device : str or torch.device, default="cpu"
        Where the tensor lives and the arithmetic takes place.

    mean, std : array-like of shape (c,) or (1,)
        By default those of ImageNet, for three channels.

    dtype : torch.dtype, default=torch.float32
        Of the result; the arithmetic is in float32.

    in_place : bool, default=False
        Whether the array may be overwritten on the CPU, which saves a copy.

    Returns
    -------
    batch : torch.Tensor of shape (b, c, H, W)
        Channels stay last in memory: the layout of images, and faster on CPUs.
    """
    # Torch warns of arrays that must not be written to.
    batch = torch.from_numpy(images if images.flags.writeable else images.copy())
    batch = batch.to(device)
    mean, std = (
        torch.from_numpy(np.asarray(values, np.float32)).to(batch.device)
        for values in (mean, std)
    )
    if in_place:
        return batch.sub_(mean).div_(std).to(dtype).permute(0, 3, 1, 2)
    return normalized_tensor(batch, mean, std).to(dtype)


def normalized_tensor(
    images: torch.Tensor, mean: torch.Tensor, std: torch.Tensor
) -> torch.Tensor:
    """Normalise a tensor of images (b, H, W, c), and put the channels in front."""
    return ((images - mean) / std).permute(0, 3, 1, 2)

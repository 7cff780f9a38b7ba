"""Images as networks take them: tensors, normalised by the statistics of ImageNet."""

import numpy as np

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def as_input(batch, device="cpu"):
    """Images (b, H, W, 3) in [0, 1] as the networks on a device take them."""
    import torch

    # Torch warns of arrays that are not to be written to.
    batch = torch.from_numpy(batch if batch.flags.writeable else batch.copy())
    batch = batch.to(device)
    mean, std = (torch.from_numpy(s).to(device) for s in (MEAN, STD))
    return ((batch - mean) / std).permute(0, 3, 1, 2)

"""Networks of EfficientAD: patch description networks and the autoencoder.

Tables 6 to 8 of the paper's appendix. "tiny" is a reduced network of the same
layout, for processors: it has the grid and the receptive field of "small".
"""

# Convolutions as (kernel size, channels, padding); None is an average pooling of 2.
# The number of channels of the last one, or of the last two, is that of the output.
_Layer = tuple[int, int, int] | None
_SMALL: tuple[_Layer, ...] = (
    (4, 128, 3),
    None,
    (4, 256, 3),
    None,
    (3, 256, 1),
    (4, 0, 0),
)
_MEDIUM: tuple[_Layer, ...] = (
    (4, 256, 3),
    None,
    (4, 512, 3),
    None,
    (1, 512, 0),
    (3, 512, 1),
)
_MEDIUM += ((4, 0, 0), (1, 0, 0))
_TINY: tuple[_Layer, ...] = ((4, 32, 3), None, (4, 64, 3), None, (3, 64, 1), (4, 0, 0))
PDN = {"small": _SMALL, "medium": _MEDIUM, "tiny": _TINY}
AUTOENCODER_WIDTH = {"small": 64, "medium": 64, "tiny": 32}


def pdn(model, n_channels, *, padding=False):
    """A patch description network: images (b, 3, H, W) to maps (b, c, h, w).

    Every output sees 33 x 33 pixels, and one lies 4 pixels from the next.

    Parameters
    ----------
    model : {"small", "medium", "tiny"}

    n_channels : int
        Channels of the output.

    padding : bool, default=False
        With it, 256 pixels give 64 outputs; without it, the 56 that see no border.

    Returns
    -------
    network : torch.nn.Sequential
    """
    from torch import nn

    layers: list[nn.Module] = []
    n_in = 3
    plan = PDN[model]
    for i, layer in enumerate(plan):
        if layer is None:
            layers.append(nn.AvgPool2d(2, 2, padding=1 if padding else 0))
            continue
        size, width, margin = layer
        n_out = width or n_channels
        layers.append(nn.Conv2d(n_in, n_out, size, padding=margin if padding else 0))
        if i < len(plan) - 1:
            layers.append(nn.ReLU(inplace=True))
        n_in = n_out
    return nn.Sequential(*layers)


def pdn_grid(size, *, padding=False):
    """Height and width of the output of a `pdn` for images of a size."""
    if padding:
        return tuple(((side + 3) // 2 + 4) // 2 - 2 for side in size)
    return tuple(((side - 3) // 2 - 3) // 2 - 5 for side in size)


def autoencoder(n_channels, size, grid, width=64):
    """The autoencoder, for images of one size: the bottleneck sees all of it.

    Parameters
    ----------
    n_channels : int
        Channels of the output.

    size : (int, int)
        Height and width of the images, 256 in the paper.

    grid : (int, int)
        Height and width of the output.

    width : int, default=64
        Channels of the bottleneck and of the decoder; half as many in the first
        layers of the encoder.

    Returns
    -------
    network : torch.nn.Sequential
    """
    from torch import nn

    half = width // 2
    layers: list[nn.Module] = []
    n_in = 3
    for n_out in (half, half, width, width, width):
        layers += [nn.Conv2d(n_in, n_out, 4, stride=2, padding=1), nn.ReLU(True)]
        n_in = n_out
    # 8 x 8 in the paper: whatever is left, so that any size ends in one vector.
    layers.append(nn.Conv2d(width, width, tuple(side // 32 for side in size)))
    for step in ((64, 1), (32, 0), (16, 1), (8, 0), (4, 1), (2, 1)):
        target = tuple(max(1, side // step[0] - step[1]) for side in size)
        layers += [
            nn.Upsample(target, mode="bilinear"),
            nn.Conv2d(width, width, 4, padding=2),
            nn.ReLU(True),
            nn.Dropout(0.2),
        ]
    layers += [
        nn.Upsample(tuple(grid), mode="bilinear"),
        nn.Conv2d(width, width, 3, padding=1),
        nn.ReLU(True),
        nn.Conv2d(width, n_channels, 3, padding=1),
    ]
    return nn.Sequential(*layers)

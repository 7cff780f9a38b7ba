"""Networks of DRAEM: an autoencoder, and a U-Net that tells two classes apart."""

from itertools import pairwise

# Channels of the levels on the way down, and on the way up those of the convolution
# after each doubling and of the two that follow; in multiples of the first level's.
_RECONSTRUCTIVE = (1, 2, 4, 8, 8), ((8, 8, 4), (4, 4, 2), (2, 2, 1), (1, 1, 1))
_DISCRIMINATIVE = (
    (1, 2, 4, 8, 8, 8),
    ((8, 8, 8), (4, 4, 4), (2, 2, 2), (1, 1, 1), (1, 1, 1)),
)
# Channels of the first level of both.
WIDTHS = {"full": (128, 64), "tiny": (16, 8)}


def reconstructive(width=128):
    """Images (b, 3, H, W) to images of that size, through a sixteenth of it.

    Parameters
    ----------
    width : int, default=128
        Channels of the first level.

    Returns
    -------
    network : torch.nn.Module
    """
    return _network(3, 3, width, *_RECONSTRUCTIVE, beside=False)


def discriminative(width=64):
    """Pairs of images (b, 6, H, W) to logits of two classes (b, 2, H, W).

    Parameters
    ----------
    width : int, default=64
        Channels of the first level.

    Returns
    -------
    network : torch.nn.Module
    """
    return _network(6, 2, width, *_DISCRIMINATIVE, beside=True)


def _network(n_in, n_out, width, down, up, *, beside):
    """An hourglass; with `beside`, what goes down is seen again on the way up."""
    import torch
    from torch import nn
    from torch.nn import functional

    class Hourglass(nn.Module):
        def __init__(self):
            super().__init__()
            widths = [n_in, *(width * k for k in down)]
            self.down = nn.ModuleList(
                _convolutions(a, b, b) for a, b in pairwise(widths)
            )
            self.up, self.join = nn.ModuleList(), nn.ModuleList()
            n = widths[-1]
            for kept, (first, *rest) in zip(widths[-2:0:-1], up, strict=True):
                self.up.append(_convolutions(n, width * first))
                joined = width * first + (kept if beside else 0)
                n = width * rest[-1]
                self.join.append(_convolutions(joined, *(width * k for k in rest)))
            self.last = nn.Conv2d(n, n_out, 3, padding=1)
            self.apply(_start)

        def forward(self, x):
            levels = []
            for i, block in enumerate(self.down):
                x = block(functional.max_pool2d(x, 2) if i else x)
                levels.append(x)
            for raised, joined, kept in zip(
                self.up, self.join, levels[-2::-1], strict=True
            ):
                # To the size of that level: sides need not be powers of two.
                x = raised(
                    functional.interpolate(
                        x, kept.shape[2:], mode="bilinear", align_corners=True
                    )
                )
                x = joined(torch.cat([x, kept], dim=1) if beside else x)
            return self.last(x)

    return Hourglass()


def _convolutions(n_in, *widths):
    from torch import nn

    layers: list[nn.Module] = []
    for n_out in widths:
        layers += [
            nn.Conv2d(n_in, n_out, 3, padding=1),
            nn.BatchNorm2d(n_out),
            nn.ReLU(inplace=True),
        ]
        n_in = n_out
    return nn.Sequential(*layers)


def _start(module):
    """Weights as those of the authors' training start."""
    from torch import nn

    if isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)

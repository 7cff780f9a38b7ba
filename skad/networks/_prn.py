"""Networks of PRN: prototypes, fusion of scales, attention over patches, decoder.

Every level is (b, c, h, w), the finest first; the levels are those of strides 4, 8 and
16, and one of stride 32 where the decoder starts.
"""

import math
import warnings

import numpy as np

_DIVISIONS = (1, 2, 4, 8)  # how many patches there are along a side
_SMOOTHING = 1e-5  # of the labels, and what keeps the logarithm finite
_TOP = 100  # pixels that make the score of an image
REDUCED = (16, 32, 64, 64)  # channels of the levels of the small model


def cluster_means(maps, n_clusters, seed):
    """Prototypes: the centres of k-means over whole feature maps.

    Parameters
    ----------
    maps : ndarray of shape (n, c, h, w), float32

    n_clusters : int
        Fewer are found where there are not as many different maps.

    seed : int

    Returns
    -------
    centres : ndarray of shape (k, c, h, w), float32

    Notes
    -----
    Clusters depend on distances only. The maps are turned isometrically into as many
    dimensions as there are images, which are hundreds in the place of hundreds of
    thousands, and clustered there.
    """
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    flat = maps.reshape(len(maps), -1)
    centred = flat - flat.mean(axis=0)
    values, vectors = np.linalg.eigh((centred @ centred.T).astype(np.float64))
    turned = vectors * np.sqrt(np.maximum(values, 0))
    # Rounding must not tell equal images apart.
    least = max(1e-6 * values[-1], 1e-12 * np.square(flat, dtype=np.float64).sum())
    turned[:, values <= least] = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = KMeans(n_clusters, n_init=1, max_iter=300, random_state=seed)
        labels = model.fit_predict(turned)
    return np.stack([maps[labels == k].mean(axis=0) for k in np.unique(labels)])


def nearest(features, prototypes):
    """For each feature map, the number of the prototype nearest to it by L2.

    By one matrix product: |f - p|^2 is |f|^2 - 2 f.p + |p|^2. Around the mean of the
    prototypes, where these numbers are small, rounding takes least from them.
    """
    mean = prototypes.mean(dim=0)
    f, p = (features - mean).flatten(1), (prototypes - mean).flatten(1)
    return (p.square().sum(dim=1) - 2 * f @ p.T).argmin(dim=1)


def fusion(channels):
    """Multi-scale fusion: to each level, what every other level tells it is added.

    A coarse level is upsampled and its channels mixed; a fine one goes through a
    strided convolution, of each channel apart.

    Parameters
    ----------
    channels : sequence of int
        Those of the levels, the finest first.

    Returns
    -------
    module : torch.nn.Module
        From a list of levels to one of the same shapes.
    """
    from torch import nn

    class Up(nn.Module):
        def __init__(self, c_in, c_out):
            super().__init__()
            self.conv = nn.Conv2d(c_in, c_out, 1)

        def forward(self, x, size):
            return self.conv(_resized(x, size))

    class Fusion(nn.Module):
        def __init__(self):
            super().__init__()
            for a, c_in in enumerate(channels):
                for b, c_out in enumerate(channels):
                    if a == b:
                        continue
                    if a > b:
                        self.add_module(f"l{a + 1}_to_l{b + 1}", Up(c_in, c_out))
                        continue
                    factor = 2 ** (b - a)
                    part = nn.Conv2d(
                        c_in,
                        c_out,
                        factor + 1,
                        stride=factor,
                        padding=factor // 2,
                        groups=math.gcd(c_in, c_out),
                    )
                    self.add_module(f"l{a + 1}_to_l{b + 1}", part)

        def forward(self, levels):
            fused = []
            for b, own in enumerate(levels):
                for a, other in enumerate(levels):
                    if a == b:
                        continue
                    part = self.get_submodule(f"l{a + 1}_to_l{b + 1}")
                    told = part(other, own.shape[2:]) if a > b else part(other)
                    own = own + told
                fused.append(own)
            return fused

    return Fusion()


def attention(channels, grid, *, per_element=True):
    """Multi-size self-attention: among patches of up to four sizes.

    Parameters
    ----------
    channels : int

    grid : (int, int)
        Height and width of the level. Patches have a whole, a half, a quarter and an
        eighth of these, as far as both can be divided.

    per_element : bool, default=True
        Whether queries, keys and values have a factor and an offset for each channel
        at each position inside a patch, or for each channel only.

    Returns
    -------
    module : torch.nn.Module
        From (b, c, h, w) to the same shape. Its ``attend`` gives the outputs of all
        sizes, concatenated, before the residual block.
    """
    import torch
    from torch import nn

    class Affine(nn.Module):
        def __init__(self, n):
            super().__init__()
            # As a grouped convolution of size 1 is started.
            self.weight = nn.Parameter(torch.empty(n, 1, 1).uniform_(-1, 1))
            self.bias = nn.Parameter(torch.empty(n).uniform_(-1, 1))

        def forward(self, tokens):
            repeats = tokens.shape[2] // len(self.bias)
            weight = self.weight[:, 0, 0].repeat_interleave(repeats)
            return tokens * weight + self.bias.repeat_interleave(repeats)

    class ResidualBlock(nn.Module):
        def __init__(self, c_in):
            super().__init__()
            self.conv1 = nn.Conv2d(c_in, channels, 3, padding=1)
            self.norm1 = nn.BatchNorm2d(channels)
            self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
            self.norm2 = nn.BatchNorm2d(channels)
            self.downsample = nn.Conv2d(c_in, channels, 1)

        def forward(self, x):
            changed = torch.relu(self.norm1(self.conv1(x)))
            changed = self.norm2(self.conv2(changed))
            return torch.relu(changed + self.downsample(x))

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.sizes = [
                (grid[0] // k, grid[1] // k)
                for k in _DIVISIONS
                if grid[0] % k == grid[1] % k == 0
            ]
            for i, (height, width) in enumerate(self.sizes, start=1):
                n = channels * height * width if per_element else channels
                for name in "qkv":
                    self.add_module(f"{name}_proj{i}", Affine(n))
            self.residual_block = ResidualBlock(len(self.sizes) * channels)

        def attend(self, x):
            found = []
            for i, size in enumerate(self.sizes, start=1):
                tokens = _patches(x, size)
                q, k, v = (
                    self.get_submodule(f"{name}_proj{i}")(tokens) for name in "qkv"
                )
                weights = torch.softmax(q @ k.mT / tokens.shape[2], dim=-1)
                found.append(_whole(weights @ v, x.shape, size))
            return torch.cat(found, dim=1)

        def forward(self, x):
            return self.residual_block(self.attend(x))

    return Attention()


def residual_network(channels, grids, *, n_attentions, per_element, reduced=None):
    """All of PRN that is trained: from levels and their prototypes to logits.

    Parameters
    ----------
    channels : (int, int, int, int)
        Those of the levels of strides 4, 8, 16 and 32.

    grids : sequence of (int, int)
        Height and width of these levels.

    n_attentions : int
        Layers of self-attention per level.

    per_element : bool
        As in `attention`.

    reduced : (int, int, int, int), default=None
        Channels that a convolution of size 1 first brings the levels to; the
        prototypes go through the same one.

    Returns
    -------
    module : torch.nn.Module
        Takes four levels and three prototypes for each image, gives logits
        (b, 1, 4 h, 4 w).
    """
    import torch
    from torch import nn

    def block(c_in, c_out):
        return nn.Sequential(
            nn.Conv2d(c_in, c_out, 3, padding=1, bias=False),
            nn.BatchNorm2d(c_out),
            nn.ReLU(),
        )

    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            c = channels if reduced is None else reduced
            self.reduce = nn.ModuleList(
                nn.Identity() if reduced is None else nn.Conv2d(c_in, c_out, 1)
                for c_in, c_out in zip(channels, c, strict=True)
            )
            self.fuse_inputs = fusion(c[:3])
            self.attentions = nn.ModuleList(
                nn.Sequential(
                    *(
                        attention(2 * n, grid, per_element=per_element)
                        for _ in range(n_attentions)
                    )
                )
                for n, grid in zip(c[:3], grids[:3], strict=True)
            )
            self.fuse_outputs = fusion([2 * n for n in c[:3]])
            wide = [*c[1:3], c[3]]  # what comes from below, per level
            self.up = nn.ModuleList(
                block(below, n) for below, n in zip(wide, c[:3], strict=True)
            )
            self.join = nn.ModuleList(
                nn.Sequential(block(3 * n, n), block(n, n)) for n in c[:3]
            )
            self.head = nn.Conv2d(c[0], 1, 3, padding=1)

        def forward(self, levels, prototypes):
            *levels, x = [r(f) for r, f in zip(self.reduce, levels, strict=True)]
            residuals = [
                (f - r(p)).square()
                for r, f, p in zip(self.reduce, levels, prototypes, strict=False)
            ]
            both = [
                torch.cat(pair, dim=1)
                for pair in zip(
                    self.fuse_inputs(levels), self.fuse_inputs(residuals), strict=True
                )
            ]
            skips = self.fuse_outputs(
                [a(f) for a, f in zip(self.attentions, both, strict=True)]
            )
            for i in (2, 1, 0):
                x = self.up[i](_resized(x, skips[i].shape[2:]))
                x = self.join[i](torch.cat([x, skips[i]], dim=1))
            size = [4 * side for side in x.shape[2:]]
            return _resized(self.head(x), size)

    return Residual()


def segmentation_loss(logits, mask, focal_weight=5.0):
    """Smooth L1 plus a multiple of the focal loss.

    Parameters
    ----------
    logits, mask : Tensor of equal shape
        Mask is 1 where defective, else 0.

    focal_weight : float, default=5.0

    Returns
    -------
    loss : Tensor
        One number.
    """
    import torch

    smooth = torch.nn.functional.smooth_l1_loss(torch.sigmoid(logits), mask)
    return smooth + focal_weight * focal_loss(logits, mask)


def focal_loss(logits, mask, alpha=0.5, gamma=4):
    """Focal loss with one-hot labels smoothed by 1e-5, as in PRN's published code."""
    import torch

    p = torch.sigmoid(logits)
    label = mask.clamp(_SMOOTHING, 1 - _SMOOTHING)
    known = label * p + (1 - label) * (1 - p) + _SMOOTHING
    return (-alpha * (1 - known) ** gamma * known.log()).mean()


def image_scores(maps):
    """Mean of the 100 largest pixels of each map (b, ...), or of all if fewer."""
    flat = maps.flatten(1)
    return flat.topk(min(_TOP, flat.shape[1]), dim=1).values.mean(dim=1)


def _resized(x, size):
    import torch

    size = tuple(size)
    return torch.nn.functional.interpolate(x, size, mode="bilinear", align_corners=True)


def _patches(x, size):
    """Patches (b, n, c * h * w) of a level (b, c, H, W)."""
    b, c, height, width = x.shape
    rows, columns = height // size[0], width // size[1]
    x = x.reshape(b, c, rows, size[0], columns, size[1])
    return x.permute(0, 2, 4, 1, 3, 5).reshape(b, rows * columns, -1)


def _whole(patches, shape, size):
    """The level of `shape` that patches make."""
    b, c, height, width = shape
    rows, columns = height // size[0], width // size[1]
    x = patches.reshape(b, rows, columns, c, *size)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(shape)

"""Networks and losses of PRN (Zhang et al., CVPR 2023, Section 3).

Prototypes, multi-scale fusion, multi-size self-attention and a decoder. Feature maps
are (b, c, h, w), the finest first: those of strides 4, 8 and 16, and one of stride 32
where the decoder starts.
"""

import math
import warnings

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from torch import nn
from torch.nn import functional

from skad.networks._modules import tensors

_DIVISIONS = (1, 2, 4, 8)  # how many patches there are along a side
_LABEL_SMOOTHING = 1e-5  # of the labels, and what keeps the logarithm finite
_TOP_PIXELS = 100  # that make the score of an image
_TINY_CHANNELS = (16, 32, 64, 64)  # of the feature maps of the tiny network
_MAP_STRIDE = 4  # pixels of the image along a side of one of a map that is kept


class _Upsample(nn.Module):
    """Bilinear upsampling, then a convolution of size 1."""

    def __init__(self, c_in, c_out):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x, size):
        return self.conv(_resized(x, size))


class Fusion(nn.Module):
    """Multi-scale fusion: to each feature map, those of all other scales are added.

    A coarse map is upsampled and its channels combined; a fine one goes through a
    strided convolution of each channel apart.

    Parameters
    ----------
    channels : sequence of int
        Those of the feature maps, the finest first.
    """

    def __init__(self, channels):
        super().__init__()
        for a, c_in in enumerate(channels):
            for b, c_out in enumerate(channels):
                if a > b:
                    self.add_module(self._name(a, b), _Upsample(c_in, c_out))
                elif a < b:
                    factor = 2 ** (b - a)
                    convolution = nn.Conv2d(
                        c_in,
                        c_out,
                        factor + 1,
                        stride=factor,
                        padding=factor // 2,
                        groups=math.gcd(c_in, c_out),
                    )
                    self.add_module(self._name(a, b), convolution)

    @staticmethod
    def _name(a, b):
        return f"l{a + 1}_to_l{b + 1}"

    def forward(self, maps):
        """A list of feature maps to one of the same shapes."""
        fused = []
        for b, own in enumerate(maps):
            for a, other in enumerate(maps):
                if a == b:
                    continue
                part = self.get_submodule(self._name(a, b))
                own = own + (part(other, own.shape[2:]) if a > b else part(other))
            fused.append(own)
        return fused


class _Affine(nn.Module):
    """A factor and an offset for each of n equal parts of a token."""

    def __init__(self, n):
        super().__init__()
        # Initial weights as of a grouped convolution of size 1.
        self.weight = nn.Parameter(torch.empty(n, 1, 1).uniform_(-1, 1))
        self.bias = nn.Parameter(torch.empty(n).uniform_(-1, 1))

    def forward(self, tokens):
        repeats = tokens.shape[2] // len(self.bias)
        weight = self.weight[:, 0, 0].repeat_interleave(repeats)
        return tokens * weight + self.bias.repeat_interleave(repeats)


class _ResidualBlock(nn.Module):
    """Two convolutions beside one of size 1 that skips them."""

    def __init__(self, c_in, c_out):
        super().__init__()
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(c_out)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(c_out)
        self.downsample = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x):
        changed = torch.relu(self.norm1(self.conv1(x)))
        changed = self.norm2(self.conv2(changed))
        return torch.relu(changed + self.downsample(x))


class Attention(nn.Module):
    """Multi-size self-attention: among patches of up to four sizes.

    Parameters
    ----------
    channels : int

    grid : (int, int)
        Height and width of the feature map. Patches have a whole, a half, a quarter and
        an eighth of these, as far as both can be divided.

    per_element : bool, default=True
        Whether queries, keys and values have a factor and an offset for each channel
        at each position inside a patch, or for each channel only.
    """

    def __init__(self, channels, grid, *, per_element=True):
        super().__init__()
        self.sizes = [
            (grid[0] // k, grid[1] // k)
            for k in _DIVISIONS
            if grid[0] % k == grid[1] % k == 0
        ]
        for i, (height, width) in enumerate(self.sizes, start=1):
            n = channels * height * width if per_element else channels
            for name in "qkv":
                self.add_module(f"{name}_proj{i}", _Affine(n))
        self.residual_block = _ResidualBlock(len(self.sizes) * channels, channels)

    def attend(self, x):
        """The outputs of all sizes, concatenated, before the residual block."""
        found = []
        for i, size in enumerate(self.sizes, start=1):
            tokens = _patches(x, size)
            q, k, v = (self.get_submodule(f"{name}_proj{i}")(tokens) for name in "qkv")
            weights = torch.softmax(q @ k.mT / tokens.shape[2], dim=-1)
            found.append(_whole(weights @ v, x.shape, size))
        return torch.cat(found, dim=1)

    def forward(self, x):
        """Feature maps (b, c, h, w) to maps of the same shape."""
        return self.residual_block(self.attend(x))


class ResidualNetwork(nn.Module):
    """All of PRN that is trained: from feature maps and their prototypes to logits.

    Parameters
    ----------
    channels : (int, int, int, int)
        Those of the feature maps of strides 4, 8, 16 and 32.

    grids : sequence of (int, int)
        Height and width of these maps.

    n_attentions : int
        Layers of self-attention per scale.

    per_element : bool
        As of `Attention`.

    reduced : (int, int, int, int), default=None
        Channels that a convolution of size 1 first brings the feature maps to; the
        prototypes go through the same one.
    """

    def __init__(self, channels, grids, *, n_attentions, per_element, reduced=None):
        super().__init__()
        c = channels if reduced is None else reduced
        self.reduce = nn.ModuleList(
            nn.Identity() if reduced is None else nn.Conv2d(c_in, c_out, 1)
            for c_in, c_out in zip(channels, c, strict=True)
        )
        self.fuse_inputs = Fusion(c[:3])
        self.attentions = nn.ModuleList(
            nn.Sequential(
                *(
                    Attention(2 * n, grid, per_element=per_element)
                    for _ in range(n_attentions)
                )
            )
            for n, grid in zip(c[:3], grids[:3], strict=True)
        )
        self.fuse_outputs = Fusion([2 * n for n in c[:3]])
        coarser = [*c[1:3], c[3]]  # channels that come from the scale below
        self.up = nn.ModuleList(
            _block(below, n) for below, n in zip(coarser, c[:3], strict=True)
        )
        self.join = nn.ModuleList(
            nn.Sequential(_block(3 * n, n), _block(n, n)) for n in c[:3]
        )
        self.head = nn.Conv2d(c[0], 1, 3, padding=1)

    def forward(self, maps, prototypes):
        """Four feature maps and three prototypes for each image to (b, 1, 4 h, 4 w)."""
        *maps, x = [r(f) for r, f in zip(self.reduce, maps, strict=True)]
        residuals = [
            (f - r(p)).square()
            for r, f, p in zip(self.reduce, maps, prototypes, strict=False)
        ]
        both = [
            torch.cat(pair, dim=1)
            for pair in zip(
                self.fuse_inputs(maps), self.fuse_inputs(residuals), strict=True
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


def _block(c_in, c_out):
    return nn.Sequential(
        nn.Conv2d(c_in, c_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(c_out),
        nn.ReLU(),
    )


def residual_network(channels, grids, model, *, per_element):
    """The `ResidualNetwork` of a model: "full" as in the paper, or "tiny"."""
    return ResidualNetwork(
        channels,
        grids,
        n_attentions=3 if model == "full" else 1,
        per_element=per_element,
        reduced=None if model == "full" else _TINY_CHANNELS,
    )


# -- prototypes ------------------------------------------------------------------


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


def level_prototypes(encoder, read, n, scale, n_clusters, seed, n_at_once):
    """Prototypes of the feature maps of n normal images at one scale.

    Parameters
    ----------
    encoder : Encoder

    read : callable
        ``read(i)`` gives the i-th image, float32 (H, W, 3) in [0, 1].

    n : int

    scale : int
        0 is the finest.

    n_clusters, seed : int
        As of `cluster_means`.

    n_at_once : int
        Images per forward pass.
    """
    maps = []
    for first in range(0, n, n_at_once):
        batch = [read(i) for i in range(first, min(first + n_at_once, n))]
        found = encoder.feature_maps(np.stack(batch), scale + 1)[-1]
        maps.append(found.cpu().numpy())
    return cluster_means(np.concatenate(maps), n_clusters, seed)


# -- training and scoring ----------------------------------------------------------


# AdamW takes the weight decay off the weights, Adam adds it to the gradients.
OPTIMIZERS = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}


def nearest_prototypes(maps, prototypes):
    """For each feature map but the last, the prototype nearest to each image."""
    return [p[nearest(f, p)] for f, p in zip(maps, prototypes, strict=False)]


class TrainingLoss:
    """The loss of a training step.

    Parameters
    ----------
    network : ResidualNetwork

    encoder : Encoder
        The frozen network.

    prototypes : list of three ndarray of shape (k, c, h, w)

    focal_weight : float
    """

    def __init__(self, network, encoder, prototypes, focal_weight):
        self.network, self.encoder = network, encoder
        self.prototypes = tensors(prototypes, encoder.device)
        self.focal_weight = focal_weight

    def __call__(self, samples):
        """The loss of samples (image, mask or None where nobody has marked it)."""
        maps = self.encoder.feature_maps(np.stack([image for image, _ in samples]))
        logits = self.network(maps, nearest_prototypes(maps, self.prototypes))
        marked = [i for i, (_, mask) in enumerate(samples) if mask is not None]
        masks = np.stack([samples[i][1] for i in marked])[:, None]
        target = torch.tensor(masks, dtype=torch.float32, device=logits.device)
        loss = segmentation_loss(logits[marked], target, self.focal_weight)
        if len(marked) < len(samples):
            unmarked = sorted(set(range(len(samples))) - set(marked))
            scores = image_scores(torch.sigmoid(logits[unmarked]))
            # As a share of the batch, which is what the pixel loss is of the rest.
            loss = loss - scores.clamp(min=1e-5).log().sum() / len(samples)
        return loss


@torch.inference_mode()
def scores_and_maps(network, encoder, prototypes, images):
    """Scores, float64 (b,), and maps of probabilities, float32 (b, H / 4, W / 4).

    Parameters
    ----------
    network : ResidualNetwork
        In evaluation mode.

    encoder : Encoder

    prototypes : list of three torch.Tensor

    images : ndarray of shape (b, H, W, 3), float32
        In [0, 1].
    """
    maps = encoder.feature_maps(images)
    found = torch.sigmoid(network(maps, nearest_prototypes(maps, prototypes)))
    scores = image_scores(found).double().cpu().numpy()
    return scores, functional.avg_pool2d(found, _MAP_STRIDE)[:, 0].cpu().numpy()


# -- losses ----------------------------------------------------------------------


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
    smooth = functional.smooth_l1_loss(torch.sigmoid(logits), mask)
    return smooth + focal_weight * focal_loss(logits, mask)


def focal_loss(logits, mask, alpha=0.5, gamma=4):
    """Focal loss with one-hot labels smoothed by 1e-5, as in PRN's published code."""
    p = torch.sigmoid(logits)
    label = mask.clamp(_LABEL_SMOOTHING, 1 - _LABEL_SMOOTHING)
    known = label * p + (1 - label) * (1 - p) + _LABEL_SMOOTHING
    return (-alpha * (1 - known) ** gamma * known.log()).mean()


def image_scores(maps):
    """Mean of the 100 largest pixels of each map (b, ...), or of all if fewer."""
    flat = maps.flatten(1)
    return flat.topk(min(_TOP_PIXELS, flat.shape[1]), dim=1).values.mean(dim=1)


def _resized(x, size):
    """Resize maps bilinearly, with the corner pixels kept in place."""
    size = tuple(size)
    return functional.interpolate(x, size, mode="bilinear", align_corners=True)


def _patches(x, size):
    """Split a feature map (b, c, H, W) into patches (b, n, c * h * w)."""
    b, c, height, width = x.shape
    rows, columns = height // size[0], width // size[1]
    x = x.reshape(b, c, rows, size[0], columns, size[1])
    return x.permute(0, 2, 4, 1, 3, 5).reshape(b, rows * columns, -1)


def _whole(patches, shape, size):
    """Assemble the feature map of `shape` from its patches."""
    b, c, height, width = shape
    rows, columns = height // size[0], width // size[1]
    x = patches.reshape(b, rows, columns, c, *size)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(shape)

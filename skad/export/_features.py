"""Feature transformers as modules that a graph is traced from."""

from typing import Any

import numpy as np
import torch
from torch import nn

from skad.export._registry import features_module, refuse_setting
from skad.features import FusedFeatures, PatchFeatures, PCANetFeatures, TiledFeatures
from skad.features._principal import MIN_VARIANCE
from skad.networks import input as network_input


class NetworkFeatures(nn.Module):
    """`PatchFeatures`: its own network, asked as it asks it."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, transformer: PatchFeatures) -> None:
        super().__init__()
        self.transformer = transformer
        self.backbone = transformer._checked_backbone()
        self.network = self.backbone.module
        n_channels = transformer._n_channels()
        for name in ("mean", "std"):
            values = transformer._per_channel(
                name, getattr(self.backbone, name), n_channels
            )
            self.register_buffer(name, torch.from_numpy(values))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Patch features and descriptors.

        The network runs to its end, as a tracer cannot follow a run that is broken
        off; what no output needs is not in the graph.
        """
        batch = network_input.normalized_tensor(images, self.mean, self.std)
        known = self.transformer
        maps, pooled = self.backbone.maps_of(batch, known._layouts, None, known.pooled)
        return known._patches([maps[name] for name in known.layers_]), pooled


@features_module.register
def _(transformer: PatchFeatures) -> nn.Module:
    if transformer.precision != "float32":
        refuse_setting(transformer, "precision", "fit with precision='float32'")
    module = NetworkFeatures(transformer)
    if module.backbone.dtype != torch.float32:
        refuse_setting(
            transformer,
            "backbone",
            f"its weights are {module.backbone.dtype}: convert it by .float()",
        )
    return module


class FilterFeatures(nn.Module):
    """`PCANetFeatures`: its stages, and whitening."""

    mean: torch.Tensor
    scale: torch.Tensor
    whitening: torch.Tensor

    def __init__(self, transformer: PCANetFeatures) -> None:
        super().__init__()
        self.transformer = transformer
        for name, values in (
            ("mean", transformer.position_mean_),
            ("scale", transformer.position_scale_),
            ("whitening", transformer.whitening_),
        ):
            self.register_buffer(name, torch.tensor(values))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Patch features; there are no descriptors."""
        responses = self.transformer._responses_of(images.permute(0, 3, 1, 2) - 0.5)
        return ((responses - self.mean) / self.scale) @ self.whitening, None


@features_module.register
def _(transformer: PCANetFeatures) -> nn.Module:
    return FilterFeatures(transformer)


class SideBySide(nn.Module):
    """`FusedFeatures`: those of two transformers, weighted."""

    def __init__(self, transformer: FusedFeatures) -> None:
        super().__init__()
        self.first = features_module(transformer.first_)
        self.second = features_module(transformer.second_)
        shares = 1 - transformer.share, transformer.share
        self.factors = [
            float(np.float32(np.sqrt(share / (variance + MIN_VARIANCE))))
            for share, variance in zip(shares, transformer.variances_, strict=True)
        ]

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Patch features, and their mean as descriptor."""
        parts = [
            module(images)[0] * factor
            for module, factor in zip(
                (self.first, self.second), self.factors, strict=True
            )
        ]
        patches = torch.cat(parts, dim=3)
        return patches, patches.mean(dim=(1, 2))


@features_module.register
def _(transformer: FusedFeatures) -> nn.Module:
    return SideBySide(transformer)


class Tiles(nn.Module):
    """`TiledFeatures`: features of all tiles at once, and the grid made of them."""

    def __init__(self, transformer: TiledFeatures) -> None:
        super().__init__()
        self.features = features_module(transformer.features_)
        self.tiling = transformer._tiling

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Patch features, and the mean descriptor of the tiles."""
        tiling, n = self.tiling, images.shape[0]
        (height, width), n_columns = tiling.tile, len(tiling.starts[1])
        corners = [(top, left) for top in tiling.starts[0] for left in tiling.starts[1]]
        tiles = [images[:, t : t + height, le : le + width] for t, le in corners]
        found, pooled = self.features(torch.cat(tiles, dim=0))
        found = found.reshape(len(tiles), n, *found.shape[1:])
        inner = [
            found[(k, slice(None), *tiling.inner(k)[1])] for k in range(len(tiles))
        ]
        rows = [
            torch.cat(inner[k : k + n_columns], dim=2)
            for k in range(0, len(inner), n_columns)
        ]
        if pooled is not None:
            pooled = pooled.reshape(len(tiles), n, pooled.shape[1]).mean(dim=0)
        return torch.cat(rows, dim=1), pooled


@features_module.register
def _(transformer: TiledFeatures) -> nn.Module:
    return Tiles(transformer)

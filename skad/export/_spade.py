"""SPADE as a module that a graph is traced from."""

from typing import Any

import numpy as np
import torch
from torch import nn

from skad._maps import WHOLE, _operators
from skad.detectors import SPADEDetector
from skad.export._banks import SPARE_CANDIDATES, NearestRows, unit_rows
from skad.export._patches import PatchScores, image_scores
from skad.export._registry import refuse_setting, scores_module


class Gallery(nn.Module):
    """Nearest patches among those of some of the training images.

    Parameters
    ----------
    patches : ndarray of shape (n_images, m, c)
        Of one level, those inside of the region.

    hidden : ndarray of shape (m, m), bool, or None
        Patches of the gallery (columns) that are too far from a patch (rows).

    n_images : int
        Number of training images that an image is compared with.

    k : int
        Number of neighbours, at most as many as are not hidden.
    """

    patches: torch.Tensor
    lengths: torch.Tensor
    hidden: torch.Tensor

    def __init__(
        self, patches: np.ndarray, hidden: np.ndarray | None, n_images: int, k: int
    ) -> None:
        super().__init__()
        self.n_rows, self.k = n_images * patches.shape[1], k
        self.n_candidates = min(k + SPARE_CANDIDATES, self.n_rows)
        self.is_local = hidden is not None
        lengths = np.einsum("nij,nij->ni", patches, patches, dtype=np.float64)
        self.register_buffer("patches", torch.from_numpy(patches))
        self.register_buffer("lengths", torch.from_numpy(lengths.astype(patches.dtype)))
        if hidden is not None:
            self.register_buffer("hidden", torch.from_numpy(hidden).repeat(1, n_images))

    def forward(self, queries: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
        """Squared distances (n, m, k), float64, ascending, of queries (n, m, c).

        `images` (n, n_images) are the training images to look at.
        """
        n, m, c = queries.shape
        bank = self.patches[images].reshape(n, self.n_rows, c)
        lengths = self.lengths[images].reshape(n, 1, self.n_rows)
        rough = lengths - 2 * (queries @ bank.transpose(1, 2))
        if self.is_local:
            rough = rough.masked_fill(self.hidden, float("inf"))
        rough, near = rough.topk(self.n_candidates, dim=2, largest=False)
        image = images.gather(1, (near // m).flatten(1)).reshape(near.shape)
        found = self.patches.flatten(0, 1)[image * m + near % m].to(torch.float64)
        gap = queries.to(torch.float64).unsqueeze(2) - found
        squared = (gap * gap).sum(dim=3).masked_fill(rough.isinf(), float("inf"))
        return squared.topk(self.k, dim=2, largest=False).values


class SPADE(PatchScores):
    """`SPADEDetector`: the nearest images, then the nearest patches of these."""

    def __init__(self, detector: SPADEDetector, inside: np.ndarray) -> None:
        super().__init__(inside)
        self.detector = detector
        self.is_cosine = detector.metric == "cosine"
        descriptors = detector.descriptors_
        n_images = min(detector.n_neighbors_image, len(descriptors))
        self.nearest = NearestRows(descriptors, n_images)
        self.counts = [gallery.shape[3] for gallery in detector.galleries_]
        self.offset = float(detector.offset_)
        levels = [_Level(detector, g, inside, n_images) for g in detector.galleries_]
        self.levels = nn.ModuleList(levels)

    def forward(
        self, features: torch.Tensor, pooled: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores (n,) and maps (n, h, w) of features (n, h, w, d)."""
        if pooled is None:
            pooled = features.flatten(1, 2).index_select(1, self.chosen).mean(dim=1)
        pooled = pooled.to(self.nearest.rows.dtype)
        pooled = unit_rows(pooled) if self.is_cosine else pooled
        squared, images = self.nearest(pooled)
        scores = self._distance(squared, self.detector.squared).mean(dim=1)
        parts = features.split(self.counts, dim=3)
        maps: Any = 0.0
        level: Any
        for part, level in zip(parts, self.levels, strict=True):
            patches = level.patches_of(part)
            patches = unit_rows(patches) if self.is_cosine else patches
            found = level.gallery(patches, images)
            found = self._distance(found, self.detector.squared_patches).mean(dim=2)
            maps = maps + level.on_grid_of_map(found) / len(self.counts)
        values = maps.flatten(1).index_select(1, self.chosen)
        if self.detector.image_score == "max":
            scores = image_scores(values, None)
        elif self.detector.gate:
            values = values.masked_fill((scores <= -self.offset)[:, None], 0.0)
        return scores, self.on_grid(values.to(torch.float32))

    def _distance(self, squared: torch.Tensor, keep_squared: bool) -> torch.Tensor:
        if self.is_cosine:
            return squared / 2
        return squared if keep_squared else squared.sqrt()


class _Level(PatchScores):
    """One level: its gallery, its own grid, and the way to the grid of the map."""

    first_rows: torch.Tensor
    first_columns: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor

    def __init__(
        self,
        detector: SPADEDetector,
        gallery: np.ndarray,
        inside: np.ndarray,
        n_images: int,
    ) -> None:
        own, firsts = gallery.shape[1:3], []
        whole = inside.shape
        for axis in (0, 1):  # as skad.detectors._spade._split
            first = -(-np.arange(own[axis]) * whole[axis] // own[axis])
            inside = np.logical_or.reduceat(inside, first, axis=axis)
            firsts.append(torch.from_numpy(first))
        super().__init__(inside)
        self.register_buffer("first_rows", firsts[0])
        self.register_buffer("first_columns", firsts[1])
        self.is_resized = own != whole
        if self.is_resized:
            (rows, _), (columns, _) = _operators(own, whole, 0, WHOLE, "bilinear")
            for name, weights in (("rows", rows), ("columns", columns.T)):
                values = torch.tensor(weights.astype(np.float64))
                self.register_buffer(name, values)
        patches = gallery.reshape(len(gallery), -1, gallery.shape[3])
        if (np.isnan(patches[:, :, 0]) != ~inside.ravel()).any():
            raise NotImplementedError(
                "to_onnx: SPADEDetector that was fitted with regions of single images "
                "cannot become a graph; fit with one region of PatchFeatures."
            )
        hidden = _hidden(detector, inside)
        n_seen = self.n_patches if hidden is None else int((~hidden).sum(axis=1).min())
        k = detector.n_neighbors
        if hidden is not None and k > n_images * n_seen:
            refuse_setting(detector, "n_neighbors", f"set {n_images * n_seen} or less")
        patches = np.ascontiguousarray(patches[:, inside.ravel()])
        k = min(k, n_images * n_seen)
        self.gallery = Gallery(patches, hidden, n_images, k)

    def patches_of(self, features: torch.Tensor) -> torch.Tensor:
        """Patches inside (n, m, c) of features on the grid of the map."""
        if self.is_resized:
            features = features.index_select(1, self.first_rows)
            features = features.index_select(2, self.first_columns)
        return features.flatten(1, 2).index_select(1, self.chosen)

    def on_grid_of_map(self, values: torch.Tensor) -> torch.Tensor:
        """Values (n, m) on the grid of the map."""
        maps = self.on_grid(values)
        return self.rows @ maps @ self.columns if self.is_resized else maps


def _hidden(detector: SPADEDetector, inside: np.ndarray) -> np.ndarray | None:
    """Pairs of patches (m, m) that lie too far apart, or None."""
    if detector.position_radius is None:
        return None
    places = np.argwhere(inside)
    gaps = np.abs(places[:, None] - places[None]).max(axis=2)
    return gaps > detector.position_radius


@scores_module.register
def _(detector: SPADEDetector, inside: Any) -> nn.Module:
    return SPADE(detector, inside)

"""Memory banks as modules that a graph is traced from."""

from typing import Any

import numpy as np
import torch
from torch import nn

from skad.detectors import PatchCoreDetector
from skad.export._patches import PatchScores, image_scores
from skad.export._registry import refuse_setting, scores_module

SPARE_CANDIDATES = 3  # rows beyond the k nearest whose distances are computed exactly


class NearestRows(nn.Module):
    """The k nearest rows of a bank.

    A matrix product in the dtype of the bank finds candidates; their distances are
    computed in float64, as `skad.neighbors` does.

    Parameters
    ----------
    rows : ndarray of shape (m, d)
        The bank.

    k : int
        Number of neighbours, at most m.
    """

    rows: torch.Tensor
    lengths: torch.Tensor

    def __init__(self, rows: np.ndarray, k: int) -> None:
        super().__init__()
        self.k = k
        self.n_candidates = min(k + SPARE_CANDIDATES, len(rows))
        lengths = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
        self.register_buffer("rows", torch.from_numpy(np.ascontiguousarray(rows)))
        self.register_buffer("lengths", torch.from_numpy(lengths.astype(rows.dtype)))

    def forward(self, queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Squared distances (q, k), float64, ascending, and indices of (q, d)."""
        near = self.candidates(queries)
        squared = self.squared(queries, near)
        squared, order = squared.topk(self.k, dim=1, largest=False)
        return squared, near.gather(1, order)

    def candidates(self, queries: torch.Tensor) -> torch.Tensor:
        """Rows that are about the nearest, (q, n_candidates)."""
        rough = self.lengths - 2 * (queries @ self.rows.T)
        return rough.topk(self.n_candidates, dim=1, largest=False).indices

    def squared(self, queries: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        """Squared distances (q, c), float64, from queries (q, d) to rows (q, c)."""
        found = self.rows[which].to(torch.float64)
        gap = queries.to(torch.float64).unsqueeze(1) - found
        return (gap * gap).sum(dim=2)


class PatchCore(PatchScores):
    """`PatchCoreDetector`: distances to its bank, and Equation 7 of the paper."""

    near: torch.Tensor

    def __init__(self, detector: PatchCoreDetector, inside: np.ndarray) -> None:
        super().__init__(inside)
        bank = detector._searched
        self.is_cosine = detector.metric == "cosine"
        self.top_ratio = detector.top_ratio
        self.nearest = NearestRows(bank.rows, min(detector.n_neighbors, len(bank.rows)))
        n_around = min(detector.reweight or 1, len(bank.rows))
        self.is_weighted = self.top_ratio is None and n_around > 1
        if self.is_weighted:
            near = bank.search(bank.rows, n_around)[1]
            self.register_buffer("near", torch.from_numpy(near))

    def score(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores and values of patches, as ``PatchCoreDetector._scores``."""
        n, n_patches, d = patches.shape
        queries = patches.reshape(n * n_patches, d)
        if self.is_cosine:
            queries = unit_rows(queries)
        squared, indices = self.nearest(queries)
        values = self._distance(squared).mean(dim=1).reshape(n, n_patches)
        scores = image_scores(values, self.top_ratio)
        if self.is_weighted:
            worst = values.argmax(dim=1, keepdim=True)
            queries = queries.reshape(n, n_patches, d)
            query = queries.gather(1, worst.unsqueeze(2).expand(n, 1, d))[:, 0]
            own = indices[:, 0].reshape(n, n_patches).gather(1, worst)
            scores = scores * self._weights(query, own)
        return scores, values

    def _weights(self, query: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
        """Weights (n,) of queries (n, d) whose nearest rows are `own` (n, 1)."""
        around = self._distance(self.nearest.squared(query, self.near[own[:, 0]]))
        nearest = self._distance(self.nearest.squared(query, own))[:, 0]
        largest = around.amax(dim=1)
        total = torch.exp(around - largest[:, None]).sum(dim=1)
        return 1.0 - torch.exp(nearest - largest) / total

    def _distance(self, squared: torch.Tensor) -> torch.Tensor:
        return squared / 2 if self.is_cosine else squared.sqrt()


def unit_rows(rows: torch.Tensor) -> torch.Tensor:
    """As `skad._matrices.unit_rows`."""
    length = (rows * rows).sum(dim=-1, keepdim=True).sqrt()
    return rows / length.clamp(min=torch.finfo(rows.dtype).tiny)


@scores_module.register
def _(detector: PatchCoreDetector, inside: Any) -> nn.Module:
    if detector._index is not None:
        refuse_setting(
            detector, "algorithm", "set algorithm='exact', and bank_size for its time"
        )
    return PatchCore(detector, inside)

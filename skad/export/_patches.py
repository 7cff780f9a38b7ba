"""What detectors share: scores of patches put on a grid, and the score of an image."""

import numpy as np
import torch
from torch import nn

from skad._patches import n_top


class PatchScores(nn.Module):
    """Base of detectors that score patch by patch.

    A subclass defines ``score(patches)``: from the patches inside of the region of
    interest (n, m, d) to anomaly scores (n,) and values of the patches (n, m).

    Parameters
    ----------
    inside : ndarray of shape (h, w), bool
        Patches inside of the region.
    """

    chosen: torch.Tensor
    place: torch.Tensor
    absent: torch.Tensor

    def __init__(self, inside: np.ndarray) -> None:
        super().__init__()
        self.grid = inside.shape
        self.is_whole = bool(inside.all())
        flat = inside.ravel()
        self.n_patches = int(flat.sum())
        self.register_buffer("chosen", torch.from_numpy(np.flatnonzero(flat)))
        # The value that each cell of the grid takes, any of them where it has none.
        place = np.maximum(np.cumsum(flat) - 1, 0)
        self.register_buffer("place", torch.from_numpy(place))
        self.register_buffer("absent", torch.from_numpy(~flat))

    def score(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores (n,) and values (n, m) of patches (n, m, d)."""
        raise NotImplementedError

    def forward(
        self, features: torch.Tensor, pooled: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores (n,) and maps (n, h, w) of features (n, h, w, d)."""
        patches = features.reshape(
            features.shape[0], self.grid[0] * self.grid[1], features.shape[3]
        )
        if not self.is_whole:
            patches = patches.index_select(1, self.chosen)
        scores, values = self.score(patches)
        return scores, self.on_grid(values.to(torch.float32))

    def on_grid(self, values: torch.Tensor) -> torch.Tensor:
        """Maps (n, h, w) of values (n, m); the smallest one outside of the region."""
        if not self.is_whole:
            lowest = values.amin(dim=1, keepdim=True)
            values = values.index_select(1, self.place)
            values = torch.where(self.absent, lowest, values)
        return values.reshape(values.shape[0], *self.grid)


def image_scores(values: torch.Tensor, top_ratio: float | None) -> torch.Tensor:
    """As `skad._patches.image_scores`, of values (n, m); float64 (n,)."""
    values = values.to(torch.float64)
    if top_ratio is None:
        return values.amax(dim=1)
    top = n_top(values.shape[1], top_ratio)
    return values.topk(top, dim=1).values.mean(dim=1)

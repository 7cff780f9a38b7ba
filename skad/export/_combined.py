"""Detectors made of others as modules that a graph is traced from."""

from typing import Any

import numpy as np
import torch
from torch import nn

from skad.detectors import FusionDetector
from skad.export._patches import PatchScores
from skad.export._registry import scores_module


class Fusion(PatchScores):
    """`FusionDetector`: one detector for each feature type, standardised and summed."""

    def __init__(self, detector: FusionDetector, inside: np.ndarray) -> None:
        super().__init__(inside)
        self.counts = list(detector.n_channels_)
        self.parts = nn.ModuleList(
            scores_module(one, inside) for one in detector.detectors_
        )
        weights = detector.detector_weights_
        self.scores = _standardisation(
            detector.score_means_, weights / detector.score_stds_
        )
        self.maps = _standardisation(detector.map_means_, weights / detector.map_stds_)

    def forward(
        self, features: torch.Tensor, pooled: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores (n,) and maps (n, h, w) of features (n, h, w, d)."""
        parts = features.split(self.counts, dim=3)
        found = [part(x) for part, x in zip(self.parts, parts, strict=True)]
        scores = _weighted_sum([one[0] for one in found], self.scores)
        maps = _weighted_sum([one[1] for one in found], self.maps).to(torch.float32)
        if not self.is_whole:
            maps = self.on_grid(maps.flatten(1).index_select(1, self.chosen))
        return scores, maps


def _standardisation(means: Any, factors: Any) -> list[tuple[float, float]]:
    return [(float(m), float(f)) for m, f in zip(means, factors, strict=True)]


def _weighted_sum(
    values: list[torch.Tensor], terms: list[tuple[float, float]]
) -> torch.Tensor:
    """Sum of (v - mean) * factor over the feature types, float64."""
    return sum(
        (
            (value.to(torch.float64) - mean) * factor
            for value, (mean, factor) in zip(values, terms, strict=True)
        ),
        start=torch.zeros((), dtype=torch.float64),
    )


@scores_module.register
def _(detector: FusionDetector, inside: Any) -> nn.Module:
    return Fusion(detector, inside)

"""Detectors made of others as modules that a graph is traced from."""

from typing import Any

import numpy as np
import torch
from torch import nn

from skad.detectors import (
    FusionDetector,
    ImagePUADDetector,
    PatchwiseDetector,
    PRNDetector,
    PUADDetector,
)
from skad.export._patches import PatchScores
from skad.export._registry import (
    features_module,
    patches_inside,
    refuse,
    scores_module,
)


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


class TwoScores(PatchScores):
    """Sum of a detector's score and of the distance of the mean patch feature.

    Parameters
    ----------
    detector : PUADDetector or ImagePUADDetector

    inside : ndarray of shape (h, w), bool
        Patches inside of the region, of which the mean is taken.

    scores : module
        Of the detector inside.
    """

    location: torch.Tensor
    precision: torch.Tensor

    def __init__(self, detector: Any, inside: np.ndarray, scores: nn.Module) -> None:
        super().__init__(inside)
        self.scores = scores
        for name in ("location", "precision"):
            values = np.asarray(getattr(detector, f"{name}_"), np.float64)
            self.register_buffer(name, torch.from_numpy(values))
        self.terms = _standardisation(detector.score_means_, 1 / detector.score_stds_)

    def forward(
        self, features: torch.Tensor, pooled: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores (n,) and maps (n, h, w) of features (n, h, w, d)."""
        scores, maps = self.scores(features, pooled)
        return self.total(scores, features), maps

    def total(self, scores: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Scores (n,) of the detector inside, and of features, standardised."""
        patches = features.flatten(1, 2).index_select(1, self.chosen)
        centred = patches.to(torch.float64).mean(dim=1) - self.location
        squared = ((centred @ self.precision) * centred).sum(dim=1)
        return _weighted_sum([scores, squared.clamp(min=0).sqrt()], self.terms)


class ImageTwoScores(TwoScores):
    """`ImagePUADDetector`: the detector inside and the features get the same images."""

    def __init__(self, detector: ImagePUADDetector) -> None:
        features = detector.features_
        scores = scores_module(detector.detector_, None)
        super().__init__(detector, patches_inside(features), scores)
        self.features = features_module(features)

    def forward(
        self, features: torch.Tensor, pooled: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores (n,) and maps (n, h, w) of images (n, H, W, c), here `features`."""
        scores, maps = self.scores(features, None)
        return self.total(scores, self.features(features)[0]), maps


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


@scores_module.register
def _(detector: PUADDetector, inside: Any) -> nn.Module:
    return TwoScores(detector, inside, scores_module(detector.detector_, inside))


@scores_module.register
def _(detector: ImagePUADDetector, inside: Any) -> nn.Module:
    read = [
        (step._frame(), step._n_channels()) for step in (detector, detector.features_)
    ]
    if read[0] != read[1]:
        refuse(
            detector,
            "its detector and its features resize images differently: fit with the "
            "same image_size and crop_size of both",
        )
    return ImageTwoScores(detector)


@scores_module.register
def _(detector: PRNDetector, inside: Any) -> nn.Module:
    refuse(detector, "export a model with PatchCoreDetector or DRAEMDetector")


@scores_module.register
def _(detector: PatchwiseDetector, inside: Any) -> nn.Module:
    refuse(
        detector,
        "its estimator is of another library; export a model with PatchCoreDetector "
        "or SubspaceDetector",
    )

"""Trained detectors as modules that a graph is traced from."""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from skad.detectors import (
    CutPasteDetector,
    DRAEMDetector,
    EfficientADDetector,
    SimpleNetDetector,
)
from skad.export._patches import PatchScores, image_scores
from skad.export._registry import scores_module
from skad.networks import cutpaste, input, pdn, unet
from skad.networks._simplenet import _LEAKY_SLOPE


class SimpleNet(PatchScores):
    """`SimpleNetDetector`: its folded layers, and the second head where it has one."""

    output: torch.Tensor
    patch_absent: torch.Tensor

    def __init__(self, detector: SimpleNetDetector, inside: np.ndarray) -> None:
        factor = detector.upscale
        super().__init__(inside.repeat(factor, axis=0).repeat(factor, axis=1))
        self.upscale = factor
        self.register_buffer("patch_absent", torch.from_numpy(~inside))
        layers, output, self.module = detector._scoring_layers(np.dtype(np.float32))
        self.n_layers = len(layers)
        for i, (weight, offset) in enumerate(layers):
            self.register_buffer(f"weight{i}", torch.tensor(weight.T.copy()))
            self.register_buffer(f"offset{i}", torch.tensor(offset))
        self.register_buffer("output", torch.tensor(output))

    def forward(
        self, features: torch.Tensor, pooled: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores (n,) and maps (n, h, w) of features (n, h, w, d)."""
        if self.upscale > 1:
            features = features.masked_fill(self.patch_absent[..., None], 0.0)
            features = functional.interpolate(
                features.permute(0, 3, 1, 2),
                size=self.grid,
                mode="bilinear",
                align_corners=False,
            ).permute(0, 2, 3, 1)
        scores, maps = super().forward(features)
        if self.module is not None:
            absent = self.absent.reshape(self.grid)
            adapted = self.module.adaptor(features)
            adapted = adapted.masked_fill(absent[..., None], 0.0)
            logits = self.module.head(adapted, maps.masked_fill(absent, 0.0))
            scores = logits.to(torch.float64)
        return scores, maps

    def score(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores and values of patches, as ``outputs_of`` computes them."""
        hidden = patches
        for i in range(self.n_layers):
            hidden = hidden @ getattr(self, f"weight{i}") + getattr(self, f"offset{i}")
            hidden = torch.maximum(hidden, hidden * _LEAKY_SLOPE)
        values = -(hidden @ self.output)
        return image_scores(values, None), values


class EfficientAD(nn.Module):
    """`EfficientADDetector`: its own teacher, student and autoencoder."""

    def __init__(self, detector: EfficientADDetector) -> None:
        super().__init__()
        device = torch.device("cpu")
        self.teacher, self.student, self.autoencoder = detector._scoring_networks(
            device
        )
        self.normalized = pdn.NormalizedTeacher(
            self.teacher,
            detector.teacher_mean_,
            detector.teacher_std_,
            detector._grid(),
            device,
        )
        low, high = detector.quantiles_.T
        span = np.maximum(high - low, np.finfo(np.float32).tiny)
        self.low, self.span = low.tolist(), span.tolist()

    def forward(
        self, images: torch.Tensor, nothing: None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores (n,) and maps (n, h, w) of images (n, H, W, 3)."""
        raw = pdn.disagreements(
            self.normalized, self.student, self.autoencoder, _normalized(images)
        )
        scaled = [
            0.1 * (values.to(torch.float64) - low) / span
            for values, low, span in zip(raw, self.low, self.span, strict=True)
        ]
        maps = (0.5 * scaled[0] + 0.5 * scaled[1]).to(torch.float32)
        return maps.amax(dim=(1, 2)).to(torch.float64), maps


class DRAEM(nn.Module):
    """`DRAEMDetector`: its own two networks."""

    def __init__(self, detector: DRAEMDetector) -> None:
        super().__init__()
        self.networks = detector._trained_networks(detector.model)

    def forward(
        self, images: torch.Tensor, nothing: None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores (n,) and maps (n, h, w) of images (n, H, W, 3)."""
        scores, maps = unet.answers_of(self.networks, images.permute(0, 3, 1, 2))
        return scores.to(torch.float64), maps


class CutPaste(nn.Module):
    """`CutPasteDetector`: its own network, and the Gaussians of its features."""

    def __init__(self, detector: CutPasteDetector) -> None:
        super().__init__()
        network = detector._trained_networks(detector.backbone, detector.variant)
        self.backbone = network["backbone"]
        for name in ("location", "precision", "map_location", "map_precision"):
            values = torch.tensor(getattr(detector, f"{name}_"), dtype=torch.float64)
            self.register_buffer(name, values)

    def forward(
        self, images: torch.Tensor, nothing: None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores (n,) and maps (n, h, w) of images (n, H, W, 3)."""
        maps = cutpaste._maps(self.backbone, _normalized(images))
        maps = maps.permute(0, 2, 3, 1).to(torch.float64)
        scores = _distances(maps.mean(dim=(1, 2)), self.location, self.precision)
        maps = _distances(maps, self.map_location, self.map_precision)
        return scores, maps.to(torch.float32)


def _normalized(images: torch.Tensor) -> torch.Tensor:
    """Images as networks of ImageNet take them, (n, 3, H, W)."""
    mean, std = (
        torch.tensor(values, dtype=torch.float32)
        for values in (input.IMAGENET_MEAN, input.IMAGENET_STD)
    )
    return input.normalized_tensor(images, mean, std)


def _distances(rows: torch.Tensor, location: Any, precision: Any) -> torch.Tensor:
    """Mahalanobis distances of rows (..., d)."""
    centred = rows - location
    return ((centred @ precision) * centred).sum(dim=-1).clamp(min=0).sqrt()


@scores_module.register
def _(detector: SimpleNetDetector, inside: Any) -> nn.Module:
    return SimpleNet(detector, inside)


@scores_module.register
def _(detector: EfficientADDetector, inside: Any) -> nn.Module:
    return EfficientAD(detector)


@scores_module.register
def _(detector: DRAEMDetector, inside: Any) -> nn.Module:
    return DRAEM(detector)


@scores_module.register
def _(detector: CutPasteDetector, inside: Any) -> nn.Module:
    return CutPaste(detector)

"""Gaussians and subspaces as modules that a graph is traced from."""

from typing import Any

import numpy as np
import torch
from scipy.linalg import solve_triangular
from torch import nn

from skad.detectors import PaDiMDetector, SubspaceDetector
from skad.detectors._subspace import _rounding
from skad.export._patches import PatchScores, image_scores
from skad.export._registry import scores_module


class Subspace(PatchScores):
    """`SubspaceDetector`: the length of what lies outside of the subspace."""

    mean: torch.Tensor
    axes: torch.Tensor

    def __init__(self, detector: SubspaceDetector, inside: np.ndarray) -> None:
        super().__init__(inside)
        self.top_ratio = detector.top_ratio
        self.spans_residual = detector._spans_residual
        self.floor = float(_rounding(detector._moments) / detector._moments.n)
        axes = np.ascontiguousarray(detector._axes)
        self.register_buffer("axes", torch.from_numpy(axes))
        self.register_buffer(
            "mean", torch.from_numpy(detector.mean_.astype(axes.dtype))
        )

    def score(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores and values of patches, as ``SubspaceDetector._score``."""
        residual = patches - self.mean
        along = residual @ self.axes
        residual = along if self.spans_residual else residual - along @ self.axes.T
        squared = (residual * residual).sum(dim=2).to(torch.float64)
        squared = torch.where(squared <= self.floor, torch.zeros_like(squared), squared)
        values = squared.sqrt()
        return image_scores(values, self.top_ratio), values


class PaDiM(PatchScores):
    """`PaDiMDetector`: Mahalanobis distances to the Gaussian of each position.

    With A = L L', the distance needs L^-1, which is computed beforehand. Where there
    were fewer images than channels, their rows C, one for each image, stand for the
    covariance: see ``skad.detectors._gaussians``.
    """

    mean: torch.Tensor
    whitening: torch.Tensor
    freedom: torch.Tensor

    def __init__(self, detector: PaDiMDetector, inside: np.ndarray) -> None:
        known = detector._gaussians
        seen = inside & (known.counts > 0).reshape(inside.shape)
        super().__init__(seen)
        chosen = np.flatnonzero(seen)
        self.eps = known.eps
        self.is_low_rank = known.is_low_rank
        self.register_buffer("mean", torch.from_numpy(known.mean[chosen]))
        freedom = np.maximum(known.counts[chosen] - 1.0, 1)
        self.register_buffer("freedom", torch.from_numpy(freedom))
        whitening = np.stack([_whitening(known, int(position)) for position in chosen])
        self.register_buffer("whitening", torch.from_numpy(whitening))

    def score(self, patches: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores and values of patches, as ``PaDiMDetector._score``."""
        centred = patches.to(torch.float64) - self.mean
        centred = centred.permute(1, 0, 2)  # by position (m, n, d)
        solved = centred @ self.whitening
        squared = (solved * solved).sum(dim=2)
        if self.is_low_rank:
            squared = ((centred * centred).sum(dim=2) - squared) / self.eps
        else:
            squared = self.freedom[:, None] * squared
        values = squared.clamp(min=0).sqrt().permute(1, 0)
        return image_scores(values, None), values


def _whitening(known: Any, position: int) -> np.ndarray:
    """Matrix W, by which rows y become W'y as ``Gaussians._squared_lengths`` has it."""
    part = slice(position, position + 1)
    factor = known.factor[position]
    right = known._centred(known.images, part)[0] if known.is_low_rank else None
    if right is None:
        right = np.eye(len(factor))
    return np.ascontiguousarray(solve_triangular(factor, right, lower=True).T)


@scores_module.register
def _(detector: SubspaceDetector, inside: Any) -> nn.Module:
    return Subspace(detector, inside)


@scores_module.register
def _(detector: PaDiMDetector, inside: Any) -> nn.Module:
    return PaDiM(detector, inside)

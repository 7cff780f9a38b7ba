"""The whole of a fitted model as one module, from raw images to all answers."""

from typing import Any

import numpy as np
import torch
from torch import nn

from skad._chain import Chain
from skad._maps import _operators

# Each fills the tables of _registry.
from skad.export import (  # noqa: F401
    _banks,
    _combined,
    _features,
    _linear,
    _spade,
    _trained,
)
from skad.export._reader import Reader
from skad.export._registry import (
    features_module,
    patches_inside,
    refuse,
    scores_module,
)


class Model(nn.Module):
    """A fitted model: raw images in, all answers out.

    Parameters
    ----------
    chain : Chain
        Of the model.

    size : (int, int)
        Height and width of the raw images.
    """

    def __init__(self, chain: Chain, size: tuple[int, int]) -> None:
        super().__init__()
        source = reading_step(chain)
        self.reader = Reader(size, source._frame(), source._n_channels())
        self.features = None
        inside = None
        looked_at = None
        if chain.images is not None:
            self.features = features_module(chain.images)
            looked_at = chain.images.regions(None, 1)
            inside = patches_inside(chain.images, size)
        self.scores = scores_module(chain.final, inside)
        self.answers = Answers(chain, size, looked_at)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """`OUTPUTS` of raw images (n, H, W, C), uint8."""
        images = self.reader(image)
        taken = (images, None) if self.features is None else self.features(images)
        return self.answers(*self.scores(*taken))


class Answers(nn.Module):
    """From anomaly scores and maps of a detector to what a user asks for.

    Parameters
    ----------
    chain : Chain

    size : (int, int)
        Height and width of maps and masks.

    looked_at : Regions or None
        Of one image; pixels outside take the smallest score of its map.
    """

    held_out: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    outside: torch.Tensor

    def __init__(self, chain: Chain, size: tuple[int, int], looked_at: Any) -> None:
        super().__init__()
        detector, self.size = chain.final, size
        self.offset = float(detector.offset_)
        held_out = np.sort(detector.calibration_scores_)
        self.register_buffer("held_out", torch.from_numpy(held_out))
        self.pixel_threshold = float(chain.pixel_threshold(size))
        window = reading_step(chain).window(size)
        rendering = detector._rendering(window, detector.calibration_maps_.shape[1:])
        (rows, self.top), (columns, self.left) = _operators(
            detector.calibration_maps_.shape[1:],
            size,
            rendering["sigma"],
            rendering["window"],
            rendering.get("interpolation", "bilinear"),
        )
        self.register_buffer("rows", torch.tensor(rows))
        self.register_buffer("columns", torch.tensor(columns.T.copy()))
        covered = np.zeros(size, bool)
        covered[self.top :, self.left :][: len(rows), : len(columns)] = True
        self.is_whole = bool(covered.all())
        if looked_at:
            covered &= looked_at.inside(0, size)
        self.covers_all = bool(covered.all())
        self.register_buffer("outside", torch.from_numpy(~covered))

    def forward(
        self, scores: torch.Tensor, maps: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        """`OUTPUTS` of anomaly scores (n,) and maps (n, h, w)."""
        score = -scores.to(torch.float64)
        decision = score - self.offset
        label = torch.where(decision >= 0, 1, -1).to(torch.int64)
        n_below = (self.held_out <= score[:, None]).to(torch.int64).sum(dim=1)
        p_value = (n_below + 1).to(torch.float64) / (len(self.held_out) + 1)
        rendered = self.render(maps)
        return (
            score,
            decision,
            label,
            p_value,
            rendered,
            rendered > self.pixel_threshold,
        )

    def render(self, maps: torch.Tensor) -> torch.Tensor:
        """As `skad._maps.render`, maps (n, H, W) of patch grids (n, h, w)."""
        rendered = self.rows @ maps @ self.columns
        if not self.is_whole:
            height, width = rendered.shape[1:]
            rendered = nn.functional.pad(
                rendered,
                (
                    self.left,
                    self.size[1] - self.left - width,
                    self.top,
                    self.size[0] - self.top - height,
                ),
            )
        if not self.covers_all:
            lowest = maps.amin(dim=(1, 2), keepdim=True)
            rendered = torch.where(self.outside, lowest, rendered)
        return rendered


def reading_step(chain: Chain) -> Any:
    """The estimator that reads the images of a model.

    Raises
    ------
    NotImplementedError
        If other steps come before it, or between it and the detector.

    ValueError
        If there is none.
    """
    if chain.before and chain.images is not None:
        refuse(chain.before[0], "a graph begins with the step that reads images")
    if chain.after:
        refuse(chain.after[0], "leave out the step between features and detector")
    source = chain.final if chain.images is None else chain.images
    if not hasattr(source, "image_sizes"):
        raise ValueError(
            f"to_onnx: no step of the model reads images, and {type(source).__name__} "
            "takes patch features. Export a pipeline that begins with PatchFeatures."
        )
    return source

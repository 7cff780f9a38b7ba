"""Mean and standard deviation of responses at every position of the grid."""

from __future__ import annotations

from typing import Any

import numpy as np

from skad.features._principal import MIN_VARIANCE

_PRIOR_IMAGES = 20  # that the common variance counts for, against a position's own


class Positions:
    """Running mean and variance of responses at every position, in float64."""

    def __init__(self, n: int = 0, total: Any = 0.0, squares: Any = 0.0) -> None:
        self.n, self.total, self.squares = n, total, squares

    def add(self, responses: np.ndarray) -> None:
        """Take one image into the statistics."""
        responses = responses.astype(np.float64)
        self.n += 1
        self.total = self.total + responses
        self.squares = self.squares + responses**2

    def without(self, responses: np.ndarray) -> Positions:
        """Remove one image from the statistics; a single one stays."""
        if self.n == 1:
            return self
        responses = responses.astype(np.float64)
        return Positions(
            self.n - 1, self.total - responses, self.squares - responses**2
        )

    @property
    def mean(self) -> np.ndarray:
        return (self.total / self.n).astype(np.float32)

    @property
    def scale(self) -> np.ndarray:
        """Standard deviations, shrunk towards the common one where images are few."""
        variance = np.maximum(self.squares / self.n - (self.total / self.n) ** 2, 0)
        common = variance.mean(axis=(0, 1))
        share = self.n / (self.n + _PRIOR_IMAGES)
        variance = share * variance + (1 - share) * common
        return np.sqrt(variance + MIN_VARIANCE).astype(np.float32)

    def standardise(self, responses: np.ndarray) -> np.ndarray:
        return (responses - self.mean) / self.scale

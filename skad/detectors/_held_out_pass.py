"""Held-out scores and maps of images that pass batch by batch, until all are known."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from skad._patches import n_top
from skad.detectors._streamed_bank import StreamedLeftOut


@dataclass
class HeldOutPass:
    """What a pass over some of the images found.

    Images have numbers, by their order among all that were learned from last.

    Parameters
    ----------
    first : int
        Number of the first of these images.

    scores : ndarray of shape (n,)
        NaN for images that could not be read.

    map_images : ndarray of shape (m,), int
        Numbers of the images whose maps are kept, ascending.

    maps : ndarray of shape (m, h, w), float32

    left_out : StreamedLeftOut
        What is needed to correct scores and maps when all images have passed.

    highest : dict of (int, ndarray)
        If the score of an image is the mean of its highest patch scores: by image, the
        number of these, and the highest ones among those that stay as they are.

    positions : ndarray of shape (n,), int
        Places of the images in X.
    """

    first: int
    scores: np.ndarray
    map_images: np.ndarray
    maps: np.ndarray
    left_out: StreamedLeftOut
    highest: dict[int, tuple[int, np.ndarray]] = field(default_factory=dict)
    positions: np.ndarray = field(default_factory=lambda: np.empty(0, np.intp))

    @classmethod
    def over(
        cls,
        first: int,
        n: int,
        map_images: np.ndarray,
        grid: tuple[int, ...],
        left_out: StreamedLeftOut,
    ) -> HeldOutPass:
        """Begin a pass over n images."""
        scores = np.full(n, np.nan)
        maps = np.full((len(map_images), *grid), np.nan, np.float32)
        return cls(first, scores, map_images, maps, left_out)

    def add(
        self,
        numbers: np.ndarray,
        scores: np.ndarray,
        maps: np.ndarray,
        top_ratio: float | None,
    ) -> None:
        """Take in images that `left_out` has seen already."""
        self.scores[numbers - self.first] = scores
        _, places, chosen = np.intersect1d(
            self.map_images, numbers, assume_unique=True, return_indices=True
        )
        self.maps[places] = maps[chosen]
        if top_ratio is None:
            return
        for image, one in zip(numbers.tolist(), maps, strict=True):
            worst = self.left_out.worst_of(image)
            if worst is not None:
                values = one[~np.isnan(one)]
                n = n_top(len(values), top_ratio)
                rest = np.sort(np.delete(values, worst))
                # A copy: a slice would keep the scores of all patches.
                self.highest[image] = n, rest[max(0, len(rest) - n) :].copy()

    def join(self, other: HeldOutPass) -> None:
        """Take in a pass over other images, of the same bank."""
        lo = other.first - self.first
        self.scores[lo : lo + len(other.scores)] = other.scores
        self.maps[np.searchsorted(self.map_images, other.map_images)] = other.maps
        self.highest.update(other.highest)
        self.left_out.join(other.left_out)

    def correct_map(self, image: int, order: np.ndarray, values: np.ndarray) -> None:
        """Put corrected scores in the place of those of some patches of an image."""
        place = int(np.searchsorted(self.map_images, image))
        if place < len(self.map_images) and self.map_images[place] == image:
            flat = self.maps[place].reshape(-1)
            flat[np.flatnonzero(~np.isnan(flat))[order]] = values

    def top_score(self, image: int, values: np.ndarray) -> float:
        """Mean of the highest patch scores of an image, some of which are corrected."""
        n, rest = self.highest[image]
        both = np.sort(np.concatenate([rest, values.astype(np.float32)]))
        return float(both[-n:].mean(dtype=np.float64))


def no_held_out(grid: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Scores and maps of no image."""
    return np.empty(0), np.empty((0, *grid), np.float32)

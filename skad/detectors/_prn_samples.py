"""Training images of PRN: normal, known defects, and synthetic anomalies.

A batch of 64 has 32 normal images, 16 with known defects and 16 synthetic anomalies.
Of the known ones, a share is extended, pasted into a normal image, and the others are
taken as they are. Half of the synthetic ones let a texture show through a normal image
(heterologous), the others another normal image that was changed (homologous).
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from skad.images import read_mask
from skad.images._batches import remembered
from skad.images._resize import center_crop_box
from skad.networks._sampling import combined_seed, sample_at
from skad.synthesis import (
    changed_texture,
    draem,
    extended_anomaly,
    foreground_mask,
    procedural_texture,
)


def composition(batch_size: int, known: bool) -> tuple[int, int, int]:
    """How many images of a batch are normal, known defects and synthetic.

    Parameters
    ----------
    batch_size : int

    known : bool
        Whether there are known defects.

    Returns
    -------
    n_normal, n_known, n_synthetic : int
    """
    n_normal = max(1, batch_size // 2)
    n_known = max(1, batch_size // 4) if known else 0
    return n_normal, n_known, batch_size - n_normal - n_known


class Samples:
    """Samples of the training steps: images, and masks of their defects.

    Parameters
    ----------
    read : callable
        ``read(i)`` gives the i-th normal image, float32 (H, W, 3) in [0, 1].

    n : int
        Number of normal images.

    defects : list of (callable, ndarray of shape (H, W), bool, or None)
        For each known defect what reads its image, and its mask.

    size : (int, int)
        Height and width of all of them.

    batch_size : int

    seed : int

    textures : skad.images._batches.ImageReader or None
        None generates textures.

    foreground : "auto" or None
        As in `PRNDetector`.

    flips : bool
        Whether each image is mirrored at random, along both sides.

    extended_ratio : float
        As in `PRNDetector`.
    """

    def __init__(
        self,
        read: Callable[[int], np.ndarray],
        n: int,
        defects: Any,
        size: tuple[int, int],
        batch_size: int,
        seed: int,
        textures: Any,
        foreground: str | None,
        flips: bool,
        extended_ratio: float,
    ) -> None:
        self.read, self.n, self.defects = read, n, defects
        self.size, self.seed = size, seed
        self.n_normal, self.n_known, _ = composition(batch_size, bool(defects))
        self.textures = None
        if textures is not None:
            self.n_textures, self.textures = len(textures), remembered(textures)
        self.foreground, self.flips = foreground, flips
        self.extended_ratio = extended_ratio
        self._allowed: dict[int, np.ndarray] = {}

    def __call__(self, step: int, k: int) -> tuple[np.ndarray, np.ndarray | None]:
        """Make image k of a step, and its mask, or None where nobody has marked it."""
        image, mask = self._sample(step, k)
        if self.flips:
            rng = np.random.default_rng(combined_seed(self.seed, 3, step, k))
            way = tuple(slice(None, None, rng.choice((-1, 1))) for _ in range(2))
            image = np.ascontiguousarray(image[way])
            mask = None if mask is None else mask[way]
        return image, mask

    def _sample(self, step: int, k: int) -> tuple[np.ndarray, np.ndarray | None]:
        if k < self.n_normal:
            ahead = self.n_normal * step + k
            image = self.read(sample_at(self.seed, ahead, self.n))
            return image, np.zeros(image.shape[:2], bool)
        rng = np.random.default_rng(combined_seed(self.seed, 2, step, k))
        return (
            self.known(rng) if k < self.n_normal + self.n_known else self.synthetic(rng)
        )

    def known(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray | None]:
        """Take a known defect as it is, or paste it into a normal image."""
        read, mask = self.defects[rng.integers(len(self.defects))]
        if mask is None or rng.random() < 1 - self.extended_ratio:
            return read(), mask
        i = int(rng.integers(self.n))
        return extended_anomaly(
            self.read(i), read(), mask, rng, foreground=self._foreground(i)
        )

    def synthetic(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Put a synthetic anomaly into a normal image; returns that, and the mask."""
        i = int(rng.integers(self.n))
        other = self.homologous if rng.random() < 0.5 else self.heterologous
        texture, foreground = other(rng), self._foreground(i)
        return draem(self.read(i), rng, texture=texture, foreground=foreground)

    def homologous(self, rng: np.random.Generator) -> np.ndarray:
        """Texture of a homologous anomaly: an augmented normal image."""
        return changed_texture(self.read(int(rng.integers(self.n))), rng)

    def heterologous(self, rng: np.random.Generator) -> np.ndarray:
        """Texture of a heterologous anomaly: an augmented photograph, or generated."""
        if self.textures is None:
            return procedural_texture((*self.size, 3), rng)
        return changed_texture(self.textures(int(rng.integers(self.n_textures))), rng)

    def _foreground(self, i: int) -> Any:
        if self.foreground is None:
            return None
        if i not in self._allowed:
            self._allowed[i] = foreground_mask(self.read(i))
        return self._allowed[i]


def resized_mask(mask: Any, size: tuple[int, int], crop: Any) -> np.ndarray:
    """Resize a mask to the input; empty if the crop leaves nothing of it.

    Parameters
    ----------
    mask : ndarray of shape (H, W), bool

    size : (int, int)
        That images are resized to.

    crop : (int, int) or None
        The centre of it that is looked at.

    Returns
    -------
    resized : ndarray of bool
    """
    from PIL import Image

    share = np.asarray(
        Image.fromarray(mask.astype(np.float32)).resize(
            (size[1], size[0]), Image.Resampling.BOX
        )
    )
    if crop is not None:
        top, left = center_crop_box(size, crop)
        share = share[top : top + crop[0], left : left + crop[1]]
    resized = share > 0.5
    return resized if resized.any() else share > 0  # thinner than a pixel


def read_defect_mask(mask: Any, i: Any) -> np.ndarray:
    """The mask of a defective image, which must mark something."""
    mask = read_mask(mask, where=f"masks[{i}]")
    if not mask.any():
        raise ValueError(
            f"masks[{i}] is empty, but y[{i}] is -1, a defective image; pass None "
            "for a defect that nobody has marked."
        )
    return mask


def check_masks(masks: Any, labels: np.ndarray) -> list[Any]:
    """Check masks, one for each label; those of normal images must be empty.

    Parameters
    ----------
    masks : sequence of masks and None, or None

    labels : ndarray of shape (n,)
        +1 is normal.

    Returns
    -------
    masks : list
    """
    if masks is None:
        return [None] * len(labels)
    for i in np.flatnonzero(labels == 1):
        if masks[i] is not None and read_mask(masks[i], where=f"masks[{i}]").any():
            raise ValueError(
                f"masks[{i}] marks a defect, but y[{i}] is +1, a normal image; "
                "correct one of them."
            )
    return masks

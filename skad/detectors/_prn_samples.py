"""Training images of PRN: good ones, seen defects, extended ones, and made ones.

A batch of 64 has 32 good images, 16 with seen defects and 16 with made ones. Half of
the seen ones are shown as they are, the others extended: pasted into a good image. Half
of the made ones let a texture show through a good image (heterologous), the others
another good image that was changed (homologous).
"""

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


def composition(batch_size, seen):
    """How many images of a batch are good, seen and made.

    Parameters
    ----------
    batch_size : int

    seen : bool
        Whether there are seen defects.

    Returns
    -------
    n_good, n_seen, n_made : int
    """
    n_good = max(1, batch_size // 2)
    n_seen = max(1, batch_size // 4) if seen else 0
    return n_good, n_seen, batch_size - n_good - n_seen


class Samples:
    """Images of the steps of training, and where their defects are.

    Parameters
    ----------
    read : callable
        ``read(i)`` gives the i-th good image, float32 (H, W, 3) in [0, 1].

    n : int
        Number of good images.

    defects : list of (callable, ndarray of shape (H, W), bool, or None)
        For each seen defect what reads its image, and its mask.

    size : (int, int)
        Height and width of all of them.

    batch_size : int

    seed : int

    textures : skad.images._batches.ImageReader or None
        None draws textures.

    foreground : "auto" or None
        As in `PRNDetector`.

    flips : bool
        Whether each image is mirrored at random, along both sides.
    """

    def __init__(
        self,
        read,
        n,
        defects,
        size,
        batch_size,
        seed,
        textures,
        foreground,
        flips,
    ):
        self.read, self.n, self.defects = read, n, defects
        self.size, self.seed = size, seed
        self.n_good, self.n_seen, _ = composition(batch_size, bool(defects))
        self.textures = None
        if textures is not None:
            self.n_textures, self.textures = len(textures), remembered(textures)
        self.foreground, self.flips = foreground, flips
        self._allowed: dict[int, np.ndarray] = {}

    def __call__(self, step, k):
        """Image k of a step, and its mask, or None where nobody has marked it."""
        image, mask = self._drawn(step, k)
        if self.flips:
            rng = np.random.default_rng(combined_seed(self.seed, 3, step, k))
            way = tuple(slice(None, None, rng.choice((-1, 1))) for _ in range(2))
            image = np.ascontiguousarray(image[way])
            mask = None if mask is None else mask[way]
        return image, mask

    def _drawn(self, step, k):
        if k < self.n_good:
            ahead = self.n_good * step + k
            image = self.read(sample_at(self.seed, ahead, self.n))
            return image, np.zeros(image.shape[:2], bool)
        rng = np.random.default_rng(combined_seed(self.seed, 2, step, k))
        return self.seen(rng) if k < self.n_good + self.n_seen else self.made(rng)

    def seen(self, rng):
        """A seen defect as it is, or extended: moved to a good image."""
        read, mask = self.defects[rng.integers(len(self.defects))]
        if mask is None or rng.random() < 0.5:
            return read(), mask
        i = int(rng.integers(self.n))
        return extended_anomaly(
            self.read(i), read(), mask, rng, foreground=self._foreground(i)
        )

    def made(self, rng):
        """A good image through which something else shows."""
        i = int(rng.integers(self.n))
        other = self.homologous if rng.random() < 0.5 else self.heterologous
        texture, foreground = other(rng), self._foreground(i)
        return draem(self.read(i), rng, texture=texture, foreground=foreground)

    def homologous(self, rng):
        """A good image, changed."""
        return changed_texture(self.read(int(rng.integers(self.n))), rng)

    def heterologous(self, rng):
        """A texture."""
        if self.textures is None:
            return procedural_texture((*self.size, 3), rng)
        return changed_texture(self.textures(int(rng.integers(self.n_textures))), rng)

    def _foreground(self, i):
        if self.foreground is None:
            return None
        if i not in self._allowed:
            self._allowed[i] = foreground_mask(self.read(i))
        return self._allowed[i]


def resized_mask(mask, size, crop):
    """A mask at the size of the input; empty if the crop leaves nothing of it.

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


def read_defect_mask(mask, i):
    """The mask of a defective image, which must mark something."""
    mask = read_mask(mask, where=f"masks[{i}]")
    if not mask.any():
        raise ValueError(
            f"masks[{i}] is empty, but y[{i}] is -1, a defective image; pass None "
            "for a defect that nobody has marked."
        )
    return mask


def check_masks(masks, labels):
    """Masks as a list, one for each label, after a look at those of good images.

    Parameters
    ----------
    masks : sequence of masks and None, or None

    labels : ndarray of shape (n,)
        +1 is good.

    Returns
    -------
    masks : list
    """
    if masks is None:
        return [None] * len(labels)
    for i in np.flatnonzero(labels == 1):
        if masks[i] is not None and read_mask(masks[i], where=f"masks[{i}]").any():
            raise ValueError(
                f"masks[{i}] marks a defect, but y[{i}] is +1, a good image; "
                "correct one of them."
            )
    return masks

"""CutPaste (Li et al., CVPR 2021): a part of an image, pasted somewhere else."""

import numpy as np

from skad.synthesis._image import as_float, jittered, random_box, random_corner


def cutpaste(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    area: tuple[float, float] = (0.02, 0.15),
    aspect: tuple[float, float] = (0.3, 3.3),
    jitter: float = 0.1,
) -> tuple[np.ndarray, np.ndarray]:
    """Copy a random box of an image to another place.

    Parameters
    ----------
    image : ndarray of shape (H, W, C)
        uint8, or floats in [0, 1].

    rng : numpy.random.Generator
        Source of all randomness.

    area : (float, float), default=(0.02, 0.15)
        Share of the image that the box covers.

    aspect : (float, float), default=(0.3, 3.3)
        Least and largest height over width.

    jitter : float, default=0.1
        Strength of the change of the box's colours.

    Returns
    -------
    changed : ndarray of shape (H, W, C), float32
        In [0, 1].

    mask : ndarray of shape (H, W), bool
        True in the box.

    References
    ----------
    .. [1] C.-L. Li, K. Sohn, J. Yoon, T. Pfister, "CutPaste: Self-Supervised Learning
       for Anomaly Detection and Localization", CVPR 2021, Section 2.1.

    Examples
    --------
    >>> import numpy as np
    >>> from skad.synthesis import cutpaste
    >>> rng = np.random.default_rng(0)
    >>> image = rng.random((64, 48, 3))
    >>> changed, mask = cutpaste(image, rng)
    >>> changed.shape, bool(0.02 < mask.mean() < 0.16)
    ((64, 48, 3), True)
    """
    image = as_float(image)
    box = random_box(image.shape, rng, area, aspect)
    source, target = (random_corner(image.shape, box, rng) for _ in range(2))
    patch = image[source[0] : source[0] + box[0], source[1] : source[1] + box[1]]
    changed, mask = image.copy(), np.zeros(image.shape[:2], bool)
    inside = slice(target[0], target[0] + box[0]), slice(target[1], target[1] + box[1])
    changed[inside] = jittered(patch, rng, jitter)
    mask[inside] = True
    return changed, mask


def cutpaste_scar(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    width: tuple[int, int] = (2, 16),
    length: tuple[int, int] = (10, 25),
    rotation: float = 45.0,
    jitter: float = 0.1,
) -> tuple[np.ndarray, np.ndarray]:
    """Copy a thin random box of an image to another place, and turn it.

    Parameters
    ----------
    image : ndarray of shape (H, W, C)
        uint8, or floats in [0, 1].

    rng : numpy.random.Generator
        Source of all randomness.

    width, length : (float, float), default=(2, 16), (10, 25)
        Pixels; the box is never larger than the image.

    rotation : float, default=45.0
        Largest angle in degrees, both ways.

    jitter : float, default=0.1
        Strength of the change of the box's colours.

    Returns
    -------
    changed : ndarray of shape (H, W, C), float32
        In [0, 1].

    mask : ndarray of shape (H, W), bool
        True where the scar lies.

    References
    ----------
    .. [1] As of `cutpaste`, Section 2.2.

    Examples
    --------
    >>> import numpy as np
    >>> from skad.synthesis import cutpaste_scar
    >>> rng = np.random.default_rng(0)
    >>> changed, mask = cutpaste_scar(rng.random((64, 48, 3)), rng)
    >>> bool(10 <= mask.sum() <= 16 * 25)
    True
    """
    image = as_float(image)
    height, wide = image.shape[:2]
    box = (
        int(np.clip(round(rng.uniform(*length)), 1, height)),
        int(np.clip(round(rng.uniform(*width)), 1, wide)),
    )
    source = random_corner(image.shape, box, rng)
    patch = image[source[0] : source[0] + box[0], source[1] : source[1] + box[1]]
    patch, covered = turned(
        jittered(patch, rng, jitter), rng.uniform(-rotation, rotation)
    )
    patch, covered = patch[:height, :wide], covered[:height, :wide]
    top, left = random_corner(image.shape, covered.shape, rng)
    changed, mask = image.copy(), np.zeros((height, wide), bool)
    inside = slice(top, top + covered.shape[0]), slice(left, left + covered.shape[1])
    mask[inside] = covered
    changed[mask] = patch[covered]
    return changed, mask


def turned(patch: np.ndarray, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """Turn a patch, on a larger canvas that keeps its corners; and its mask (h, w)."""
    from PIL import Image

    angle = float(degrees)
    channels = [
        np.asarray(Image.fromarray(patch[..., c]).rotate(angle, expand=True))
        for c in range(patch.shape[2])
    ]
    whole = Image.fromarray(np.ones(patch.shape[:2], np.float32))
    covered = np.asarray(whole.rotate(angle, expand=True)) > 0
    return np.stack(channels, axis=-1), covered

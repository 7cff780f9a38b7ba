"""SmoothBlend (Zou et al., ECCV 2022): CutPaste with soft edges."""

import numpy as np
from scipy.ndimage import gaussian_filter

from skad.synthesis._image import as_float, jittered, random_box, random_corner


def smooth_blend(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    area: tuple[float, float] = (0.02, 0.15),
    aspect: tuple[float, float] = (0.3, 3.3),
    jitter: float = 0.4,
    sigma: tuple[float, float] = (1.0, 4.0),
    halo: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Copy a random box of an image to another place with soft edges.

    Parameters
    ----------
    image : ndarray of shape (H, W, C)
        uint8, or floats in [0, 1].

    rng : numpy.random.Generator
        Source of all randomness.

    area, aspect, jitter : as in cutpaste
        Share of the image, height over width, and change of colours of the box.

    sigma : (float, float), default=(1.0, 4.0)
        Standard deviation of the blur of the edge, in pixels of an image of 224.

    halo : bool, default=False
        Blend with black around the box, as the formula says literally, which leaves a
        dark seam. Otherwise with the image itself.

    Returns
    -------
    changed : ndarray of shape (H, W, C), float32
        In [0, 1].

    mask : ndarray of shape (H, W), bool
        True where more than half of the pasted box shows.

    References
    ----------
    .. [1] Y. Zou, J. Jeong, L. Pemula, D. Zhang, O. Dabeer, "SPot-the-Difference
       Self-Supervised Pre-training for Anomaly Detection and Segmentation", ECCV 2022,
       Section 3.2.

    Examples
    --------
    >>> import numpy as np
    >>> from skad.synthesis import smooth_blend
    >>> rng = np.random.default_rng(0)
    >>> changed, mask = smooth_blend(rng.random((64, 48, 3)), rng)
    >>> changed.shape, mask.shape
    ((64, 48, 3), (64, 48))
    """
    image = as_float(image)
    box = random_box(image.shape, rng, area, aspect)
    source, target = (random_corner(image.shape, box, rng) for _ in range(2))
    patch = image[source[0] : source[0] + box[0], source[1] : source[1] + box[1]]
    width = rng.uniform(*sigma) * max(image.shape[:2]) / 224
    changed, alpha = blended(image, jittered(patch, rng, jitter), target, width, halo)
    return changed, alpha > 0.5


def blended(
    image: np.ndarray,
    patch: np.ndarray,
    corner: tuple[int, int],
    sigma: float,
    halo: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Blend a patch into an image; returns that, and the opacity (H, W)."""
    inside = tuple(
        slice(c, c + n) for c, n in zip(corner, patch.shape[:2], strict=True)
    )
    alpha = np.zeros(image.shape[:2], image.dtype)
    alpha[inside] = 1
    alpha = gaussian_filter(alpha, sigma)
    upper = np.zeros_like(image) if halo else image.copy()
    upper[inside] = patch
    return (1 - alpha[..., None]) * image + alpha[..., None] * upper, alpha

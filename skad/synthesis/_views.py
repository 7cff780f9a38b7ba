"""Augmented views of an image, as if it were photographed again: no anomalies."""

import math

import numpy as np
from scipy.ndimage import gaussian_filter

from skad.images import resize_image
from skad.synthesis._image import as_float, grey, jittered


def weak_view(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change place, focus and colours of an image slightly.

    A crop of 70 % of the area or more, mirrored in half of the cases, with brightness,
    contrast and saturation times 0.9 to 1.1, and blurred in half of the cases.

    Parameters
    ----------
    image : ndarray of shape (H, W, C)
        uint8, or floats in [0, 1].

    rng : numpy.random.Generator
        Source of all randomness.

    Returns
    -------
    view : ndarray of shape (H, W, C), float32
        In [0, 1].

    References
    ----------
    .. [1] Y. Zou, J. Jeong, L. Pemula, D. Zhang, O. Dabeer, "SPot-the-Difference
       Self-Supervised Pre-training for Anomaly Detection and Segmentation", ECCV 2022,
       Section 3.

    Examples
    --------
    >>> import numpy as np
    >>> from skad.synthesis import weak_view
    >>> rng = np.random.default_rng(0)
    >>> weak_view(rng.random((64, 48, 3)), rng).shape
    (64, 48, 3)
    """
    return _view(as_float(image), rng, least=0.7, strength=0.1)


def strong_view(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Crop and recolour an image strongly, as self-supervised learning does.

    A crop of 20 % of the area or more, mirrored in half of the cases, with brightness,
    contrast and saturation times 0.6 to 1.4, blurred in half of the cases, and grey in
    a fifth of them.

    Parameters
    ----------
    image : ndarray of shape (H, W, C)
        uint8, or floats in [0, 1].

    rng : numpy.random.Generator
        Source of all randomness.

    Returns
    -------
    view : ndarray of shape (H, W, C), float32
        In [0, 1].

    References
    ----------
    .. [1] T. Chen, S. Kornblith, M. Norouzi, G. Hinton, "A Simple Framework for
       Contrastive Learning of Visual Representations", ICML 2020, Appendix A.

    Examples
    --------
    >>> import numpy as np
    >>> from skad.synthesis import strong_view
    >>> rng = np.random.default_rng(0)
    >>> strong_view(rng.random((64, 48, 3)), rng).shape
    (64, 48, 3)
    """
    view = _view(as_float(image), rng, least=0.2, strength=0.4)
    if rng.random() < 0.2:
        view = np.repeat(grey(view)[..., None], view.shape[2], axis=2)
    return view


def _view(
    image: np.ndarray, rng: np.random.Generator, least: float, strength: float
) -> np.ndarray:
    """Crop at least a share of an image; flip, recolour and blur it at random."""
    height, width = image.shape[:2]
    ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
    share = rng.uniform(least, 1)
    h = min(height, max(1, round(height * math.sqrt(share * ratio))))
    w = min(width, max(1, round(width * math.sqrt(share / ratio))))
    top, left = int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1))
    view = image[top : top + h, left : left + w]
    if rng.random() < 0.5:
        view = view[:, ::-1]
    view = resize_image(np.ascontiguousarray(view), (height, width))
    view = jittered(view, rng, strength)
    if rng.random() < 0.5:
        sigma = rng.uniform(0.1, 2) * max(height, width) / 224
        view = gaussian_filter(view, (sigma, sigma, 0))
    return np.clip(view, 0, 1)

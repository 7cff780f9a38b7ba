"""DRAEM (Zavrtanik et al., ICCV 2021): textures that show through blobs of noise."""

import numpy as np
from scipy.ndimage import rotate

from skad.synthesis._image import as_float, recoloured
from skad.synthesis._perlin import perlin_mask, perlin_noise


def draem(
    image: np.ndarray,
    rng: np.random.Generator,
    *,
    texture: np.ndarray | None = None,
    mask: np.ndarray | None = None,
    foreground: np.ndarray | None = None,
    opacity: tuple[float, float] = (0.2, 1.0),
) -> tuple[np.ndarray, np.ndarray]:
    """Blend a texture into an image, in blobs of Perlin noise.

    Parameters
    ----------
    image : ndarray of shape (H, W, C)
        uint8, or floats in [0, 1].

    rng : numpy.random.Generator
        Source of all randomness.

    texture : ndarray of shape (H, W, C), default=None
        What shows through, such as a photograph of a texture, changed by
        `changed_texture`, or another normal image: heterologous and homologous
        anomalies of PRN. None generates one with `procedural_texture`.

    mask : ndarray of shape (H, W), bool, default=None
        Where it shows. None generates one with `perlin_mask`, up to ten times until
        it is not empty.

    foreground : ndarray of shape (H, W), bool, default=None
        Where on the image it may show at all; None is everywhere.

    opacity : (float, float), default=(0.2, 1.0)
        Weight of the texture.

    Returns
    -------
    changed : ndarray of shape (H, W, C), float32
        In [0, 1].

    mask : ndarray of shape (H, W), bool
        True where the texture shows.

    References
    ----------
    .. [1] V. Zavrtanik, M. Kristan, D. Skocaj, "DRAEM - A discriminatively trained
       reconstruction embedding for surface anomaly detection", ICCV 2021, Section 3.3,
       Equation 4.
    .. [2] H. Zhang et al., "Prototypical Residual Networks for Anomaly Detection and
       Localization", CVPR 2023, Section 3.4.

    Examples
    --------
    >>> import numpy as np
    >>> from skad.synthesis import draem
    >>> rng = np.random.default_rng(0)
    >>> image = np.full((64, 64, 3), 0.5)
    >>> changed, mask = draem(image, rng)
    >>> bool(np.all(changed[~mask] == 0.5)), bool(mask.any())
    (True, True)
    """
    image = as_float(image)
    if texture is None:
        texture = procedural_texture(image.shape, rng)
    texture = as_float(texture, "texture")
    if texture.shape != image.shape:
        raise ValueError(
            f"texture has shape {texture.shape}, but the image {image.shape}; resize "
            "it first."
        )
    allowed = True if foreground is None else np.asarray(foreground) > 0
    for _ in range(10):
        found = perlin_mask(image.shape[:2], rng) if mask is None else np.asarray(mask)
        found = found & allowed
        if found.any():
            break
    weight = np.float32(rng.uniform(*opacity))
    alpha = found[..., None].astype(np.float32) * weight
    return (1 - alpha) * image + alpha * texture, found


def changed_texture(
    texture: np.ndarray, rng: np.random.Generator, *, n_changes: int = 3
) -> np.ndarray:
    """Change a texture by some of ten random operations.

    Gamma, brightness, sharpness, hue and saturation, solarizing, posterizing,
    inverting, stretching the contrast, equalizing and turning.

    Parameters
    ----------
    texture : ndarray of shape (H, W, C)
        uint8, or floats in [0, 1].

    rng : numpy.random.Generator
        Source of all randomness.

    n_changes : int, default=3
        How many of the operations, each at most once.

    Returns
    -------
    changed : ndarray of shape (H, W, C), float32
        In [0, 1].

    Examples
    --------
    >>> import numpy as np
    >>> from skad.synthesis import changed_texture
    >>> rng = np.random.default_rng(0)
    >>> changed_texture(rng.random((32, 32, 3)), rng).shape
    (32, 32, 3)
    """
    texture = as_float(texture, "texture")
    for i in rng.choice(len(_CHANGES), n_changes, replace=False):
        texture = np.clip(_CHANGES[i](texture, rng), 0, 1).astype(np.float32)
    return texture


def procedural_texture(
    shape: tuple[int, int, int], rng: np.random.Generator
) -> np.ndarray:
    """Generate a random texture, for use without photographs of textures.

    Perlin noise on several scales in each of three hidden channels, combined to
    random colours, with waves or spots in some.

    Parameters
    ----------
    shape : (int, int, int)
        Height, width and channels.

    rng : numpy.random.Generator
        Source of all randomness.

    Returns
    -------
    texture : ndarray of shape `shape`, float32
        In [0, 1].

    Examples
    --------
    >>> import numpy as np
    >>> from skad.synthesis import procedural_texture
    >>> texture = procedural_texture((48, 64, 3), np.random.default_rng(0))
    >>> texture.shape, bool(texture.std() > 0.05)
    ((48, 64, 3), True)
    """
    height, width, n_channels = shape
    fields = []
    for _ in range(3):
        field, weight = np.zeros((height, width)), 1.0
        for scale in sorted(2 ** rng.choice(7, 4, replace=False)):
            rows = min(int(scale), max(1, height // 2))
            columns = min(int(scale), max(1, width // 2))
            field += weight * perlin_noise((height, width), (rows, columns), rng)
            weight *= rng.uniform(0.4, 1)
        pattern = rng.integers(3)
        if pattern == 1:  # waves, as of wood
            field = np.sin(rng.uniform(3, 12) * field)
        elif pattern == 2:  # spots
            field = np.abs(field)
        fields.append(field)
    colours = np.stack(fields, axis=-1) @ rng.normal(size=(3, n_channels))
    low, high = np.quantile(colours, (0.01, 0.99))
    colours = (colours - low) / max(high - low, 1e-6)
    return np.clip(colours, 0, 1).astype(np.float32)


def _gamma(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return image ** rng.uniform(0.5, 2)


def _brightness(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return image * rng.uniform(0.8, 1.2) + rng.uniform(-30, 30) / 255


def _sharpness(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    from scipy.ndimage import gaussian_filter

    blurred = gaussian_filter(image, (1, 1, 0))
    return image + rng.uniform(0.5, 3) * (image - blurred)


def _saturation(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    shifted = recoloured(image, "saturation", np.float32(rng.uniform(0, 2)))
    return np.roll(shifted, rng.integers(image.shape[2]), axis=2)


def _solarized(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.where(image > rng.uniform(0.13, 0.5), 1 - image, image)


def _posterized(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    levels = 2 ** int(rng.integers(2, 6))
    return np.floor(image * (levels - 1e-4)) / levels


def _inverted(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return 1 - image


def _stretched(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    low, high = image.min(axis=(0, 1)), image.max(axis=(0, 1))
    return (image - low) / np.maximum(high - low, 1e-6)


def _equalized(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    result = np.empty_like(image)
    for c in range(image.shape[2]):
        values = image[..., c].ravel()
        ranks = np.searchsorted(np.sort(values), values, side="right")
        result[..., c] = (ranks / len(values)).reshape(image.shape[:2])
    return result


def _turned(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    angle = rng.uniform(-45, 45)
    return rotate(image, angle, reshape=False, order=1, mode="reflect")


_CHANGES = (
    _gamma,
    _brightness,
    _sharpness,
    _saturation,
    _solarized,
    _posterized,
    _inverted,
    _stretched,
    _equalized,
    _turned,
)

"""Extended anomalies (Zhang et al., CVPR 2023): known defects on normal images."""

import numpy as np
from scipy.ndimage import affine_transform, binary_fill_holes, label

from skad.synthesis._image import as_float, grey, jittered


def extended_anomaly(
    image: np.ndarray,
    defect: np.ndarray,
    defect_mask: np.ndarray,
    rng: np.random.Generator,
    *,
    foreground: np.ndarray | None = None,
    rotation: float = 45.0,
    scale: tuple[float, float] = (0.7, 1.4),
    jitter: float = 0.1,
) -> tuple[np.ndarray, np.ndarray]:
    """Paste a known defect into a normal image, turned, scaled and moved.

    Parameters
    ----------
    image : ndarray of shape (H, W, C)
        A normal image: uint8, or floats in [0, 1].

    defect : ndarray of shape (h, w, C)
        An image with a defect.

    defect_mask : ndarray of shape (h, w), bool
        Where that is. One of its connected parts is taken, if there are several.

    rng : numpy.random.Generator
        Source of all randomness.

    foreground : ndarray of shape (H, W), bool, default=None
        Where on the normal image the defect may lie; the centre of it does. None is
        everywhere.

    rotation : float, default=45.0
        Largest angle in degrees, both ways.

    scale : (float, float), default=(0.7, 1.4)
        Factor of its size.

    jitter : float, default=0.1
        Strength of the change of its colours.

    Returns
    -------
    changed : ndarray of shape (H, W, C), float32
        In [0, 1].

    mask : ndarray of shape (H, W), bool
        The defect where it lies now.

    Raises
    ------
    ValueError
        If there is no defect in the mask, or no foreground.

    References
    ----------
    .. [1] H. Zhang et al., "Prototypical Residual Networks for Anomaly Detection and
       Localization", CVPR 2023, Section 3.4.

    Examples
    --------
    >>> import numpy as np
    >>> from skad.synthesis import extended_anomaly
    >>> normal, defective = np.full((64, 64, 3), 0.5), np.zeros((64, 64, 3))
    >>> where = np.zeros((64, 64), bool)
    >>> where[10:20, 30:45] = True
    >>> rng = np.random.default_rng(0)
    >>> changed, mask = extended_anomaly(normal, defective, where, rng)
    >>> bool(changed[mask].max() < 0.5), bool(np.all(changed[~mask] == 0.5))
    (True, True)
    """
    image, defect = as_float(image), as_float(defect, "defect")
    defect_mask = np.asarray(defect_mask) > 0
    if defect_mask.shape != defect.shape[:2]:
        raise ValueError(
            f"defect_mask has shape {defect_mask.shape}, but the defect "
            f"{defect.shape[:2]}; both must be of one size."
        )
    if not defect_mask.any():
        raise ValueError("defect_mask is empty: there is no defect to extend.")
    allowed = np.ones(image.shape[:2], bool) if foreground is None else foreground
    places = np.argwhere(np.asarray(allowed) > 0)
    if len(places) == 0:
        raise ValueError("foreground is empty: there is no place for the defect.")
    parts, n_parts = label(defect_mask, structure=np.ones((3, 3)))
    part = parts == 1 + rng.integers(n_parts)
    angle = np.deg2rad(rng.uniform(-rotation, rotation))
    factor = rng.uniform(*scale)
    if rng.random() < 0.5:
        defect, part = defect[:, ::-1], part[:, ::-1]
    centre = np.argwhere(part).mean(axis=0)
    target = places[rng.integers(len(places))]
    # From where in the normal image to where in the defective one.
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turn /= factor
    offset = centre - turn @ target
    shape = image.shape[:2]
    moved = affine_transform(part.astype(np.float32), turn, offset, shape, order=1)
    moved = moved > 0.5
    if not moved.any():  # smaller than a pixel
        moved[tuple(target)] = True
    colours = [
        affine_transform(defect[..., c], turn, offset, shape, order=1, mode="nearest")
        for c in range(defect.shape[2])
    ]
    pasted = jittered(np.stack(colours, axis=-1), rng, jitter)
    return np.where(moved[..., None], pasted, image), moved


def foreground_mask(image: np.ndarray, *, least: float = 0.1) -> np.ndarray:
    """Guess where on a plain background the part lies.

    The border of the image tells the colour of the background; what differs from it by
    more than Otsu's threshold is foreground, holes filled.

    Parameters
    ----------
    image : ndarray of shape (H, W, C)
        uint8, or floats in [0, 1].

    least : float, default=0.1
        Where less of the image than this, or more than the rest, is found, there is
        no plain background: everything is foreground.

    Returns
    -------
    mask : ndarray of shape (H, W), bool
        True on the part.

    Examples
    --------
    >>> import numpy as np
    >>> from skad.synthesis import foreground_mask
    >>> image = np.full((32, 32, 3), 0.9)
    >>> image[8:24, 8:24] = 0.2
    >>> int(foreground_mask(image).sum())
    256
    """
    image = as_float(image)
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    distance = grey(np.abs(image - np.median(border, axis=0)))
    if distance.max() == 0:
        return np.ones(distance.shape, bool)
    mask = binary_fill_holes(distance > _otsu(distance))
    return mask if least <= mask.mean() <= 1 - least else np.ones_like(mask)


def _otsu(values: np.ndarray) -> np.float64:
    """Otsu's threshold: it parts values into the two groups that differ most."""
    counts, edges = np.histogram(values, bins=256)
    centres = (edges[:-1] + edges[1:]) / 2
    below, total = np.cumsum(counts), np.cumsum(counts * centres)
    above = below[-1] - below
    with np.errstate(divide="ignore", invalid="ignore"):
        means = total / below, (total[-1] - total) / above
        spread = below * above * (means[0] - means[1]) ** 2
    # Empty bins between the groups spread alike: the middle of them parts best.
    best = np.flatnonzero(spread >= np.nanmax(spread) * (1 - 1e-12))
    return centres[best[len(best) // 2]]

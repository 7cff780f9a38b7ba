"""A transformer that puts a synthetic anomaly into every image."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.validation import check_is_fitted

from skad._checks import normal_positions
from skad._portable import Portable
from skad.images import check_images, image_size, read_image, read_mask, resize_image
from skad.images._batches import NamedImages
from skad.images._containers import images_or_folder
from skad.images._read import CarriesPixelLimit
from skad.synthesis._cutpaste import cutpaste, cutpaste_scar
from skad.synthesis._draem import changed_texture, draem
from skad.synthesis._extended import extended_anomaly, foreground_mask
from skad.synthesis._image import as_float
from skad.synthesis._smoothblend import smooth_blend

_SYNTHESES: dict[str, Callable] = {
    "cutpaste": cutpaste,
    "cutpaste_scar": cutpaste_scar,
    "smooth_blend": smooth_blend,
    "perlin": draem,
    "homologous": draem,
    "extended": extended_anomaly,
}
_SET_HERE = {"texture", "mask", "foreground"}  # keyword arguments that are no options
_MAX_TRIES = 100  # per image, until an anomaly is visible


class SyntheticAnomalies(CarriesPixelLimit, Portable, TransformerMixin, BaseEstimator):
    """Put a synthetic anomaly into every image, and tell where it is.

    For a look at the anomalies that some detectors train on, and for a test set with
    masks where no real defect is known.

    Parameters
    ----------
    method : {"cutpaste", "cutpaste_scar", "smooth_blend", "perlin", "homologous", \
"extended"}, default="cutpaste"
        The first three paste a part of the image elsewhere, by the functions of these
        names. "perlin" lets a texture show through blobs of noise, as DRAEM does (a
        heterologous anomaly of PRN); "homologous" lets an augmented normal image
        show through. "extended" moves known defects.

    options : dict, default=None
        Keyword arguments for the function behind the method, such as
        ``{"jitter": 0.3}`` or ``{"opacity": (0.5, 1.0)}``.

    texture_images : sequence of images or path of a folder, default=None
        What shows through with "perlin". Of a folder, images in the folders in it
        count, too. None generates textures.

    defects : sequence of images, default=None
        Images with defects, for "extended". They are pasted at their own scale.

    masks : sequence of masks, default=None
        Where the defects are, one mask for each, as `skad.images.read_mask` takes
        them.

    foreground : {"auto"} or None, default=None
        "auto" looks for the part on its plain background
        (`skad.synthesis.foreground_mask`), and at least half of every anomaly lies on
        it. None is the whole image.

    random_state : int, RandomState instance or None, default=0
        Another value gives other anomalies. Beside it, the anomaly of an image depends
        on nothing but the image and its position in X.

    Attributes
    ----------
    seed_ : int
        What `random_state` came to.

    sources_ : sequence of images or None
        What anomalies are taken from: textures, defects, or, with "homologous", the
        normal images of `fit`. None where they come from the image itself, or are
        generated.

    masks_ : list of (H, W) arrays of bool, or None
        Where the defects are.

    See Also
    --------
    cutpaste, cutpaste_scar, smooth_blend, draem, extended_anomaly
        One anomaly in one image.

    Notes
    -----
    Synthetic anomalies are not defects: that a model finds them says little about
    which defects it will find. They serve to compare settings, roughly.

    References
    ----------
    .. [1] C.-L. Li, K. Sohn, J. Yoon, T. Pfister, "CutPaste: Self-Supervised Learning
       for Anomaly Detection and Localization", CVPR 2021, Sections 2.1 and 2.2.
    .. [2] V. Zavrtanik, M. Kristan, D. Skocaj, "DRAEM - A discriminatively trained
       reconstruction embedding for surface anomaly detection", ICCV 2021, Equation 4.
    .. [3] H. Zhang et al., "Prototypical Residual Networks for Anomaly Detection and
       Localization", CVPR 2023, Section 3.4.

    Examples
    --------
    >>> from skad.datasets import make_textures
    >>> from skad.synthesis import SyntheticAnomalies
    >>> data = make_textures(n_normal=4, n_anomalous=0, size=64, random_state=0)
    >>> synthetic = SyntheticAnomalies("perlin").fit(data.train)
    >>> changed, masks = synthetic.make(data.train)
    >>> changed.shape, masks.shape, masks.any(axis=(1, 2)).tolist()
    ((4, 64, 64, 3), (4, 64, 64), [True, True, True, True])
    """

    sources_: Any
    masks_: Any
    _parameter_constraints: dict[str, Any] = {
        "method": [StrOptions(set(_SYNTHESES))],
        "options": [dict, None],
        "texture_images": "no_validation",
        "defects": "no_validation",
        "masks": "no_validation",
        "foreground": [StrOptions({"auto"}), None],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        method: str = "cutpaste",
        *,
        options: dict[str, Any] | None = None,
        texture_images: Any = None,
        defects: Sequence[Any] | None = None,
        masks: Any = None,
        foreground: str | None = None,
        random_state: Any = 0,
    ) -> None:
        self.method = method
        self.options = options
        self.texture_images = texture_images
        self.defects = defects
        self.masks = masks
        self.foreground = foreground
        self.random_state = random_state

    def fit(self, X: Any, y: ArrayLike | None = None) -> Self:
        """Check the settings, and sample the seed.

        Parameters
        ----------
        X : sequence of images
            Normal images: paths, `PIL.Image`, arrays (H, W[, C]), one array
            (n, H, W[, C]) or a torch tensor (n, C, H, W). "homologous" keeps them, to
            take anomalies from.

        y : array-like of shape (n,), optional
            Images labelled -1 are not kept; y has no other use.

        Returns
        -------
        self : object
            The same object.

        Raises
        ------
        ValueError
            If an option is not one of the method, if textures or defects are missing
            or of no use to it, or if a mask is empty or of another size than its
            defect.
        """
        self._validate_params()
        X = check_images(X)
        self._check_options()
        self.sources_, self.masks_ = None, None
        if self.method == "homologous":
            normal = normal_positions(X, y)
            self.sources_ = NamedImages(
                [X[i] for i in normal], [f"X[{i}] of fit" for i in normal]
            )
        elif self.texture_images is not None:
            self.sources_ = images_or_folder(self.texture_images, "texture_images")
        elif self.method == "extended":
            self.sources_ = check_images(self.defects, "defects")
            self.masks_ = self._masks_of_defects()
        self.seed_ = int(check_random_state(self.random_state).randint(2**31 - 1))
        return self

    def transform(self, X: Any) -> np.ndarray | list[np.ndarray]:
        """Put an anomaly into every image.

        Parameters
        ----------
        X : sequence of images
            As in `fit`, of any sizes.

        Returns
        -------
        changed : ndarray of shape (n, H, W, C), float32, or list of (H, W, C) arrays
            In [0, 1]; C is 1 for grey images, else 3. A list where images differ in
            shape.
        """
        return self.make(X)[0]

    def make(self, X: Any) -> tuple[Any, Any]:
        """Put an anomaly into every image, and tell where it is.

        Parameters
        ----------
        X : sequence of images
            As in `fit`, of any sizes.

        Returns
        -------
        changed : ndarray of shape (n, H, W, C), float32, or list of (H, W, C) arrays
            As of `transform`.

        masks : ndarray of shape (n, H, W), bool, or list of (H, W) arrays
            True where the image was changed. No mask is empty.

        Raises
        ------
        skad.images.ImageError
            If an image cannot be read; it names position, file and reason.

        ValueError
            If an image has no room for an anomaly.
        """
        check_is_fitted(self)
        X = check_images(X)
        pairs = [self._with_anomaly(self._read(X, i), i) for i in range(len(X))]
        images, masks = (_stacked(part) for part in zip(*pairs, strict=True))
        return images, masks

    def _read(self, X: Sequence[Any], i: int) -> np.ndarray:
        with self._limited():
            return read_image(X[i], where=f"X[{i}]")

    def _with_anomaly(self, image: np.ndarray, i: int) -> tuple[np.ndarray, np.ndarray]:
        """Try synthetic anomalies until one is visible; returns image and mask."""
        image = as_float(image)
        rng = np.random.default_rng((self.seed_, i))
        allowed = foreground_mask(image) if self.foreground == "auto" else True
        for _ in range(_MAX_TRIES):
            changed, mask = self._synthesised(image, rng, allowed)
            if mask.any() and 2 * np.sum(mask & allowed) >= mask.sum():
                return changed, mask
        raise ValueError(
            f"X[{i}], {image.shape[0]} x {image.shape[1]} pixels, has no room for an "
            f"anomaly of method={self.method!r}: {_MAX_TRIES} tries were empty or lay "
            "outside of the foreground. Use a larger image, other options, or "
            "foreground=None."
        )

    def _synthesised(
        self, image: np.ndarray, rng: np.random.Generator, allowed: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        """Synthesise an anomaly, which may be empty or outside of `allowed`."""
        options, n_channels = self.options or {}, image.shape[2]
        foreground = None if allowed is True else allowed
        if self.method == "extended":
            k = int(rng.integers(len(self.sources_)))
            defect, mask = self._source(k, n_channels), self.masks_[k]
            return extended_anomaly(
                image, defect, mask, rng, foreground=foreground, **options
            )
        if _SYNTHESES[self.method] is not draem:
            return _SYNTHESES[self.method](image, rng, **options)
        texture = None
        if self.sources_ is not None:
            texture = self._source(int(rng.integers(len(self.sources_))), n_channels)
            texture = changed_texture(resize_image(texture, image.shape[:2]), rng)
        return draem(image, rng, texture=texture, foreground=foreground, **options)

    def _source(self, k: int, n_channels: int) -> np.ndarray:
        """Read a texture, normal image or defect, with the channels of the image."""
        if isinstance(self.sources_, NamedImages):
            where = self.sources_.names[k]
        else:
            names = {"perlin": "texture_images", "extended": "defects"}
            where = f"{names[self.method]}[{k}]"
        with self._limited():
            image = read_image(self.sources_[k], where=where, n_channels=n_channels)
        image = as_float(image)
        return np.repeat(image, n_channels // image.shape[2], axis=2)

    # -- checks ----------------------------------------------------------------------

    def _check_options(self) -> None:
        known = [
            name
            for name, parameter in inspect.signature(
                _SYNTHESES[self.method]
            ).parameters.items()
            if parameter.kind is parameter.KEYWORD_ONLY and name not in _SET_HERE
        ]
        for name in self.options or {}:
            if name not in known:
                raise ValueError(
                    f"options has {name!r}, which method={self.method!r} does not "
                    f"take; it takes {', '.join(map(repr, known))}."
                )
        for argument, method in (
            ("texture_images", "perlin"),
            ("defects", "extended"),
            ("masks", "extended"),
        ):
            given = getattr(self, argument) is not None
            if given and self.method != method:
                raise ValueError(
                    f"{argument} is of no use to method={self.method!r}; leave it out, "
                    f"or use method={method!r}."
                )
            if not given and self.method == method == "extended":
                raise ValueError(
                    "method='extended' moves known defects, but "
                    f"{argument}=None; pass defects=, images, and masks=, where the "
                    "defects are on them."
                )

    def _masks_of_defects(self) -> list[np.ndarray]:
        if len(self.masks) != len(self.sources_):
            raise ValueError(
                f"masks has {len(self.masks)} entries, but defects "
                f"{len(self.sources_)}; pass one mask for each defect."
            )
        masks = []
        for i, mask in enumerate(self.masks):
            with self._limited():
                size = image_size(self.sources_[i], where=f"defects[{i}]")
                masks.append(read_mask(mask, where=f"masks[{i}]", size=size))
            if not masks[-1].any():
                raise ValueError(
                    f"masks[{i}] is empty; pass images with a defect only, each with "
                    "the mask that shows it."
                )
        return masks

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        return tags


def _stacked(arrays: Sequence[np.ndarray]) -> Any:
    """Stack arrays of one shape; a list of them where shapes differ."""
    alike = len({array.shape for array in arrays}) == 1
    return np.stack(arrays) if alike else list(arrays)

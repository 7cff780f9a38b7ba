"""Augmented views of training images: turned, mirrored, moved, brighter or darker."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import affine_transform
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions

from skad._frame import Frame
from skad.images import read_image, read_mask, to_float
from skad.images._batches import ImageReader, NamedImages
from skad.images._read import carried_limit, read_model_input
from skad.synthesis._image import recoloured


class _Change(NamedTuple):
    """How one view differs from its image.

    Shifts are shares of height and width, the angle is in degrees.
    """

    angle: float
    is_mirrored: bool
    is_upside_down: bool
    shift: tuple[float, float]
    brightness: float

    def moved(
        self, image: NDArray[Any], size: tuple[int, int], order: int, mode: str
    ) -> NDArray[Any]:
        """Move the pixels of an image (h, w, C), which had another size before.

        The image is turned as it was at `size`, where all pixels are square. `order`
        and `mode` are those of `scipy.ndimage.affine_transform`.
        """
        h, w = image.shape[:2]
        scale = np.array([h / size[0], w / size[1]])
        angle = math.radians(self.angle)
        sine, cosine = math.sin(angle), math.cos(angle)
        turn = np.array([[cosine, -sine], [sine, cosine]])
        turn[0] *= -1 if self.is_upside_down else 1
        turn[1] *= -1 if self.is_mirrored else 1
        matrix = scale[:, None] * turn / scale
        centre = (np.array([h, w]) - 1) / 2
        # Whole pixels: nothing is blurred by a shift alone.
        shift = np.round(np.array(self.shift) * (h, w))
        offset = centre - matrix @ (centre + shift)
        moved = np.empty_like(image)
        for channel in range(image.shape[2]):
            moved[..., channel] = affine_transform(
                image[..., channel], matrix, offset, order=order, mode=mode
            )
        return moved

    def view(
        self, image: NDArray[np.float32], size: tuple[int, int]
    ) -> NDArray[np.float32]:
        """Change an image, float32 in [0, 1]; it goes on mirrored at its edges."""
        moved = self.moved(image, size, order=3 if self.angle else 0, mode="reflect")
        return recoloured(moved, "brightness", np.float32(self.brightness))

    def mask(self, mask: NDArray[np.bool_], size: tuple[int, int]) -> NDArray[np.bool_]:
        """Move a mask (h, w) like an image; nothing outside of the image is in it."""
        moved = self.moved(mask[..., None].astype(np.uint8), size, 0, mode="constant")
        return moved[..., 0] > 0


class AugmentedViews(BaseEstimator):
    """Augmented views of normal images, for a fit on few of them.

    Passed to `skad.Pipeline` as `augmentation`. Its `fit` then learns from each image
    and from `n_views` changed copies of it, as if the part had been photographed
    again. Choose only changes that happen on your line, or that do not matter: what a
    view shows counts as normal. Nothing is changed in images that are scored.

    Each view has all of the changes, each by a random amount within its limit.

    Parameters
    ----------
    n_views : int, default=8
        Views of each image beside itself. The time of `fit` and the rows that the
        detector learns from are ``1 + n_views`` times those without augmentation.

    rotation : float, default=3.0
        Largest angle in degrees, in [0, 180], clockwise or not. 180 is for parts that
        lie in any direction.

    flip : {"horizontal", "vertical", "both"} or None, default=None
        In which direction half of the views are mirrored: "horizontal" swaps left and
        right.

    shift : float, default=0.03
        Largest shift as a share of height and width, in [0, 0.5], in all directions:
        0.03 is 8 of 256 pixels.

    brightness : float, default=0.1
        Largest relative change of brightness, in [0, 1): 0.1 multiplies all pixels by
        0.9 to 1.1. Values above 1 become 1.

    calibrate_on : {"images", "views"}, default="images"
        What the held-out scores are of, and with them the thresholds: each image, or
        one view of each. Take "images" if parts will look as these images do, and
        "views" if they will differ as the views do, such as be moved or turned. With
        "views", `fit_predict` and `skad.inspection.suspects` have no held-out scores
        of the images, and say so.

    random_state : int, RandomState instance or None, default=0
        Chooses the amounts.

    See Also
    --------
    skad.Pipeline : Learns from the views, and leaves those of an image out together.

    Notes
    -----
    At its edges, a moved image goes on mirrored. Patches that lie there by more than
    half are not learned. Views are made at the `image_size` of the features, before
    `crop_size`; they are turned in the proportions of the image as passed.

    A held-out score is that of a model without the image and without any of its views.
    If only the image were left out, its views would stand in for it, its score would be
    far too low, and so would be the threshold.

    Examples
    --------
    >>> from skad import PatchCoreDetector, PatchFeatures, Pipeline
    >>> from skad.datasets import make_textures
    >>> from skad.synthesis import AugmentedViews
    >>> data = make_textures(n_normal=8, n_anomalous=2, size=64, random_state=0)
    >>> features = PatchFeatures("skad_small", embedding="concat", image_size=64)
    >>> augmentation = AugmentedViews(n_views=4, rotation=0, flip="both")
    >>> model = Pipeline([features, PatchCoreDetector()], augmentation=augmentation)
    >>> model = model.fit(data.train[:5])
    >>> model[-1].calibration_scores_.shape  # one score per image, none of its views
    (5,)
    """

    calibrate_on: str = "images"  # of objects that were saved before there was this
    _parameter_constraints: dict[str, Any] = {
        "n_views": [Interval(Integral, 1, None, closed="left")],
        "rotation": [Interval(Real, 0, 180, closed="both")],
        "flip": [StrOptions({"horizontal", "vertical", "both"}), None],
        "shift": [Interval(Real, 0, 0.5, closed="both")],
        "brightness": [Interval(Real, 0, 1, closed="left")],
        "calibrate_on": [StrOptions({"images", "views"})],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        n_views: int = 8,
        *,
        rotation: float = 3.0,
        flip: str | None = None,
        shift: float = 0.03,
        brightness: float = 0.1,
        calibrate_on: str = "images",
        random_state: int | np.random.RandomState | None = 0,
    ) -> None:
        self.n_views = n_views
        self.rotation = rotation
        self.flip = flip
        self.shift = shift
        self.brightness = brightness
        self.calibrate_on = calibrate_on
        self.random_state = random_state

    def views(self, image: Any) -> NDArray[np.float32]:
        """Give the views of one image, to look at them before a fit.

        Parameters
        ----------
        image : path, PIL.Image, ndarray (H, W[, C]) or torch tensor (C, H, W)
            As `skad.images.read_image` takes it.

        Returns
        -------
        views : ndarray of shape (n_views, H, W, C), float32
            In [0, 1], those of the first image of a fit if `random_state` is a number.

        Raises
        ------
        ValueError
            If a parameter is out of range, or none of them changes anything.

        skad.images.ImageError
            If the image cannot be read.
        """
        pixels = to_float(read_image(image, where="image"))
        changes = self._changes(1)[0]
        return np.stack([one.view(pixels, pixels.shape[:2]) for one in changes])

    def _check(self) -> None:
        self._validate_params()
        if not (self.rotation or self.flip or self.shift or self.brightness):
            raise ValueError(
                "rotation, flip, shift and brightness of AugmentedViews are all 0 or "
                "None: views would be copies of their images. Set one of them."
            )

    def _changes(self, n_images: int, first: int = 0) -> list[list[_Change]]:
        """What to change in each view of each image, sampled image by image.

        `first` is the number of images that were learned from before.
        """
        self._check()
        seed = check_random_state(self.random_state).randint(2**31)
        return [
            list(self._changes_of(np.random.default_rng([seed, i])))
            for i in range(first, first + n_images)
        ]

    def _changes_of(self, rng: np.random.Generator) -> Iterator[_Change]:
        for _ in range(self.n_views):
            angle, top, left, light = rng.uniform(-1, 1, 4)
            mirrored, upside_down = rng.random(2) < 0.5
            yield _Change(
                angle=float(angle * self.rotation),
                is_mirrored=bool(mirrored) and self.flip in ("horizontal", "both"),
                is_upside_down=bool(upside_down) and self.flip in ("vertical", "both"),
                shift=(float(top * self.shift), float(left * self.shift)),
                brightness=float(1 + light * self.brightness),
            )


class WithViews(NamedImages):
    """Images, each followed by its views, which are made when they are asked for.

    Parameters
    ----------
    images : ImageReader
        Its crop is left to the reader of the views.

    augmentation : AugmentedViews

    n_before : int, default=0
        Number of images that were learned from before: these have other views.
    """

    def __init__(
        self, images: ImageReader, augmentation: AugmentedViews, n_before: int = 0
    ) -> None:
        self.n_rows = 1 + augmentation.n_views  # of each image
        self._images = images
        self._changes = augmentation._changes(len(images), n_before)
        self._moves = bool(augmentation.shift or augmentation.rotation)
        self.names = _Names(images, self.n_rows)

    def __len__(self) -> int:
        return len(self._images) * self.n_rows

    def __getitem__(self, position: Any) -> Any:
        index, k = divmod(int(position), self.n_rows)
        item, where = self._images.item(index)
        if k == 0:
            return item
        image, size = read_model_input(
            [item],
            0,
            where,
            Frame(self._images.frame.size, None),
            self._images.n_channels,
            self._images.pixel_limit,
        )
        image = self._images._received(index, image, size)
        return self._changes[index][k - 1].view(image, size)

    def regions(self, each: Sequence[Any] | None) -> Sequence[Any] | None:
        """What to look at in images and views, from the masks of the images.

        None where that is everything.
        """
        if each is None:
            if not self._moves:
                return None
            each = [None] * len(self._images)
        return _MasksOfViews(each, self._images, self._changes)


class _Names(Sequence):
    """What messages call images and views: both by the image."""

    def __init__(self, images: ImageReader, n_rows: int) -> None:
        self._images, self._n_rows = images, n_rows

    def __len__(self) -> int:
        return len(self._images) * self._n_rows

    def __getitem__(self, position: Any) -> Any:
        return self._images.item(int(position) // self._n_rows)[1]


class _MasksOfViews(Sequence):
    """Regions of interest, moved as the views are; None is the whole image."""

    def __init__(
        self, each: Sequence[Any], images: ImageReader, changes: list[list[_Change]]
    ) -> None:
        self._each, self._images, self._changes = each, images, changes
        self._n_rows = 1 + len(changes[0])

    def __len__(self) -> int:
        return len(self._each) * self._n_rows

    def __getitem__(self, position: Any) -> Any:
        index, k = divmod(int(position), self._n_rows)
        mask = self._each[index]
        if k == 0:
            return mask
        size = self._images.original_size(index)
        assert size is not None  # the features of the image are known
        if mask is None:
            mask = np.ones(self._images.frame.resized(size), bool)
        else:
            with carried_limit(self._images.pixel_limit):
                mask = read_mask(mask, where=f"regions[{index}]")
        return self._changes[index][k - 1].mask(mask, size)

"""Mixin of estimators that take images: it reads them, and knows their geometry."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.utils._param_validation import Interval, StrOptions

from skad._checks import check_size
from skad._frame import WHOLE, Frame, Window
from skad._user_warning import warn_user
from skad.images._arrays import accepted_channels
from skad.images._batches import ImageReader, n_threads
from skad.images._containers import check_images, images_or_folder
from skad.images._errors import ImageError
from skad.images._read import CarriesPixelLimit


class SkippedImageWarning(UserWarning):
    """Some images could not be read and were skipped, as on_error="skip" asks."""


class ImageInput(CarriesPixelLimit):
    """Mixin of the estimators that take images.

    Their constructors take `image_size`, `crop_size`, `batch_size`, `on_error` and
    `n_jobs`, and those of feature transformers `resize`.
    """

    image_size: Any
    crop_size: Any
    resize: str
    batch_size: Any
    on_error: str
    n_jobs: int | None

    _parameter_constraints: dict[str, Any] = {
        "image_size": [Interval(Integral, 1, None, closed="left"), tuple, list],
        "crop_size": [Interval(Integral, 1, None, closed="left"), tuple, list, None],
        "resize": [StrOptions({"exact", "short"})],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "on_error": [StrOptions({"raise", "skip"})],
        "n_jobs": [Integral, None],
    }

    def image_sizes(self, X: Any) -> list[tuple[int, int] | None]:
        """Tell the size of each image as passed.

        Parameters
        ----------
        X : sequence of images
            As in `fit`.

        Returns
        -------
        sizes : list of n (int, int) or None
            Height and width in pixels; None for an image that is skipped.

        Raises
        ------
        skad.images.ImageError
            If an image cannot be read and ``on_error="raise"``.
        """
        return self._checked_reader(X).original_sizes()

    def window(self, size: tuple[int, int] | None = None) -> Window:
        """Tell which part of an image the model gets, as fractions.

        Parameters
        ----------
        size : (int, int), optional
            Height and width of the image as passed. With ``resize="short"``, the part
            depends on it; otherwise it is the same part of every image.

        Returns
        -------
        window : ((float, float), (float, float))
            Top and bottom as fractions of the height, left and right of the
            width, in [0, 1]; ((0, 1), (0, 1)) where nothing is cropped.

        Raises
        ------
        ValueError
            If `image_size` or `crop_size` is out of range, or if `size` is needed.
        """
        frame = self._frame()
        return WHOLE if frame.crop is None else frame.window(size)

    @property
    def _resize(self) -> str:
        """`resize`, also of estimators without this parameter."""
        return getattr(self, "resize", "exact")

    def _frame(self) -> Frame:
        """What images are resized to, and the crop; validated."""
        size = check_size(self.image_size, "image_size", allow_int=True)
        is_short = self._resize == "short"
        if is_short and not isinstance(self.image_size, Integral):
            raise ValueError(
                f"image_size={self.image_size!r}: with resize='short' this is one "
                "number, the length of the short side."
            )
        if self.crop_size is None:
            return Frame(size[0], size) if is_short else Frame(size, None)
        crop = check_size(self.crop_size, "crop_size", allow_int=True)
        if crop[0] > size[0] or crop[1] > size[1]:
            raise ValueError(
                f"crop_size={self.crop_size!r} exceeds image_size="
                f"{self.image_size!r}; a crop is cut from the resized image."
            )
        return Frame(size[0] if is_short else size, crop)

    def _sizes_that_count(
        self, images: ImageReader, index: Iterable[int] | None = None
    ) -> Sequence[tuple[int, int] | None]:
        """Sizes of some images for `window`; None where it does not depend on them."""
        index = range(len(images)) if index is None else index
        if self._resize == "exact":
            return [None for _ in index]
        return [images.original_size(i) for i in index]

    def _size_of_unread(self) -> tuple[int, int]:
        """Height and width of the map of an image of which nothing is known."""
        return self._frame().resized(self._input_size())

    def _input_size(self) -> tuple[int, int]:
        """Height and width in pixels of the images that the model gets."""
        size, crop = self._frame()
        if crop is not None:
            return crop
        assert not isinstance(size, int)  # with a short side comes a crop
        return size

    def _checked_reader(self, X: Any) -> ImageReader:
        """Reader of X, which has to be a sequence of images or their reader already."""
        return (
            X if isinstance(X, ImageReader) else self._reader(self._checked_images(X))
        )

    def _reader(self, X: Sequence[Any]) -> ImageReader:
        """Reader of what `_checked_images` returned."""
        return ImageReader(
            X,
            self._frame(),
            self.on_error,
            n_threads(self.n_jobs),
            self._n_channels(),
            pixel_limit=self._pixel_limit,
        )

    def _side_reader(
        self,
        name: str,
        image_size: tuple[int, int],
        crop_size: tuple[int, int] | None = None,
    ) -> ImageReader:
        """Reader of the images of another argument, or of the folder that it names."""
        images = images_or_folder(getattr(self, name), name)
        return ImageReader(
            images,
            Frame(image_size, crop_size),
            "raise",
            1,
            name=name,
            pixel_limit=self._pixel_limit,
        )

    def _images_at_once(self) -> int:
        """Images per pass of the model."""
        return self.batch_size

    def _n_channels(self) -> int:
        """Channels of the images that the model gets."""
        return 3

    def _checked_images(self, X: Any) -> Any:
        """X as `check_images` returns it; features get an error of their own."""
        self._refuse_features(X)
        return check_images(X, n_channels=self._n_channels())

    def _refuse_features(self, X: Any) -> None:
        """Refuse patch features, which look like images of many channels."""
        shape: tuple = getattr(X, "shape", ())
        if len(shape) != 4 or not isinstance(X, np.ndarray) or X.dtype.kind != "f":
            return
        accepted = accepted_channels(self._n_channels())
        # Channels first is a mistake of its own, which `check_images` explains.
        if hasattr(X, "pooled") or not {shape[1], shape[3]} & set(accepted):
            raise ValueError(
                f"X has shape {shape} and dtype {X.dtype}, as patch features have; "
                f"{type(self).__name__} takes images. Pass the images themselves: in "
                "a pipeline, leave out the feature step before it."
            )

    def _warn_of_skipped(
        self, images: ImageReader, n_images: int, *, scoring: bool = False
    ) -> None:
        """Warn of images that were skipped; to learn, one at least is needed."""
        skipped = sorted(images.skipped)
        if not skipped or images.on_error == "report":
            return
        if len(skipped) == n_images and not scoring:
            raise ImageError(
                f"none of the {n_images} images could be read; the first: "
                f"{skipped[0][1]}"
            )
        warn_user(
            f"{len(skipped)} of {n_images} images could not be read and were "
            f"skipped: {'; '.join(reason for _, reason in skipped)}",
            SkippedImageWarning,
        )

    def __sklearn_tags__(self) -> Any:
        inherited: Any = super()
        tags = inherited.__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        return tags

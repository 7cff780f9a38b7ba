"""Patch features of two transformers side by side, weighted.

A pretrained network knows the edges and parts of photographs; filters learned from
the normal images know their texture. One often finds what the other does not.
"""

from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.utils._param_validation import Interval

from skad._checks import normal_positions
from skad._moments import RunningMoments
from skad._patch_array import PatchArray
from skad.features._base import Extract, PatchFeatureTransformer
from skad.features._network import PatchFeatures
from skad.features._pcanet import PCANetFeatures
from skad.features._principal import MIN_VARIANCE
from skad.images._batches import ImageReader

_KEPT_BYTES = 2**28  # of features that need not be extracted again
_N_VARIANCE_IMAGES = 100  # normal images that give the variance of each type


def _as_first(name: str) -> Any:
    return property(lambda self: getattr(self._members()[0], name))


class FusedFeatures(PatchFeatureTransformer):
    """Patch features of two transformers side by side.

    Both extract the same grid of patches; a fused patch has the channels of both.
    Each type is divided by the root of its total variance over normal patches, so that
    the second contributes `share` of the squared distance between two patches.

    By default those are the network that comes with skad and filters learned from the
    normal images: nothing to download.

    Parameters
    ----------
    first : PatchFeatureTransformer, default=None
        None is ``PatchFeatures("skad_small", embedding="concat")``. It also says how
        images are read: `region`, `batch_size`, `on_error`, `n_jobs` and `verbose`.

    second : PatchFeatureTransformer, default=None
        None is `PCANetFeatures` of the same `image_size`, `crop_size`, `resize` and
        `verbose`.

    share : float, default=0.25
        Share of `second` in the squared distance, between 0 and 1.

    Attributes
    ----------
    first_, second_ : PatchFeatureTransformer
        Fitted copies of the two.

    variances_ : (float, float)
        Total variance of normal patches in the features of each.

    grid_shape_ : (int, int)
        Rows and columns of the patch grid.

    n_features_out_ : int
        Channels of a patch feature, those of `first` before those of `second`.

    region_ : ndarray of shape (H, W), bool, or None
        The mask that `region` was when `fit` read it.

    skipped_ : list of (int, str)
        Images that `fit_transform` could not read, and why.

    See Also
    --------
    PatchFeatures : Features of a pretrained network alone; faster.
    PCANetFeatures : Filters learned from the normal images alone.
    FusionDetector : A detector for each of the two, their scores summed.

    Notes
    -----
    Images are read for each of the two in `fit`, once in `transform`. `cache_dir` and
    `pooled` of either have no effect: what describes a whole image, for SPADE, is the
    mean of its patches. `FusionDetector` and SPADE tell the two feature types apart.

    Examples
    --------
    >>> from skad import FusedFeatures, PCANetFeatures, PatchFeatures
    >>> from skad.datasets import make_textures
    >>> images = make_textures(n_normal=12, n_anomalous=0, size=64, random_state=0)
    >>> features = FusedFeatures(
    ...     PatchFeatures("skad_small", image_size=64, embedding="concat"),
    ...     PCANetFeatures(image_size=64),
    ... )
    >>> features.fit_transform(images.train).shape
    (12, 8, 8, 192)
    """

    _parameter_constraints = {
        "first": [PatchFeatureTransformer, None],
        "second": [PatchFeatureTransformer, None],
        "share": [Interval(Real, 0, 1, closed="both")],
    }

    image_size, crop_size = _as_first("image_size"), _as_first("crop_size")
    resize = _as_first("resize")
    region, on_error = _as_first("region"), _as_first("on_error")
    n_jobs, verbose = _as_first("n_jobs"), _as_first("verbose")

    def __init__(
        self,
        first: PatchFeatureTransformer | None = None,
        second: PatchFeatureTransformer | None = None,
        *,
        share: float = 0.25,
    ) -> None:
        self.first = first
        self.second = second
        self.share = share

    def _members(self) -> tuple[Any, Any]:
        """Both transformers, unfitted."""
        first, second = self.first, self.second
        if first is None:
            size = {}
            if second is not None:
                size = {"image_size": second.image_size, "crop_size": second.crop_size}
                size["resize"] = second._resize
            first = PatchFeatures("skad_small", embedding="concat", **size)
        if second is None:
            second = PCANetFeatures(
                first.image_size,
                crop_size=first.crop_size,
                resize=first._resize,
                verbose=first.verbose,
            )
        return first, second

    def _images_at_once(self) -> int:
        return self._members()[0]._images_at_once()

    def _n_channels(self) -> int:
        return self._members()[0]._n_channels()

    def _validated_reader(self, X: Any) -> ImageReader:
        self._validate_params()
        self._check_members()
        images = self._checked_reader(X)
        self._fit_region()
        return images

    def _fit_images(self, images: Any, y: Any) -> Extract:
        """Fit both; returns a function that extracts the same images."""
        members = [clone(member) for member in self._members()]
        # Images that one of the two skips are skipped for both.
        if "on_error" in members[1].get_params(deep=False):
            members[1].set_params(on_error=self.on_error)
        extractions = [_fitted_extraction(member, images, y) for member in members]
        self.first_, self.second_ = members
        self._check_grids()

        def extract(index: np.ndarray, batch: np.ndarray) -> list[np.ndarray]:
            # A network works in the batch's own memory.
            return [one(index, batch.copy()) for one in extractions]

        kept = self._learn_variances(images, normal_positions(images, y), extract)

        def side_by_side(index: np.ndarray, batch: np.ndarray) -> np.ndarray:
            parts = kept.pop(tuple(index.tolist()), None)  # each is asked for once
            return self._side_by_side(parts or extract(index, batch))

        return side_by_side

    def _learn_variances(
        self, images: Any, normal: np.ndarray, extract: Callable[..., list[np.ndarray]]
    ) -> dict[tuple[int, ...], list[np.ndarray]]:
        """Set the variances; returns the features of batches by their indices."""
        images = images[np.arange(len(images))]  # what it skips, the others report
        sampled = normal[
            np.linspace(
                0, len(normal) - 1, min(len(normal), _N_VARIANCE_IMAGES)
            ).astype(int)
        ]
        both, kept, room = [RunningMoments(), RunningMoments()], {}, _KEPT_BYTES
        for index, batch in images.indexed_batches(self._images_at_once(), sampled):
            parts = extract(index, batch)
            for running, part in zip(both, parts, strict=True):
                running.add(np.asarray(part).reshape(-1, part.shape[-1]))
            room -= sum(part.nbytes for part in parts)
            if room >= 0:
                kept[tuple(index.tolist())] = parts
        moments = [running.total for running in both]
        if moments[0].n == 0:
            self._warn_of_skipped(images, len(sampled))
        self.variances_ = tuple(float(np.trace(m.covariance)) for m in moments)
        return kept

    def _extract(self, batch: np.ndarray) -> np.ndarray:
        return self._side_by_side(
            [member._extract(batch.copy()) for member in (self.first_, self.second_)]
        )

    def _side_by_side(self, parts: Sequence[np.ndarray]) -> PatchArray:
        shares = 1 - self.share, self.share
        patches = np.concatenate(
            [
                np.asarray(part)
                * np.float32(np.sqrt(share / (variance + MIN_VARIANCE)))
                for part, share, variance in zip(
                    parts, shares, self.variances_, strict=True
                )
            ],
            axis=-1,
        )
        return PatchArray(patches, patches.mean(axis=(1, 2)), self._own_levels)

    def _check_members(self) -> None:
        first, second = self._members()
        if first._frame() != second._frame():
            raise ValueError(
                f"first has image_size={first.image_size!r}, crop_size="
                f"{first.crop_size!r} and resize={first._resize!r}, second "
                f"{second.image_size!r}, {second.crop_size!r} and {second._resize!r}; "
                "set them alike, both see the same images."
            )
        if first._n_channels() != second._n_channels():
            raise ValueError(
                f"first takes images of {first._n_channels()} channels, second of "
                f"{second._n_channels()}; choose two that take the same images."
            )
        if second.region is not None and first.region is None:
            raise ValueError(
                "second has a region and first has none; set region of first, which "
                "holds for both."
            )

    def _check_grids(self) -> None:
        grids = self.first_.grid_shape_, self.second_.grid_shape_
        if grids[0] != grids[1]:
            raise ValueError(
                f"first has a patch grid of {grids[0]}, second of {grids[1]}; set "
                "`grid` or `layers` of a PatchFeatures, or another image_size of both, "
                "so that they agree."
            )
        self.grid_shape_ = grids[0]
        counts = [self.first_.n_features_out_, self.second_.n_features_out_]
        self.n_features_out_ = self._n_pooled = sum(counts)
        self._own_levels = tuple((count, self.grid_shape_) for count in counts)


def _fitted_extraction(member: PatchFeatureTransformer, images: Any, y: Any) -> Extract:
    """Fit a transformer; returns a function that extracts the same images."""
    images = member._validated_reader(images.X)
    return member._fit_images(images, y) or member._extraction()

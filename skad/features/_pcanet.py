"""Patch features learned from the normal images themselves, with nothing to download.

Filters are principal components of image patches, cascaded over three scales
(PCANet). Their rectified, pooled responses are standardised per position,
which is what tells a normal edge from one in the wrong place, and reduced to
few whitened channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval

from skad import networks
from skad._checks import normal_positions
from skad._matrices import product
from skad._moments import Moments, RunningMoments
from skad._progress import progress
from skad.features._base import Extract, PatchFeatureTransformer
from skad.features._passes import Passes
from skad.features._positions import Positions
from skad.features._principal import MIN_VARIANCE, in_order, leading_directions
from skad.images._errors import ImageError
from skad.networks._sampling import combined_seed, fit_seed

STRIDE = 8  # pixels from patch to patch
_N_FILTER_PATCHES = 50_000  # patches from which a stage learns its filters
_QUANTISATION_VARIANCE = 1 / (12 * 255**2)  # variance of rounding to 8 bits: no signal


class PCANetFeatures(PatchFeatureTransformer):
    """Patch features by cascaded PCA filters, learned in `fit`.

    No network, no weights, no download. Each stage filters its input with the
    leading principal components of the patches of normal images, splits the
    responses by sign and halves the resolution. The responses of all stages
    meet in one grid, where they are standardised at every position by the mean
    and the standard deviation that normal images have there, and whitened.

    Parameters
    ----------
    image_size : int or (int, int), default=224
        Every image is resized to exactly this height and width, unless `resize` is
        "short".

    crop_size : int or (int, int), default=None
        Centre of the resized image to keep. None keeps the whole image.

    resize : {"exact", "short"}, default="exact"
        As in `PatchFeatures`: "short" resizes the short side to `image_size`, and cuts
        out the centre.

    region : mask, default=None
        What to look at in every image, True or not zero, as `skad.images.read_mask`
        takes it; it is stretched over the image as passed. None looks everywhere.
        `fit` reads it: a file is not needed afterwards. Masks for single images
        are the argument `regions` of `fit_transform` and `transform`.

    kernel_sizes : sequence of int, default=(5, 3, 3)
        Odd side of the filters of each stage.

    n_filters : sequence of int, default=(16, 48, 96)
        Number of filters of each stage.

    n_components : int or None, default=64
        Channels of a patch feature. None keeps all.

    shrinkage : float, default=0.01
        Share of the mean variance that is added to every variance before
        whitening: larger values trust weak components less.

    max_images : int, default=100
        Normal images, sampled at random, that the filters are learned from. The
        statistics of each position come from all images.

    batch_size : int, default=16
        Images per pass. Features have the same bits with any.

    on_error : {"raise", "skip"}, default="raise"
        What to do about an image that cannot be read. "skip" warns, gives NaN
        for it, and detectors then neither learn from it nor score it.

    n_jobs : int, default=None
        Threads that read images; None is up to four.

    random_state : int, RandomState instance or None, default=0
        Samples the images and patches that filters are learned from.

    verbose : bool, default=False
        Report progress on the standard error stream.

    Attributes
    ----------
    filters_ : list of ndarray of shape (n_filters, channels, k, k), float32
        Filters of each stage.

    position_mean_, position_scale_ : ndarray of shape (h, w, n_responses), float32
        Mean and standard deviation of normal responses at each position of the grid.

    whitening_ : ndarray of shape (n_responses, n_components), float32
        Projection of standardised responses to features.

    grid_shape_ : (int, int)
        Rows and columns of the patch grid: one eighth of the image's.

    n_features_out_ : int
        Channels of a patch feature.

    region_ : ndarray of shape (H, W), bool, or None
        The mask that `region` was when `fit` read it.

    skipped_ : list of (int, str)
        Images that `fit_transform` could not read, and why.

    See Also
    --------
    PatchFeatures : Features of a pretrained network; stronger where weights
        are at hand.

    Notes
    -----
    Standardisation by position helps most where parts lie in the same place in
    every image. It needs some tens of images; with fewer, positions share more
    of a common spread.

    `fit_transform`, which `Pipeline.fit` calls, standardises every training image
    by the statistics of the other ones, as if it were new. Otherwise training
    images would look more normal than new ones, and a threshold from them would
    reject too many. ``fit(X).transform(X)`` does not do this.

    References
    ----------
    .. [1] T.-H. Chan et al., "PCANet: A Simple Deep Learning Baseline for Image
       Classification?", IEEE TIP 2015. Section II-A.
    .. [2] K. Zhang et al., "AnomalyHop: An SSL-based Image Anomaly Localization
       Method", VCIP 2021.
    .. [3] T. Defard et al., "PaDiM", ICPR workshops 2021. The statistics of each
       position are its idea.

    Examples
    --------
    >>> from skad import PCANetFeatures
    >>> from skad.datasets import make_textures
    >>> images = make_textures(n_normal=12, n_anomalous=0, size=64, random_state=0)
    >>> PCANetFeatures(image_size=64).fit_transform(images.train).shape
    (12, 8, 8, 64)
    """

    _parameter_constraints = {
        **PatchFeatureTransformer._parameter_constraints,
        "kernel_sizes": [tuple, list],
        "n_filters": [tuple, list],
        "n_components": [Interval(Integral, 1, None, closed="left"), None],
        "shrinkage": [Interval(Real, 0, None, closed="left")],
        "max_images": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        image_size: int | tuple[int, int] = 224,
        *,
        crop_size: int | tuple[int, int] | None = None,
        resize: str = "exact",
        region: Any = None,
        kernel_sizes: Sequence[int] = (5, 3, 3),
        n_filters: Sequence[int] = (16, 48, 96),
        n_components: int | None = 64,
        shrinkage: float = 0.01,
        max_images: int | None = 100,
        batch_size: int = 16,
        on_error: str = "raise",
        n_jobs: int | None = None,
        random_state: int | np.random.RandomState | None = 0,
        verbose: bool = False,
    ) -> None:
        self.image_size = image_size
        self.crop_size = crop_size
        self.resize = resize
        self.region = region
        self.kernel_sizes = kernel_sizes
        self.n_filters = n_filters
        self.n_components = n_components
        self.shrinkage = shrinkage
        self.max_images = max_images
        self.batch_size = batch_size
        self.on_error = on_error
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    def _fit_images(self, images: Any, y: Any) -> Extract:
        """Fit; returns a function that extracts the same images as if they were new."""
        everyone, kept = self._fit_normal(images, y)
        normal = normal_positions(images, y).tolist()
        places = {index: place for place, index in enumerate(normal)}

        def standardised(index: int, image: np.ndarray) -> np.ndarray:
            place = places.get(index)
            if place in kept:
                return kept.pop(place)  # each is asked for once, as a rule
            (responses,) = self._responses(image[None])
            if place is None:
                return self._standardise(responses)
            return everyone.without(responses).standardise(responses)

        def extract(index: np.ndarray, batch: np.ndarray) -> np.ndarray:
            each = zip(index.tolist(), batch, strict=True)
            return self._whiten([standardised(i, image) for i, image in each])

        return extract

    def _fit(self, images: Any) -> tuple[Positions, dict[int, np.ndarray]]:
        """Fit; returns what `_learn_positions` does."""
        self._check_stages()
        rng = check_random_state(self.random_state)
        shuffled = rng.permutation(len(images))
        sampled = np.sort(shuffled[: self.max_images])
        others = np.sort(shuffled[len(sampled) :])
        passes = Passes(images, np.r_[sampled, others], self.batch_size)
        seed = fit_seed(rng)
        self.filters_: list[np.ndarray] = []
        n_steps = len(sampled) * len(self.n_filters)
        with progress(n_steps, "filters", self.verbose, unit="image") as bar:
            for size, n in zip(self.kernel_sizes, self.n_filters, strict=True):
                covariance = self._patch_covariance(
                    passes, len(sampled), size, seed, bar
                )
                first = not self.filters_
                self.filters_.append(_filters(covariance, size, n, first))
        return self._learn_positions(passes)

    def _patch_covariance(
        self,
        passes: Passes,
        n_images: int,
        size: int,
        seed: int,
        bar: Any,
    ) -> np.ndarray:
        """Covariance of random patches of the input of the next stage.

        Which patches are taken of an image depends on its index, the number of the
        stage and the seed, and not on the batches that images come in.
        """
        running, per_image = RunningMoments(), max(1, _N_FILTER_PATCHES // n_images)
        stage = len(self.filters_)
        for index, batch in passes.batches(self._stages, self._next_stage, n_images):
            for i, stages in zip(index, batch, strict=True):
                rng = np.random.default_rng(combined_seed(seed, stage, i))
                height, width = (side - size + 1 for side in stages.x.shape[2:])
                rows = rng.integers(height, size=per_image)
                columns = rng.integers(width, size=per_image)
                running.add(networks.pcanet.patches(stages.x, rows, columns, size))
            bar.update(len(batch))
        moments = running.total
        if moments.n == 0:
            raise ImageError(
                f"none of the {n_images} images that filters are learned from could be "
                f"read; the first: {min(passes.images.skipped)[1]}"
            )
        return moments.covariance

    def _learn_positions(
        self, passes: Passes
    ) -> tuple[Positions, dict[int, np.ndarray]]:
        """Learn statistics of each position, then the whitening of the standardised.

        Returns the statistics, and responses by index, each standardised by the
        statistics of the other images; of as many images as half a gigabyte holds.
        """
        positions, left, n_passes = Positions(), Moments(), 2

        def standardise(responses: np.ndarray) -> np.ndarray:
            return positions.without(responses).standardise(responses)

        n_steps = n_passes * len(passes.order)
        with progress(n_steps, "positions", self.verbose, unit="image") as bar:
            for _, batch in passes.batches(
                self._responses, lambda stages: _finished(self._next_stage(stages))
            ):
                for responses in batch:
                    positions.add(responses)
                bar.update(len(batch))
            for _, batch in passes.batches(
                lambda images: list(map(standardise, self._responses(images))),
                standardise,
            ):
                for each in batch:
                    left = left.with_rows(each.reshape(-1, each.shape[-1]))
                bar.update(len(batch))
        values, vectors, mean = leading_directions(left.covariance, self.n_components)
        spread = np.sqrt(values + self.shrinkage * mean + MIN_VARIANCE)
        self.whitening_ = in_order(vectors / spread)
        self.position_mean_, self.position_scale_ = positions.mean, positions.scale
        self.grid_shape_ = positions.mean.shape[:2]
        self.n_features_out_ = self.whitening_.shape[1]
        return positions, passes.kept()

    def _extract(self, batch: np.ndarray) -> np.ndarray:
        return self._whiten(map(self._standardise, self._responses(batch)))

    def _whiten(self, standardised: Iterable[np.ndarray]) -> np.ndarray:
        """Features of images; one product per image, the same bits in any batch."""
        rows = [one.reshape(-1, one.shape[-1]) for one in standardised]
        features = np.stack([product(one, self.whitening_) for one in rows])
        return features.reshape(len(rows), *self.grid_shape_, -1)

    def _standardise(self, responses: np.ndarray) -> np.ndarray:
        return (responses - self.position_mean_) / self.position_scale_

    def _responses(self, batch: np.ndarray) -> list[np.ndarray]:
        """Responses of all stages on the final grid, (h, w, n_responses) each."""
        return list(map(_finished, self._stages(batch)))

    def _responses_of(self, x: Any) -> Any:
        """Responses of a tensor (b, c, H, W) as a tensor (b, h, w, n_responses)."""
        return self._through(x).responses()

    def _stages(self, batch: np.ndarray) -> list[Any]:
        """Every image of a batch after the stages so far."""
        return list(map(self._through, networks.pcanet.one_by_one(batch)))

    def _through(self, x: Any) -> Any:
        stages = networks.pcanet.Stages(x, STRIDE)
        for filters in self.filters_:
            stages.advance(filters)
        return stages

    def _next_stage(self, stages: Any) -> Any:
        return stages.advance(self.filters_[-1])

    def _check_stages(self) -> None:
        sizes, counts = list(self.kernel_sizes), list(self.n_filters)
        if len(sizes) != len(counts) or not sizes:
            raise ValueError(
                f"kernel_sizes={self.kernel_sizes!r} and n_filters={self.n_filters!r} "
                "need one entry per stage, the same number of both."
            )
        for name, values in (("kernel_sizes", sizes), ("n_filters", counts)):
            must_be_odd = name == "kernel_sizes"
            for value in values:
                if (
                    not isinstance(value, Integral)
                    or value < 1
                    or (must_be_odd and value % 2 == 0)
                ):
                    allowed = "odd " * must_be_odd + "positive integers"
                    raise ValueError(f"{name}={tuple(values)!r} must be {allowed}.")
        smallest = 2 ** len(sizes) * max(sizes)
        if min(self._input_size()) < smallest:
            raise ValueError(
                f"image_size={self.image_size!r} is too small for "
                f"{len(sizes)} stages; the smaller side must be at least {smallest}."
            )


def _finished(stages: Any) -> np.ndarray:
    """Responses of one image that has passed all stages, (h, w, n_responses)."""
    return stages.responses()[0].numpy()


def _filters(
    covariance: np.ndarray, kernel_size: int, n_filters: int, first: bool
) -> np.ndarray:
    """Leading principal components, scaled to unit variance, as filters."""
    window = kernel_size**2
    if first:  # the mean of a patch over its window travels as its own channel
        channels = len(covariance) // window
        centre = np.eye(window) - 1 / window
        projector = np.kron(np.eye(channels), centre)
        covariance = projector @ covariance @ projector
    values, vectors, _ = leading_directions(covariance, n_filters)
    floor = _QUANTISATION_VARIANCE if first else MIN_VARIANCE
    scaled = vectors / np.sqrt(np.maximum(values, floor))
    filters = scaled.T.reshape(len(values), -1, kernel_size, kernel_size)
    return in_order(filters)

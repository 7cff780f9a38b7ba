"""Patch features learned from the normal images themselves, with nothing to download.

Filters are principal components of image patches, cascaded over three scales
(PCANet). Their rectified, pooled responses are standardised per position,
which is what tells a normal edge from one in the wrong place, and reduced to
few whitened channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval

from skad._moments import Moments
from skad._progress import progress
from skad.features._base import Extract, PatchFeatureTransformer
from skad.features._principal import MIN_VARIANCE, in_order, leading_directions

STRIDE = 8  # pixels from patch to patch
_KEPT_BYTES = 2**29  # of responses that a second pass finds
_N_FILTER_PATCHES = 50_000  # patches from which a stage learns its filters
_QUANTISATION_VARIANCE = 1 / (12 * 255**2)  # variance of rounding to 8 bits: no signal
_PRIOR_IMAGES = 20  # that the common variance counts for, against a position's own


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
        Images per pass.

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
        everyone = self._fit_normal(images, y)
        learned = np.ones(len(images), bool) if y is None else np.asarray(y) == 1

        def extract(index: np.ndarray, batch: np.ndarray) -> np.ndarray:
            responses = self._responses(batch)
            standardised = self._standardise(responses)
            for i in np.flatnonzero(learned[index]):
                standardised[i] = everyone.without(responses[i]).standardise(
                    responses[i]
                )
            return standardised @ self.whitening_

        return extract

    def _fit(self, images: Any) -> Positions:
        self._check_stages()
        rng = check_random_state(self.random_state)
        sampled = np.sort(rng.permutation(len(images))[: self.max_images])
        self.filters_: list[np.ndarray] = []
        n_steps = len(sampled) * len(self.n_filters)
        with progress(n_steps, "filters", self.verbose, unit="image") as bar:
            for size, n in zip(self.kernel_sizes, self.n_filters, strict=True):
                covariance = self._patch_covariance(images, sampled, size, rng, bar)
                first = not self.filters_
                self.filters_.append(_filters(covariance, size, n, first))
        return self._learn_positions(images)

    def _patch_covariance(
        self,
        images: Any,
        sampled: np.ndarray,
        kernel_size: int,
        rng: np.random.RandomState,
        bar: Any,
    ) -> np.ndarray:
        """Covariance of random patches of the input of the next stage."""
        patches, per_image = Moments(), max(1, _N_FILTER_PATCHES // len(sampled))
        for _, batch in images.indexed_batches(self.batch_size, sampled):
            stage_input = self._stages(_to_tensor(batch))[0]
            rows = _random_patches(stage_input, kernel_size, per_image, rng)
            patches = patches.with_rows(rows)
            bar.update(len(batch))
        return patches.covariance

    def _learn_positions(self, images: Any) -> Positions:
        """Learn statistics of each position, then the whitening of the standardised."""
        positions, every_batch = Positions(), self._twice(images)
        left, n_passes = Moments(), 2
        bar = progress(n_passes * len(images), "positions", self.verbose, unit="image")
        with bar:
            for batch in every_batch():
                positions.add(batch)
                bar.update(len(batch))
            for responses in chain.from_iterable(every_batch()):
                others = positions.without(responses)
                standardised = others.standardise(responses)
                left = left.with_rows(standardised.reshape(-1, responses.shape[-1]))
                bar.update()
        values, vectors, mean = leading_directions(left.covariance, self.n_components)
        spread = np.sqrt(values + self.shrinkage * mean + MIN_VARIANCE)
        self.whitening_ = in_order(vectors / spread)
        self.position_mean_, self.position_scale_ = positions.mean, positions.scale
        self.grid_shape_ = positions.mean.shape[:2]
        self.n_features_out_ = self.whitening_.shape[1]
        return positions

    def _twice(self, images: Any) -> Callable[[], Iterator[np.ndarray]]:
        """Yield responses of all images in batches, in two passes; some are kept.

        It keeps as many as fit into half a gigabyte.
        """
        kept: list[np.ndarray] = []
        done, room = 0, _KEPT_BYTES

        def every_batch() -> Iterator[np.ndarray]:
            nonlocal done, room
            yield from list(kept)
            rest = range(done, len(images))
            for index, batch in images.indexed_batches(self.batch_size, rest):
                responses = self._responses(batch)
                room -= responses.nbytes
                if room >= 0:
                    kept.append(responses)
                    done = int(index[-1]) + 1
                yield responses

        return every_batch

    def _extract(self, batch: np.ndarray) -> np.ndarray:
        return self._standardise(self._responses(batch)) @ self.whitening_

    def _standardise(self, responses: np.ndarray) -> np.ndarray:
        return (responses - self.position_mean_) / self.position_scale_

    def _responses(self, batch: np.ndarray) -> np.ndarray:
        """Responses of all stages on the final grid, (b, h, w, n_responses)."""
        return self._responses_of(_to_tensor(batch)).numpy()

    def _responses_of(self, x: Any) -> Any:
        """The same of a tensor (b, c, H, W), as a tensor."""
        import torch
        from torch.nn.functional import adaptive_avg_pool2d, avg_pool2d, interpolate

        height, width = (max(1, side // STRIDE) for side in x.shape[2:])
        outputs = self._stages(x)[1]
        on_grid = []
        for output in outputs:
            if output.shape[2] >= height and output.shape[3] >= width:
                on_grid.append(adaptive_avg_pool2d(output, (height, width)))
            else:
                on_grid.append(
                    interpolate(output, size=(height, width), mode="bilinear")
                )
        stacked = torch.cat(on_grid, dim=1)
        padded = torch.nn.functional.pad(stacked, (1, 1, 1, 1), mode="replicate")
        return avg_pool2d(padded, 3, 1).permute(0, 2, 3, 1)

    def _stages(self, x: Any) -> tuple[Any, list[Any]]:
        """Input of the next stage, and the outputs of the stages so far."""
        outputs = []
        for stage, filters in enumerate(self.filters_):
            x = _stage(x, filters, first=stage == 0)
            outputs.append(x)
        return x, outputs

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


class Positions:
    """Running mean and variance of responses at every position, in float64."""

    def __init__(self, n: int = 0, total: Any = 0.0, squares: Any = 0.0) -> None:
        self.n, self.total, self.squares = n, total, squares

    def add(self, responses: np.ndarray) -> None:
        responses = responses.astype(np.float64)
        self.n += len(responses)
        self.total = self.total + responses.sum(axis=0)
        self.squares = self.squares + (responses**2).sum(axis=0)

    def without(self, responses: np.ndarray) -> Positions:
        """Remove one image from the statistics; a single one stays."""
        if self.n == 1:
            return self
        responses = responses.astype(np.float64)
        return Positions(
            self.n - 1, self.total - responses, self.squares - responses**2
        )

    @property
    def mean(self) -> np.ndarray:
        return (self.total / self.n).astype(np.float32)

    @property
    def scale(self) -> np.ndarray:
        """Standard deviations, shrunk towards the common one where images are few."""
        variance = np.maximum(self.squares / self.n - (self.total / self.n) ** 2, 0)
        common = variance.mean(axis=(0, 1))
        share = self.n / (self.n + _PRIOR_IMAGES)
        variance = share * variance + (1 - share) * common
        return np.sqrt(variance + MIN_VARIANCE).astype(np.float32)

    def standardise(self, responses: np.ndarray) -> np.ndarray:
        return (responses - self.mean) / self.scale


def _to_tensor(batch: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(np.ascontiguousarray(batch.transpose(0, 3, 1, 2))) - 0.5


def _stage(x: Any, filters: np.ndarray, first: bool) -> Any:
    """Apply a stage: filter, split responses by sign, halve the resolution."""
    import torch
    from torch.nn.functional import avg_pool2d, conv2d, pad

    margin = filters.shape[-1] // 2
    padded = pad(x, (margin,) * 4, mode="reflect")
    response = conv2d(padded, torch.from_numpy(filters))
    parts = [response.relu(), (-response).relu()]
    if first:  # its filters see no brightness, so brightness goes along
        parts.append(avg_pool2d(padded, filters.shape[-1], 1))
    return avg_pool2d(torch.cat(parts, dim=1), 2)


def _random_patches(
    x: Any, kernel_size: int, per_image: int, rng: np.random.RandomState
) -> np.ndarray:
    """Random k x k patches of every image of a batch, flattened."""
    views = np.lib.stride_tricks.sliding_window_view(
        x.numpy(), (kernel_size, kernel_size), axis=(2, 3)
    )
    rows = rng.randint(views.shape[2], size=(len(views), per_image))
    cols = rng.randint(views.shape[3], size=(len(views), per_image))
    images = np.arange(len(views))[:, None]
    # Advanced indices apart put patches first, channels and window after.
    return views[images, :, rows, cols].reshape(len(views) * per_image, -1)


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

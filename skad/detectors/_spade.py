"""SPADE (Cohen and Hoshen, 2020): nearest images first, then nearest patches.

Stage 1 is DN2: the score of an image is its distance to the K training images with
the nearest descriptors. Stage 2 compares its patches with those of these K images only.
With cosine distances, a window of positions and the mean over the layers of a
transformer, this is RAD.
"""

import math
from collections.abc import Sequence
from numbers import Integral

import numpy as np
from sklearn.utils._param_validation import Interval, StrOptions

from skad._maps import render
from skad._matrices import unit_rows
from skad._patch_array import PatchArray
from skad._patches import filled, image_scores
from skad._progress import progress
from skad._user_warning import warn_user
from skad.base import PatchDetector
from skad.neighbors._nearest import BLOCK_ENTRIES, search


class SPADEDetector(PatchDetector):
    """Detect anomalies by their distances to the most similar training images.

    Parameters
    ----------
    n_neighbors_image : int, default=50
        Number K of training images that an image is compared with.

    n_neighbors : int, default=1
        The score of a patch is its mean distance to so many nearest patches of those
        images.

    levels : {"auto", "joint"} or sequence of int, default="auto"
        The feature maps of the network that are compared apart: the levels of the
        paper's pyramid. "auto" searches each by itself, if their numbers of channels
        come with the features, and averages the maps, as the published code does;
        "joint" takes all channels as one vector, as the paper writes. A sequence gives
        the number of channels of each level.

    squared : bool, default=True
        Whether scores of images are means of squared distances, as in the paper, or of
        distances, as in the published code.

    squared_patches : bool, default=False
        The same for scores of patches.

    metric : {"euclidean", "cosine"}, default="euclidean"
        Distance between descriptors and between patches; "cosine" is one minus
        the cosine similarity, and `squared` does not apply.

    position_radius : int or None, default=None
        Compare a patch only with those of other images at most so many rows and
        columns away, for parts that lie in the same place. None compares with
        all positions.

    image_score : {"neighbors", "max"}, default="neighbors"
        Whether the score of an image is that of the first stage, or the largest score
        of its patches.

    gate : bool, default=False
        Leave out the second stage for an image that the first one calls normal:
        its map is zero. This saves time, and hides defects too small to change the
        descriptor.

    contamination : float, default=0.05
        Tolerated false-alarm rate on normal images, in (0, 0.5].

    calibration : {"auto", "loo", "kfold", "split", "train"}, default="auto"
        How the scores behind the threshold are held out. "auto" is "loo":
        every training image is compared with all others.

    threshold : {"tail", "rank"}, default="tail"
        How the threshold comes from the held-out scores: by a tail fitted to them,
        which keeps the false-alarm rate on average from few images, or by their
        conformal rank, which keeps it for any distribution and finds fewer anomalies
        where images are few.

    sigma : float, default=4.0
        Standard deviation, in pixels, of the Gaussian that smooths maps at pixel
        size.

    random_state : int, RandomState instance or None, default=0
        Chooses the images that "kfold" and "split" hold out; the method itself is
        deterministic.

    verbose : bool, default=False
        Show progress on the standard error stream.

    Attributes
    ----------
    descriptors_ : ndarray of shape (n_images, n_descriptor)
        Descriptors of the training images.

    galleries_ : list of ndarray of shape (n_images, h, w, n_channels)
        Patches of the training images, one array per level. With
        ``metric="cosine"`` they have unit length, as the descriptors do.

    contamination_ : float
        False-alarm rate of the thresholds, as of the fit or of `set_contamination`.

    offset_ : float
        Threshold of `score_samples`.

    calibration_scores_ : ndarray of shape (n_held_out,), float64
        Held-out scores of normal images behind `offset_`, larger is more normal.

    calibration_maps_ : ndarray of shape (n_maps, h, w), float32
        Their patch scores, larger is more anomalous. Of more than 1,000 images whose
        maps take more than 256 MB together, those of a random sample.

    n_samples_seen_ : int
        Number of training images.

    n_features_in_ : int
        Number of channels of a patch.

    See Also
    --------
    skad.PatchFeatures : ``PatchFeatures(layers=("layer1", "layer2", "layer3"),
        embedding="replicate", pooled=True)`` gives SPADE's features: the
        network's pooled output travels with the patches.

    Notes
    -----
    For features without a descriptor, such as a plain array, the descriptor is the
    mean of the patches.

    ``SPADEDetector(metric="cosine", position_radius=1, image_score="max")`` on
    several blocks of a transformer follows RAD [2]_.

    The published code drops the last patches of its gallery that do not fill a
    block; here every patch is compared.

    References
    ----------
    .. [1] N. Cohen and Y. Hoshen, "Sub-Image Anomaly Detection with Deep Pyramid
       Correspondences", arXiv 2005.02357, 2020. Equations 1 to 3.
    .. [2] X. Zhang et al., "Is Training Necessary for Anomaly Detection?", arXiv
       2601.22763, 2026.

    Examples
    --------
    >>> import numpy as np
    >>> from skad import SPADEDetector
    >>> rng = np.random.default_rng(0)
    >>> normal = rng.normal(size=(40, 4, 4, 8))
    >>> anomalous = rng.normal(size=(1, 4, 4, 8))
    >>> anomalous[0, 2, 1] += 20
    >>> detector = SPADEDetector(n_neighbors_image=10).fit(normal)
    >>> detector.predict(anomalous)
    array([-1])
    >>> heat = detector.anomaly_map(anomalous)[0]
    >>> [int(i) for i in np.unravel_index(heat.argmax(), heat.shape)]
    [2, 1]
    """

    _auto_calibration = "loo"
    _leaves_out_views = True
    _parameter_constraints = {
        **PatchDetector._parameter_constraints,
        "n_neighbors_image": [Interval(Integral, 1, None, closed="left")],
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "levels": [StrOptions({"auto", "joint"}), list, tuple],
        "squared": ["boolean"],
        "squared_patches": ["boolean"],
        "metric": [StrOptions({"euclidean", "cosine"})],
        "position_radius": [Interval(Integral, 0, None, closed="left"), None],
        "image_score": [StrOptions({"neighbors", "max"})],
        "gate": ["boolean"],
    }

    def __init__(
        self,
        n_neighbors_image: int = 50,
        n_neighbors: int = 1,
        *,
        levels: str | Sequence[int] = "auto",
        squared: bool = True,
        squared_patches: bool = False,
        metric: str = "euclidean",
        position_radius: int | None = None,
        image_score: str = "neighbors",
        gate: bool = False,
        contamination: float = 0.05,
        calibration: str = "auto",
        threshold: str = "tail",
        sigma: float = 4.0,
        random_state: int | np.random.RandomState | None = 0,
        verbose: bool = False,
    ):
        self.n_neighbors_image = n_neighbors_image
        self.n_neighbors = n_neighbors
        self.levels = levels
        self.squared = squared
        self.squared_patches = squared_patches
        self.metric = metric
        self.position_radius = position_radius
        self.image_score = image_score
        self.gate = gate
        self.contamination = contamination
        self.calibration = calibration
        self.threshold = threshold
        self.sigma = sigma
        self.random_state = random_state
        self.verbose = verbose

    def _fit(self, X):
        if self.n_neighbors_image > len(X):
            warn_user(
                f"n_neighbors_image={self.n_neighbors_image} exceeds the {len(X)} "
                f"training images; using all of them.",
            )
        self.descriptors_ = self._space(X.pooled)
        self.galleries_ = [self._space(level) for level in _split(X)]

    def _fit_bytes(self, shape, itemsize, *, first):
        # The patches that it keeps, and once more those to compare with them: of each
        # image with those of the nearest images.
        patches = float(math.prod(shape)) * itemsize
        n_near = min(self.n_neighbors_image, shape[0]) * math.prod(shape[1:3])
        bounds = itemsize * min(BLOCK_ENTRIES, math.prod(shape[1:3]) * n_near)
        return patches, patches + 2 * bounds

    def _memory_advice(self):
        return (
            "Reduce image_size of the features, their channels, or the number of "
            "images; PatchCoreDetector(bank_size=...) keeps a bounded number of "
            "patches."
        )

    def _score_for_calibration(self, X):
        return *self._compare(X, *self._nearest_images(X)), None

    def _score_left_out(self, X):
        """Compare each training image with all others, and with their views."""
        n_together = 1 if self.n_samples_seen_ == 1 else self._n_per_image
        owner = np.arange(len(X)) // n_together
        images = X[self._held_out_sample % n_together :: n_together]
        return self._compare(
            images, *self._nearest_images(images, (owner[::n_together], owner))
        )

    def _image_scores(self, X):
        if self.image_score == "max":
            return self._score_for_calibration(X)[0]
        return self._nearest_images(X)[0]

    def _score(self, X):
        distances, neighbors = self._nearest_images(X)
        if not self.gate or self.image_score == "max":
            return self._compare(X, distances, neighbors)
        anomalous = distances > -self.offset_
        maps = np.zeros(X.shape[:3])
        if anomalous.any():
            some = X[anomalous], distances[anomalous], neighbors[anomalous]
            maps[anomalous] = self._compare(*some)[1]
        return distances, maps

    # -- stage 1: images -------------------------------------------------------

    def _nearest_images(self, X, groups=None):
        """Scores by the nearest training images (Equation 1), and their indices."""
        bank = self.descriptors_
        n_left_out = 0 if groups is None else int(np.sum(groups[1] == 0))
        k = min(self.n_neighbors_image, len(bank) - n_left_out)
        squared, neighbors = search(
            self._space(X.pooled).astype(bank.dtype), bank, k, groups=groups
        )
        return self._distance(squared, self.squared).mean(axis=1), neighbors

    # -- stage 2: patches --------------------------------------------------------

    def _compare(self, X, distances, neighbors):
        """Maps from the patches of the nearest images (Equation 2)."""
        maps = np.zeros(X.shape[:3])
        levels = [self._space(level) for level in _split(X)]
        with progress(len(X), "images", self.verbose) as bar:
            for i in range(len(X)):
                for level, gallery in zip(levels, self.galleries_, strict=True):
                    found = self._search_patches(level[i], gallery[neighbors[i]])
                    maps[i] += _resized(found, X.shape[1:3]) / len(levels)
                bar.update()
        maps[np.isnan(X[..., 0])] = np.nan
        scores = distances if self.image_score == "neighbors" else image_scores(maps)
        return scores, maps

    def _search_patches(self, image, gallery):
        """Distances of the patches of one image (h, w, d) to a gallery."""
        height, width, n_channels = image.shape
        if self.position_radius is None:
            return self._search_rows(image, gallery.reshape(-1, n_channels))
        radius = self.position_radius
        columns = np.tile(np.arange(width), len(gallery))
        found = np.empty((height, width))
        for row in range(height):
            near = gallery[:, max(0, row - radius) : row + radius + 1]
            # Rows of the gallery first: columns then repeat in the same order.
            bank = near.transpose(1, 0, 2, 3).reshape(-1, n_channels)
            far = np.abs(np.arange(width)[:, None] - columns) > radius
            hidden = np.tile(far, near.shape[1])
            found[row] = self._search_rows(image[row], bank, hidden)
        return found

    def _search_rows(self, queries, bank, hidden=None):
        shape, n_channels = queries.shape[:-1], queries.shape[-1]
        queries = queries.reshape(-1, n_channels)
        inside, known = ~np.isnan(queries[:, 0]), ~np.isnan(bank[:, 0])
        found = np.full(len(queries), np.nan)
        k = min(self.n_neighbors, known.sum())
        if k and inside.any():
            if hidden is not None:
                hidden = hidden[np.ix_(inside, known)]
            if not known.all():
                bank = bank[known]
            squared, _ = search(
                queries[inside].astype(bank.dtype), bank, k, hidden=hidden
            )
            found[inside] = self._distance(squared, self.squared_patches).mean(axis=1)
        return np.where(np.isinf(found), np.nan, found).reshape(shape)

    # -- distances -----------------------------------------------------------------

    def _space(self, array):
        """A copy in the space where Euclidean distance ranks as the metric does."""
        rows = np.array(array).reshape(-1, array.shape[-1])
        return (rows if self.metric == "euclidean" else unit_rows(rows)).reshape(
            array.shape
        )

    def _distance(self, squared, keep_squared):
        if self.metric == "cosine":
            return squared / 2
        return squared if keep_squared else np.sqrt(squared)

    # -- input -----------------------------------------------------------------------

    def _check_features(self, X, *, reset):
        patches, present = super()._check_features(X, reset=reset)
        pooled = getattr(X, "pooled", None)
        if pooled is None:
            pooled = _mean_patches(patches)
        if not np.isfinite(pooled[present]).all():
            raise ValueError("the descriptors of X contain NaN or infinity.")
        if reset:
            self._n_descriptor = pooled.shape[1]
        elif pooled.shape[1] != self._n_descriptor:
            raise ValueError(
                f"the descriptors of X have {pooled.shape[1]} entries, but had "
                f"{self._n_descriptor} in fit; take both from the same transformer."
            )
        levels = self._levels(getattr(X, "levels", ()), patches.shape)
        return PatchArray(patches, pooled, levels), present

    def _levels(self, carried, shape):
        """Channels and grid of each level to search by itself."""
        grid, n_channels = shape[1:3], shape[3]
        if isinstance(self.levels, (list, tuple)):
            if sum(self.levels) != n_channels or min(self.levels) < 1:
                raise ValueError(
                    f"levels={self.levels!r} must be positive and add up to the "
                    f"{n_channels} channels of X."
                )
            return tuple((count, grid) for count in self.levels)
        if self.levels == "auto" and carried:
            return carried
        return ((n_channels, grid),)


def _mean_patches(patches):
    """Mean patch of each image; NaN for an image without patches."""
    rows = patches.reshape(len(patches), -1, patches.shape[3])
    inside = ~np.isnan(rows[:, :, :1])
    if inside.all():
        return rows.mean(axis=1)
    total = np.where(inside, rows, 0).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return total / inside.sum(axis=1)


def _split(X):
    """Patches of each level on its own grid, with repeated cells taken once."""
    parts, start = [], 0
    for n_channels, grid in X.levels:
        part = np.asarray(X)[..., start : start + n_channels]
        start += n_channels
        for axis in (1, 2):
            n_cells, n_own = X.shape[axis], grid[axis - 1]
            if n_own < n_cells:
                first = -(-np.arange(n_own) * n_cells // n_own)
                # Of equal cells, some of which may be NaN, the one that is not.
                part = np.fmax.reduceat(part, first, axis=axis)
        parts.append(part)
    return parts


def _resized(map_, grid):
    """A map on another grid, bilinearly; NaN counts as the smallest score."""
    if map_.shape == tuple(grid):
        return map_
    if np.isnan(map_).all():
        return np.full(grid, np.nan)
    return render(filled(map_[None]), grid, sigma=0)[0]

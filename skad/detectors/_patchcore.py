"""PatchCore (Roth et al., CVPR 2022): a memory bank of normal patches.

The bank is a coreset of the training patches (Section 3.2 of the paper). The score of
a patch is its distance to the bank. The score of an image is that of its most
anomalous patch, weighted down where the bank around its nearest row is sparse
(Equations 6 and 7).
"""

from numbers import Integral, Real
from typing import Any

import numpy as np
from scipy.special import logsumexp
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.metaestimators import available_if

from skad._memory import require_memory
from skad._patches import image_scores, n_top, patch_maps, patch_rows
from skad._user_warning import warn_user
from skad.base import PatchDetector
from skad.base._warnings import are_equal_to, warn_of_equal_images, warn_of_outlier
from skad.detectors._left_out import LeftOutBank
from skad.detectors._streamed_bank import GrowingBank, StreamedLeftOut
from skad.neighbors import greedy_coreset
from skad.neighbors._coreset import extend_coreset
from skad.neighbors._distances import direct, unit_rows
from skad.neighbors._nearest import Bank
from skad.neighbors._worst import search_worst
from skad.networks._torch_state import in_own_torch_state

# Parameters of the search in the approximate index, and their defaults.
_SEARCH = {"n_candidates": 10, "epsilon": 0.3}


class PatchCoreDetector(PatchDetector):
    """Detect anomalies by their distance to a memory bank of normal patches.

    Parameters
    ----------
    coreset_ratio : float, default=0.1
        Share of the training patches that the bank keeps, in (0, 1], chosen by
        exact greedy farthest-first selection. 1.0 keeps all of them in order.

    n_neighbors : int, default=1
        The score of a patch is its mean distance to so many nearest rows of the bank.

    reweight : int or None, default=9
        Number b of bank rows around the nearest one by which an image's score is
        weighted (Equation 7 of the paper, which does not give b). None or 1 gives
        the plain maximum over the patches.

    bank_size : int or None, default=None
        Rows that the bank holds at most, after `fit`, `partial_fit` and `merge`: it
        caps what `coreset_ratio` selects, and must exceed `n_neighbors`. With it, a
        `skad.Pipeline` learns block by block, in memory that does not grow with the
        number of images but for `calibration_maps_`: see Notes. None is no limit.

    top_ratio : float or None, default=None
        Score an image by the mean of this share of its highest patch scores,
        0.01 for AnomalyDINO, in place of the re-weighted maximum.

    metric : {"euclidean", "cosine"}, default="euclidean"
        Distance between patches; "cosine" is one minus the cosine similarity.

    algorithm : {"exact", "nndescent"}, default="exact"
        "nndescent" searches an approximate index of pynndescent instead, which
        compiles for a minute or more at first use and misses neighbours. It is
        for banks of far more than 10,000 rows only: see Notes.

    nndescent_params : dict, default=None
        For the index: arguments of ``pynndescent.NNDescent``, and ``n_candidates``
        and ``epsilon`` of its search, 10 and 0.3 by default. More candidates find
        more of the true neighbours in more time.

    contamination : float, default=0.05
        Tolerated false-alarm rate on normal images, in (0, 0.5].

    calibration : {"auto", "loo", "kfold", "split", "train"}, default="auto"
        How the scores behind the threshold are held out. "auto" is "loo":
        every training image is scored against the bank without it (see Notes).
        "train" takes the training scores as they are, which rejects nearly
        every normal image.

    threshold : {"tail", "rank"}, default="tail"
        How the threshold comes from the held-out scores: by a tail fitted to them,
        which keeps the false-alarm rate on average from few images, or by their
        conformal rank, which keeps it for any distribution and finds fewer anomalies
        where images are few.

    sigma : float, default=4.0
        Standard deviation, in pixels, of the Gaussian that smooths maps at pixel
        size.

    random_state : int, RandomState instance or None, default=0
        Chooses the row that the coreset starts from, and the images that "kfold" and
        "split" hold out.

    on_interrupt : {"raise", "keep"}, default="raise"
        What Ctrl-C does during the selection of the coreset: "keep" warns and goes
        on with the rows selected until then, the coreset of a smaller ratio.

    verbose : bool, default=False
        Show progress on the standard error stream.

    Attributes
    ----------
    bank_ : ndarray of shape (n_bank, n_features)
        Training patches kept, in the order of selection.

    coreset_indices_ : ndarray of shape (n_bank,), intp
        Their rows among the flattened patches of all training images so far.

    contamination_ : float
        False-alarm rate of the thresholds, as of the fit or of `set_contamination`.

    offset_ : float
        Threshold of `score_samples`.

    calibration_scores_ : ndarray of shape (n_held_out,), float64
        Held-out scores of normal images behind `offset_`, larger is more normal.

    calibration_maps_ : ndarray of shape (n_held_out, h, w), float32
        Their patch scores, larger is more anomalous.

    n_samples_seen_ : int
        Number of training images.

    n_features_in_ : int
        Number of channels of a patch.

    See Also
    --------
    skad.PatchFeatures : Features from a pretrained network.
    skad.neighbors.greedy_coreset : The selection.

    Notes
    -----
    ``metric="cosine", top_ratio=0.01, coreset_ratio=1.0`` on features of a
    DINOv2 transformer is AnomalyDINO [2]_.

    The official code scores by squared distances and takes the plain maximum;
    ranks of images agree with ``reweight=None``.

    `partial_fit` adds to the bank the same share of the new patches, those
    farthest from the bank and from each other; `merge` unites two banks. Rows of
    a bank are dropped only where there are more than `bank_size`, again by greedy
    selection; without it, the covering radius is at most that of the parts.

    With `bank_size` and "loo", a `skad.Pipeline` of a step that reads images and this
    detector does not hold the features of all images. If their patches fit into twice
    `bank_size` rows, the result is that of `fit` on features. If not, the bank is
    filled up to twice `bank_size` rows and then reduced, again and again; patches that
    are closer to the reduced bank than its rows are to each other are left out. At the
    end it is reduced to the rows that both parameters allow. Each image then passes
    the network a second time, or comes from `cache_dir`, for its held-out score. Memory
    is some times `bank_size` rows, the features of one batch, and `calibration_maps_`.

    Held-out scores of this second pass are those of the bank without the rows of the
    image and, as below, with patches of other images in their place. For each row that
    is taken out, four such patches are kept at most, and the four worst patches of the
    image are compared with them. Scores of single images differ by up to a fifth from
    those that a fit on features finds for the same bank, thresholds by 0 to 3 %
    (measured on two sets of photographs).

    Measured with 4,096 rows of `skad_small` at 128 pixels: the covering radius was 1.2
    to 1.3 times that of one selection of as many rows, which nothing guarantees. Area
    under the ROC curve of images without `bank_size`, with one fit of that size, and
    with a streamed one: 0.995, 0.996 and 0.987 (bottles), 0.951, 0.942 and 0.936 (half
    of the magnetic tiles).

    To leave an image out, its rows are taken out of the bank, and rows of other images
    that were near them are put back, farthest first, until all are as close to the
    bank as the rows of the coreset are: as in a bank of the other images. Without
    these rows, held-out scores are too high where images are alike. No coreset is
    selected again, and the fit takes 1.2 to 1.6 times as long as without (100 to 200
    images).

    With ``algorithm="nndescent"``, scores of new and of held-out images come from
    the same approximate search. A held-out patch whose candidates are all of its own
    image is searched exactly, and so are the neighbours that weigh an image's score.
    Patches that are in the index find others in it more surely than new ones do:
    with parameters by which it finds few, such as ``n_candidates=1``, the threshold
    of "loo" is too strict, and ``calibration="split"`` keeps the rate.

    Measured with 128 dimensions on one core: for coresets of 16,385 rows from two
    sets of real photographs, the index found the nearest row for 99.8 and 100 % of
    the patches, in about the time of the exact search; of 100,000 rows, for 100 % in
    0.6 of that time, or for 98.7 % in 0.2 of it with ``epsilon=0.1``. To make that
    index took half a minute. With ``n_candidates=1``, it found 75 to 84 % in the
    coresets. On data of high intrinsic dimension it finds fewer.

    References
    ----------
    .. [1] K. Roth et al., "Towards Total Recall in Industrial Anomaly
       Detection", CVPR 2022. Sections 3.2 and 3.3, Equations 5 to 7.
    .. [2] S. Damm et al., "AnomalyDINO: Boosting Patch-based Few-shot Anomaly
       Detection with DINOv2", WACV 2025.

    Examples
    --------
    >>> import numpy as np
    >>> from skad import PatchCoreDetector
    >>> rng = np.random.default_rng(0)
    >>> normal = rng.normal(size=(40, 4, 4, 8))
    >>> anomalous = rng.normal(size=(1, 4, 4, 8))
    >>> anomalous[0, 2, 1] += 6
    >>> detector = PatchCoreDetector().fit(normal)
    >>> detector.predict(anomalous)
    array([-1])
    >>> heat = detector.anomaly_map(anomalous)[0]
    >>> [int(i) for i in np.unravel_index(heat.argmax(), heat.shape)]
    [2, 1]
    """

    _auto_calibration = "loo"
    _min_left_out = 1  # patches of one image are held out from each other
    _parameter_constraints = {
        **PatchDetector._parameter_constraints,
        "coreset_ratio": [Interval(Real, 0, 1, closed="right")],
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "reweight": [Interval(Integral, 1, None, closed="left"), None],
        "bank_size": [Interval(Integral, 1, None, closed="left"), None],
        "top_ratio": [Interval(Real, 0, 1, closed="right"), None],
        "metric": [StrOptions({"euclidean", "cosine"})],
        "algorithm": [StrOptions({"exact", "nndescent"})],
        "nndescent_params": [dict, None],
        "on_interrupt": [StrOptions({"raise", "keep"})],
    }

    def __init__(
        self,
        coreset_ratio: float = 0.1,
        n_neighbors: int = 1,
        reweight: int | None = 9,
        *,
        bank_size: int | None = None,
        top_ratio: float | None = None,
        metric: str = "euclidean",
        algorithm: str = "exact",
        nndescent_params: dict[str, Any] | None = None,
        contamination: float = 0.05,
        calibration: str = "auto",
        threshold: str = "tail",
        sigma: float = 4.0,
        random_state: int | np.random.RandomState | None = 0,
        on_interrupt: str = "raise",
        verbose: bool = False,
    ):
        self.coreset_ratio = coreset_ratio
        self.n_neighbors = n_neighbors
        self.reweight = reweight
        self.bank_size = bank_size
        self.top_ratio = top_ratio
        self.metric = metric
        self.algorithm = algorithm
        self.nndescent_params = nndescent_params
        self.contamination = contamination
        self.calibration = calibration
        self.threshold = threshold
        self.sigma = sigma
        self.random_state = random_state
        self.on_interrupt = on_interrupt
        self.verbose = verbose

    def _validate_params(self):
        super()._validate_params()
        self._check_bank_size()

    def _check_bank_size(self):
        if self.bank_size is not None and self.bank_size <= self.n_neighbors:
            raise ValueError(
                f"bank_size={self.bank_size} is too small for "
                f"n_neighbors={self.n_neighbors}: a held-out image needs so many rows "
                "of other images. Raise bank_size, to some thousands for most images, "
                "or lower n_neighbors."
            )

    def _fit(self, X):
        rows, inside = patch_rows(X)
        require_memory(
            self._n_selected(rows) * rows[:1].nbytes,
            f"the {self._n_selected(rows)} rows of the bank",
            f"Set bank_size, reduce coreset_ratio={self.coreset_ratio}, or reduce "
            "image_size of the features.",
        )
        if self.coreset_ratio == 1 and self._n_selected(rows) == len(rows):
            selected = np.arange(len(rows))
        else:
            start = check_random_state(self.random_state).randint(len(rows))
            selected = greedy_coreset(
                self._space(rows),
                self._n_selected(rows),
                start=start,
                on_interrupt=self.on_interrupt,
                verbose=self.verbose,
            )
        self._set_bank(rows[selected], np.flatnonzero(inside)[selected])

    def _update(self, X):
        rows, inside = patch_rows(X)
        selected = np.arange(len(rows))
        if self.coreset_ratio < 1:
            selected = extend_coreset(
                self._space(self.bank_),
                self._space(rows),
                self._n_selected(rows),
                on_interrupt=self.on_interrupt,
                verbose=self.verbose,
            )
        first = self.n_samples_seen_ * X.shape[1] * X.shape[2]
        self._set_united_bank(
            np.concatenate([self.bank_, rows[selected]]),
            np.concatenate(
                [self.coreset_indices_, first + np.flatnonzero(inside)[selected]]
            ),
        )

    def _merge(self, other):
        self._check_bank_size()
        selected = extend_coreset(
            self._space(self.bank_), self._space(other.bank_), len(other.bank_)
        )
        first = self.n_samples_seen_ * self.calibration_maps_[0].size
        self._set_united_bank(
            np.concatenate([self.bank_, other.bank_[selected]]),
            np.concatenate(
                [self.coreset_indices_, first + other.coreset_indices_[selected]]
            ),
        )

    def _set_united_bank(self, bank, indices):
        """Set the bank, reduced to `bank_size` where it has more rows."""
        if self.bank_size is not None and len(bank) > self.bank_size:
            selected = greedy_coreset(
                self._space(bank),
                self.bank_size,
                on_interrupt=self.on_interrupt,
                verbose=self.verbose,
            )
            bank, indices = bank[selected], indices[selected]
        self._set_bank(bank, indices)

    def _set_bank(self, bank, indices):
        self.bank_, self.coreset_indices_ = bank, indices
        self._searched = Bank(self._space(bank))
        self._index = _build_index(self) if self.algorithm == "nndescent" else None

    def __getstate__(self):
        state = dict(super().__getstate__())
        state.pop("_searched", None)  # a copy of the bank, built again on loading
        return state

    def __setstate__(self, state):
        super().__setstate__(state)
        if hasattr(self, "bank_"):
            self._searched = Bank(self._space(self.bank_))

    def _n_selected(self, rows):
        """Number of rows that the coreset keeps."""
        n_selected = max(1, int(len(rows) * self.coreset_ratio))
        return n_selected if self.bank_size is None else min(n_selected, self.bank_size)

    def _space(self, rows):
        """Rows in the space where Euclidean distance ranks as the metric does."""
        return rows if self.metric == "euclidean" else unit_rows(rows)

    def _distance(self, squared):
        """Distances by the metric from squared Euclidean ones in `_space`.

        For unit vectors, |a - b|^2 = 2 - 2 a.b, twice the cosine distance.
        """
        return squared / 2 if self.metric == "cosine" else np.sqrt(squared)

    def _score(self, X):
        rows, inside = patch_rows(X)
        queries = self._space(rows)
        k = self._available(self.n_neighbors, len(self.bank_), "n_neighbors")
        squared, indices = self._nearest(queries, k)
        return self._scores(X, inside, queries, squared, indices)

    def _image_scores(self, X):
        """Scores alone: only the worst patches need their nearest rows."""
        if self._index is not None:
            return self._score(X)[0]
        rows, inside = patch_rows(X)
        queries = self._space(rows)
        images = np.repeat(np.arange(len(X)), X.shape[1] * X.shape[2])[inside]
        n_worst = np.ones(len(X), np.intp)
        if self.top_ratio is not None:
            n_worst = np.array(
                [n_top(n, self.top_ratio) for n in np.bincount(images)], np.intp
            )
        squared, indices = search_worst(
            self._searched,
            queries,
            images,
            n_worst,
            self._available(self.n_neighbors, len(self.bank_), "n_neighbors"),
            self._distance,
            in_order=self.coreset_ratio < 1 or self.bank_size is not None,
        )
        return self._scores(X, inside, queries, squared, indices)[0]

    def _nearest_training_patches(self, X):
        """Worst patch of each image, and the training patch nearest to it.

        Returns
        -------
        found : ndarray of shape (n, 3), float64
            Position of the worst patch among the flattened ones of its image; that of
            the training patch, as in `coreset_indices_`; their distance. NaN for images
            that are not present.
        """
        samples, present = self._to_score(X)
        found = np.full((len(present), 3), np.nan)
        if not present.any():
            return found
        rows, inside = patch_rows(samples)
        k = min(self.n_neighbors, len(self.bank_))
        squared, indices = self._nearest(self._space(rows), k)
        distances = self._distance(squared)
        worst = _worst(patch_maps(distances.mean(axis=1), inside, samples.shape[:3]))
        query = np.cumsum(inside)[worst] - 1
        found[present, 0] = worst % (samples.shape[1] * samples.shape[2])
        found[present, 1] = self.coreset_indices_[indices[query, 0]]
        found[present, 2] = distances[query, 0]
        return found

    def _score_left_out(self, X):
        """Score each training image against the bank without it.

        X holds the images learned from last. `owner` is the image in X that each row
        of the bank is from, negative for images of earlier calls; `images` is the same
        for the rows of X.
        """
        rows, inside = patch_rows(X)
        queries = self._space(rows)
        n_patches = X.shape[1] * X.shape[2]
        n_before = self.n_samples_seen_ - len(X)
        owner = self.coreset_indices_ // n_patches - n_before
        images = np.repeat(np.arange(len(X)), n_patches)[inside]
        if self.n_samples_seen_ == 1:
            warn_user(
                "one training image cannot be held out: each of its patches is "
                "scored against the other ones, and the threshold is a guess. "
                "Call calibrate with more normal images."
            )
            # Every patch counts as an image of its own.
            owner, images = self.coreset_indices_, np.flatnonzero(inside)
        n_left = max(1, len(self.bank_) - _n_rows_of_one_image(owner))
        k = min(self.n_neighbors, n_left)
        bank = LeftOutBank(
            self._searched, owner, queries, images, k, self._nearest, self.verbose
        )

        def search_left(rows, worst, b):
            return bank.search(rows, images[worst], min(b, n_left))[1]

        squared, indices = bank.found
        return self._scores(
            X, inside, queries, squared, indices, bank.rows, search_left
        )

    # -- images block by block -----------------------------------------------------

    @available_if(lambda detector: detector.bank_size is not None)
    @in_own_torch_state  # a network may extract the batches
    def _fit_batches(self, batches, update=False):
        """Fit, or update, on batches of positions in X and features.

        The batches can be iterated over twice.
        """
        self._validate_params()
        held, rest = self._batches_that_fit(batches, reset=not update)
        if update:
            self._check_grid(held[0][1].shape[1:3])
        if rest is None:  # these are all
            samples, positions = _joined(held)
            if not update:
                self.n_samples_seen_ = 0
            self._learn(samples, positions, first=not update)
            return self
        grid = held[0][1].shape[1:3]
        positions, sample = self._stream(held, rest, update)
        n_before, n = self.n_samples_seen_ if update else 0, len(positions)
        self.n_samples_seen_ = n_before + n
        if not update:
            self._take_threshold_parameters()
            if sample is not None:
                warn_of_equal_images(self, np.broadcast_to(sample, (n, *sample.shape)))
        if self.n_samples_seen_ == 1:
            scores, maps = self._score_left_out(_joined(list(batches))[0])
        else:
            scores, maps = self._left_out_batches(batches, positions, grid)
        if update:
            self._add_held_out(scores, maps, self.n_samples_seen_)
        else:
            self._replace_held_out(scores, maps)
        known = np.isfinite(scores)
        warn_of_outlier(self, scores[known], positions[known])
        return self

    def _present_batches(self, batches, reset):
        """Yield positions and checked features of the images that are present."""
        for positions, X in batches:
            X, present = self._check_features(X, reset=reset)
            if present.any():
                yield (
                    positions if present.all() else positions[present],
                    np.asarray(X if present.all() else X[present]),
                )

    def _batches_that_fit(self, batches, reset):
        """The first batches, of more than twice `bank_size` rows, and the others.

        None in place of the others where all batches together have no more rows.
        """
        held: list[tuple[np.ndarray, np.ndarray]] = []
        n_rows, room = 0, 2 * (self.bank_size or 0)
        batches = self._present_batches(batches, reset)
        for positions, X in batches:
            held.append((positions, X))
            n_rows += int((~np.isnan(X[..., 0])).sum())
            if n_rows > room:
                return held, batches
        if not held:
            raise ValueError("no normal image is left: all of them were skipped.")
        return held, None

    def _stream(self, held, rest, update):
        """Select the bank; positions of the images, and one if all are the same."""
        first = held[0][1]
        n_patches, dtype = first.shape[1] * first.shape[2], first.dtype
        bank_size: Any = self.bank_size
        start = check_random_state(self.random_state).randint(2 * bank_size)
        bank = GrowingBank(
            bank_size,
            first.shape[3],
            dtype,
            self._space,
            0 if update else start,
            on_interrupt=self.on_interrupt,
            verbose=self.verbose,
        )
        n_images, n_before, n_rows = 0, 0, 0
        if update:
            n_images, n_before = self.n_samples_seen_, len(self.bank_)
            bank.add(self.bank_, self.coreset_indices_)
        sample, all_positions = first[0], []
        for positions, X in _taken_off(held, rest):
            rows, inside = patch_rows(X)
            bank.add(rows, n_images * n_patches + np.flatnonzero(inside))
            n_images += len(X)
            n_rows += len(rows)
            all_positions.append(positions)
            if sample is not None and not are_equal_to(sample, X):
                sample = None
        n_new = max(1, int(n_rows * self.coreset_ratio))
        self._set_bank(*bank.finish(min(bank_size, n_before + n_new)))
        return np.concatenate(all_positions), sample

    def _left_out_batches(self, batches, positions, grid):
        """Scores (n,) and maps (n, h, w) of the images at these positions.

        Each is scored against the bank without it; NaN where it cannot be read again.
        """
        n, n_patches = len(positions), grid[0] * grid[1]
        number = {int(place): i for i, place in enumerate(positions)}
        scores = np.full(n, np.nan)
        maps = np.full((n, *grid), np.nan, np.float32)
        left_out, n_left = self._streamed_left_out(n, n_patches)
        for places, X in self._present_batches(batches, reset=False):
            # An image that could not be read the first time may be there now.
            numbers = np.array([number.get(int(place), -1) for place in places])
            X, numbers = X[numbers >= 0], numbers[numbers >= 0]
            if len(X) == 0:
                continue
            rows, inside = patch_rows(X)
            queries = self._space(rows)
            images = np.repeat(numbers, n_patches)[inside]
            search = self._left_search(left_out.search, images, n_left)
            squared, indices = left_out.add(queries, images)
            scores[numbers], maps[numbers] = self._scores(
                X, inside, queries, squared, indices, self._searched.rows, search
            )
        for image, order, *found in left_out.finish():
            scores[image] = self._corrected(image, maps, order, found, left_out, n_left)
        if np.isnan(scores).all():
            raise ValueError(
                "no image could be read a second time, for its held-out score: keep "
                "the files where they are until fit returns."
            )
        return scores, maps

    def _streamed_left_out(self, n, n_patches):
        """Search without the own rows of each of the n images learned from last.

        Also the number of rows that it leaves at least.
        """
        owner = self.coreset_indices_ // n_patches - (self.n_samples_seen_ - n)
        n_left = max(1, len(self.bank_) - _n_rows_of_one_image(owner))
        k = min(self.n_neighbors, n_left)
        return StreamedLeftOut(self._searched, owner, k, self._nearest), n_left

    @staticmethod
    def _left_search(search, images, n_left):
        """``search(rows, worst, b)`` of `_scores`, by one of `StreamedLeftOut`."""
        return lambda rows, worst, b: search(rows, images[worst], min(b, n_left))[1]

    def _corrected(self, image, maps, order, found, left_out, n_left):
        """Score of an image after its worst patches have been corrected, in `maps`."""
        queries, squared, indices = found
        values = self._distance(squared).mean(axis=1)
        flat = maps[image].reshape(-1)
        flat[np.flatnonzero(~np.isnan(flat))[order]] = values
        if self.top_ratio is not None:
            return image_scores(maps[[image]], self.top_ratio)[0]
        worst = np.array([values.argmax()])
        images = np.full(len(queries), image)
        search = self._left_search(left_out.search_corrected, images, n_left)
        nearest_row = indices[worst, 0]
        weight = self._weights(queries, worst, nearest_row, left_out.rows, search)
        return values.max() * np.ravel(weight)[0]

    def _nearest(self, queries, k, groups=None, report=None):
        """Squared distances and indices of the k nearest rows, as `algorithm` says."""
        if self._index is None:
            return self._searched.search(queries, k, groups=groups, report=report)
        index, n_candidates, epsilon = self._index
        n = min(max(k, n_candidates), len(self.bank_))
        indices, distances = index.query(queries, k=n, epsilon=epsilon)
        if report is not None:
            report(len(queries))
        squared = distances.astype(np.float64) ** 2
        squared[indices < 0] = np.inf  # what the index did not reach
        if groups is not None:
            squared[groups[1][indices] == groups[0][:, None]] = np.inf
        order = np.argsort(squared, axis=1, kind="stable")[:, :k]
        squared = np.take_along_axis(squared, order, axis=1)
        indices = np.take_along_axis(indices, order, axis=1).astype(np.intp)
        few = np.flatnonzero(np.isinf(squared[:, -1]))
        if len(few):
            if groups is not None:
                groups = groups[0][few], groups[1]
            found = self._searched.search(queries[few], k, groups=groups)
            squared[few], indices[few] = found
        return squared, indices

    def _scores(self, X, inside, queries, squared, indices, bank=None, search=None):
        """Image scores and maps from the nearest rows of each patch.

        `bank` holds the rows that `indices` are of, and ``search(rows, worst, b)``
        gives the indices of the b rows nearest to bank rows for the queries `worst`.
        Without them, both are those of the whole bank.
        """
        distances = self._distance(squared)
        maps = patch_maps(distances.mean(axis=1), inside, X.shape[:3])
        scores = image_scores(maps, self.top_ratio)
        if self.top_ratio is None:
            worst = np.cumsum(inside)[_worst(maps)] - 1  # its row among the queries
            scores *= self._weights(queries, worst, indices[worst, 0], bank, search)
        return scores, maps.astype(np.float32)

    def _weights(self, queries, worst, nearest_row, bank, search):
        """Weight of each image's score (Equation 7), safe from overflow.

        With m the most anomalous patch (`worst`), m* its nearest row of the bank and
        N_b(m*) the b rows nearest to that, the weight is
        1 - exp(|m - m*|) / sum(exp(|m - r|) for r in N_b(m*)).
        """
        b = 1 if self.reweight is None else self.reweight
        b = min(b, len(self.bank_))
        if b < 2:
            return 1.0
        if bank is None:
            bank = self._searched.rows
            near = self._searched.search(bank[nearest_row], b)[1]
        else:
            near = search(bank[nearest_row], worst, b)
        b = near.shape[1]
        if b < 2:
            return 1.0
        # The nearest row counts itself among its b neighbours.
        squared = direct(queries, bank, np.repeat(worst, b), near.ravel())
        squared = squared.reshape(-1, b)
        distances = self._distance(squared)
        own = self._distance(direct(queries, bank, worst, nearest_row))
        # 1 - exp(own) / sum(exp(distances)), with the quotient in logarithms.
        return -np.expm1(own - logsumexp(distances, axis=1))

    def _available(self, k, available, name):
        if k > available:
            warn_user(
                f"{name}={k} exceeds the {available} rows of the bank; using "
                f"{available}.",
            )
        return min(k, available)


def _joined(batches):
    """Features and positions of several batches as of one."""
    positions, features = zip(*batches, strict=True)
    return np.concatenate(features), np.concatenate(positions)


def _taken_off(held, rest):
    """Yield what a list holds, which is emptied on the way, and then the rest."""
    while held:
        yield held.pop(0)
    yield from rest


def _worst(maps):
    """Position of the largest value of each map among the values of all maps."""
    flat = np.where(np.isnan(maps), -np.inf, maps).reshape(len(maps), -1)
    return flat.argmax(axis=1) + np.arange(len(maps)) * flat.shape[1]


def _n_rows_of_one_image(owner):
    """Largest number of bank rows that are from one image, without negative owners."""
    owner = owner[owner >= 0]
    return np.bincount(owner).max() if len(owner) else 0


def _build_index(detector):
    """Approximate index over the bank, and `n_candidates` and `epsilon` of its search.

    The same seed gives the same index.
    """
    from pynndescent import NNDescent

    given = {**_SEARCH, **(detector.nndescent_params or {})}
    search = [given.pop(name) for name in _SEARCH]
    # Rows of a coreset are far from each other: no edge of the graph is redundant.
    given = {"n_neighbors": 30, "diversify_prob": 0.0, **given}
    given.setdefault("random_state", check_random_state(detector.random_state))
    try:
        index = NNDescent(detector._space(detector.bank_), **given)
    except TypeError as error:
        raise ValueError(
            f"nndescent_params={detector.nndescent_params!r}: {error}. Give arguments "
            f"of pynndescent.NNDescent, or {', '.join(_SEARCH)}."
        ) from error
    index.prepare()
    return index, *search

"""PatchCore (Roth et al., CVPR 2022): a memory bank of normal patches.

The bank is a coreset of the training patches (Section 3.2 of the paper). The score of
a patch is its distance to the bank. The score of an image is that of its most
anomalous patch, weighted down where the bank around its nearest row is sparse
(Equations 6 and 7).
"""

import math
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions

from skad._patches import patch_rows
from skad._user_warning import warn_user
from skad.base import PatchDetector
from skad.detectors._held_out_pass import no_held_out
from skad.detectors._left_out import LeftOutBank, n_rows_of_one_image
from skad.detectors._streamed_fit import StreamingBankDetector
from skad.neighbors import greedy_coreset
from skad.neighbors._coreset import extend_coreset, selection_bytes


class PatchCoreDetector(StreamingBankDetector):
    """Detect anomalies by their distance to a memory bank of normal patches.

    Parameters
    ----------
    coreset_ratio : float, default=0.1
        Share of the training patches that the bank keeps, in (0, 1], chosen by
        greedy farthest-first selection. 1.0 keeps all of them in order.

    n_neighbors : int, default=1
        The score of a patch is its mean distance to so many nearest rows of the bank.

    reweight : int or None, default=9
        Number b of bank rows around the nearest one by which an image's score is
        weighted (Equation 7 of the paper, which does not give b). None or 1 gives
        the plain maximum over the patches.

    projection_dim : int or None, default=None
        Select the rows of the bank by distances after a random projection to so many
        dimensions; 128 in the published code. The bank holds the patches as they are.
        None selects by exact distances.

    bank_size : int or None, default=None
        Rows that the bank holds at most, after `fit`, `partial_fit` and `merge`: it
        caps what `coreset_ratio` selects, and must exceed `n_neighbors`. With it, a
        `skad.Pipeline` learns block by block, in memory that does not grow with the
        number of images: see Notes. None is no limit.

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
        Chooses the row that the coreset starts from, the random projection, and the
        images that "kfold" and "split" hold out.

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

    calibration_maps_ : ndarray of shape (n_maps, h, w), float32
        Their patch scores, larger is more anomalous. Of more than 1,000 images whose
        maps take more than 256 MB together, those of a random sample.

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
    are closer to the bank than its reduced rows are to each other are left out. At the
    end it is reduced to the rows that both parameters allow. Each image then passes
    the network a second time, or comes from `cache_dir`, for its held-out score. Memory
    is some times `bank_size` rows, the features of one batch, and `calibration_maps_`.

    Held-out scores of this second pass are those of the bank without the rows of the
    image and, as below, with patches of other images in their place, as many as were
    taken out at most. For each row that is taken out, the four worst patches of the
    image are compared with them. Means of held-out scores were 1 to 2 % higher than
    those of fits without each image, where these could be repeated.

    Measured with 4,096 rows of `skad_small` at 128 pixels and three seeds: the covering
    radius was 1.1 to 1.4 times that of one selection of as many rows, which nothing
    guarantees. Area under the ROC curve of images without `bank_size`, with one fit of
    that size, and with a streamed one: 0.995, 0.996 and 0.994 (bottles), 0.953, 0.952
    and 0.949 (half of the magnetic tiles).

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
    _leaves_out_views = True
    _parameter_constraints = {
        **PatchDetector._parameter_constraints,
        "coreset_ratio": [Interval(Real, 0, 1, closed="right")],
        "projection_dim": [Interval(Integral, 1, None, closed="left"), None],
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
        projection_dim: int | None = None,
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
        self.projection_dim = projection_dim
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

    def _validate_params(self) -> None:
        super()._validate_params()
        self._check_bank_size()

    def _check_bank_size(self) -> None:
        if self.bank_size is not None and self.bank_size <= self.n_neighbors:
            raise ValueError(
                f"bank_size={self.bank_size} is too small for "
                f"n_neighbors={self.n_neighbors}: a held-out image needs so many rows "
                "of other images. Raise bank_size, to some thousands for most images, "
                "or lower n_neighbors."
            )

    def _fit(self, X: np.ndarray) -> None:
        rows, inside = patch_rows(X)
        n_selected = self._n_selected(len(rows))
        if self.coreset_ratio == 1 and n_selected == len(rows):
            selected = np.arange(len(rows))
        else:
            start = check_random_state(self.random_state).randint(len(rows))
            selected = greedy_coreset(
                self._space(rows),
                n_selected,
                start=start,
                **self._selection_options(),
            )
        self._set_bank(rows[selected], np.flatnonzero(inside)[selected])

    def _update(self, X: np.ndarray) -> None:
        rows, inside = patch_rows(X)
        selected = np.arange(len(rows))
        if self.coreset_ratio < 1:
            selected = extend_coreset(
                self._space(self.bank_),
                self._space(rows),
                self._n_selected(len(rows)),
                **self._selection_options(),
            )
        first = self.n_samples_seen_ * self._n_per_image * X.shape[1] * X.shape[2]
        self._set_united_bank(
            np.concatenate([self.bank_, rows[selected]]),
            np.concatenate(
                [self.coreset_indices_, first + np.flatnonzero(inside)[selected]]
            ),
        )

    def _merge(self, other: Any) -> None:
        self._check_bank_size()
        selected = extend_coreset(
            self._space(self.bank_), self._space(other.bank_), len(other.bank_)
        )
        first = self.n_samples_seen_ * self._n_per_image
        first *= math.prod(self.calibration_maps_.shape[1:])
        self._set_united_bank(
            np.concatenate([self.bank_, other.bank_[selected]]),
            np.concatenate(
                [self.coreset_indices_, first + other.coreset_indices_[selected]]
            ),
        )

    def _set_united_bank(self, bank: np.ndarray, indices: np.ndarray) -> None:
        """Set the bank, reduced to `bank_size` where it has more rows."""
        if self.bank_size is not None and len(bank) > self.bank_size:
            selected = greedy_coreset(
                self._space(bank), self.bank_size, **self._selection_options()
            )
            bank, indices = bank[selected], indices[selected]
        self._set_bank(bank, indices)

    def _selection_options(self) -> dict[str, Any]:
        """How every coreset is selected, as keywords of `greedy_coreset`."""
        return {
            "projection_dim": self.projection_dim,
            "random_state": self.random_state,
            "on_interrupt": self.on_interrupt,
            "verbose": self.verbose,
        }

    def _n_selected(self, n_rows: int) -> int:
        """Number of rows that the coreset of so many keeps."""
        n_selected = max(1, int(n_rows * self.coreset_ratio))
        return n_selected if self.bank_size is None else min(n_selected, self.bank_size)

    def _fit_bytes(
        self, shape: tuple[int, ...], itemsize: int, *, first: bool
    ) -> tuple[float, float]:
        n_rows, row = math.prod(shape[:3]), float(shape[3] * itemsize)
        bank = self._n_selected(n_rows) * row
        # Bounds of distances, distances, and the bank once more, to leave out images.
        passing, n_together = 40 * n_rows + bank, n_rows
        if not first:  # the selection takes old and new rows together
            n_together += len(self.bank_)
            passing += n_together * row
        passing += selection_bytes(n_together, shape[3], itemsize, self.projection_dim)
        if self.metric == "cosine":  # copies of unit length
            bank, passing = 2 * bank, passing + n_rows * row
        return bank, passing

    def _memory_advice(self) -> str:
        return (
            f"Set bank_size, reduce coreset_ratio={self.coreset_ratio}, or reduce "
            "image_size of the features."
        )

    def _score_left_out(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Score each training image against the bank without it.

        X holds the images learned from last, each followed by its augmented views.
        `owner` is the image in X that each row of the bank is from, negative for images
        of earlier calls; `images` is the same for the rows of X.
        """
        if self._holds_out_later:
            return no_held_out(X.shape[1:3])
        rows, inside = patch_rows(X)
        queries = self._space(rows)
        n_patches = X.shape[1] * X.shape[2]
        is_one = self.n_samples_seen_ == 1  # whose views are left out one by one
        n_together = 1 if is_one else self._n_per_image
        n_images = len(X) // n_together
        n_before = 0 if is_one else self.n_samples_seen_ - n_images
        owner = self.coreset_indices_ // (n_together * n_patches) - n_before
        images = np.repeat(np.arange(n_images), n_together * n_patches)[inside]
        if is_one and n_images == 1:
            warn_user(
                "one training image cannot be held out: each of its patches is "
                "scored against the other ones, and the threshold is a guess. "
                "Call calibrate with more normal images."
            )
            # Every patch counts as an image of its own.
            owner, images = self.coreset_indices_, np.flatnonzero(inside)
        n_left = max(1, len(self.bank_) - n_rows_of_one_image(owner))
        k = min(self.n_neighbors, n_left)
        bank = LeftOutBank(
            self._searched, owner, queries, images, k, self._nearest, self.verbose
        )

        k_scored = self._held_out_sample % n_together
        X = X[k_scored::n_together]
        scored = np.zeros((n_images, n_together, n_patches), bool)
        scored[:, k_scored] = True
        scored, inside = (
            scored.ravel()[inside],
            inside.reshape(scored.shape)[:, k_scored],
        )
        images = images[scored]

        def search_left(rows: np.ndarray, worst: np.ndarray, b: int) -> np.ndarray:
            return bank.search(rows, images[worst], min(b, n_left))[1]

        squared, indices = (found[scored] for found in bank.found)
        return self._scores(
            X,
            inside.ravel(),
            queries[scored],
            squared,
            indices,
            bank.rows,
            search_left,
        )

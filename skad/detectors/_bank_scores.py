"""Scores by a memory bank of patches, and the search in it."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logsumexp
from sklearn.utils import check_random_state

from skad._matrices import direct, unit_rows
from skad._patches import image_scores, n_top, patch_maps, patch_rows
from skad._user_warning import warn_user
from skad.base import PatchDetector
from skad.neighbors._nearest import Bank
from skad.neighbors._worst import search_worst

# Parameters of the search in the approximate index, and their defaults.
_SEARCH = {"n_candidates": 10, "epsilon": 0.3}


class BankDetector(PatchDetector):
    """Base of `PatchCoreDetector`: the bank, the search in it, and scores by it."""

    bank_: np.ndarray
    coreset_indices_: np.ndarray
    coreset_ratio: float
    bank_size: int | None
    n_neighbors: int
    reweight: int | None
    top_ratio: float | None
    metric: str
    algorithm: str
    _searched: Bank  # the rows of the bank in the space of the metric
    _index: tuple[Any, int, float] | None

    def _set_bank(self, bank: np.ndarray, indices: np.ndarray) -> None:
        self.bank_, self.coreset_indices_ = bank, indices
        self._searched = Bank(self._space(bank))
        self._index = _build_index(self) if self.algorithm == "nndescent" else None

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        state.pop("_searched", None)  # a copy of the bank, built again on loading
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if hasattr(self, "bank_"):
            self._searched = Bank(self._space(self.bank_))

    def _space(self, rows: np.ndarray) -> np.ndarray:
        """Rows in the space where Euclidean distance ranks as the metric does."""
        return rows if self.metric == "euclidean" else unit_rows(rows)

    def _distance(self, squared: np.ndarray) -> np.ndarray:
        """Distances by the metric from squared Euclidean ones in `_space`.

        For unit vectors, |a - b|^2 = 2 - 2 a.b, twice the cosine distance.
        """
        return squared / 2 if self.metric == "cosine" else np.sqrt(squared)

    def _score(self, X: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows, inside = patch_rows(X)
        queries = self._space(rows)
        k = self._available(self.n_neighbors, len(self.bank_), "n_neighbors")
        squared, indices = self._nearest(queries, k)
        return self._scores(X, inside, queries, squared, indices)

    def _image_scores(self, X: np.ndarray) -> np.ndarray:
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

    def _nearest_training_patches(self, X: ArrayLike) -> np.ndarray:
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

    def _nearest(
        self,
        queries: np.ndarray,
        k: int,
        groups: tuple[np.ndarray, np.ndarray] | None = None,
        report: Callable[[int], Any] | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
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

    def _scores(
        self,
        X: np.ndarray,
        inside: np.ndarray,
        queries: np.ndarray,
        squared: np.ndarray,
        indices: np.ndarray,
        bank: np.ndarray | None = None,
        search: Any = None,
    ) -> tuple[np.ndarray, np.ndarray]:
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

    def _weights(
        self,
        queries: np.ndarray,
        worst: np.ndarray,
        nearest_row: np.ndarray,
        bank: np.ndarray | None,
        search: Any,
    ) -> Any:
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

    def _available(self, k: int, available: int, name: str) -> int:
        if k > available:
            warn_user(
                f"{name}={k} exceeds the {available} rows of the bank; using "
                f"{available}.",
            )
        return min(k, available)


def _worst(maps: np.ndarray) -> np.ndarray:
    """Position of the largest value of each map among the values of all maps."""
    flat = np.where(np.isnan(maps), -np.inf, maps).reshape(len(maps), -1)
    return flat.argmax(axis=1) + np.arange(len(maps)) * flat.shape[1]


def _build_index(detector: Any) -> tuple[Any, int, float]:
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

"""Sorted scores that grow, with the rank of each new one among all before it."""

import numpy as np

_CHUNK_SCORES = 256  # scores of one call that are compared with each other directly


class RankedScores:
    """All scores so far, sorted.

    They are kept in sorted arrays of which each is more than twice as long as the
    next. There are at most log2(n) of these, so that to find the rank of a score
    takes O(log(n)^2), and to insert one, on average, O(log(n)).

    Parameters
    ----------
    scores : ndarray of shape (n,), float64
        Finite scores, in any order.
    """

    def __init__(self, scores: np.ndarray) -> None:
        self._runs = [np.sort(scores)]

    def __len__(self) -> int:
        return sum(len(run) for run in self._runs)

    def insert(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Insert scores one after the other, and tell where each one stood.

        Parameters
        ----------
        scores : ndarray of shape (n,), float64
            Finite scores, in the order in which they came.

        Returns
        -------
        below, equal, earlier : ndarray of shape (n,), int64
            Number of earlier scores that are smaller, that are equal, and of all.
        """
        earlier = len(self) + np.arange(len(scores))
        below, equal = np.zeros((2, len(scores)), np.int64)
        for start in range(0, len(scores), _CHUNK_SCORES):
            chunk = slice(start, start + _CHUNK_SCORES)
            below[chunk], equal[chunk] = self._insert_chunk(scores[chunk])
        return below, equal, earlier

    def _insert_chunk(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        came_before = np.tri(len(scores), k=-1, dtype=bool)
        below = (came_before & (scores < scores[:, None])).sum(axis=1)
        equal = (came_before & (scores == scores[:, None])).sum(axis=1)
        for run in self._runs:
            first = np.searchsorted(run, scores, side="left")
            below += first
            equal += np.searchsorted(run, scores, side="right") - first
        self._append(np.sort(scores))
        return below, equal

    def _append(self, run: np.ndarray) -> None:
        while self._runs and len(self._runs[-1]) <= 2 * len(run):
            run = np.sort(np.concatenate([self._runs.pop(), run]), kind="stable")
        self._runs.append(run)

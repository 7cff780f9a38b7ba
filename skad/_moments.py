"""Mean and covariance of rows; `RunningMoments` gives the same in any batches."""

from __future__ import annotations

from typing import Any

import numpy as np

BLOCK_ENTRIES = 2**22  # of a float64 temporary array (32 MB)


class Moments:
    """Number, mean and centred sums of squares of rows, in float64.

    Instances are never changed: `with_rows` and `+` make new ones.

    Parameters
    ----------
    n : int
        Number of rows.

    mean : ndarray of shape (d,)

    squares : ndarray of shape (d, d)
        Sum of the outer products of the rows less their mean.
    """

    def __init__(self, n: int = 0, mean: Any = 0.0, squares: Any = 0.0) -> None:
        self.n, self.mean, self.squares = n, mean, squares

    def with_rows(self, rows: np.ndarray) -> Moments:
        """Moments of these rows and of further ones (m, d) of any float dtype."""
        total = self
        step = max(1, BLOCK_ENTRIES // rows.shape[1])
        for lo in range(0, len(rows), step):
            block = rows[lo : lo + step].astype(np.float64)
            mean = block.mean(axis=0)
            block -= mean
            total = total + Moments(len(block), mean, block.T @ block)
        return total

    def __add__(self, other: Moments) -> Moments:
        """Moments of the rows of both.

        The mean of both is m = m1 + (m2 - m1) n2 / n. Around it, the sums of squares of
        the parts grow by n1 (m1 - m)(m1 - m)' and n2 (m2 - m)(m2 - m)', which add up
        to n1 n2 / n times the outer product of m2 - m1.
        """
        n = self.n + other.n
        if 0 in (self.n, other.n):
            return self if self.n else other
        gap = other.mean - self.mean
        return Moments(
            n,
            self.mean + gap * (other.n / n),
            self.squares + other.squares + np.outer(gap, gap) * (self.n * other.n / n),
        )

    @property
    def covariance(self) -> np.ndarray:
        """Covariance of the rows, with n in the denominator."""
        return self.squares / self.n

    def __getstate__(self) -> dict[str, Any]:
        # One half of a symmetric matrix gives the other.
        state = self.__dict__.copy()
        if np.ndim(self.squares):
            state["squares"] = self.squares[np.triu_indices(len(self.squares))]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        if np.ndim(self.squares):
            full = np.zeros((len(self.mean),) * 2)
            full[np.triu_indices(len(full))] = self.squares
            self.squares = full + np.triu(full, 1).T


class RunningMoments:
    """Moments of rows that come in batches, the same bits however these are cut.

    Sums depend in their last bits on which rows are added up first. Rows therefore wait
    until there are as many as `Moments.with_rows` takes at once: `total` equals
    ``Moments().with_rows`` of all rows in one array.
    """

    def __init__(self) -> None:
        self._sum = Moments()
        self._waiting: Any = None  # an array with room for the rows of one block
        self._n_waiting = 0

    def add(self, rows: np.ndarray) -> None:
        """Take in rows (m, d), of the float dtype that the first ones have."""
        if self._waiting is None:
            n_rows = max(1, BLOCK_ENTRIES // rows.shape[1])
            self._waiting = np.empty((n_rows, rows.shape[1]), rows.dtype)
        while len(rows):
            n_before = self._n_waiting
            part = rows[: len(self._waiting) - n_before]
            self._n_waiting += len(part)
            self._waiting[n_before : self._n_waiting] = part
            rows = rows[len(part) :]
            if self._n_waiting == len(self._waiting):
                self._sum, self._n_waiting = self.total, 0

    @property
    def total(self) -> Moments:
        """Moments of all rows so far."""
        if self._n_waiting == 0:
            return self._sum
        return self._sum.with_rows(self._waiting[: self._n_waiting])

"""Mean and covariance of rows that come in batches, the same in any batches."""

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

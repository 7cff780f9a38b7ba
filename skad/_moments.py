"""Running mean and covariance of rows, equal, to rounding, in any batches."""

import numpy as np

_CHUNK = 2**22  # entries of a float64 temporary (32 MB)


class Moments:
    """Number, mean and centred sums of squares of rows, in float64.

    Instances are never changed: `with_rows` and `+` make new ones.
    """

    def __init__(self, n=0, mean=0.0, squares=0.0):
        self.n, self.mean, self.squares = n, mean, squares

    def with_rows(self, rows):
        """Take in rows (m, d) of any float dtype."""
        total = self
        step = max(1, _CHUNK // rows.shape[1])
        for lo in range(0, len(rows), step):
            block = rows[lo : lo + step].astype(np.float64)
            mean = block.mean(axis=0)
            block -= mean
            total = total + Moments(len(block), mean, block.T @ block)
        return total

    def __add__(self, other):
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
    def covariance(self):
        """Covariance of the rows, with n in the denominator."""
        return self.squares / self.n

    def __getstate__(self):
        # Half of a symmetric matrix tells the other.
        state = self.__dict__.copy()
        if np.ndim(self.squares):
            state["squares"] = self.squares[np.triu_indices(len(self.squares))]
        return state

    def __setstate__(self, state):
        self.__dict__.update(state)
        if np.ndim(self.squares):
            full = np.zeros((len(self.mean),) * 2)
            full[np.triu_indices(len(full))] = self.squares
            self.squares = full + np.triu(full, 1).T

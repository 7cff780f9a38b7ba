"""Running statistics of responses, equal, to rounding, in any batches."""

import numpy as np

_PRIOR = 20  # images that the common variance counts for, against a position's own
SILENCE = 1e-6  # variance of responses, scaled to 1, that is no signal


class Positions:
    """Running mean and spread of responses at every position, in float64."""

    def __init__(self, n=0, total=0.0, squares=0.0):
        self.n, self.total, self.squares = n, total, squares

    def add(self, responses):
        responses = responses.astype(np.float64)
        self.n += len(responses)
        self.total = self.total + responses.sum(axis=0)
        self.squares = self.squares + (responses**2).sum(axis=0)

    def without(self, responses):
        """The statistics of all images but one; of that one where it is alone."""
        if self.n == 1:
            return self
        responses = responses.astype(np.float64)
        return Positions(
            self.n - 1, self.total - responses, self.squares - responses**2
        )

    @property
    def mean(self):
        return (self.total / self.n).astype(np.float32)

    @property
    def scale(self):
        """Standard deviations, drawn towards the common one where images are few."""
        variance = np.maximum(self.squares / self.n - (self.total / self.n) ** 2, 0)
        common = variance.mean(axis=(0, 1))
        share = self.n / (self.n + _PRIOR)
        variance = share * variance + (1 - share) * common
        return np.sqrt(variance + SILENCE).astype(np.float32)

    def standardise(self, responses):
        return (responses - self.mean) / self.scale

"""Choose the samples of each training step, and make them in threads ahead of it.

Everything random comes from seeds that combine the seed of the fit with the number of
the step, the epoch or the sample. A run that was cut off and resumed therefore gives
the same bits as one that was not, and so does any number of threads. This module does
not need torch.
"""

from collections.abc import Callable
from concurrent.futures import Executor
from typing import Any

import numpy as np
from sklearn.utils import check_random_state


def fit_seed(random_state: Any) -> int:
    """The seed of one fit, an int in [0, 2**31 - 1), from scikit-learn's parameter."""
    return int(check_random_state(random_state).randint(2**31 - 1))


def combined_seed(*numbers: int) -> int:
    """One seed of 63 bits from several non-negative integers."""
    state = np.random.SeedSequence(numbers).generate_state(1, np.uint64)
    return int(state[0]) >> 1


def epoch_order(seed: int, epoch: int, n: int) -> np.ndarray:
    """The order of n samples in an epoch, an integer ndarray of shape (n,)."""
    return np.random.default_rng(combined_seed(seed, epoch)).permutation(n)


def sample_at(seed: int, position: int, n: int) -> int:
    """Which of n samples stands at a position of the sequence of all epochs."""
    return epoch_order(seed, position // n, n)[position % n]


def prefetched(
    pool: Executor, make: Callable[[int, int], Any], n_samples: int, n_steps: int
) -> Callable[[int], list[Any]]:
    """Samples of each step, made in threads while the step before is running.

    Parameters
    ----------
    pool : concurrent.futures.Executor
        Its threads make the samples.

    make : callable
        ``make(step, k)`` gives the k-th sample of a step.

    n_samples : int
        Samples of each step.

    n_steps : int
        No sample of a later step is made.

    Returns
    -------
    samples : callable
        From the number of a step to the list of its samples; for numbers that grow
        by one.
    """
    waiting: dict[int, list] = {}

    def samples(number: int) -> list[Any]:
        for later in (number, number + 1):
            if later < n_steps and later not in waiting:
                waiting[later] = [pool.submit(make, later, k) for k in range(n_samples)]
        return [future.result() for future in waiting.pop(number)]

    return samples


def image_means(read: Callable[[int], np.ndarray], n: int) -> np.ndarray:
    """Mean of each of n images, float64 (n,): tells data sets apart at low cost."""
    return np.array([read(i).mean(dtype=np.float64) for i in range(n)])

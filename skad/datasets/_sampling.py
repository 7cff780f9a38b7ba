"""Sample what becomes the test part, where a data set has no split."""

from __future__ import annotations

from numbers import Real
from typing import Any

from sklearn.utils import check_random_state


def sampled_positions(n: int, test_size: Any, random_state: Any, what: str) -> set[int]:
    """Sample a fraction of n positions, of which some must be left."""
    if not isinstance(test_size, Real) or not 0 < float(test_size) < 1:
        raise ValueError(f"test_size={test_size!r} must be a fraction in (0, 1).")
    n_test = round(n * float(test_size))
    if not 0 < n_test < n:
        raise ValueError(
            f"test_size={test_size!r} of {n} {what} is {n_test}: at least one must be "
            "tested, and one left to learn from."
        )
    rng = check_random_state(random_state)
    return set(rng.choice(n, n_test, replace=False).tolist())

"""Checks of the scores and maps that `_score` of a user's own detector returns."""

import functools
from typing import Any

import numpy as np

_EXPECTED_RESULT = (
    "it must return two arrays, one anomaly score per image, (n,), and one map per "
    "image, (n, h, w), larger for more anomalous"
)


def check_scores(found: Any, n: int | None, where: str) -> None:
    """Check anomaly scores of images and their maps, as `_score` returns them.

    Parameters
    ----------
    found : object
        What was returned.

    n : int or None
        Number of images; None if it is not known.

    where : str
        What returned it, for the message.

    Raises
    ------
    TypeError
        If `found` is not a pair.

    ValueError
        If the pair is not of shapes (n,) and (n, h, w).
    """
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        raise TypeError(f"{where} returned {type(found).__name__}; {_EXPECTED_RESULT}.")
    scores, maps = (np.shape(array) for array in found)
    if (
        len(scores) != 1
        or len(maps) != 3
        or scores[0] != maps[0]
        or (n is not None and scores[0] != n)
    ):
        of = "" if n is None else f" for n={n} images"
        raise ValueError(
            f"{where} returned scores of shape {scores} and maps of shape {maps}{of}; "
            f"{_EXPECTED_RESULT}."
        )


def checked_hook(hook: Any, owner: str, name: str) -> Any:
    """Wrap a method of a detector, such as `_score`, with a check of its results."""

    @functools.wraps(hook)
    def checked(self: Any, *args: Any) -> Any:
        found = hook(self, *args)
        if name == "_score_left_out" and isinstance(found, tuple) and len(found) == 3:
            return found  # with the places of the scores that have maps
        samples: Any = args[0] if args else None
        # The scores left out may be those of more images than the samples.
        n = len(samples) if samples is not None and name == "_score" else None
        check_scores(found, n, f"{owner}.{name}")
        return found

    return checked

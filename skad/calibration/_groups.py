"""Groups of images: a string or an integer for each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.utils.validation import _num_samples

from skad.images._containers import refuse_no_sequence


def checked_groups(groups: Any, X: Any) -> np.ndarray:
    """Groups as an array (n,) of strings or integers, one for each image of X."""
    if groups is None:
        raise ValueError(
            "groups is missing: pass the group of each image, such as the name of its "
            "product, as groups=."
        )
    found = np.asarray(groups)
    if isinstance(groups, (list, tuple)) and found.ndim == 1:
        found = np.asarray(groups, dtype=object)  # NumPy makes strings of what is mixed
    if found.dtype == object:
        kinds = {type(one) for one in found.ravel()}
        if len(kinds) == 1 and issubclass(kinds.pop(), (str, int, np.integer)):
            found = np.array(found.tolist())
    if found.ndim != 1 or found.dtype.kind not in "USiub":
        raise ValueError(
            f"groups has shape {found.shape} and dtype {found.dtype}: expected one "
            "string or integer per image."
        )
    refuse_no_sequence(X)
    n = _num_samples(X)
    if len(found) != n:
        raise ValueError(
            f"groups has {len(found)} entries, but X has {n} images; pass the group of "
            "each image, in the order of X."
        )
    return found


def by_group(members: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the place of each group that occurs, and the places of its images."""
    for k in np.unique(members):
        yield int(k), np.flatnonzero(members == k)


def shown(group: Any) -> str:
    """A group as messages show it."""
    return repr(group.item() if hasattr(group, "item") else group)

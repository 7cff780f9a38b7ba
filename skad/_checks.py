"""Checks of labels, sizes and constructors, shared by all subpackages."""

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.utils.validation import check_consistent_length

# What to do about tools for classifiers, which number the labels anew.
BY_CROSS_VALIDATION = (
    "sklearn's cross_val_predict(method='decision_function') replaces +1/-1 by 1/0: "
    "pass it y=None and folds that were made with y, cv=list(cv.split(X, y))."
)


def check_labels(y: Any) -> np.ndarray:
    """Check labels of images: +1 is normal, -1 is anomalous.

    Labels 0 and 1 mean opposite things in different libraries, and are refused.
    """
    y = np.asarray(y)
    if y.ndim != 1:
        raise ValueError(
            f"y has shape {y.shape}; expected one label per image. Masks are passed as "
            "the argument masks."
        )
    seen = np.unique(y)
    if y.dtype.kind not in "iuf" or not np.isin(seen, (1, -1)).all():
        shown = ", ".join(repr(value) for value in seen[:5].tolist())
        hint = f" {BY_CROSS_VALIDATION}" if set(seen.tolist()) == {0, 1} else ""
        raise ValueError(
            f"y must be +1 for normal and -1 for anomalous images, but holds {shown}. "
            f"Convert other labels with skad.datasets.to_outlier_labels.{hint}"
        )
    return y


def normal_positions(X: Any, y: Any) -> np.ndarray:
    """Positions of the images that are not labelled -1; all of them where y is None."""
    if y is None:
        return np.arange(len(X))
    check_consistent_length(X, y)
    normal = np.flatnonzero(check_labels(y) == 1)
    if len(normal) == 0:
        raise ValueError("no normal image to learn from: every label is -1.")
    return normal


def check_size(
    value: Any, name: str = "size", *, allow_int: bool = False
) -> tuple[int, int]:
    """Check a (height, width) pair; with `allow_int`, one integer is both sides.

    Raises
    ------
    ValueError
        If a side is not a positive integer; it gives `name` and value.
    """
    is_int = isinstance(value, Integral)
    try:
        height, width = (value, value) if is_int and allow_int else value
    except (TypeError, ValueError):
        height = width = None
    if not all(
        isinstance(side, Integral) and int(side) > 0 for side in (height, width)
    ):
        expected = "two positive integers (height, width)"
        if allow_int:
            expected = f"a positive integer or {expected}"
        raise ValueError(f"{name}={value!r} must be {expected}.")
    return int(height), int(width)


def require_attributes(estimator: Any, names: Sequence[str], where: str) -> None:
    """Raise if an estimator of the user's own lacks attributes; `where` to set them."""
    missing = [name for name in names if not hasattr(estimator, name)]
    if missing:
        raise TypeError(
            f"{type(estimator).__name__} has no {', '.join(missing)}: {where}."
        )

"""From the labels of other libraries to scikit-learn's outlier labels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def to_outlier_labels(
    y: Any, anomaly: Any = 1, *, normal: Any = None
) -> NDArray[np.int64]:
    """Convert labels to +1 for normal and -1 for defective images.

    Parameters
    ----------
    y : array-like of shape (n_images,)
        Labels of any type: 0/1, bool, strings.
    anomaly : scalar or collection, default=1
        The label, or the labels, of defective images. All others are normal.
    normal : scalar or collection, optional
        The label, or the labels, of normal images instead: all others are defective.

    Returns
    -------
    y : ndarray of shape (n_images,), dtype int64
        +1 for normal, -1 for defective images.

    Raises
    ------
    ValueError
        If the labels can not be told apart without a guess: they are +1 and -1
        already, or more than two numbers, or none of several labels is the named one.

    Examples
    --------
    >>> from skad.datasets import to_outlier_labels
    >>> to_outlier_labels([0, 0, 1])
    array([ 1,  1, -1])
    >>> to_outlier_labels(["ok", "ok", "crack"], anomaly="crack")
    array([ 1,  1, -1])
    >>> to_outlier_labels(["good", "scratch", "stain"], normal="good")
    array([ 1, -1, -1])
    """
    labels = _check(y)
    values = set(labels.tolist())
    default = normal is None and np.ndim(anomaly) == 0 and anomaly == 1
    if default and -1 in values and values <= {1, -1}:
        raise ValueError(
            "y holds +1 and -1, which may be outlier labels already. Use it as it is "
            "if -1 is defective; say anomaly=[1] if 1 is."
        )
    if normal is not None:
        return np.where(_is_one_of(labels, normal, "normal", values), 1, -1)
    numeric = labels.dtype.kind in "iuf"
    if numeric and np.ndim(anomaly) == 0 and len(values) > 2:
        some = ", ".join(map(str, sorted(values)[:6]))
        raise ValueError(
            f"y holds more than two values ({some}): name the normal ones (normal=0) "
            "or all defective ones (anomaly=[1, 2])."
        )
    return np.where(_is_one_of(labels, anomaly, "anomaly", values), -1, 1)


def _check(y: Any) -> NDArray[Any]:
    labels = np.asarray(y)
    if labels.ndim != 1 or labels.size == 0:
        raise ValueError(
            "y must be one-dimensional and not empty, got the shape "
            f"{labels.shape}: one label per image."
        )
    if labels.dtype.kind == "T":  # numpy's strings of any length
        labels = labels.astype(str)
    if labels.dtype.kind == "O":
        types = {type(value).__name__ for value in labels}
        if len(types) > 1 or types != {"str"}:
            raise ValueError(
                f"y must hold labels of one type, got {', '.join(sorted(types))}."
            )
        return labels.astype(str)
    if labels.dtype.kind == "f" and not np.isfinite(labels).all():
        where = int(np.flatnonzero(~np.isfinite(labels))[0])
        raise ValueError(f"y must be finite, but y[{where}] is {labels[where]}.")
    if labels.dtype.kind not in "biufU":
        raise ValueError(f"y must hold numbers or strings, got {labels.dtype}.")
    return labels


def _is_one_of(
    labels: NDArray[Any], named: Any, argument: str, values: set[Any]
) -> NDArray[np.bool_]:
    """Flag the values that are among the named labels; raise if none occurs."""
    labels_named = (
        {named} if isinstance(named, str) or np.ndim(named) == 0 else set(named)
    )
    found = np.array([value in labels_named for value in labels.tolist()])
    text = labels.dtype.kind == "U"
    mismatch = any(isinstance(name, str) != text for name in labels_named)
    if not found.any() and (len(values) > 1 or mismatch):
        some = ", ".join(map(repr, sorted(values)[:6]))
        raise ValueError(
            f"{argument}={named!r} does not occur in y, which holds {some}: name the "
            "label of defective images as anomaly, or of normal ones as normal."
        )
    return found

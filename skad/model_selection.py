"""A splitter whose training folds hold normal images only, unless told otherwise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import BaseCrossValidator, KFold
from sklearn.utils import check_random_state
from sklearn.utils.validation import _num_samples

from skad._checks import check_labels
from skad._user_warning import warn_user
from skad.images._containers import refuse_no_sequence

__all__ = ["OneClassSplit"]


class OneClassSplit(BaseCrossValidator):
    """K-fold splitter that trains on normal images and tests on anomalous ones, too.

    The normal images are split as `KFold` does. Each test fold holds the normal images
    that are left out of training, and anomalous ones.

    Parameters
    ----------
    n_splits : int, default=5
        Number of folds, at least 2.
    outliers : {"all", "partition"}, default="all"
        Whether every test fold holds all anomalous images, or each anomalous image is
        in one test fold. A share takes every `n_splits`-th anomalous image, so that
        images sorted by the type of defect spread their types over the folds.
    supervised : bool, default=False
        For detectors that learn from defects as well: every anomalous image is in one
        test fold, as with ``outliers="partition"``, and in the training folds of all
        other splits.
    shuffle : bool, default=False
        Whether to shuffle the images before splitting.
    random_state : int, RandomState instance or None, default=None
        Seed of the shuffling.

    See Also
    --------
    sklearn.model_selection.KFold : Splits without regard to labels.

    Notes
    -----
    A search refits its best candidate on all images it was given. The detectors of this
    package leave out images labelled -1 by themselves, save for `PRNDetector`, which
    learns from them; other estimators may not.

    Examples
    --------
    >>> from skad.model_selection import OneClassSplit
    >>> y = [1, 1, 1, 1, -1, -1]
    >>> for train, test in OneClassSplit(n_splits=2).split(y, y):
    ...     print(train, test)
    [2 3] [0 1 4 5]
    [0 1] [2 3 4 5]
    >>> for train, test in OneClassSplit(n_splits=2, outliers="partition").split(y, y):
    ...     print(train, test)
    [2 3] [0 1 4]
    [0 1] [2 3 5]
    >>> for train, test in OneClassSplit(n_splits=2, supervised=True).split(y, y):
    ...     print(train, test)
    [2 3 5] [0 1 4]
    [0 1 4] [2 3 5]
    """

    def __init__(
        self,
        n_splits: int = 5,
        *,
        outliers: Literal["all", "partition"] = "all",
        supervised: bool = False,
        shuffle: bool = False,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        if not isinstance(n_splits, (int, np.integer)) or n_splits < 2:
            raise ValueError(f"n_splits must be an integer >= 2, got {n_splits!r}.")
        if outliers not in ("all", "partition"):
            raise ValueError(
                f'outliers must be "all" or "partition", got {outliers!r}.'
            )
        for name, value in (("supervised", supervised), ("shuffle", shuffle)):
            if not isinstance(value, (bool, np.bool_)):
                raise ValueError(f"{name} must be True or False, got {value!r}.")
        if random_state is not None and not shuffle:
            raise ValueError(
                f"random_state={random_state!r} has no effect without shuffling: pass "
                "shuffle=True, or leave random_state out."
            )
        self.n_splits = n_splits
        self.outliers = outliers
        self.supervised = supervised
        self.shuffle = shuffle
        self.random_state = random_state

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Return the number of folds.

        Parameters
        ----------
        X, y, groups : object
            Ignored.

        Returns
        -------
        n_splits : int
            The number of folds.
        """
        return int(self.n_splits)

    def split(
        self, X: Any, y: Any = None, groups: Any = None
    ) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp]]]:
        """Yield the indices of training and test images.

        Parameters
        ----------
        X : sequence of length n_images
            Images or features; only their number is used.
        y : array-like of shape (n_images,)
            +1 for normal, -1 for anomalous images.
        groups : object
            Ignored, with a warning.

        Yields
        ------
        train : ndarray of int
            Indices of normal images, with ``supervised=True`` of anomalous ones too.
        test : ndarray of int
            Indices of the other normal images of the fold and of anomalous ones, in
            ascending order.

        Raises
        ------
        ValueError
            If `y` is missing or holds anything but +1 and -1, or if there are fewer
            normal images than folds (with ``outliers="partition"`` or
            ``supervised=True`` also fewer anomalous ones, unless there are none).
        """
        if groups is not None:
            warn_user("groups is ignored by OneClassSplit.")
        labels = _check_labels(X, y)
        normal, anomalous = np.flatnonzero(labels == 1), np.flatnonzero(labels == -1)
        self._check_counts(normal.size, anomalous.size)
        if self.shuffle:
            rng = check_random_state(self.random_state)
            normal, anomalous = rng.permutation(normal), rng.permutation(anomalous)
        folds = KFold(self.n_splits).split(normal)
        for k, (kept, left_out) in enumerate(folds):
            tested, trained_on = anomalous, anomalous[:0]
            if self._partitions_outliers():
                tested = anomalous[k :: self.n_splits]
            if self.supervised:
                trained_on = np.setdiff1d(anomalous, tested)
            train = np.concatenate([normal[kept], trained_on])
            test = np.concatenate([normal[left_out], tested])
            yield np.sort(train), np.sort(test)

    def _partitions_outliers(self) -> bool:
        """Whether each anomalous image is in one test fold only."""
        return self.supervised or self.outliers == "partition"

    def _check_counts(self, n_normal: int, n_anomalous: int) -> None:
        if n_normal < self.n_splits:
            raise ValueError(
                f"n_splits={self.n_splits} needs as many normal images, but y has "
                f"{n_normal} label(s) +1."
            )
        if self._partitions_outliers() and 0 < n_anomalous < self.n_splits:
            setting = "supervised=True" if self.supervised else 'outliers="partition"'
            raise ValueError(
                f"{setting} with n_splits={self.n_splits} needs as many anomalous "
                f"images, but y has {n_anomalous} label(s) -1. Use fewer folds or "
                'outliers="all" without supervised.'
            )


def _check_labels(X: Any, y: Any) -> NDArray[Any]:
    if y is None:
        raise ValueError(
            "y is missing: OneClassSplit needs labels, +1 for normal and -1 for "
            "anomalous images, to leave the anomalous ones out of training."
        )
    labels = check_labels(y)
    if X is not None:
        refuse_no_sequence(X)
    if X is not None and _num_samples(X) != labels.size:
        raise ValueError(
            f"X and y must have the same length, got {_num_samples(X)} images and "
            f"{labels.size} labels."
        )
    return labels

"""Detectors of parts become one, in an order that their arrival does not change."""

from __future__ import annotations

import warnings
from typing import Any

import sklearn.pipeline
from sklearn.frozen import FrozenEstimator

from skad.parallel._worker import detector_of


class MergeTree:
    """Merges detectors in pairs, the results of that in pairs, and so on.

    Which pairs these are depends on the numbers of the parts alone: detectors that
    arrive in another order make the same merges, of the same bits. A merge takes place
    as soon as both of its detectors are there. Where parts arrive about in order, only
    as many detectors wait as the tree has levels, log2(n_parts).

    Parameters
    ----------
    n_parts : int
        Number of detectors to come.
    """

    def __init__(self, n_parts: int) -> None:
        self.n_parts = n_parts
        self._waiting: dict[tuple[int, int], Any] = {}

    @property
    def n_waiting(self) -> int:
        """Number of detectors that wait for the other one of their pair."""
        return len(self._waiting)

    @property
    def root(self) -> Any:
        """The detector of all parts, once all of them have arrived."""
        (root,) = self._waiting.values()
        return root

    def add(self, number: int, detector: Any) -> None:
        """Take in the detector of one part.

        Parameters
        ----------
        number : int
            Number of the part, from 0.
        detector : detector
            Fitted on that part. It is changed.
        """
        level, place, n_nodes = 0, number, self.n_parts
        while n_nodes > 1:
            sibling = place ^ 1
            if sibling < n_nodes:
                other = self._waiting.pop((level, sibling), None)
                if other is None:
                    break
                left, right = (
                    (detector, other) if place < sibling else (other, detector)
                )
                detector = _merged(left, right, is_last=n_nodes == 2)
            # A node without a sibling goes up one level as it is.
            level, place, n_nodes = level + 1, place // 2, -(-n_nodes // 2)
        self._waiting[level, place] = detector


def _merged(left: Any, right: Any, *, is_last: bool) -> Any:
    """Merge two detectors; only the last merge may warn, of the final threshold."""
    if is_last:
        return left.merge(right)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return left.merge(right)


def check_can_merge(model: Any) -> None:
    """Refuse a model whose detector does not merge, before any work starts."""
    detector = detector_of(model)
    if getattr(model, "augmentation", None) is not None:
        raise ValueError(
            "model has an augmentation, which is for a fit on few images; fit_parts is "
            "for many, and takes augmentation=None."
        )
    is_frozen = isinstance(detector, FrozenEstimator)
    if hasattr(detector, "merge") and not is_frozen:
        return
    name = type(detector).__name__
    if is_frozen:
        advice = "a frozen detector learns nothing."
    elif hasattr(detector, "best_estimator_") or hasattr(detector, "estimator"):
        advice = "search for parameters first, and pass the best estimator."
    elif isinstance(detector, sklearn.pipeline.Pipeline):
        advice = "put its steps into the outer pipeline."
    else:
        advice = (
            "it has no merge. PaDiMDetector, SubspaceDetector and PatchCoreDetector "
            "have one, and FusionDetector around them."
        )
    raise TypeError(f"model cannot be fitted in parts by a {name}: {advice}")

"""Thresholds of images and of pixels, from held-out scores of normal images."""

import math
from numbers import Real
from typing import Any, Self

import numpy as np
from sklearn.utils._param_validation import Interval, validate_parameter_constraints
from sklearn.utils.validation import check_is_fitted

from skad._patches import filled
from skad._peaks import peaks
from skad._user_warning import warn_user
from skad.base._threshold import certifies, threshold_of

CONTAMINATION = [Interval(Real, 0, 0.5, closed="right")]
_MAP_BYTES = 2**28  # of held-out maps that are kept
_MIN_MAPS = 1000  # that are kept, however large they are


def max_maps(grid: tuple[int, ...]) -> int:
    """Number of held-out maps that a detector keeps at most, for maps of this size."""
    return max(_MIN_MAPS, _MAP_BYTES // (4 * math.prod(grid)))


def map_ranks(n_before: int, n: int) -> np.ndarray:
    """Random numbers (n,) of the maps of n images, after those of `n_before` images.

    The maps with the smallest ones are kept. So these are a random sample of all,
    wherever the others were dropped, and the same in each fit.
    """
    return np.random.default_rng(n_before).random(n)


def first_ranked(ranks: np.ndarray, n: int) -> np.ndarray:
    """Ascending places of the n smallest ranks, or of all where there are no more."""
    if len(ranks) <= n:
        return np.arange(len(ranks))
    return np.sort(np.argsort(ranks, kind="stable")[:n])


class CalibratedThreshold:
    """Mixin of all detectors: thresholds from held-out scores of normal images.

    The scores are kept, so that rate and rule can change without a fit.
    """

    contamination_: float
    offset_: float
    calibration_scores_: np.ndarray
    calibration_maps_: np.ndarray
    n_samples_seen_: int
    _calibration_seen: np.ndarray  # images behind the model that gave each score
    _threshold_rule: str
    _map_rows: np.ndarray  # of each map, the place of its score
    _map_ranks: np.ndarray  # by which maps are chosen where there are too many
    _in_sample = False  # whether the scores are of training images
    _scores_in_order = True  # whether they are in the order of X
    _whose = ""  # what they are of, where that has to be said in warnings
    _is_part = False  # whether it is part of another detector
    contamination: Any
    threshold: Any

    def _rendering(self, window: Any, grid: Any) -> dict[str, Any]:
        raise NotImplementedError

    def set_contamination(self, contamination: float) -> Self:
        """Set another rate of false alarms, from the held-out scores at hand.

        Both thresholds follow, that of the image scores and that of the pixels. The
        parameter `contamination` stays as it is, and is what the next `fit` takes.

        Parameters
        ----------
        contamination : float
            Tolerated false-alarm rate on normal images, in (0, 0.5].

        Returns
        -------
        self : object
            The same object.

        Raises
        ------
        ValueError
            If `contamination` is out of range.

        sklearn.exceptions.NotFittedError
            If the detector is not fitted.
        """
        validate_parameter_constraints(
            {"contamination": CONTAMINATION},
            {"contamination": contamination},
            caller_name="set_contamination",
        )
        check_is_fitted(self, "calibration_scores_")
        self.contamination_ = float(contamination)
        self._set_offset()
        return self

    def _no_maps(self, n: int) -> np.ndarray:
        """Maps of NaN for n images that could not be read."""
        return np.full((n, *self.calibration_maps_.shape[1:]), np.nan, np.float32)

    def _pixel_threshold(self, size: tuple[int, int] | None, window: Any) -> float:
        """Threshold for the pixels of maps of a size; on the grid where it is None.

        It is that of the largest values of the held-out maps: of all images, or of a
        random sample of these.
        """
        check_is_fitted(self, "calibration_maps_")
        maps = self.calibration_maps_
        if size is None:
            highest = maps.max(axis=(1, 2))
        else:
            highest = peaks(maps, size, **self._rendering(window, maps.shape[1:]))
        return threshold_of(
            highest.astype(np.float64), self.contamination_, self._threshold_rule
        )

    def _take_threshold_parameters(self) -> None:
        """Take rate and rule of the thresholds from the parameters, as `fit` does."""
        self._scores_in_order = True
        self.contamination_ = float(self.contamination)
        self._threshold_rule = self.threshold

    def _replace_held_out(
        self,
        scores: np.ndarray,
        maps: np.ndarray,
        rows: np.ndarray | None = None,
        in_sample: bool = False,
    ) -> None:
        """Keep held-out anomaly scores and maps, and set `offset_` from them.

        The maps are of all scores, or of those at `rows`.
        """
        self.calibration_scores_ = np.empty(0)
        self.calibration_maps_ = np.empty((0, *maps.shape[1:]), np.float32)
        self._calibration_seen = np.empty(0, np.int64)
        self._map_rows, self._map_ranks = np.empty(0, np.intp), np.empty(0)
        self._in_sample = in_sample
        self._add_held_out(scores, maps, self.n_samples_seen_, rows)

    def _add_held_out(
        self,
        scores: np.ndarray,
        maps: np.ndarray,
        n_seen: Any,
        rows: np.ndarray | None = None,
        ranks: np.ndarray | None = None,
    ) -> None:
        """Add held-out scores to those at hand, and set `offset_` from all.

        `n_seen` is the number of images behind the model that gave them. Scores of a
        model that knew less than half as many are dropped: it scored higher. The maps
        are of all scores, or of those at `rows` with `ranks` as of `map_ranks`.
        """
        n_old = len(self.calibration_scores_)
        rows = np.arange(len(scores)) if rows is None else rows
        ranks = map_ranks(n_old, len(scores))[rows] if ranks is None else ranks
        known = np.isfinite(scores)
        n_seen = np.broadcast_to(n_seen, scores.shape)[known]
        n_seen = np.concatenate([self._calibration_seen, n_seen])
        current = 2 * n_seen >= n_seen.max(initial=0)
        scores = np.concatenate([self.calibration_scores_, -scores[known]])
        self.calibration_scores_ = scores[current]
        self._calibration_seen = n_seen[current]
        there = known[rows]
        rows = n_old + np.cumsum(known)[rows[there]] - 1
        self._add_maps(filled(maps[there]), rows, ranks[there], current)
        self._set_offset()

    def _add_maps(
        self, maps: np.ndarray, rows: np.ndarray, ranks: np.ndarray, current: np.ndarray
    ) -> None:
        """Add maps to those at hand, as many as `max_maps` says.

        `rows` tells the score of each map, and `current` which scores are kept.
        """
        maps = np.concatenate([self.calibration_maps_, maps])
        rows = np.concatenate([self._map_rows, rows])
        ranks = np.concatenate([self._map_ranks, ranks])
        kept = np.flatnonzero(current[rows])
        kept = kept[first_ranked(ranks[kept], max_maps(maps.shape[1:]))]
        self.calibration_maps_ = maps[kept]
        self._map_rows = (np.cumsum(current) - 1)[rows[kept]]
        self._map_ranks = ranks[kept]

    def _set_offset(self) -> None:
        """Set `offset_` from the scores at hand, by rate and rule of the fit."""
        scores, rate = self.calibration_scores_, self.contamination_
        if self._in_sample:
            self.offset_ = float(np.percentile(scores, 100 * rate))
            return
        self.offset_ = -threshold_of(-scores, rate, self._threshold_rule)
        n = len(scores)
        if n and not certifies(n, rate):
            warn_user(
                f"{self._whose}{n} held-out images cannot certify a false-alarm rate "
                f"of {rate:g}; the smallest rate that they can certify is "
                f"{1 / (n + 1):.2g}. The threshold lies beyond all of their scores, by "
                "their spread: an estimate without a guarantee."
            )

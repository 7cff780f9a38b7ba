"""Models of single groups: fitted ones that differ in their held-out scores only."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import sklearn.pipeline

from skad._chain import unwrap

# What a fitted detector keeps of its held-out images, and the threshold from it.
_HELD_OUT = (
    *("calibration_scores_", "calibration_maps_", "_calibration_seen"),
    *("_map_rows", "_map_ranks", "contamination_", "offset_", "_in_sample", "_whose"),
)


def held_out_of(detector: Any) -> dict[str, Any]:
    """What a fitted detector keeps of its held-out images, and its threshold."""
    return {name: getattr(detector, name) for name in _HELD_OUT}


def held_out_of_some(detector: Any, rows: np.ndarray, whose: str) -> dict[str, Any]:
    """The same with these held-out scores only, and the threshold from them.

    `whose` is what messages begin with.
    """
    if len(rows) == 0:
        raise ValueError(
            f"{whose}it has no normal image that could be read: leave its images out, "
            "or add normal ones."
        )
    twin = _independent(detector, {})
    kept = np.isin(detector._map_rows, rows)
    twin._whose = whose
    twin.calibration_scores_ = detector.calibration_scores_[rows]
    twin._calibration_seen = detector._calibration_seen[rows]
    twin.calibration_maps_ = detector.calibration_maps_[kept]
    twin._map_ranks = detector._map_ranks[kept]
    twin._map_rows = np.searchsorted(rows, detector._map_rows[kept])
    twin._set_offset()
    return held_out_of(twin)


def with_held_out(model: Any, held_out: dict[str, Any]) -> Any:
    """Copy a fitted model, as one that holds these scores out.

    The copy shares arrays and networks with the model, which no method writes to.
    Estimators are copies, so that nothing that is done to the copy changes the model.
    """
    twin = _independent(unwrap(model), {})
    detector = twin
    while isinstance(detector, sklearn.pipeline.Pipeline):
        name, last = detector.steps[-1]
        last = unwrap(last)  # thresholds of a frozen detector can be set
        detector.steps = [*detector.steps[:-1], (name, last)]
        detector = last
    vars(detector).update(held_out)
    return twin


def _independent(value: Any, memo: dict[int, Any]) -> Any:
    """A copy of estimators, containers and random states; all else is shared.

    `memo` holds copies by the id of what they are copies of.
    """
    if id(value) in memo:
        return memo[id(value)]
    found = value
    if isinstance(value, type):
        pass
    elif type(value) is dict:
        found = {key: _independent(part, memo) for key, part in value.items()}
    elif type(value) in (list, tuple):
        found = type(value)(_independent(item, memo) for item in value)
    elif isinstance(value, (np.random.RandomState, np.random.Generator)):
        found = copy.deepcopy(value)
    elif hasattr(value, "__dict__") and hasattr(value, "get_params"):
        found = memo[id(value)] = object.__new__(type(value))
        vars(found).update(_independent(vars(value), memo))
    memo[id(value)] = found
    return found

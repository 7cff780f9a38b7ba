"""The gate that a graph has to pass: its answers are those of the model."""

from typing import Any

import numpy as np

from skad.base import decide
from skad.base._threshold import conformal_p_values
from skad.export._onnx_detector import OUTPUTS
from skad.inspection._inspect import inspections

# Relative, of scores and maps. A value that is so close to a threshold may lie on
# either side of it.
TOLERANCE = 1e-5


class ExportMismatch(RuntimeError):
    """The graph does not answer as the model does; no file was written.

    The message says which output differs, on which image, and how far.
    """


def compare(known: dict[str, Any], found: dict[str, np.ndarray], detector: Any) -> None:
    """Raise `ExportMismatch` where a graph answers differently from its model.

    Parameters
    ----------
    known : dict
        Answers of the model by the names of the outputs, and its ``pixel_threshold``.

    found : dict of ndarray
        Those of the graph.

    detector : estimator
        Of the model; tells its thresholds.
    """
    for name in OUTPUTS:
        if np.shape(found[name]) != np.shape(known[name]):
            raise ExportMismatch(
                f"{name}: the graph gives the shape {np.shape(found[name])}, the model "
                f"{np.shape(known[name])}. No file was written."
            )
    size = max(np.abs(detector.calibration_scores_).max(initial=0), 1e-30)
    scale = np.maximum(np.abs(known["score"]), size)
    for name in ("score", "decision"):
        _check_close(name, known[name], found[name], scale)
    maps = known["map"]
    largest = np.maximum(np.abs(maps).max(axis=(1, 2), keepdims=True), 1e-30)
    _check_close("map", maps, found["map"], largest)
    slack = TOLERANCE * scale
    labels = [decide(known["decision"] + s) for s in (-slack, slack)]
    _check_same("label", known["label"], found["label"], labels)
    held_out = detector.calibration_scores_
    p_values = [
        conformal_p_values(known["score"] + s, held_out) for s in (-slack, slack)
    ]
    _check_same("p_value", known["p_value"], found["p_value"], p_values)
    threshold = known["pixel_threshold"]
    slack = TOLERANCE * max(abs(threshold), 1e-30)
    masks = [maps > threshold + s for s in (slack, -slack)]
    _check_same("mask", known["mask"], found["mask"], masks)


def _check_close(name: str, known: Any, found: Any, scale: Any) -> None:
    error = np.abs(np.asarray(found, np.float64) - known) / scale
    error = np.where(np.isnan(error), np.inf, error)
    worst = np.unravel_index(error.argmax(), error.shape)
    if error[worst] > TOLERANCE:
        raise ExportMismatch(
            f"{name} of check[{worst[0]}]: the graph gives {found[worst]!s}, the model "
            f"{known[worst]!s}, which differs by {error[worst]:.2g} of its size; "
            f"{TOLERANCE:g} is allowed. No file was written."
        )


def _check_same(name: str, known: Any, found: Any, bounds: Any) -> None:
    """Refuse answers that are neither the model's nor a matter of rounding."""
    differs = known != found
    for bound in bounds:
        differs &= bound != found
    if differs.any():
        first = int(np.argwhere(differs)[0][0])
        n = int(differs.sum())
        raise ExportMismatch(
            f"{name} differs in {n} of {differs.size} values, first in those of "
            f"check[{first}]. No file was written."
        )


def answers(chain: Any, images: Any) -> dict[str, Any]:
    """Answers of a model for images of one size, by the names of the outputs."""
    found = list(inspections(chain, images))
    answered = {
        name: np.array(
            [getattr(one, "anomaly_map" if name == "map" else name) for one in found]
        )
        for name in OUTPUTS
    }
    return answered | {"pixel_threshold": found[0].pixel_threshold}

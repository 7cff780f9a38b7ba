"""Which images the held-out scores of a fitted model are of."""

from typing import Any

import numpy as np

from skad._chain import Chain
from skad.base import BaseDetector
from skad.images._containers import refuse_no_sequence


def held_out_positions(chain: Chain, X: Any, y: Any, caller: str) -> np.ndarray:
    """Positions in X of the images that a model holds a held-out score of.

    Parameters
    ----------
    chain : Chain
        Of a fitted model.

    X, y
        What it was fitted on.

    caller : str
        Who asks, for messages.

    Returns
    -------
    positions : ndarray of shape (m,), int
        In the order of `calibration_scores_`: one for each image that was learned
        from.

    Raises
    ------
    ValueError
        If X and y are not those of the fit, or if not every image that was learned
        from has a held-out score.
    """
    refuse_no_sequence(X)
    detector = chain.final
    _check_held_out(detector, caller)
    if not detector._scores_in_order:
        raise ValueError(
            f"{caller} needs held-out scores in the order of X, but fit_parts deals "
            "images out to its parts at random: fit on all images at once."
        )
    learned = _learned_from(chain, X, y)
    scores = detector.calibration_scores_
    if len(scores) != len(learned):
        raise ValueError(
            f"{caller} needs a held-out score of each of the {len(learned)} images "
            f"that were learned from, but the model keeps {len(scores)} scores of "
            f"held-out images. {_why_not_all(detector)}"
        )
    return learned


def check_detector_of_skad(detector: Any, caller: str, name: str = "model") -> None:
    """Refuse a model that ends in anything but a detector of skad."""
    if not isinstance(detector, BaseDetector):
        raise TypeError(
            f"{name} ends in {type(detector).__name__}; {caller} needs a detector of "
            "skad, alone or at the end of a pipeline."
        )


def _check_held_out(detector: Any, caller: str) -> None:
    """Refuse a model that keeps scores of images that it learned from, or of a part."""
    detector._check_holds_out_all(caller)
    if detector._in_sample or detector._resolved_calibration() == "train":
        raise ValueError(
            f"{caller} judges each image by a model that has not seen it, but "
            f"{type(detector).__name__}(calibration={detector.calibration!r}) has no "
            "held-out scores of the images that were learned from. Fit with "
            "calibration='kfold' or, where it is offered, 'loo'."
        )


def _learned_from(chain: Chain, X: Any, y: Any) -> np.ndarray:
    """Positions of the images of X that the model has learned from."""
    n_learned = chain.final.n_samples_seen_
    learned = np.broadcast_to(chain.final._not_anomalous(X, y), len(X))
    if learned.sum() > n_learned:  # some may not have been readable
        learned = learned & ~np.isnan(chain.ask("decision_function", X))
    if learned.sum() != n_learned:
        labelled = "" if y is None else " that are not labelled -1"
        raise ValueError(
            f"the model has learned from {n_learned} images, but X has "
            f"{int(learned.sum())}{labelled}; pass X and y of its fit."
        )
    return np.flatnonzero(learned)


def _why_not_all(detector: Any) -> str:
    if hasattr(detector, "calibration_size"):
        return f"Raise calibration_size={detector.calibration_size} and fit again."
    return (
        "They are of other images after calibrate, and old ones are dropped by "
        "partial_fit; fit again on all images."
    )

"""What a page says about a model: data, networks and their licences, promise."""

from __future__ import annotations

from typing import Any

from skad._chain import Chain
from skad.base._threshold import certifies
from skad.persistence._info import described


def model_card(model: Any) -> list[tuple[str, str]]:
    """Rows of names and texts about a fitted model."""
    facts, detector = described(model), Chain(model).final
    kind = "of training images" if detector._in_sample else "held out of the training"
    return [
        ("Model", str(model)),
        *[row for network in facts["networks"] for row in _network(network)],
        ("Training images", f"{facts['n_training_images']:,}"),
        ("Calibration images", f"{facts['n_calibration_images']:,} ({kind})"),
        ("Threshold", f"{detector.offset_:.6g} (scores below it are rejected)"),
        ("Contamination", f"{facts['contamination']:g}"),
        ("Promise", _promise(detector)),
        ("Versions", ", ".join(f"{k} {v}" for k, v in facts["versions"].items())),
        ("Page written", facts["saved"]),
    ]


def short_promise(detector: Any) -> str:
    """The rate of false alarms that the threshold is for."""
    rate = f"{100 * detector.contamination_:.3g} %"
    if detector._in_sample:
        return f"{rate} of the training images themselves, and more of new ones"
    return f"at most {rate}" if _is_certified(detector) else f"about {rate}"


def _promise(detector: Any) -> str:
    """What the threshold says about false alarms."""
    n, rate = len(detector.calibration_scores_), short_promise(detector)
    if detector._in_sample:
        return f"None: the threshold rejects {rate}."
    estimate = "" if _is_certified(detector) else " This is an estimate."
    return (
        f"A normal image is rejected with a probability of {rate}, if the {n:,} "
        f"calibration images are like those to come.{estimate}"
    )


def _is_certified(detector: Any) -> bool:
    """Whether the threshold keeps its rate for any distribution of scores."""
    n = len(detector.calibration_scores_)
    is_rank = detector._threshold_rule == "rank"
    return is_rank and certifies(n, detector.contamination_)


def _network(network: dict[str, Any]) -> list[tuple[str, str]]:
    """Rows about a network that the model takes by its name."""
    unknown = {"file": "that of your file", "random": "none: they are random"}
    licence = network["licence"] or unknown.get(network["weights"], "not known")
    return [
        ("Backbone", f"{network['backbone']} ({network['weights']} weights)"),
        ("Weights, sha256", network["sha256"] or "not kept"),
        ("Licence of the weights", licence),
    ]

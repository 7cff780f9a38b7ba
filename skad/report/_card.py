"""What a page says about a model: data, networks and their licences, promise."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from datetime import datetime
from importlib.metadata import version
from typing import Any

import timm
import torch
from sklearn.base import BaseEstimator

import skad
from skad._chain import Chain
from skad.base._threshold import certifies

_PACKAGES = ("scikit-learn", "torch", "timm", "numpy", "pillow")


def model_card(model: Any) -> list[tuple[str, str]]:
    """Rows of names and texts about a fitted model."""
    chain = Chain(model)
    detector = chain.final
    steps = [*chain.before, *([chain.images] if chain.images else []), *chain.after]
    n_held_out = len(detector.calibration_scores_)
    versions = [f"skad {skad.__version__}", f"Python {platform.python_version()}"]
    versions += [f"{name} {version(name)}" for name in _PACKAGES]
    return [
        ("Detector", str(detector)),
        *[("Step before it", str(step)) for step in steps],
        *[row for step in [*steps, detector] for row in _networks(step)],
        ("Training images", f"{detector.n_samples_seen_:,}"),
        ("Calibration images", f"{n_held_out:,} ({_kind_of_scores(detector)})"),
        ("Threshold", f"{detector.offset_:.6g} (scores below it are rejected)"),
        ("Contamination", f"{detector.contamination_:g}"),
        ("Promise", promise(detector)),
        ("Versions", ", ".join(versions)),
        ("Page written", datetime.now().astimezone().isoformat(" ", "minutes")),
    ]


def promise(detector: Any) -> str:
    """What the threshold says about false alarms."""
    n, rate = len(detector.calibration_scores_), f"{detector.contamination_:.3g}"
    if detector._in_sample:
        return (
            f"None: the threshold rejects a share of {rate} of the training images "
            "themselves, and rejects more of new normal ones."
        )
    if detector._threshold_rule == "rank" and certifies(n, detector.contamination_):
        return (
            f"A normal image is rejected with a probability of at most {rate}, if the "
            f"{n:,} calibration images are like those to come."
        )
    return (
        f"A normal image is rejected with a probability of about {rate}: an estimate "
        f"from the scores of {n:,} calibration images, if these are like those to come."
    )


def _kind_of_scores(detector: Any) -> str:
    return "of training images" if detector._in_sample else "held out of the training"


def _networks(step: Any) -> Iterator[tuple[str, str]]:
    """Rows about each frozen network of a step."""
    for part in _parts(step):
        if not hasattr(part, "weights_sha256_"):
            continue
        name = part.backbone
        shown = name if isinstance(name, str) else f"{type(name).__name__} (your own)"
        yield "Backbone", shown
        yield "Weights, sha256", part.weights_sha256_
        yield "Licence of the weights", _licence(part)


def _licence(part: Any) -> str:
    """Licence of the weights that a network started from, as far as it is known."""
    weights = getattr(part, "weights", None)
    if isinstance(part.backbone, torch.nn.Module):
        return "that of your own network"
    if weights is False:
        return "none: the weights are random"
    config = timm.get_pretrained_cfg(part.backbone)
    known = getattr(config, "license", None)
    if weights is not None:
        own = f"that of the file {weights}"
        return f"{own}; timm's own weights of this name have {known}" if known else own
    return known or "not stated by timm"


def _parts(value: Any) -> Iterator[Any]:
    """Yield an estimator and all those inside of it, the fitted ones of a search."""
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _parts(item)
    elif isinstance(value, BaseEstimator):
        yield value
        for inner in vars(value).values():
            yield from _parts(inner)

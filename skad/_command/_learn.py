"""The verbs that change a model: fit, calibrate, update."""

from __future__ import annotations

import ast
import json
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import skad
from skad.base import ImageDetector
from skad.images import list_images


def fit(arguments: Namespace) -> None:
    """Learn from a folder, and save the model."""
    model = _model(arguments)
    images = list_images(arguments.images)
    _set_verbose(model, sys.stderr.isatty())
    model.fit(images)
    _finish(model, arguments.output, len(images), arguments)


def calibrate(arguments: Namespace) -> None:
    """Set the threshold of a model from other images."""
    model = skad.load(arguments.model)
    images = list_images(arguments.images)
    model.calibrate(images)
    _finish(model, arguments.output or arguments.model, len(images), arguments)


def update(arguments: Namespace) -> None:
    """Let a model learn on."""
    model = skad.load(arguments.model)
    images = list_images(arguments.images)
    if not hasattr(model, "partial_fit"):
        raise TypeError(
            f"{arguments.model!r} holds a model that cannot learn on; fit it again "
            "with all images."
        )
    model.partial_fit(images)
    _finish(model, arguments.output or arguments.model, len(images), arguments)


def _finish(model: Any, path: str, n_images: int, arguments: Namespace) -> None:
    _set_verbose(model, False)
    skad.save(model, path)
    n_bytes = Path(path).stat().st_size
    if arguments.json:
        print(json.dumps({"file": path, "n_images": n_images, "n_bytes": n_bytes}))
    else:
        print(f"{path}: {n_images} images, {n_bytes / 1e6:.1f} MB")


def _model(arguments: Namespace) -> Any:
    """The model that the arguments describe, unfitted."""
    detector = _named(arguments.detector, "detector")
    given = dict(_setting(text) for text in arguments.set)
    if isinstance(detector, ImageDetector):
        if arguments.features is not None:
            raise ValueError(
                f"{arguments.detector} takes images by itself; leave out --features."
            )
        names = {name.removeprefix("detector__"): v for name, v in given.items()}
        return detector.set_params(**names)
    features = _named(arguments.features or "PatchFeatures", "features")
    if "backbone" in features.get_params(deep=False):
        features.set_params(backbone="skad_small")  # comes with skad
    model = skad.Pipeline([("features", features), ("detector", detector)])
    return model.set_params(**given)


def _named(name: str, kind: str) -> Any:
    """An estimator of skad by the name of its class."""
    ending = "Detector" if kind == "detector" else "Features"
    known = [one for one in skad.__all__ if one.endswith(ending)]
    if name not in known:
        raise ValueError(f"--{kind} {name}: choose one of {', '.join(known)}.")
    return getattr(skad, name)()


def _setting(text: str) -> tuple[str, Any]:
    """Name and value of one --set: a number, None, True, a tuple, or else text."""
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text}: write it as NAME=VALUE.")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def _set_verbose(model: Any, verbose: bool) -> None:
    names = [name for name in model.get_params() if name.split("__")[-1] == "verbose"]
    model.set_params(**dict.fromkeys(names, verbose))

"""Tables from the type of an estimator to the module that computes what it does."""

import copy
from functools import singledispatch
from typing import Any, NoReturn

import numpy as np


@singledispatch
def features_module(transformer: Any) -> Any:
    """Module from images (n, h, w, c) in [0, 1] to patch features.

    Its result is a pair: features (n, rows, columns, d), and a descriptor of each image
    (n, p) or None.
    """
    refuse(transformer, "export a model with PatchFeatures in its place")


@singledispatch
def scores_module(detector: Any, inside: np.ndarray | None) -> Any:
    """Module from what a detector takes to anomaly scores and maps.

    Parameters
    ----------
    detector : estimator
        Fitted.

    inside : ndarray of shape (h, w), bool, or None
        Patches inside of the region of interest. None for a detector that takes images.

    Returns
    -------
    module : torch.nn.Module
        From the pair of `features_module`, or from images (n, h, w, c) and None, to
        anomaly scores (n,), float64, and maps (n, h, w), float32, in which patches
        outside of the region have the smallest score.
    """
    refuse(
        detector,
        "export a model with one of skad's detectors, such as PatchCoreDetector",
    )


def patches_inside(transformer: Any, size: tuple[int, int] | None = None) -> np.ndarray:
    """Patches (h, w) inside of the region of interest of a transformer, bool.

    `size` is that of the raw images, where the window of the transformer depends on it.
    """
    looked_at = transformer.regions(None, 1)
    if looked_at:
        window = transformer.window(size)
        return looked_at.inside(0, transformer.grid_shape_, window)
    return np.ones(transformer.grid_shape_, bool)


def refuse(estimator: Any, advice: str) -> NoReturn:
    """Raise for an estimator, or a setting of it, that has no graph."""
    raise NotImplementedError(
        f"to_onnx: {type(estimator).__name__} cannot become a graph; {advice}."
    )


def refuse_setting(estimator: Any, name: str, advice: str) -> NoReturn:
    """Raise for a parameter whose value has no graph."""
    raise NotImplementedError(
        f"to_onnx: {type(estimator).__name__} with {name}={getattr(estimator, name)!r} "
        f"cannot become a graph; {advice}."
    )


def on_cpu(estimator: Any) -> Any:
    """A fitted estimator as it computes on the CPU; the one given stays as it is."""
    twin = object.__new__(type(estimator))
    for name, value in vars(estimator).items():
        if isinstance(value, (list, tuple)) and any(map(_is_estimator, value)):
            value = type(value)(on_cpu(v) if _is_estimator(v) else v for v in value)
        elif _is_estimator(value):
            value = on_cpu(value)
        elif name == "backbone" and hasattr(value, "parameters"):
            value = copy.deepcopy(value).cpu()
        twin.__dict__[name] = "cpu" if name == "device" else value
    return twin


def _is_estimator(value: Any) -> bool:
    return hasattr(value, "get_params") and not isinstance(value, type)

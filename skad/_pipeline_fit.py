"""Ways to fit a pipeline: step by step, batch by batch, on views, with regions."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn import get_config
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from skad._augmented_fit import check_can_augment, fit_on_views, update_on_views
from skad._chain import Chain, is_frozen, path_to_images, transform_through, unwrap
from skad._memory import checked_features


def fit_steps(
    pipeline: Any,
    X: Any,
    y: ArrayLike | None,
    regions: Sequence[Any] | None,
    params: dict[str, Any],
    fit: Callable[..., Any],
) -> None:
    """Fit all transformers and the detector; see `Pipeline.fit`.

    Parameters
    ----------
    pipeline : Pipeline

    X, y, regions
        As in `Pipeline.fit`.

    params : dict
        Further parameters of `Pipeline.fit`.

    fit : callable
        ``fit(X, y, **params)`` of scikit-learn, which fits step by step.
    """
    if pipeline.augmentation is not None:
        _fit_on_views(pipeline, X, y, regions, params)
        return
    Chain(pipeline).check_takes_images()
    if can_stream(pipeline) and not params:
        started = time.perf_counter()
        batches = training_batches(pipeline, X, y, regions)
        pipeline.steps[1][1]._fit_batches(batches)
        _say_elapsed(pipeline, started)
        return
    with memory_checked(pipeline):
        if regions is None:
            fit(X, y, **params)
            return
        path = path_to_images(pipeline)
        if path and is_frozen(path[0][1]):
            _fit_around_frozen(pipeline, path[0][0], X, y, regions, params)
        else:
            fit(X, y, **params, **_regions_parameter(path, regions))


def update_detector(
    pipeline: Any, X: Any, y: ArrayLike | None, regions: Sequence[Any] | None
) -> None:
    """Let the detector of a pipeline learn more; see `Pipeline.partial_fit`."""
    final = pipeline.steps[-1][1]
    if not _is_fitted(final):
        pipeline.fit(X, y, regions)
        return
    if pipeline.augmentation is not None:
        check_can_augment(pipeline)
        update_on_views(pipeline, X, y, regions)
        return
    chain = Chain(pipeline)
    if can_stream(pipeline):
        batches = chain.images._normal_batches(X, y, regions)
        chain.final._fit_batches(batches, update=True)
    elif not chain.is_frozen:
        chain.final.partial_fit(chain.features(X, regions), y)


def can_stream(pipeline: Any) -> bool:
    """Whether features can pass from step to step batch by batch."""
    if len(pipeline.steps) != 2 or pipeline.memory is not None:
        return False
    if pipeline.transform_input is not None or getattr(
        pipeline, "_skl_callbacks", None
    ):
        return False
    images, final = (step for _, step in pipeline.steps)
    return (
        hasattr(unwrap(images), "_fit_batches")
        and not is_frozen(final)
        and hasattr(final, "_fit_batches")
        and final._resolved_calibration() == "loo"
    )


def training_batches(
    pipeline: Any, X: Any, y: ArrayLike | None, regions: Sequence[Any] | None
) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Positions and features of the normal images, as often as is asked for."""
    images = pipeline.steps[0][1]
    if is_frozen(images):
        return unwrap(images)._normal_batches(X, y, regions)
    return images._fit_batches(X, y, regions)


def memory_checked(pipeline: Any) -> AbstractContextManager[None, bool | None]:
    """Let a detector right after the features refuse these before extraction."""
    final = pipeline.steps[-1][1] if len(pipeline.steps) == 2 else None
    check = getattr(final, "_require_memory_to_fit", None)
    return nullcontext() if check is None else checked_features(check)


def _fit_on_views(
    pipeline: Any,
    X: Any,
    y: ArrayLike | None,
    regions: Sequence[Any] | None,
    params: dict[str, Any],
) -> None:
    if params:
        raise ValueError(
            f"{sorted(params)} cannot be passed to fit together with augmentation; "
            "only y and regions can."
        )
    check_can_augment(pipeline)
    started = time.perf_counter()
    with memory_checked(pipeline):
        fit_on_views(pipeline, X, y, regions)
    _say_elapsed(pipeline, started)


def _fit_around_frozen(
    pipeline: Any,
    name: str,
    X: Any,
    y: ArrayLike | None,
    regions: Sequence[Any] | None,
    params: dict[str, Any],
) -> None:
    """Fit with regions for a frozen step, to which scikit-learn passes none."""
    if params:
        raise ValueError(
            f"regions and {sorted(params)} cannot both be passed to fit where the "
            f"step {name!r} that reads images is frozen."
        )
    k = [other for other, _ in pipeline.steps].index(name)
    if k:
        before = pipeline[:k]
        X = before.fit_transform(X, y)
    X = transform_through(pipeline.steps[k][1], X, regions)
    after = pipeline[k + 1 :].fit(X, y)
    # With `memory`, the steps that were fitted are copies.
    pipeline.steps = [*(before.steps if k else []), pipeline.steps[k], *after.steps]


def _say_elapsed(pipeline: Any, started: float) -> None:
    if pipeline.verbose:
        names = " and ".join(name for name, _ in pipeline.steps)
        seconds = time.perf_counter() - started
        n = len(pipeline.steps)
        sys.stdout.write(
            f"[Pipeline] (steps 1 and {n} of {n}) Processing {names}, "
            f"total={seconds:5.1f}s\n"
        )


def _is_fitted(estimator: Any) -> bool:
    try:
        check_is_fitted(estimator)
    except NotFittedError:
        return False
    return True


def _regions_parameter(
    path: Sequence[tuple[str, Any]], regions: Sequence[Any]
) -> dict[str, Any]:
    """Regions, as the keyword argument by which `fit` passes them to their step."""
    if not path:
        raise ValueError("regions needs a step that reads images, as PatchFeatures.")
    if any(is_frozen(step) for _, step in path):
        raise ValueError(
            f"regions cannot reach the frozen step {path[-1][0]!r} inside of "
            f"{path[0][0]!r} during fit: scikit-learn passes none to it. Make it a "
            "step of the outer pipeline."
        )
    if get_config()["enable_metadata_routing"]:
        return {"regions": regions}
    return {"__".join([*(name for name, _ in path), "regions"]): regions}

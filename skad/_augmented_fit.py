"""Fits of pipelines on images and their augmented views."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import sklearn.pipeline
from numpy.typing import ArrayLike

from skad._chain import is_frozen, reads_images, transform_through, unwrap


def fit_on_views(
    pipeline: Any, X: Any, y: ArrayLike | None, regions: Sequence[Any] | None
) -> None:
    """Fit the steps of a pipeline, the detector on images and on their views.

    Parameters
    ----------
    pipeline : Pipeline
        Its `augmentation` gives the views.

    X : sequence of images

    y : array-like of shape (n,), or None
        Images labelled -1 are left out.

    regions : sequence of n masks, or None
    """
    k = _place_of_images(pipeline)
    before, after = _part(pipeline, 0, k), _part(pipeline, k + 1, -1)
    if before is not None:
        X = before.fit_transform(X, y)
    images = pipeline.steps[k][1]
    features, positions = unwrap(images)._features_of_views(
        X, y, regions, pipeline.augmentation, fit=not is_frozen(images)
    )
    if after is not None:
        features = after.fit_transform(features)
    final = pipeline.steps[-1][1]
    if not is_frozen(final):
        final._learn_views(features, positions, **_options(pipeline.augmentation))


def update_on_views(
    pipeline: Any, X: Any, y: ArrayLike | None, regions: Sequence[Any] | None
) -> None:
    """Let the detector of a fitted pipeline learn from more images and their views."""
    k = _place_of_images(pipeline)
    final = pipeline.steps[-1][1]
    if is_frozen(final):
        return
    before, after = _part(pipeline, 0, k), _part(pipeline, k + 1, -1)
    if before is not None:
        X = transform_through(before, X)
    features, positions = unwrap(pipeline.steps[k][1])._features_of_views(
        X,
        y,
        regions,
        pipeline.augmentation,
        fit=False,
        n_before=getattr(final, "n_samples_seen_", 0),
    )
    if after is not None:
        features = transform_through(after, features)
    options = _options(pipeline.augmentation)
    final._learn_views(features, positions, **options, update=True)


def check_can_augment(pipeline: Any) -> None:
    """Refuse a pipeline that cannot learn from views, before any work starts."""
    augmentation = pipeline.augmentation
    if isinstance(augmentation, type) or not hasattr(augmentation, "_changes"):
        raise TypeError(
            f"augmentation={augmentation!r} must be an object of "
            "skad.synthesis.AugmentedViews, or None."
        )
    augmentation._check()
    final = pipeline.steps[-1][1]
    if is_frozen(final):
        return
    if not hasattr(final, "_check_takes_views"):
        raise ValueError(
            "augmentation needs a detector of patch features as the last step, not "
            f"{type(final).__name__}, which learns from images. Use PatchCoreDetector, "
            "PaDiMDetector, SPADEDetector, SubspaceDetector, PatchwiseDetector or "
            "SimpleNetDetector behind PatchFeatures, or augmentation=None."
        )
    final._check_takes_views()
    _place_of_images(pipeline)


def _options(augmentation: Any) -> dict[str, int]:
    """What a detector has to know of the views, as keywords of `_learn_views`."""
    return {
        "n_per_image": 1 + augmentation.n_views,
        "held_out": int(augmentation.calibrate_on == "views"),
    }


def _place_of_images(pipeline: Any) -> int:
    """Number of the step that reads images."""
    for k, (_, step) in enumerate(pipeline.steps[:-1]):
        inner = unwrap(step)
        if reads_images(inner) and hasattr(inner, "_features_of_views"):
            return k
    raise ValueError(
        "augmentation needs a step of this pipeline that reads images, such as "
        f"PatchFeatures; its steps are {[name for name, _ in pipeline.steps]}."
    )


def _part(pipeline: Any, start: int, stop: int) -> Any:
    """Pipeline of some of the steps, which it shares; None where there are none."""
    steps = pipeline.steps[start:stop]
    return sklearn.pipeline.Pipeline(steps) if steps else None

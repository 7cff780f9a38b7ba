"""The ways to hold out scores: the values of the parameter `calibration`.

A threshold must come from scores of normal images that the model has not seen. Each
function here lets a detector learn from samples, and returns scores and maps of those
that are held out from it, or from a copy of it.

``first`` tells a fit from an update of a model that has learned before.

Where a detector learns from augmented views, the samples are each image and its views
after it. They are left out together: a model that knows a view of an image would score
the image too low. There is one score and one map of each image: of the image itself, or
of its first view (`_held_out_sample`).
"""

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from sklearn.utils import check_random_state

from skad._progress import progress
from skad._user_warning import warn_user

_SPLIT_PARTS = 5  # "split" holds out one image of so many


class HeldOut(NamedTuple):
    """Held-out anomaly scores, larger for more anomalous.

    Parameters
    ----------
    scores : ndarray of shape (m,)

    maps : ndarray of shape (k, h, w)
        Of all scores, or of those at `rows`.

    indices : ndarray of shape (m,), int
        Which of the images the scores are of; negative for images of earlier calls.

    rows : ndarray of shape (k,), int, or None
        Ascending places of the scores that have maps; None for all of them.

    folds : list of ndarray of int, or None
        Places of the scores of each fold; None where they are of one model.
    """

    scores: np.ndarray
    maps: np.ndarray
    indices: np.ndarray
    rows: np.ndarray | None = None
    folds: list[np.ndarray] | None = None


def n_left_out_together(detector: Any, n_samples: int, first: bool) -> int:
    """Number of samples that are left out at once: an image and its views.

    It is 1 for the views of one image, where no other image is left to learn from.
    """
    n = detector._n_per_image
    return 1 if first and n_samples == n else n


def way_to_hold_out(detector: Any, n_samples: int, first: bool) -> str:
    """Key of `HOLD_OUT` for samples: `calibration`, where these are enough."""
    way = detector._resolved_calibration()
    n = n_samples // n_left_out_together(detector, n_samples, first)
    if n == 1 and way in ("kfold", "split"):
        way = "train" if first else "kfold"
    if way == "loo" and first and n < detector._min_left_out:
        way = "train"
    if way == "train" and n == 1 and detector.calibration != "train":
        warn_user(
            "one training image leaves none to hold out: the threshold comes "
            "from the training image itself and will reject most normal images. "
            "Call calibrate with more normal images."
        )
    if way != "train" and first and 1 < n_samples == detector._n_per_image:
        warn_user(
            "one training image leaves none to hold out: its views are held out from "
            "each other, and the threshold is a guess. Call calibrate with more "
            "normal images."
        )
    return way


def leave_one_out(detector: Any, samples: Any, *, first: bool) -> HeldOut:
    """Score each sample by the model of all others, in the way of the method."""
    _learn(detector, samples, first)
    scores, maps, *rows = detector._score_left_out(samples)
    n = len(samples) // n_left_out_together(detector, len(samples), first)
    return HeldOut(scores, maps, detector._left_out_images(n), *rows)


def k_fold(detector: Any, samples: Any, *, first: bool) -> HeldOut:
    """Score each fold by a copy of the detector that learned from the other folds."""
    before = copy.copy(detector)
    _learn(detector, samples, first)
    n_together = n_left_out_together(detector, len(samples), first)
    scored = detector._held_out_sample % n_together
    n = len(samples) // n_together
    folds = detector._folds(n)
    scores, maps_of, rows_of = np.empty(n), [], []
    models = detector._models_without(
        [_rows(fold, n_together) for fold in folds], samples, before, first=first
    )
    verbose = getattr(detector, "verbose", False)  # one of a user's own may lack it
    with progress(n, "images held out", verbose, unit="image") as bar:
        for fold, model in zip(folds, models, strict=True):
            scores[fold], fold_maps, places = model._score_for_calibration(
                samples[fold * n_together + scored]
            )
            maps_of.append(fold_maps)
            rows_of.append(fold if places is None else fold[places])
            bar.update(len(fold))
    rows = np.concatenate(rows_of)
    order = np.argsort(rows)
    maps = np.concatenate(maps_of)[order]
    return HeldOut(scores, maps, np.arange(n), rows[order], folds)


def split(detector: Any, samples: Any, *, first: bool) -> HeldOut:
    """Learn from four fifths of the samples, and score the last one."""
    n_together = n_left_out_together(detector, len(samples), first)
    scored = detector._held_out_sample % n_together
    n = len(samples) // n_together
    order = check_random_state(detector.random_state).permutation(n)
    n_held_out = max(1, n // _SPLIT_PARTS)
    held_out = np.sort(order[:n_held_out])
    rest = _rows(np.sort(order[n_held_out:]), n_together)
    _learn(detector, samples[rest], first)
    scores, maps, rows = detector._score_for_calibration(
        samples[held_out * n_together + scored]
    )
    return HeldOut(scores, maps, held_out, rows)


def in_sample(detector: Any, samples: Any, *, first: bool) -> HeldOut:
    """Score the samples by the model that learned from them: none is held out."""
    _learn(detector, samples, first)
    n_together = detector._n_per_image
    images = np.arange(len(samples) // n_together)
    if n_together > 1:
        samples = samples[images * n_together + detector._held_out_sample]
    scores, maps, rows = detector._score_for_calibration(samples)
    return HeldOut(scores, maps, images, rows)


HOLD_OUT: dict[str, Callable[..., HeldOut]] = {
    "loo": leave_one_out,
    "kfold": k_fold,
    "split": split,
    "train": in_sample,
}


def _learn(detector: Any, samples: Any, first: bool) -> None:
    if first:
        detector._fit(samples)
    else:
        detector._update(samples)
    detector.n_samples_seen_ += -(-len(samples) // detector._n_per_image)


def _rows(images: np.ndarray, n_together: int) -> np.ndarray:
    """Places of images and their views among the samples."""
    return (images[:, None] * n_together + np.arange(n_together)).ravel()

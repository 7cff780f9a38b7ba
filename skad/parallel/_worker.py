"""Functions that workers run: fit transformers, and the detector of one part."""

from __future__ import annotations

import os
import pickle
import socket
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sklearn.pipeline
from sklearn.base import clone

import skad
from skad.networks._torch_state import own_torch_state
from skad.parallel._parts import unreadable_files


class WorkerTraceback(Exception):
    """Stands for the cause of an error in a worker: where it was raised there."""

    def __str__(self) -> str:
        return f"in a worker:\n{self.args[0]}"


@dataclass
class Outcome:
    """Result of a worker for one part.

    Parameters
    ----------
    number : int
        Number of the part.
    fitted : object
        The detector that was fitted on the part, or the transformers.
    error : Exception or None
        Why there is none.
    trace : str
        Where in the code it was raised.
    messages : list of (type, str)
        Category and text of each warning.
    unreadable : list of str
        Files that could not be read, if any image was left out or there is an error.
    where : str
        Machine and process.
    """

    number: int
    fitted: Any = None
    error: Exception | None = None
    trace: str = ""
    messages: list[tuple[type[Warning], str]] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    where: str = ""


def fit_transformers(steps: list[tuple[str, Any]], X: Any, version: str) -> Outcome:
    """Fit the transformers of a pipeline on the images of its first part.

    Parameters
    ----------
    steps : list of (str, transformer)
        All steps before the detector.
    X : sequence of images
        Of the first part.
    version : str
        Version of skad that the caller has.

    Returns
    -------
    outcome : Outcome
        Its `fitted` are the steps.
    """

    def fit() -> list[tuple[str, Any]]:
        return clone(sklearn.pipeline.Pipeline(steps)).fit(X).steps

    return _outcome(fit, 0, X, version)


def fit_part(model: Any, X: Any, number: int, version: str) -> Outcome:
    """Fit a detector on one part.

    Parameters
    ----------
    model : detector or pipeline
        Where it is a pipeline, all of its transformers are frozen.
    X : sequence of images, or ndarray of patch features
        Of the part, all of them normal.
    number : int
        Number of the part.
    version : str
        Version of skad that the caller has.

    Returns
    -------
    outcome : Outcome
        Its `fitted` is the detector, without the transformers.
    """

    def fit() -> Any:
        fitted = clone(model)
        detector = detector_of(fitted)
        if getattr(detector_of(model), "_holds_out_later", False):
            detector._holds_out_later = True
        fitted.fit(X)
        detector = detector_of(fitted)
        if detector.n_samples_seen_ == 1 and len(X) > 1:
            raise ValueError(
                f"only one of the {len(X)} images of a part could be read, and none "
                "can be held out from one. Take bad files out of X, or use a larger "
                "part_size."
            )
        return detector

    return _outcome(fit, number, X, version)


def hold_out_part(
    model: Any, X: Any, number: int, version: str, first: int, n: int, n_all: int
) -> Outcome:
    """Score the images of one part by the merged model, each without its own rows.

    Parameters
    ----------
    model : detector or pipeline
        Merged from all parts; where it is a pipeline, all of its transformers are
        frozen.
    X : sequence of images, or ndarray of patch features
        Of the part, as for `fit_part`.
    number : int
        Number of the part.
    version : str
        Version of skad that the caller has.
    first, n, n_all : int
        Number of images learned from before this part, from this part, and in all.

    Returns
    -------
    outcome : Outcome
        Its `fitted` is what the detector found, for the caller to join.
    """

    def hold_out() -> Any:
        detector = detector_of(model)
        batches: Any = [(np.arange(len(X)), X)]
        if isinstance(model, skad.Pipeline) and model._can_stream():
            batches = model._training_batches(X, None, None)
        elif detector is not model:
            batches = [(np.arange(len(X)), model[:-1].transform(X))]
        with own_torch_state():
            return detector._held_out_pass(batches, first, n, n_all)

    return _outcome(hold_out, number, X, version)


def detector_of(model: Any) -> Any:
    """The detector of a pipeline, or the model itself."""
    is_pipeline = isinstance(model, sklearn.pipeline.Pipeline)
    return model.steps[-1][1] if is_pipeline else model


def _outcome(fit: Any, number: int, X: Any, version: str) -> Outcome:
    """Run `fit`, and return its error as a value, so that other parts go on."""
    outcome = Outcome(number, where=f"{socket.gethostname()}, process {os.getpid()}")
    if version != skad.__version__:
        outcome.error = RuntimeError(
            f"the worker on {outcome.where} has skad {skad.__version__}, and the "
            f"process that called fit_parts has {version}; install the same version "
            "on all machines."
        )
        return outcome
    with _recorded(outcome.messages):
        try:
            outcome.fitted = fit()
        except Exception as error:
            outcome.error = _portable(error)
            outcome.trace = "".join(traceback.format_exception(error))
    if outcome.error is not None or _says_skipped(outcome.messages):
        outcome.unreadable = unreadable_files(X)
    return outcome


def _says_skipped(messages: list[tuple[type[Warning], str]]) -> bool:
    return any(category.__name__ == "SkippedImageWarning" for category, _ in messages)


def _portable(error: Exception) -> Exception:
    """The error, or a copy of its text where it cannot travel."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


_RECORDING = threading.Lock()  # Python has one list of warning filters for all threads


@contextmanager
def _recorded(messages: list[tuple[type[Warning], str]]) -> Iterator[None]:
    """Collect the warnings of this thread; another that records already leaves them."""
    if not _RECORDING.acquire(blocking=False):
        yield
        return
    thread = threading.get_ident()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            shown = warnings.showwarning

            def record(message: Any, category: Any, *place: Any, **more: Any) -> None:
                if threading.get_ident() == thread:
                    messages.append((category, str(message)))
                else:
                    shown(message, category, *place, **more)

            warnings.showwarning = record
            yield
    finally:
        _RECORDING.release()

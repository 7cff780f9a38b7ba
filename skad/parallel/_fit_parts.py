"""Fit one model on many workers: parts side by side, merged as they arrive."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor
from numbers import Integral
from typing import Any

import joblib
import numpy as np
import sklearn.pipeline
from joblib import Parallel, delayed
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils._param_validation import Interval, validate_parameter_constraints

import skad
from skad._progress import progress
from skad._user_warning import warn_user
from skad.parallel._checkpoint import Checkpoint, joined_key, settings_key
from skad.parallel._merge_tree import MergeTree, check_can_merge
from skad.parallel._parts import Parts
from skad.parallel._reports import Reports
from skad.parallel._worker import (
    Outcome,
    detector_of,
    fit_part,
    fit_transformers,
    hold_out_part,
)

_MAX_RETRIES = 3  # rounds without a new part after workers died
_PARTS_PER_WORKER = 8  # at once, where joblib's backend gives results all together
Task = Callable[[int], Any]  # gives what joblib runs for the part of a number
_CONSTRAINTS: dict[str, list[Any]] = {
    "part_size": [Interval(Integral, 2, None, closed="left")],
    "n_jobs": [Integral, None],
    "checkpoint_dir": [str, os.PathLike, None],
}


def fit_parts(
    model: Any,
    X: Any,
    y: Any = None,
    *,
    part_size: int = 1024,
    n_jobs: int | None = None,
    checkpoint_dir: str | os.PathLike[str] | None = None,
) -> Any:
    """Fit a model on parts of the images side by side, and merge the parts.

    The parts are fitted by `joblib.Parallel`: in this process by default, in others
    with `n_jobs`, and on other machines under ``joblib.parallel_config``, whose backend
    may be dask, ray or spark. Images given as paths travel as paths.

    Parameters
    ----------
    model : detector or pipeline
        Whose detector has `merge`: `PaDiMDetector`, `SubspaceDetector`,
        `PatchCoreDetector`, or a `FusionDetector` of these. It stays as it is. With
        `verbose` of the model or its detector, a bar shows the parts that are done.

    X : sequence of images, or ndarray of patch features
        What `fit` of the model takes. Workers read files by their absolute paths.

    y : array-like of shape (n,), default=None
        +1 for normal, -1 for anomalous. Anomalous images are left out.

    part_size : int, default=1024
        Images of a part at most, 2 or more. A worker holds the features of one part
        in memory; what it sends back does not depend on the number of images for
        PaDiM and Subspace. Larger parts mean fewer merges and better thresholds.

    n_jobs : int, default=None
        Number of workers, as in `joblib.Parallel`; None is 1 or what the
        ``joblib.parallel_config`` around the call says.

    checkpoint_dir : path, default=None
        Folder that keeps parts that are done, so that the next call goes on where a
        killed one stopped, and ends with the same bits. Only the calling process needs
        it. A part counts as done if the model's parameters, the version of skad, the
        fitted transformers, and paths, sizes and times of its files are the same. All
        of its files are removed at the end.

    Returns
    -------
    model : detector or pipeline
        A fitted clone of `model`.

    Raises
    ------
    TypeError
        If the detector of the model has no `merge`.

    ValueError
        If an argument is out of range, or a part cannot be fitted. With
        `checkpoint_dir`, the other parts are fitted and saved before.

    skad.images.ImageError
        If an image cannot be read and `on_error` of the model is "raise". Where a file
        is readable here but not in a worker, the error names the worker: all machines
        need the same files at the same paths.

    RuntimeError
        If a worker has another version of skad, or workers die again and again.

    See Also
    --------
    Scorer : Scores images on many workers.
    skad.Pipeline.partial_fit : Learns from parts one after the other.

    Notes
    -----
    *Parts.* Normal images are dealt out to ``ceil(n / part_size)`` parts at random,
    always in the same way. Parts are merged in an order that depends on their number
    only: the same arguments give the same bits, whichever part arrives first, on
    machines that compute alike. `part_size` changes the result, `n_jobs` does not.

    *Transformers* are fitted once, on the first part, and sent to all workers. For a
    pretrained network this makes no difference. `PCANetFeatures` learns its filters
    from the images of that part, a random sample of all.

    *Detectors.* PaDiM and Subspace are those of one fit on all images, to rounding.
    PatchCore unites the banks of the parts: each covers its part of the images as
    closely as one fit would, with about as many rows in all.
    With `bank_size`, neither a part nor the whole has more rows than that.

    *Thresholds.* PaDiM's is that of one fit. Subspace joins the held-out scores of the
    parts, each from a model that has seen one part only; the two differ little once a
    part holds some hundreds of images. PatchCore scores all images in a second pass,
    each against the united bank without its own rows, with patches of other images in
    their place. With one part, with another `calibration` than "loo", or within a
    `FusionDetector`, there is no second pass, and PatchCore's scores are joined like
    Subspace's. Where parts are many, its false alarms are rarer than `contamination`:
    for the conformal promise itself, keep some normal images out of X and call
    ``calibrate`` with them on the model that is returned.

    *Memory.* The second pass sends the united bank to the workers. What each of them
    returns is bounded by a few times the rows of the bank, and by the maps of its
    images that are kept. See `calibration_maps_` of the detectors for their number.

    Examples
    --------
    >>> from skad import PatchFeatures, SubspaceDetector, make_pipeline
    >>> from skad.datasets import make_textures
    >>> from skad.parallel import fit_parts
    >>> data = make_textures(n_normal=90, n_anomalous=2, size=64, random_state=0)
    >>> features = PatchFeatures("skad_small", image_size=64)
    >>> model = make_pipeline(features, SubspaceDetector())
    >>> model = fit_parts(model, data.train, part_size=30, n_jobs=1)
    >>> model.predict(data.test).shape == data.y_test.shape
    True
    """
    settings = {
        "part_size": part_size,
        "n_jobs": n_jobs,
        "checkpoint_dir": checkpoint_dir,
    }
    validate_parameter_constraints(_CONSTRAINTS, settings, caller_name="fit_parts")
    check_can_merge(model)
    parts = Parts(X, y, part_size)
    return _Job(model, parts, n_jobs, Checkpoint(checkpoint_dir)).run()


class _Job:
    """One call of `fit_parts`."""

    def __init__(
        self, model: Any, parts: Parts, n_jobs: int | None, checkpoint: Checkpoint
    ) -> None:
        self.model = clone(model)
        self.parts = parts
        self.n_jobs = n_jobs
        self.checkpoint = checkpoint
        self.settings = b"" if checkpoint.folder is None else settings_key(model)
        self.is_pipeline = isinstance(self.model, sklearn.pipeline.Pipeline)
        self.reports = Reports(parts, checkpoint.folder)
        self.n_learned = np.zeros(len(parts), np.intp)  # images, by part

    def run(self) -> Any:
        """Fit everything, and put the fitted model together."""
        transformers, state = self._transformers()
        keys = self._keys(state)
        tree, left = MergeTree(len(self.parts)), []
        verbose = any(
            getattr(one, "verbose", False)
            for one in (self.model, detector_of(self.model))
        )
        with progress(len(self.parts), "parts", verbose, unit="part") as bar:
            for number in range(len(self.parts)):
                saved = self.checkpoint.load(keys[number])
                if saved is None:
                    left.append(number)
                else:
                    self._take(saved, tree)
                    bar.update(1)
            template = self._template(transformers)
            holds_out_later = self._holds_out_later(template)

            def fit(k: int) -> Any:
                # Images are looked up when a worker is about to take them.
                return delayed(fit_part)(template, self.parts[k], k, skad.__version__)

            for outcome in self._outcomes(fit, left):
                if outcome.error is None:
                    self.checkpoint.save(keys[outcome.number], outcome)
                    self._take(outcome, tree)
                bar.update(1)
        self.reports.raise_failures()
        self.reports.pass_on_warnings()
        if holds_out_later:
            self._hold_out(template, tree.root, keys, verbose)
        self.checkpoint.remove_used()
        tree.root._scores_in_order = False  # parts are random samples
        return self._assembled(transformers, tree.root)

    def _take(self, outcome: Outcome, tree: MergeTree) -> None:
        for category, text in outcome.messages:
            self.reports.messages.append((outcome.number, category, text))
        self.n_learned[outcome.number] = outcome.fitted.n_samples_seen_
        tree.add(outcome.number, outcome.fitted)

    # -- held-out scores -----------------------------------------------------------

    def _holds_out_later(self, template: Any) -> bool:
        """Whether held-out scores come from the merged model; tells the workers so."""
        detector = detector_of(template)
        if len(self.parts) == 1 or not hasattr(detector, "_held_out_pass"):
            return False
        if detector._resolved_calibration() != "loo":
            return False
        detector._holds_out_later = True
        return True

    def _hold_out(
        self, template: Any, detector: Any, keys: list[str], verbose: bool
    ) -> None:
        """Set the threshold from a second pass over the images, with the whole bank."""
        vars(detector).pop("_holds_out_later")
        model = detector
        if self.is_pipeline:
            model = copy.copy(template)
            model.steps = [*template.steps[:-1], (template.steps[-1][0], detector)]
        n_before = np.cumsum(self.n_learned) - self.n_learned
        n_all = int(self.n_learned.sum())

        def hold_out(k: int) -> Any:
            where = int(n_before[k]), int(self.n_learned[k]), n_all
            return delayed(hold_out_part)(
                model, self.parts[k], k, skad.__version__, *where
            )

        with progress(len(self.parts), "held-out parts", verbose, unit="part") as bar:
            detector._set_held_out(self._held_out_passes(hold_out, keys, bar.update))

    def _held_out_passes(
        self, hold_out: Task, keys: list[str], report: Any
    ) -> Iterator[Any]:
        """Yield what the second pass found, in the order of the parts."""
        if self.checkpoint.folder is not None:
            every = [key.encode() for key in keys]
            keys = [joined_key(b"held out", key, *every) for key in every]
        found = {k: self.checkpoint.load(key) for k, key in enumerate(keys)}
        left = [k for k, outcome in found.items() if outcome is None]
        outcomes = self._outcomes(hold_out, left)
        for number in range(len(keys)):
            while found[number] is None:
                outcome = next(outcomes, None)
                if outcome is None:  # they stopped by an error
                    self.reports.raise_failures()
                elif outcome.error is None:
                    self.checkpoint.save(keys[outcome.number], outcome)
                    found[outcome.number] = outcome
            passed = found.pop(number).fitted
            passed.positions = self.parts.positions[number][passed.positions]
            report(1)
            yield passed

    # -- models ------------------------------------------------------------------

    def _transformers(self) -> tuple[list[tuple[str, Any]], bytes]:
        """Steps before the detector, fitted, and a digest of them."""
        steps = self.model.steps[:-1] if self.is_pipeline else []
        if all(_is_settled(step) for _, step in steps):
            return steps, b""
        first = joined_key(b"transformers", self.settings, self.parts.key(0))
        fitted = self.checkpoint.load(first)
        if fitted is None:
            task = delayed(fit_transformers)(steps, self.parts[0], skad.__version__)
            (outcome,) = Parallel(n_jobs=self.n_jobs)([task])
            self.reports.check(outcome)
            self.reports.raise_failures()
            # Unique by its time and place: parts of other transformers are strangers.
            fitted = outcome.fitted, os.urandom(16)
            self.checkpoint.save(first, fitted)
        return fitted

    def _template(self, transformers: list[tuple[str, Any]]) -> Any:
        """Model that a worker fits: frozen transformers, then the detector."""
        model = clone(self.model)
        detector = detector_of(model)
        if "verbose" in detector.get_params():
            detector.set_params(verbose=False)
        if self.is_pipeline:
            frozen = [
                (name, step if _is_settled(step) else FrozenEstimator(step))
                for name, step in transformers
            ]
            model.steps = [*frozen, model.steps[-1]]
            model.set_params(memory=None, verbose=False)
        return model

    def _assembled(self, transformers: list[tuple[str, Any]], detector: Any) -> Any:
        original = detector_of(self.model)
        if "verbose" in original.get_params():
            detector.set_params(verbose=original.verbose)
        if not self.is_pipeline:
            return detector
        self.model.steps = [*transformers, (self.model.steps[-1][0], detector)]
        return self.model

    def _keys(self, state: bytes) -> list[str]:
        if self.checkpoint.folder is None:
            return [""] * len(self.parts)
        return [
            joined_key(self.settings, state, self.parts.key(number))
            for number in range(len(self.parts))
        ]

    # -- work --------------------------------------------------------------------

    def _outcomes(self, task: Task, left: list[int]) -> Iterator[Outcome]:
        """Yield outcomes as they come; parts of workers that died run once more."""
        waiting, retries = list(left), 0
        while waiting:
            n_before = len(waiting)
            try:
                for outcome in self._run(task, waiting):
                    waiting.remove(outcome.number)
                    self.reports.check(outcome)
                    if self.reports.failures and self.checkpoint.folder is None:
                        return
                    yield outcome
            except BrokenExecutor as error:
                retries = 0 if len(waiting) < n_before else retries + 1
                if retries == _MAX_RETRIES:
                    raise RuntimeError(
                        f"workers died {retries} times in a row while they fitted "
                        f"{len(waiting)} parts. If memory ran out, use a smaller "
                        "part_size or fewer workers."
                    ) from error
                warn_user(
                    f"a worker died; the {len(waiting)} parts that are not done are "
                    "fitted again."
                )

    def _run(self, task: Task, numbers: list[int]) -> Iterator[Outcome]:
        """Yield outcomes of parts, in any order."""
        for parallel, some in self._rounds(list(numbers)):
            # The images of a part are looked up when a worker is about to take them.
            found = parallel(task(k) for k in some)
            try:
                yield from found
            finally:
                if not isinstance(found, list):
                    _close(found)

    def _rounds(self, numbers: list[int]) -> Iterator[tuple[Parallel, list[int]]]:
        """Yield what runs tasks, and the parts to run by it.

        Where the backend gives results one by one, all parts are one round.
        """
        # "generator_unordered" came with joblib 1.4.
        for mode in ("generator_unordered", "generator"):
            try:
                parallel = Parallel(self.n_jobs, return_as=mode, batch_size=1)
            except ValueError:
                continue
            yield parallel, numbers
            return
        step = _PARTS_PER_WORKER * joblib.effective_n_jobs(self.n_jobs)
        for lo in range(0, len(numbers), step):
            yield Parallel(self.n_jobs, batch_size=1), numbers[lo : lo + step]


def _close(results: Any) -> None:
    """Cancel what still runs, about which joblib would warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results.close()


def _is_settled(step: Any) -> bool:
    """Whether a step of a pipeline stays as it is."""
    return step is None or step == "passthrough" or isinstance(step, FrozenEstimator)

"""Fit one model on many workers: parts side by side, merged as they arrive."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor
from numbers import Integral
from typing import Any

import joblib
import sklearn.pipeline
from joblib import Parallel, delayed
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils._param_validation import Interval, validate_parameter_constraints

import skad
from skad._progress import progress
from skad._user_warning import warn_user
from skad.images import ImageError
from skad.parallel._checkpoint import Checkpoint, joined_key, settings_key
from skad.parallel._merge_tree import MergeTree
from skad.parallel._parts import Parts
from skad.parallel._worker import (
    Outcome,
    WorkerTraceback,
    fit_part,
    fit_transformers,
)

_MAX_RETRIES = 3  # rounds without a new part after workers died
_PARTS_PER_WORKER = 8  # at once, where joblib's backend gives results all together
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

    *Thresholds.* PaDiM's is that of one fit. Subspace and PatchCore join the held-out
    scores of the parts, each from a model that has seen one part only. The united bank
    of PatchCore is closer to new images than the bank of a part, so that normal images
    are rejected less often than `contamination` says, and fewer anomalies are found;
    for Subspace, the two differ little once a part holds some hundreds of images. For
    the conformal promise itself, keep some normal images out of X and call
    ``calibrate`` with them on the model that is returned.

    *Memory.* Held-out maps of all images are kept with the threshold, in float32, by
    PatchCore and Subspace: 3 kB per image on a grid of 28 x 28.

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


def check_can_merge(model: Any) -> None:
    """Refuse a model whose detector does not merge, before any work starts."""
    detector = _detector(model)
    is_frozen = isinstance(detector, FrozenEstimator)
    if hasattr(detector, "merge") and not is_frozen:
        return
    name = type(detector).__name__
    if is_frozen:
        advice = "a frozen detector learns nothing."
    elif hasattr(detector, "best_estimator_") or hasattr(detector, "estimator"):
        advice = "search for parameters first, and pass the best estimator."
    elif isinstance(detector, sklearn.pipeline.Pipeline):
        advice = "put its steps into the outer pipeline."
    else:
        advice = (
            "it has no merge. PaDiMDetector, SubspaceDetector and PatchCoreDetector "
            "have one, and FusionDetector around them."
        )
    raise TypeError(f"model cannot be fitted in parts by a {name}: {advice}")


def _detector(model: Any) -> Any:
    is_pipeline = isinstance(model, sklearn.pipeline.Pipeline)
    return model.steps[-1][1] if is_pipeline else model


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
        self.failures: dict[int, Outcome] = {}
        self.messages: list[tuple[int, type[Warning], str]] = []

    def run(self) -> Any:
        """Fit everything, and put the fitted model together."""
        transformers, state = self._transformers()
        keys = self._keys(state)
        tree, left = MergeTree(len(self.parts)), []
        verbose = any(
            getattr(one, "verbose", False)
            for one in (self.model, _detector(self.model))
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
            for outcome in self._outcomes(template, left):
                if outcome.error is None:
                    self.checkpoint.save(keys[outcome.number], outcome)
                    self._take(outcome, tree)
                bar.update(1)
        self._raise_failures()
        self._pass_on_warnings()
        self.checkpoint.remove_used()
        return self._assembled(transformers, tree.root)

    def _take(self, outcome: Outcome, tree: MergeTree) -> None:
        for category, text in outcome.messages:
            self.messages.append((outcome.number, category, text))
        tree.add(outcome.number, outcome.fitted)

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
            self._check(outcome)
            self._raise_failures()
            # Unique by its time and place: parts of other transformers are strangers.
            fitted = outcome.fitted, os.urandom(16)
            self.checkpoint.save(first, fitted)
        return fitted

    def _template(self, transformers: list[tuple[str, Any]]) -> Any:
        """Model that a worker fits: frozen transformers, then the detector."""
        model = clone(self.model)
        detector = _detector(model)
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
        original = _detector(self.model)
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

    def _outcomes(self, template: Any, left: list[int]) -> Iterator[Outcome]:
        """Yield outcomes as they come; parts of workers that died run once more."""
        waiting, retries = list(left), 0
        while waiting:
            n_before = len(waiting)
            try:
                for outcome in self._run(template, waiting):
                    waiting.remove(outcome.number)
                    self._check(outcome)
                    if self.failures and self.checkpoint.folder is None:
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

    def _run(self, template: Any, numbers: list[int]) -> Iterator[Outcome]:
        """Yield outcomes of parts, in any order."""
        for parallel, some in self._rounds(list(numbers)):
            # The images of a part are looked up when a worker is about to take them.
            found = parallel(
                delayed(fit_part)(template, self.parts[k], k, skad.__version__)
                for k in some
            )
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

    # -- errors and warnings -----------------------------------------------------

    def _check(self, outcome: Outcome) -> None:
        """Complete the error of a part with what only the caller knows."""
        if outcome.unreadable:
            here = [path for path in outcome.unreadable if os.access(path, os.R_OK)]
            if here:
                n = len(self.parts[outcome.number])
                outcome.error = ImageError(
                    f"the worker on {outcome.where} cannot read {len(here)} of the "
                    f"{n} files of a part, such as {here[0]!r}, which this process "
                    "can read. fit_parts sends paths, not pixels: give all machines "
                    "the same files at the same paths, on a shared disk, or pass the "
                    "images themselves.",
                    path=here[0],
                )
        if outcome.error is not None:
            self.failures[outcome.number] = outcome

    def _raise_failures(self) -> None:
        if not self.failures:
            return
        number = min(self.failures)
        outcome, n_parts = self.failures[number], len(self.parts)
        error: Any = outcome.error
        if error.args and isinstance(error.args[0], str):
            error.args = self.parts.renumbered(error.args[0], number), *error.args[1:]
        if isinstance(error, ImageError) and error.where:
            error.where = self.parts.renumbered(error.where, number)
        if n_parts > 1:
            failed = sorted(self.failures)
            error.add_note(
                f"Parts {failed} of {n_parts} failed, {number} on {outcome.where}."
            )
            if self.checkpoint.folder is not None:
                error.add_note(
                    f"The other parts are in {str(self.checkpoint.folder)!r}, for the "
                    "next call."
                )
        raise error from WorkerTraceback(outcome.trace)

    def _pass_on_warnings(self) -> None:
        """Repeat warnings of the workers that are true of the whole, too.

        These are the ones that name an image; any is, if there is a single part.
        """
        for number, category, text in self.messages:
            if len(self.parts) == 1 or "X[" in text:
                text = self.parts.renumbered(text, number)
                warn_user(text, category)


def _close(results: Any) -> None:
    """Cancel what still runs, about which joblib would warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results.close()


def _is_settled(step: Any) -> bool:
    """Whether a step of a pipeline stays as it is."""
    return step is None or step == "passthrough" or isinstance(step, FrozenEstimator)

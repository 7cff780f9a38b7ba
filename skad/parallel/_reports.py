"""What is said of a job on many workers: errors and warnings of its parts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from skad._user_warning import warn_user
from skad.features import SkippedImageWarning
from skad.images import ImageError
from skad.parallel._parts import Parts
from skad.parallel._worker import Outcome, WorkerTraceback


class Reports:
    """Errors and warnings of parts, in terms of all images.

    Parameters
    ----------
    parts : Parts
        Tells the places of images in X.
    folder : Path or None
        Where the parts that are done are kept.

    Attributes
    ----------
    failures : dict of Outcome
        Of the parts that failed, by their numbers.
    messages : list of (int, type, str)
        Part, category and text of each warning.
    """

    def __init__(self, parts: Parts, folder: Path | None) -> None:
        self.parts, self.folder = parts, folder
        self.failures: dict[int, Outcome] = {}
        self.messages: list[tuple[int, type[Warning], str]] = []

    def check(self, outcome: Outcome) -> None:
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

    def raise_failures(self) -> None:
        """Raise the error of the first part that failed, if there is one."""
        if not self.failures:
            return
        number = min(self.failures)
        outcome, n_parts = self.failures[number], len(self.parts)
        error: Any = outcome.error
        _name_skipped(error, outcome)
        if error.args and isinstance(error.args[0], str):
            error.args = self.parts.renumbered(error.args[0], number), *error.args[1:]
        if isinstance(error, ImageError) and error.where:
            error.where = self.parts.renumbered(error.where, number)
        if n_parts > 1:
            failed = sorted(self.failures)
            error.add_note(
                f"Parts {failed} of {n_parts} failed, {number} on {outcome.where}."
            )
            if self.folder is not None:
                error.add_note(
                    f"The other parts are in {str(self.folder)!r}, for the next call."
                )
        raise error from WorkerTraceback(outcome.trace)

    def pass_on_warnings(self) -> None:
        """Repeat warnings of the workers that are true of the whole, too.

        These are the ones that name an image; any is, if there is a single part.
        """
        for number, category, text in self.messages:
            if len(self.parts) == 1 or "X[" in text:
                text = self.parts.renumbered(text, number)
                warn_user(text, category)


def _name_skipped(error: Any, outcome: Outcome) -> None:
    """Add to an error which images of its part were skipped, and why."""
    skipped = [
        text
        for category, text in outcome.messages
        if issubclass(category, SkippedImageWarning)
    ]
    if not skipped or not error.args or isinstance(error, ImageError):
        return
    advice = "Take bad files out of X, or use a larger part_size."
    text = str(error.args[0]).removesuffix(advice).strip()
    error.args = f"{text} Of a part, {skipped[0]} {advice}", *error.args[1:]

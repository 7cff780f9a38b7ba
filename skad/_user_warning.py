"""Warnings that point at the line of the user, however deep they come from."""

import sys
import warnings
from types import FrameType

_INNER_PACKAGES = ("skad", "sklearn", "joblib", "contextlib")


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """Warn on behalf of the first caller outside of skad and scikit-learn.

    Methods reach each other through base classes and pipelines, so that no fixed
    number of frames leads to the caller.
    """
    level = 2
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _package(frame) in _INNER_PACKAGES:
        frame, level = frame.f_back, level + 1
    warnings.warn(message, category, stacklevel=level)


def _package(frame: FrameType) -> str:
    return frame.f_globals.get("__name__", "").partition(".")[0]

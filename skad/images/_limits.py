"""The largest image that is read: Pillow's limit, which processes do not share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from PIL import Image

# What Pillow starts with: a quarter of a gigabyte at three bytes per pixel.
PILLOW_LIMIT = 1024 * 1024 * 1024 // 4 // 3

_carried: ContextVar[int | None] = ContextVar("skad_pixel_limit", default=PILLOW_LIMIT)


def pixel_limit() -> int | None:
    """Largest number of pixels of an image that is read here; None is no limit.

    ``PIL.Image.MAX_IMAGE_PIXELS`` counts where this process has set it. Where it is
    what Pillow starts with, the limit that came with the estimator counts.
    """
    own = Image.MAX_IMAGE_PIXELS
    return _carried.get() if own == PILLOW_LIMIT else own


@contextmanager
def carried_limit(limit: int | None) -> Iterator[None]:
    """Let this limit be the one that came with the estimator."""
    token = _carried.set(limit)
    try:
        yield
    finally:
        _carried.reset(token)


class CarriesPixelLimit:
    """Mixin of estimators that read images: takes Pillow's limit to other processes.

    A worker process of joblib, or the one that loads a model, starts with Pillow's own
    limit, not with the one that the user has set where the estimator comes from.
    """

    _pixel_limit: int | None = PILLOW_LIMIT

    def _limited(self) -> Any:
        """Context in which images are read for this estimator."""
        return carried_limit(self._pixel_limit)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())  # type: ignore[call-overload]
        state.pop("_pixel_limit", None)
        with self._limited():
            limit = pixel_limit()
        return state if limit == PILLOW_LIMIT else {**state, "_pixel_limit": limit}

    def __sklearn_clone__(self) -> Any:
        copy = super().__sklearn_clone__()  # type: ignore[misc]
        if "_pixel_limit" in vars(self):
            copy._pixel_limit = self._pixel_limit
        return copy

"""The one error that reading an image or a mask raises."""

from __future__ import annotations

from typing import NamedTuple


class ImageError(ValueError):
    """An image or mask that cannot be used, and why.

    Parameters
    ----------
    message : str
        Names the place, the file if there is one, the reason and what to do.
    where : str, optional
        Place of the item in the argument, such as ``"X[3]"``.
    path : str, optional
        File of the item; None when it came from memory.

    Attributes
    ----------
    where, path
        As given.

    Examples
    --------
    >>> from skad.images import ImageError, read_image
    >>> try:
    ...     read_image("missing.png", where="X[3]")
    ... except ImageError as error:
    ...     print(error.where, error.path)
    X[3] missing.png
    """

    def __init__(
        self, message: str, *, where: str | None = None, path: str | None = None
    ) -> None:
        super().__init__(message)
        self.where = where
        self.path = path


class Source(NamedTuple):
    """Where an item came from, carried along so that errors can name it."""

    where: str
    path: str | None = None

    def error(self, problem: str, hint: str) -> ImageError:
        """Build the error for this item; the caller raises it."""
        name = self.where if self.path is None else f"{self.where} ({self.path!r})"
        return ImageError(
            f"{name}: {problem}; {hint}.", where=self.where, path=self.path
        )

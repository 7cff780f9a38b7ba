"""Patch features that carry a descriptor of each image."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


class PatchArray(np.ndarray):
    """Patch features with one descriptor per image beside them.

    A NumPy array in every respect. Selecting images, as cross-validation does, selects
    their descriptors too, and a pickle holds both; whatever else is done to it
    gives an array without descriptors. Feature transformers return one where a
    descriptor of the whole image travels along, as ``PatchFeatures(pooled=True)``
    does for `SPADEDetector`.

    Parameters
    ----------
    patches : array-like of shape (n, h, w, d)
        Features of n images on a grid of h x w patches with d channels. The memory is
        shared.

    pooled : ndarray of shape (n, p)
        Descriptor of each image.

    levels : tuple of (int, (int, int)), default=()
        For every feature map of the network that the channels come from, in their
        order: the number of channels, and rows and columns of its own grid.
        Where that is coarser than (h, w), cells are repeated.

    Attributes
    ----------
    pooled : ndarray of shape (n, p) or None
        As given; None of what is no selection of images.

    levels : tuple of (int, (int, int))
        As given; empty of what is no selection of images.

    See Also
    --------
    PatchFeatures : Its parameter `pooled` says which descriptor travels along.

    Examples
    --------
    >>> import numpy as np
    >>> from skad.features import PatchArray
    >>> X = PatchArray(np.zeros((5, 2, 2, 3)), pooled=np.arange(10).reshape(5, 2))
    >>> X[[0, 3]].pooled
    array([[0, 1],
           [6, 7]])
    >>> (X + 1).pooled is None
    True
    """

    def __new__(
        cls, patches: ArrayLike, pooled: NDArray[Any] | None, levels: tuple = ()
    ) -> PatchArray:
        array = np.asarray(patches).view(cls)
        array.pooled, array.levels = pooled, levels
        return array

    def __array_finalize__(self, source: Any) -> None:
        self.pooled: NDArray[Any] | None = None
        self.levels: tuple = ()

    def __getitem__(self, key: Any) -> Any:
        part = super().__getitem__(key)
        if not isinstance(part, np.ndarray):
            return part
        first, *others = key if isinstance(key, tuple) else (key,)
        whole = all(
            other is Ellipsis or (isinstance(other, slice) and other == slice(None))
            for other in others
        )
        if self.pooled is None or part.ndim != self.ndim or not whole:
            return np.asarray(part)
        return PatchArray(part, self.pooled[first], self.levels)

    def __reduce__(self) -> Any:
        if self.pooled is None:
            return np.asarray(self).__reduce__()
        return PatchArray, (np.asarray(self), self.pooled, self.levels)

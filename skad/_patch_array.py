"""Patch features that carry a descriptor of each image."""

import numpy as np


class PatchArray(np.ndarray):
    """Patch features (n, h, w, d) with one descriptor per image beside them.

    An array in every respect. Selecting images, as cross-validation does, selects
    their descriptors too, and a pickle holds both; whatever else is done to it
    gives an array without descriptors.

    Parameters
    ----------
    patches : array-like of shape (n, h, w, d)

    pooled : ndarray of shape (n, p)
        Descriptor of each image.

    levels : tuple of (int, (int, int)), default=()
        For every level of the network that the channels come from, in their
        order: the number of channels, and rows and columns of its own grid.
        Where that is coarser than (h, w), cells are repeated.

    Examples
    --------
    >>> import numpy as np
    >>> from skad._patch_array import PatchArray
    >>> X = PatchArray(np.zeros((5, 2, 2, 3)), pooled=np.arange(10).reshape(5, 2))
    >>> X[[0, 3]].pooled
    array([[0, 1],
           [6, 7]])
    >>> (X + 1).pooled is None
    True
    """

    def __new__(cls, patches, pooled, levels=()):
        array = np.asarray(patches).view(cls)
        array.pooled, array.levels = pooled, levels
        return array

    def __array_finalize__(self, source):
        self.pooled: np.ndarray | None = None
        self.levels: tuple = ()

    def __getitem__(self, key):
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

    def __reduce__(self):
        if self.pooled is None:
            return np.asarray(self).__reduce__()
        return PatchArray, (np.asarray(self), self.pooled, self.levels)

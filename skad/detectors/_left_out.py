"""Memory banks that leave out one image each, without selecting a coreset again.

A coreset covers the training patches: each lies within a radius R, the covering radius,
of some row of the bank. If only the rows of one image are taken out, patches of other
images that these rows covered are farther than R from the bank, while a coreset of the
other images would cover them. The image then resembles patches that the bank lacks, and
its score is too high. So such patches are put into the bank, farthest first as in the
selection of a coreset, until all patches of other images are within R again.
"""

from typing import Any

import numpy as np

from skad._matrices import join_own_group, nearest_of_own_group
from skad._progress import progress


class LeftOutBank:
    """Search a bank for rows that are not from the image of the query.

    Parameters
    ----------
    bank : Bank
        The rows of the coreset.

    owner : ndarray of shape (m,), int
        Image that each row of the bank is from; negative for images of earlier calls.

    rows : ndarray of shape (n, d)
        Patches of the images, from which those of the bank were selected.

    images : ndarray of shape (n,), int
        Image of each patch.

    k : int
        Number of nearest rows to search for.

    nearest : callable
        ``nearest(queries, k, groups, report)``, as ``bank.search``: the search that
        scores new images, which may be approximate.

    verbose : bool, default=False
        Whether to show the progress of that search.

    Attributes
    ----------
    rows : ndarray of shape (m + s, d)
        Those of the bank, then those that are put into it for one image each.

    found : (ndarray of shape (n, k), ndarray of shape (n, k))
        Squared distances of each patch to its nearest rows, and their indices.
    """

    def __init__(
        self,
        bank: Any,
        owner: np.ndarray,
        rows: np.ndarray,
        images: np.ndarray,
        k: int,
        nearest: Any,
        verbose: bool = False,
    ) -> None:
        self._bank, self._owner = bank, owner
        with progress(len(rows), "patches left out", verbose, unit="patch") as bar:
            squared, indices = nearest(rows, k, (images, owner), bar.update)
        returned = self._returned_rows(rows, images, squared[:, 0], indices[:, 0])
        self.rows = np.concatenate([bank.rows, *(rows[r] for r in returned.values())])
        ends = len(bank.rows) + np.cumsum([len(r) for r in returned.values()])
        self._places = {
            image: np.arange(end - len(r), end)
            for (image, r), end in zip(returned.items(), ends, strict=True)
        }
        self.found = self._among_returned(rows, images, squared, indices)

    def search(
        self, queries: np.ndarray, images: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Squared distances and indices of the k nearest rows, as of `Bank`."""
        found = self._bank.search(queries, k, groups=(images, self._owner))
        return self._among_returned(queries, images, *found)

    def _returned_rows(
        self, rows: np.ndarray, images: np.ndarray, squared: np.ndarray, nearest: Any
    ) -> dict[int, np.ndarray]:
        """By image, the patches of others to put into the bank without it.

        `squared` and `nearest` are squared distance and index of the nearest row of the
        bank that is from another image than the patch.
        """
        own = nearest_of_own_group(rows, images, self._bank.rows, self._owner)
        radius = np.minimum(squared, own).max()  # the square of R
        # Patches that no row of their own image covers, but one of another image.
        coverer = self._owner[nearest]
        patches = np.flatnonzero((own > radius) & (coverer >= 0))
        coverer = coverer[patches]
        if len(patches) == 0:
            return {}
        # Those that no row covers once that image is taken out.
        left, _ = self._bank.search(rows[patches], 1, groups=(coverer, self._owner))
        far = left[:, 0] > radius
        patches, coverer, left = patches[far], coverer[far], left[far, 0]
        returned = {}
        for image in np.unique(coverer):
            of_image = coverer == image
            some = patches[of_image]
            returned[image] = some[cover(rows[some], left[of_image], radius)]
        return returned

    def _among_returned(
        self,
        queries: np.ndarray,
        images: np.ndarray,
        squared: np.ndarray,
        indices: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """The k nearest of those found and of those put into the bank."""
        join_own_group(squared, indices, queries, images, self.rows, self._places)
        return squared, indices


def cover(rows: np.ndarray, squared: np.ndarray, radius: float) -> list[int]:
    """Indices of the rows to select, farthest first, until all are within a radius.

    `squared` holds their squared distances to the nearest row that there is already;
    `radius` is squared, too.
    """
    rows, squared = rows.astype(np.float64), squared.copy()
    selected = []
    while squared.max() > radius:
        selected.append(int(squared.argmax()))
        gaps = rows - rows[selected[-1]]
        squared = np.minimum(squared, np.einsum("ij,ij->i", gaps, gaps))
    return selected


def n_rows_of_one_image(owner: np.ndarray) -> int:
    """Largest number of bank rows that are from one image, without negative owners."""
    owner = owner[owner >= 0]
    return np.bincount(owner).max() if len(owner) else 0

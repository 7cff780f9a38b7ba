"""A memory bank as it would be without one image, for all images at once.

A row of a coreset stands for the rows around it. Take an image's rows out of the
bank and nothing else, and rows of other images that they stood for are left
uncovered: whatever resembles them is then farther from the bank than from one that
never saw the image, and the image scores too high. So such rows come back into the
bank, farthest first, until all are covered as closely as the coreset covers all.
"""

import numpy as np

from skad._progress import progress
from skad.neighbors._distances import join_own_group, nearest_of_own_group


class LeftOutBank:
    """Search a bank for rows that do not stem from the image of the query.

    Parameters
    ----------
    bank : Bank

    owner : ndarray of shape (m,)
        Image of each row of the bank; negative for one of none of the images.

    rows : ndarray of shape (n, d)
        Rows of the images, from which those of the bank were selected.

    images : ndarray of shape (n,)
        Their images.

    k : int
        Number of neighbours of each row.

    nearest : callable
        ``nearest(queries, k, groups, report)`` as of ``bank.search``, by which `found`
        is searched for: the search that scores new images, where that is approximate.

    verbose : bool, default=False
        Whether to show the progress of that search.

    Attributes
    ----------
    rows : ndarray of shape (m + s, d)
        Those of the bank, then those that come back.

    found : (ndarray of shape (n, k), ndarray of shape (n, k))
        Squared distances and indices for the rows of the images.
    """

    def __init__(self, bank, owner, rows, images, k, nearest, verbose=False):
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

    def search(self, queries, images, k):
        """Squared distances and indices of the k nearest rows, as of `Bank`."""
        found = self._bank.search(queries, k, groups=(images, self._owner))
        return self._among_returned(queries, images, *found)

    def _returned_rows(self, rows, images, squared, nearest):
        """For each image, the rows of others that come back without it."""
        own = nearest_of_own_group(rows, images, self._bank.rows, self._owner)
        radius = np.minimum(squared, own).max()
        holder = self._owner[nearest]
        lost = np.flatnonzero((own > radius) & (holder >= 0))
        holder = holder[lost]
        if len(lost) == 0:
            return {}
        left, _ = self._bank.search(rows[lost], 1, groups=(holder, self._owner))
        far = left[:, 0] > radius
        lost, holder, left = lost[far], holder[far], left[far, 0]
        returned = {}
        for image in np.unique(holder):
            of_image = holder == image
            some = lost[of_image]
            returned[image] = some[_cover(rows[some], left[of_image], radius)]
        return returned

    def _among_returned(self, queries, images, squared, indices):
        """The k nearest of those found and of those that came back."""
        join_own_group(squared, indices, queries, images, self.rows, self._places)
        return squared, indices


def _cover(rows, squared, radius):
    """Rows to select, farthest first, until all are within a squared radius.

    `squared` holds their squared distances to what they are covered by as it is.
    """
    rows, squared = rows.astype(np.float64), squared.copy()
    picked = []
    while squared.max() > radius:
        picked.append(int(squared.argmax()))
        gaps = rows - rows[picked[-1]]
        squared = np.minimum(squared, np.einsum("ij,ij->i", gaps, gaps))
    return picked

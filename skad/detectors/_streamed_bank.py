"""A coreset, and held-out scores from it, of patches that arrive block by block.

A bank of m rows is filled up to 2 m rows, then reduced to m by the greedy selection.
The rows of the reduced bank are at least a distance r apart. Patches that are within
r of a row that the bank holds are left out when they arrive: the selection would hardly
take them. As the bank comes to cover all that is normal, fewer and fewer patches are
beyond r, and reductions become rare.

Rows that a reduction drops are within its r of a row that it keeps, which a later
reduction may drop. The covering radius can thus exceed that of one selection from all
patches. It stays close, as r grows little once the first images have been seen.

Held-out scores come from a second pass over the patches, as `_left_out` describes it:
each image is scored against the bank without its own rows, with patches of other images
in their place that no other row covers within r. As a bank of other images would have m
rows, too, these are at most as many as were taken out, farthest first. (Patches that no
row of the bank covers within r, of which a selection of all patches leaves none, have
no part in this.) All that is known of all images only at the end of the pass. By then
the patches of an image are gone, except for its worst ones, which are corrected.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from skad._matrices import (
    join_own_group,
    nearest_of_own_group,
    squared_distances,
)
from skad.detectors._left_out import cover, n_rows_of_one_image
from skad.detectors._rows_of_images import RowsOfImages
from skad.neighbors import greedy_coreset
from skad.neighbors._coreset import far_apart
from skad.neighbors._nearest import Bank

_PART_ROWS = 2048  # of the rows added since a reduction that are searched at once
# Patches of an image that are kept to be corrected, and patches of others that are put
# into the bank without it, for each row that the bank holds of the image.
PER_OWN_ROW = 4


class GrowingBank:
    """Coreset of patches that arrive block by block.

    Parameters
    ----------
    bank_size : int
        Rows that a reduction leaves; twice as many are held at most.

    n_features, dtype : int, dtype
        Of the patches.

    space : callable
        Gives rows in the space in which distances are taken.

    start : int
        Row of a full bank that the first selection starts from. Later ones start from
        the first row of the bank.

    **options
        As in `greedy_coreset`.
    """

    def __init__(
        self,
        bank_size: int,
        n_features: int,
        dtype: DTypeLike,
        space: Callable[[np.ndarray], np.ndarray],
        start: int = 0,
        **options: Any,
    ) -> None:
        self._bank_size, self._space, self._options = bank_size, space, options
        self._rows = np.empty((2 * bank_size, n_features), dtype)
        self._indices = np.empty(2 * bank_size, np.intp)
        self._n_rows, self._start = 0, start
        self._reduced: Bank | None = None

    def add(self, rows: np.ndarray, indices: np.ndarray) -> None:
        """Take in rows and the indices by which they are known."""
        while len(rows):
            if self._reduced is not None:
                far = self._far(self._space(rows))
                rows, indices = rows[far], indices[far]
            end = min(self._n_rows + len(rows), len(self._rows))
            n_taken = end - self._n_rows
            self._rows[self._n_rows : end] = rows[:n_taken]
            self._indices[self._n_rows : end] = indices[:n_taken]
            self._n_rows = end
            rows, indices = rows[n_taken:], indices[n_taken:]
            if end == len(self._rows):
                self._reduce(self._bank_size)

    def _far(self, rows: np.ndarray) -> np.ndarray:
        """Indices of rows that no row of the bank covers, and none of these."""
        assert self._reduced is not None
        added = self._space(self._rows[len(self._reduced.rows) : self._n_rows])
        # Banks of few sizes: what is compiled for a search is kept for each size.
        starts = range(0, len(added) - _PART_ROWS + 1, _PART_ROWS)
        parts = [added[lo : lo + _PART_ROWS] for lo in starts]
        far = np.arange(len(rows))
        for bank in (self._reduced, *map(Bank, parts)):
            nearest = bank.search(rows[far], 1)[0][:, 0]
            far = far[nearest > self._gap]
        rest = added[len(parts) * _PART_ROWS :]
        return far[far_apart(rows[far], self._gap, rest)]

    def finish(self, n_rows: int) -> tuple[np.ndarray, np.ndarray]:
        """Rows (n_rows, d) of the coreset, or fewer, and their indices."""
        if self._reduced is None or self._n_rows > len(self._reduced.rows):
            self._reduce(min(n_rows, self._n_rows))
        n = min(n_rows, self._n_rows)  # the first n are the coreset of n rows
        return self._rows[:n].copy(), self._indices[:n].copy()

    def _reduce(self, n_rows: int) -> None:
        rows = self._space(self._rows[: self._n_rows])
        selected = greedy_coreset(rows, n_rows, start=self._start, **self._options)
        n = self._n_rows = len(selected)
        self._rows[:n] = self._rows[selected]
        self._indices[:n] = self._indices[selected]
        self._start = 0
        self._reduced = Bank(self._space(self._rows[:n].copy()))
        # Where the selection stopped early, the others equal a row of the bank.
        self._gap = smallest_gap(self._reduced.rows) if n == n_rows else 0.0


def smallest_gap(rows: np.ndarray) -> float:
    """Squared distance of the last row selected to the others, the smallest of all.

    After a random projection, by which distances change a little, it is about that.
    """
    if len(rows) < 2:
        return np.inf
    return squared_distances(rows[-1:], rows[:-1]).min()


class StreamedLeftOut:
    """Search a bank for rows of other images, for images that arrive block by block.

    Parameters
    ----------
    bank : Bank
        The rows of the coreset, in the order of selection.

    owner : ndarray of shape (m,), int
        Number of the image that each row is from; negative for images of earlier calls.

    k : int
        Number of nearest rows to search for, or as many as are left without an image.

    nearest : callable
        As of `LeftOutBank`.

    Attributes
    ----------
    rows : ndarray of shape (m + s, d)
        After `finish`, the rows of the bank, then those put into it for one image each.
    """

    def __init__(self, bank: Bank, owner: np.ndarray, k: int, nearest: Any) -> None:
        self._bank, self._owner, self._nearest = bank, owner, nearest
        self._n_left = max(1, len(owner) - n_rows_of_one_image(owner))
        self._k = min(k, self._n_left)
        # The square of r.
        self._radius = smallest_gap(bank.rows)
        images, counts = np.unique(owner[owner >= 0], return_counts=True)
        self._n_own = dict(zip(images.tolist(), counts.tolist(), strict=True))
        self._returned = RowsOfImages(
            {image: PER_OWN_ROW * n for image, n in self._n_own.items()},
            rows=(bank.rows.shape[1:], bank.rows.dtype),
            squared=((), np.float64),
        )
        # The last one of an image bounds those that are not kept.
        self._kept = RowsOfImages(
            {image: PER_OWN_ROW * n + 1 for image, n in self._n_own.items()},
            rows=(bank.rows.shape[1:], bank.rows.dtype),
            squared=((self._k,), np.float64),
            indices=((self._k,), np.intp),
            order=((), np.intp),
        )

    def __getstate__(self) -> dict[str, Any]:
        """What `join` takes: bank and search stay where they are."""
        return {
            "_returned": self._returned.compact(),
            "_kept": self._kept.compact(),
        }

    def join(self, other: "StreamedLeftOut") -> None:
        """Take in what another one, of the same bank, found for other images."""
        for image in other._returned:
            for row, distance in zip(*other._returned[image], strict=True):
                if self._is_wanted(image, row):
                    self._returned.add(image, row[None], [distance])
        for image in other._kept:
            self._kept.add(image, *other._kept[image])

    def add(
        self, rows: np.ndarray, images: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Squared distances (n, k) of patches of some images, and indices of the rows.

        These are of the bank without the own rows of each image, and nothing in their
        place. `images` (n,) holds the number of the image of each patch.
        """
        squared, indices = self._nearest(rows, self._k, (images, self._owner))
        here = np.isin(self._owner, images)
        own = nearest_of_own_group(
            rows, images, self._bank.rows[here], self._owner[here]
        )
        self._return_rows(rows, squared[:, 0], indices[:, 0], own)
        for image in np.unique(images).tolist():
            if image in self._n_own:
                self._keep_worst(
                    image, np.flatnonzero(images == image), rows, squared, indices
                )
        return squared, indices

    def _keep_worst(
        self,
        image: int,
        members: np.ndarray,
        rows: np.ndarray,
        squared: np.ndarray,
        indices: np.ndarray,
    ) -> None:
        """Keep the patches of an image whose distances can be corrected at the end."""
        n_kept = PER_OWN_ROW * self._n_own[image] + 1
        order = np.argsort(-squared[members].sum(axis=1), kind="stable")[:n_kept]
        worst = members[order]
        self._kept.add(image, rows[worst], squared[worst], indices[worst], order)

    def worst_of(self, image: int) -> np.ndarray | None:
        """Which patches of an image can be corrected; None where none needs to be."""
        return self._kept[image][3] if image in self._kept else None

    def _return_rows(
        self,
        rows: np.ndarray,
        squared: np.ndarray,
        nearest: np.ndarray,
        own: np.ndarray,
    ) -> None:
        """Find patches that only rows of one other image cover, and return these to it.

        Not those that are within the radius of a patch returned before.
        """
        coverer = self._owner[nearest]
        patches = np.flatnonzero(
            (own > self._radius) & (squared <= self._radius) & (coverer >= 0)
        )
        patches = patches[
            [self._is_wanted(int(coverer[i]), rows[i]) for i in patches]
        ].astype(np.intp)
        if len(patches) == 0:
            return
        groups = coverer[patches], self._owner
        left = self._bank.search(rows[patches], 1, groups=groups)[0][:, 0]
        for i, distance in zip(patches, left, strict=True):
            image = int(coverer[i])
            if distance > self._radius and self._is_wanted(image, rows[i]):
                self._returned.add(image, rows[i][None], [distance])

    def _is_wanted(self, image: int, row: np.ndarray) -> bool:
        if image not in self._returned:
            return True
        if self._returned.is_full(image):
            return False
        gaps = self._returned[image][0].astype(np.float64) - row
        return np.einsum("ij,ij->i", gaps, gaps).min() > self._radius

    def finish(self) -> Iterator[tuple]:
        """Yield what is corrected, image by image.

        Yields
        ------
        image : int
        order : ndarray of shape (p,)
            Which of its patches are kept.
        rows : ndarray of shape (p, d)
            These patches.
        squared, indices : ndarray of shape (p, k)
            Their squared distances to the nearest rows, and indices in `rows` of the
            bank.
        """
        returned = {}
        for image in self._returned:
            rows, far = self._returned[image]
            selected = cover(rows, far, self._radius)[: self._n_own[image]]
            if selected:
                returned[image] = rows[selected]
        parts = list(returned.values())
        self.rows = np.concatenate([self._bank.rows, *parts])
        ends = len(self._bank.rows) + np.cumsum([len(part) for part in parts])
        self._places = {
            image: np.arange(end - len(part), end)
            for image, part, end in zip(returned, parts, ends, strict=True)
        }
        for image in returned:
            if image not in self._kept:  # it could not be read again
                continue
            rows, squared, indices, order = self._kept[image]
            # The last one bounds the patches that are not kept, and stays as it is.
            n = min(len(order), PER_OWN_ROW * self._n_own[image])
            join_own_group(
                squared[:n],
                indices[:n],
                rows[:n],
                np.full(n, image),
                self.rows,
                {image: self._places[image]},
            )
            yield image, order, rows, squared, indices

    def search(
        self, queries: np.ndarray, images: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Squared distances and indices of the k nearest rows, as of `Bank`."""
        k = min(k, self._n_left)
        return self._bank.search(queries, k, groups=(images, self._owner))

    def search_corrected(
        self, queries: np.ndarray, images: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The same, also among the rows put into the bank; after `finish`."""
        squared, indices = self.search(queries, images, k)
        join_own_group(squared, indices, queries, images, self.rows, self._places)
        return squared, indices

"""Fits of PatchCore that see the images batch by batch, and never hold all features."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils.metaestimators import available_if

from skad._patches import image_scores, patch_rows
from skad.base._warnings import are_equal_to, warn_of_equal_images, warn_of_outlier
from skad.detectors._bank_scores import BankDetector
from skad.detectors._left_out import n_rows_of_one_image
from skad.detectors._streamed_bank import GrowingBank, StreamedLeftOut
from skad.networks._torch_state import in_own_torch_state

Batch = tuple[np.ndarray, np.ndarray]  # positions in X, and features (n, h, w, d)


class StreamingBankDetector(BankDetector):
    """Base of `PatchCoreDetector`: with `bank_size`, it learns batch by batch."""

    on_interrupt: str
    verbose: bool

    @available_if(lambda detector: detector.bank_size is not None)
    @in_own_torch_state  # a network may extract the batches
    def _fit_batches(self, batches: Iterable[Batch], update: bool = False) -> Self:
        """Fit, or update, on batches of positions in X and features.

        The batches can be iterated over twice.
        """
        self._validate_params()
        held, rest = self._batches_that_fit(batches, reset=not update)
        if update:
            self._check_grid(held[0][1].shape[1:3])
        if rest is None:  # these are all
            samples, positions = _joined(held)
            if not update:
                self.n_samples_seen_ = 0
            self._learn(samples, positions, first=not update)
            return self
        grid = held[0][1].shape[1:3]
        positions, sample = self._stream(held, rest, update)
        n_before, n = self.n_samples_seen_ if update else 0, len(positions)
        self.n_samples_seen_ = n_before + n
        if not update:
            self._take_threshold_parameters()
            if sample is not None:
                warn_of_equal_images(self, np.broadcast_to(sample, (n, *sample.shape)))
        if self.n_samples_seen_ == 1:
            scores, maps = self._score_left_out(_joined(list(batches))[0])
        else:
            scores, maps = self._left_out_batches(batches, positions, grid)
        if update:
            self._add_held_out(scores, maps, self.n_samples_seen_)
        else:
            self._replace_held_out(scores, maps)
        known = np.isfinite(scores)
        warn_of_outlier(self, scores[known], positions[known])
        return self

    def _present_batches(
        self, batches: Iterable[Batch], reset: bool
    ) -> Iterator[Batch]:
        """Yield positions and checked features of the images that are present."""
        for positions, X in batches:
            X, present = self._check_features(X, reset=reset)
            if present.any():
                yield (
                    positions if present.all() else positions[present],
                    np.asarray(X if present.all() else X[present]),
                )

    def _batches_that_fit(
        self, batches: Iterable[Batch], reset: bool
    ) -> tuple[list[Batch], Iterator[Batch] | None]:
        """The first batches, of more than twice `bank_size` rows, and the others.

        None in place of the others where all batches together have no more rows.
        """
        held: list[Batch] = []
        n_rows, room = 0, 2 * (self.bank_size or 0)
        batches = self._present_batches(batches, reset)
        for positions, X in batches:
            held.append((positions, X))
            n_rows += int((~np.isnan(X[..., 0])).sum())
            if n_rows > room:
                return held, batches
        if not held:
            raise ValueError("no normal image is left: all of them were skipped.")
        return held, None

    def _stream(
        self, held: list[Batch], rest: Iterable[Batch], update: bool
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Select the bank; positions of the images, and one if all are the same."""
        first = held[0][1]
        n_patches, dtype = first.shape[1] * first.shape[2], first.dtype
        bank_size: Any = self.bank_size
        start = check_random_state(self.random_state).randint(2 * bank_size)
        bank = GrowingBank(
            bank_size,
            first.shape[3],
            dtype,
            self._space,
            0 if update else start,
            on_interrupt=self.on_interrupt,
            verbose=self.verbose,
        )
        n_images, n_before, n_rows = 0, 0, 0
        if update:
            n_images, n_before = self.n_samples_seen_, len(self.bank_)
            bank.add(self.bank_, self.coreset_indices_)
        sample, all_positions = first[0], []
        for positions, X in _taken_off(held, rest):
            rows, inside = patch_rows(X)
            bank.add(rows, n_images * n_patches + np.flatnonzero(inside))
            n_images += len(X)
            n_rows += len(rows)
            all_positions.append(positions)
            if sample is not None and not are_equal_to(sample, X):
                sample = None
        n_new = max(1, int(n_rows * self.coreset_ratio))
        self._set_bank(*bank.finish(min(bank_size, n_before + n_new)))
        return np.concatenate(all_positions), sample

    def _left_out_batches(
        self, batches: Iterable[Batch], positions: np.ndarray, grid: tuple[int, ...]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores (n,) and maps (n, h, w) of the images at these positions.

        Each is scored against the bank without it; NaN where it cannot be read again.
        """
        n, n_patches = len(positions), grid[0] * grid[1]
        number = {int(place): i for i, place in enumerate(positions)}
        scores = np.full(n, np.nan)
        maps = np.full((n, *grid), np.nan, np.float32)
        left_out, n_left = self._streamed_left_out(n, n_patches)
        for places, X in self._present_batches(batches, reset=False):
            # An image that could not be read the first time may be there now.
            numbers = np.array([number.get(int(place), -1) for place in places])
            X, numbers = X[numbers >= 0], numbers[numbers >= 0]
            if len(X) == 0:
                continue
            rows, inside = patch_rows(X)
            queries = self._space(rows)
            images = np.repeat(numbers, n_patches)[inside]
            search = self._left_search(left_out.search, images, n_left)
            squared, indices = left_out.add(queries, images)
            scores[numbers], maps[numbers] = self._scores(
                X, inside, queries, squared, indices, self._searched.rows, search
            )
        for image, order, *found in left_out.finish():
            scores[image] = self._corrected(image, maps, order, found, left_out, n_left)
        if np.isnan(scores).all():
            raise ValueError(
                "no image could be read a second time, for its held-out score: keep "
                "the files where they are until fit returns."
            )
        return scores, maps

    def _streamed_left_out(self, n: int, n_patches: int) -> tuple[StreamedLeftOut, int]:
        """Search without the own rows of each of the n images learned from last.

        Also the number of rows that it leaves at least.
        """
        owner = self.coreset_indices_ // n_patches - (self.n_samples_seen_ - n)
        n_left = max(1, len(self.bank_) - n_rows_of_one_image(owner))
        k = min(self.n_neighbors, n_left)
        return StreamedLeftOut(self._searched, owner, k, self._nearest), n_left

    @staticmethod
    def _left_search(
        search: Any, images: np.ndarray, n_left: int
    ) -> Callable[..., Any]:
        """``search(rows, worst, b)`` of `_scores`, by one of `StreamedLeftOut`."""
        return lambda rows, worst, b: search(rows, images[worst], min(b, n_left))[1]

    def _corrected(
        self,
        image: int,
        maps: np.ndarray,
        order: np.ndarray,
        found: Sequence[np.ndarray],
        left_out: StreamedLeftOut,
        n_left: int,
    ) -> float:
        """Score of an image after its worst patches have been corrected, in `maps`."""
        queries, squared, indices = found
        values = self._distance(squared).mean(axis=1)
        flat = maps[image].reshape(-1)
        flat[np.flatnonzero(~np.isnan(flat))[order]] = values
        if self.top_ratio is not None:
            return image_scores(maps[[image]], self.top_ratio)[0]
        worst = np.array([values.argmax()])
        images = np.full(len(queries), image)
        search = self._left_search(left_out.search_corrected, images, n_left)
        nearest_row = indices[worst, 0]
        weight = self._weights(queries, worst, nearest_row, left_out.rows, search)
        return values.max() * np.ravel(weight)[0]


def _joined(batches: Sequence[Batch]) -> Batch:
    """Features and positions of several batches as of one."""
    positions, features = zip(*batches, strict=True)
    return np.concatenate(features), np.concatenate(positions)


def _taken_off(held: list[Batch], rest: Iterable[Batch]) -> Iterator[Batch]:
    """Yield what a list holds, which is emptied on the way, and then the rest."""
    while held:
        yield held.pop(0)
    yield from rest

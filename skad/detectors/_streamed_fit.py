"""Fits of PatchCore that see the images batch by batch, and never hold all features."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Self

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils.metaestimators import available_if

from skad._memory import require_memory
from skad._patches import patch_rows
from skad.base._calibrated import first_ranked, map_ranks, max_maps
from skad.base._warnings import are_equal_to, warn_of_equal_images, warn_of_outlier
from skad.detectors._bank_scores import BankDetector
from skad.detectors._held_out_pass import HeldOutPass, no_held_out
from skad.detectors._streamed_bank import (
    PER_OWN_ROW,
    GrowingBank,
    StreamedLeftOut,
)
from skad.neighbors._coreset import selection_bytes
from skad.networks._torch_state import in_own_torch_state

Batch = tuple[np.ndarray, np.ndarray]  # positions in X, and features (n, h, w, d)


class StreamingBankDetector(BankDetector):
    """Base of `PatchCoreDetector`: with `bank_size`, it learns batch by batch."""

    on_interrupt: str
    verbose: bool
    projection_dim: int | None
    random_state: Any
    _holds_out_later = False  # whether held-out scores come after a merge of parts

    @available_if(lambda detector: detector.bank_size is not None)
    @in_own_torch_state  # a network may extract the batches
    def _fit_batches(self, batches: Iterable[Batch], update: bool = False) -> Self:
        """Fit, or update, on batches of positions in X and features.

        The batches can be iterated over twice.
        """
        self._validate_params()
        if update:
            self._check_views(1)
        else:
            self._n_per_image = 1
        held, rest = self._batches_that_fit(batches, reset=not update)
        if update:
            self._check_grid(held[0][1].shape[1:3])
        if rest is None:  # these are all
            samples, positions = _joined(held)
            if not update:
                self.n_samples_seen_ = 0
            self._learn(samples, positions, first=not update)
            return self
        first = held[0][1]
        grid = first.shape[1:3]
        n_maps = min(getattr(batches, "n_images", None) or len(first), max_maps(grid))
        self._require_memory_to_stream(first, n_maps)
        positions, sample = self._stream(held, rest, update)
        n_before, n = self.n_samples_seen_ if update else 0, len(positions)
        self.n_samples_seen_ = n_before + n
        if not update:
            self._take_threshold_parameters()
            if sample is not None:
                warn_of_equal_images(self, np.broadcast_to(sample, (n, *sample.shape)))
        rows = None
        if self._holds_out_later:
            scores, maps = no_held_out(grid)
        elif self.n_samples_seen_ == 1:
            scores, maps = self._score_left_out(_joined(list(batches))[0])
        else:
            n_old = len(self.calibration_scores_) if update else 0
            rows = first_ranked(map_ranks(n_old, n), max_maps(grid))
            scores, maps = self._left_out_batches(batches, positions, grid, rows)
        if update:
            self._add_held_out(scores, maps, self.n_samples_seen_, rows)
        else:
            self._replace_held_out(scores, maps, rows=rows)
        if self._holds_out_later:
            return self
        known = np.isfinite(scores)
        warn_of_outlier(self, scores[known], positions[known])
        return self

    def _require_memory_to_stream(self, X: np.ndarray, n_maps: float) -> None:
        """Raise if banks of rows like those of X, and maps, exceed all memory."""
        m: Any = self.bank_size
        row = float(X.shape[3] * X.itemsize)
        # Two banks are filled, one is reduced, and one is the result; the second pass
        # keeps patches of images for each row of the bank, and as many to return.
        n_bytes = (2 + 1 + 1 + 2 * PER_OWN_ROW) * m * row
        n_bytes += selection_bytes(2 * m, X.shape[3], X.itemsize, self.projection_dim)
        n_bytes += n_maps * math.prod(X.shape[1:3]) * 4.0
        name = f"{type(self).__name__} with bank_size={m}"
        require_memory(n_bytes, name, "Reduce bank_size or image_size of the features.")

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
            **self._selection_options(),
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
        self,
        batches: Iterable[Batch],
        positions: np.ndarray,
        grid: tuple[int, ...],
        map_images: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Scores (n,) of the images at these positions, and maps of some of them.

        Each is scored against the bank without it; NaN where it cannot be read again.
        """
        number = {int(place): i for i, place in enumerate(positions)}

        def numbered() -> Iterator[Batch]:
            for places, X in self._present_batches(batches, reset=False):
                # An image that could not be read the first time may be there now.
                numbers = np.array([number.get(int(place), -1) for place in places])
                yield numbers[numbers >= 0], X[numbers >= 0]

        n = len(positions)
        found = HeldOutPass.over(
            0, n, map_images, grid, self._streamed_left_out(n, grid)
        )
        self._add_to_pass(found, numbered())
        self._correct(found)
        if np.isnan(found.scores).all():
            raise ValueError(
                "no image could be read a second time, for its held-out score: keep "
                "the files where they are until fit returns."
            )
        return found.scores, found.maps

    def _add_to_pass(self, found: HeldOutPass, batches: Iterable[Batch]) -> None:
        """Score batches of numbers and images against the bank without their rows."""
        left_out = found.left_out
        for numbers, X in batches:
            if len(X) == 0:
                continue
            rows, inside = patch_rows(X)
            queries = self._space(rows)
            n_patches = X.shape[1] * X.shape[2]
            images = np.repeat(numbers, n_patches)[inside]
            squared, indices = left_out.add(queries, images)
            scores, maps = self._scores(
                X,
                inside,
                queries,
                squared,
                indices,
                self._searched.rows,
                self._left_search(left_out.search, images),
            )
            found.add(numbers, scores, maps, self.top_ratio)

    def _correct(self, found: HeldOutPass) -> None:
        """Correct scores and maps by the patches of others that replace own rows."""
        left_out = found.left_out
        for image, order, queries, squared, indices in left_out.finish():
            values = self._distance(squared).mean(axis=1)
            found.correct_map(image, order, values)
            if self.top_ratio is not None:
                score = found.top_score(image, values)
            else:
                worst = np.array([values.argmax()])
                images = np.full(len(queries), image)
                search = self._left_search(left_out.search_corrected, images)
                nearest_row = indices[worst, 0]
                weight = self._weights(
                    queries, worst, nearest_row, left_out.rows, search
                )
                score = values.max() * np.ravel(weight)[0]
            found.scores[image - found.first] = score

    # -- parts that were merged ------------------------------------------------------

    def _held_out_pass(
        self, batches: Iterable[Batch], first: int, n: int, n_all: int
    ) -> HeldOutPass:
        """Score n of the images that the merged bank is from, without their rows.

        These are the images from number `first` on, of `n_all`.
        """
        grid = self.calibration_maps_.shape[1:]
        maps_of = first_ranked(map_ranks(0, n_all), max_maps(grid))
        maps_of = maps_of[(maps_of >= first) & (maps_of < first + n)]
        left_out = self._streamed_left_out(n_all, grid)
        found = HeldOutPass.over(first, n, maps_of, grid, left_out)
        positions = []

        def numbered() -> Iterator[Batch]:
            n_seen = 0
            for places, X in self._present_batches(batches, reset=False):
                positions.append(places)
                numbers = first + n_seen + np.arange(len(X))
                n_seen += len(X)
                if n_seen <= n:
                    yield numbers, X
            if n_seen != n:
                raise ValueError(
                    f"{n} images of a part could be read the first time, and {n_seen} "
                    "the second time, for their held-out scores: keep the files as "
                    "they are until fit_parts returns."
                )

        self._add_to_pass(found, numbered())
        found.positions = np.concatenate(positions)
        return found

    def _set_held_out(self, passes: Iterable[HeldOutPass]) -> None:
        """Set thresholds from passes over all images, in their order."""
        grid, n = self.calibration_maps_.shape[1:], self.n_samples_seen_
        maps_of = first_ranked(map_ranks(0, n), max_maps(grid))
        left_out = self._streamed_left_out(n, grid)
        whole = HeldOutPass.over(0, n, maps_of, grid, left_out)
        positions = []
        for found in passes:
            whole.join(found)
            positions.append(found.positions)
        self._correct(whole)
        self._replace_held_out(whole.scores, whole.maps, rows=maps_of)
        warn_of_outlier(self, whole.scores, np.concatenate(positions))

    def _streamed_left_out(self, n: int, grid: tuple[int, ...]) -> StreamedLeftOut:
        """Search without the own rows of each of the n images learned from last."""
        owner = self.coreset_indices_ // math.prod(grid) - (self.n_samples_seen_ - n)
        return StreamedLeftOut(self._searched, owner, self.n_neighbors, self._nearest)

    @staticmethod
    def _left_search(search: Any, images: np.ndarray) -> Callable[..., np.ndarray]:
        """``search(rows, worst, b)`` of `_scores`, by one of `StreamedLeftOut`."""
        return lambda rows, worst, b: search(rows, images[worst], b)[1]


def _joined(batches: Sequence[Batch]) -> Batch:
    """Features and positions of several batches as of one."""
    positions, features = zip(*batches, strict=True)
    return np.concatenate(features), np.concatenate(positions)


def _taken_off(held: list[Batch], rest: Iterable[Batch]) -> Iterator[Batch]:
    """Yield what a list holds, which is emptied on the way, and then the rest."""
    while held:
        yield held.pop(0)
    yield from rest

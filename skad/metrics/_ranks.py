"""Ranks of defective scores: how many normal ones lie above each.

Every metric of this package is a sum over defective pixels that depends on a pixel only
through the number of normal scores above it, and at least as high as it. Normal scores
are many and defective ones few, so the normal scores are sorted by value, which needs
neither an index nor a second copy, and the few distinct defective scores are searched
in them. Counts add up over images: images are taken in chunks, in bounded memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from joblib import cpu_count
from numpy.typing import NDArray

from skad.metrics._inputs import Pair

_CHUNK = 2**18, 2**24  # fewest and most pixels sorted at once
_CHUNK_PER_LEVEL = 4  # more levels are searched in fewer, larger chunks
_SAMPLE_STEP = 8  # one pixel of 8 x 8 tells about where the highest scores begin
_SAMPLE_FROM = 2**12  # pixels of it from which looking for that pays


class Counts(NamedTuple):
    """Normal scores above, and at least as high as, each of some levels."""

    above: NDArray[np.int64]
    at_least: NDArray[np.int64]
    n_normal: int
    n_kept: int

    def __add__(self, other: Counts) -> Counts:  # type: ignore[override]
        return Counts(
            self.above + other.above,
            self.at_least + other.at_least,
            self.n_normal + other.n_normal,
            self.n_kept + other.n_kept,
        )


@dataclass(frozen=True)
class Ranks:
    """Where defective scores stand among normal ones.

    Attributes
    ----------
    levels : ndarray of shape (n_levels,)
        Distinct defective scores in ascending order.
    level_of : ndarray of shape (n_defective,)
        The level of each defective score.
    n_defective : ndarray of shape (n_levels,)
        How many defective scores each level has.
    above, at_least : ndarray of shape (n_levels,)
        How many normal scores are larger than the level, and not smaller.
    n_normal : int
        The number of normal scores.
    """

    levels: NDArray[Any]
    level_of: NDArray[np.intp]
    n_defective: NDArray[np.int64]
    above: NDArray[np.int64]
    at_least: NDArray[np.int64]
    n_normal: int

    @property
    def false_positive_rates(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Rates just above each level, and at it."""
        return self.above / self.n_normal, self.at_least / self.n_normal


class Levels(NamedTuple):
    """Distinct scores in ascending order, and how the scores map to them."""

    values: NDArray[Any]
    level_of: NDArray[np.intp]
    sizes: NDArray[np.int64]

    @classmethod
    def of(cls, scores: NDArray[Any]) -> Levels:
        return cls(*np.unique(scores, return_inverse=True, return_counts=True))

    def ranks(self, counts: Counts) -> Ranks:
        return Ranks(
            self.values,
            self.level_of,
            self.sizes,
            counts.above,
            counts.at_least,
            counts.n_normal,
        )


def no_counts(levels: NDArray[Any]) -> Counts:
    """Start a sum of counts.

    Parameters
    ----------
    levels : ndarray of shape (n_levels,)
        Distinct defective scores.

    Returns
    -------
    counts : Counts
        All zero.
    """
    zeros = np.zeros(levels.size, dtype=np.int64)
    return Counts(zeros, zeros, 0, 0)


def count_sorted(levels: NDArray[Any], scores: NDArray[Any], n_normal: int) -> Counts:
    """Count the scores above, and at least as high as, each level.

    Parameters
    ----------
    levels : ndarray of shape (n_levels,)
        Distinct defective scores in ascending order.
    scores : ndarray of shape (n_scores,)
        Normal scores in ascending order, possibly without the lowest ones, or with
        -inf in place of scores that do not count.
    n_normal : int
        The number of normal scores that these stand for.

    Returns
    -------
    counts : Counts
        The counts.
    """
    if scores.size == 0:
        return no_counts(levels)._replace(n_normal=n_normal)
    left = np.searchsorted(scores, levels, side="left")
    right = left.copy()
    # Exact ties are rare in real maps: search the right side only for those.
    tied = scores[np.minimum(left, scores.size - 1)] == levels
    right[tied] = np.searchsorted(scores, levels[tied], side="right")
    return Counts(scores.size - right, scores.size - left, n_normal, scores.size)


def _count(levels: NDArray[Any], scores: NDArray[Any], n_normal: int) -> Counts:
    scores.sort()
    return count_sorted(levels, scores, n_normal)


def chunks(pairs: Iterable[Pair], size: int) -> Iterator[tuple[NDArray[Any], int]]:
    """Gather the normal pixels of images in buffers of about one size.

    Parameters
    ----------
    pairs : iterable of Pair
        Images.
    size : int
        Number of pixels from which a buffer is full.

    Yields
    ------
    scores, n_normal : ndarray, int
        Scores in any order, with -inf for defective pixels, and the number of normal
        pixels among them. The array is used again for the next chunk.
    """
    buffer = np.empty(0)
    used, n_normal = 0, 0
    for array, mask in pairs:
        if used and used + array.size > size:
            yield buffer[:used], n_normal
            used, n_normal = 0, 0
        if buffer.size < used + array.size:
            grown = np.empty(max(size, used + array.size), dtype=array.dtype)
            grown[:used] = buffer[:used]
            buffer = grown
        part = buffer[used : used + array.size].reshape(array.shape)
        part[...] = array
        if mask is not None:
            foreground = mask if mask.ndim == 2 else mask.any(axis=0)
            np.putmask(part, foreground, -np.inf)
            n_normal -= int(np.count_nonzero(foreground))
        used, n_normal = used + array.size, n_normal + array.size
    if used:
        yield buffer[:used], n_normal


def count_normal(
    levels: NDArray[Any],
    pairs: Iterable[Pair],
    *,
    floor: float | None = None,
    chunk: int | None = None,
) -> Counts:
    """Count the normal pixels above each level, over all images.

    Parameters
    ----------
    levels : ndarray of shape (n_levels,)
        Distinct defective scores in ascending order.
    pairs : iterable of Pair
        Images.
    floor : float, optional
        Normal scores below it need not be counted.
    chunk : int, optional
        Pixels sorted at once.

    Returns
    -------
    counts : Counts
        `n_kept` is the number of normal scores that are not below the floor.
    """
    total = no_counts(levels)
    if levels.size and (floor is None or floor < levels[0]):
        floor = levels[0]
    if chunk is None:
        chunk = int(np.clip(_CHUNK_PER_LEVEL * levels.size, *_CHUNK))
    # Sorting, which takes the time, leaves the interpreter to a second thread.
    n_threads = min(2, cpu_count())
    waiting: deque[Future[Counts]] = deque()
    with ThreadPoolExecutor(n_threads) as pool:
        for scores, n_normal in chunks(pairs, chunk):
            kept = scores[scores >= floor] if levels.size else scores[:0].copy()
            waiting.append(pool.submit(_count, levels, kept, n_normal))
            if len(waiting) == n_threads:
                total = total + waiting.popleft().result()
        for counts in waiting:
            total = total + counts.result()
    return total


def floor_of_top(pairs: Sequence[Pair], fraction: float) -> float | None:
    """Guess a score that about a fraction of the pixels exceeds, and rather more.

    Parameters
    ----------
    pairs : sequence of Pair
        Images.
    fraction : float
        Fraction of the normal pixels, in (0, 1].

    Returns
    -------
    floor : float or None
        A guess from a sample, to be checked; None where it would not pay.
    """
    if fraction > 0.9:
        return None
    step = slice(None, None, _SAMPLE_STEP)
    sample = np.concatenate([pair.map[step, step].ravel() for pair in pairs])
    if sample.size < _SAMPLE_FROM:
        return None
    rank = int((1 - 1.05 * fraction) * (sample.size - 1))
    return float(np.partition(sample, rank)[rank])


def count_top(
    levels: NDArray[Any],
    pairs: Sequence[Pair],
    fraction: float,
    *,
    chunk: int | None = None,
) -> Counts:
    """Count as `count_normal`, exactly where at most a fraction is above a level.

    Parameters
    ----------
    levels : ndarray of shape (n_levels,)
        Distinct defective scores in ascending order.
    pairs : sequence of Pair
        Images.
    fraction : float
        Fraction of the normal pixels. Levels with more of them above get some count
        that is at least this fraction.
    chunk : int, optional
        Pixels sorted at once.

    Returns
    -------
    counts : Counts
        The counts.
    """
    floor = floor_of_top(pairs, fraction)
    counts = count_normal(levels, pairs, floor=floor, chunk=chunk)
    cut = floor is not None and floor > levels[0]
    if cut and counts.n_kept < fraction * counts.n_normal:  # the sample misled
        counts = count_normal(levels, pairs, chunk=chunk)
    return counts

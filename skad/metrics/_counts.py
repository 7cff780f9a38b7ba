"""False positives at every threshold: how many normal pixels score at least so high.

Every metric of pixels is a sum over defective pixels that depends on a pixel only
through the number of normal scores above its score, and at least as high. So the
distinct scores of defective pixels are all the thresholds that matter. Normal pixels
are many and defective ones few: the normal scores are sorted, which needs neither an
index nor a second copy, and the thresholds are searched in them. Counts add up over
images, which are taken in chunks, in bounded memory.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from joblib import effective_n_jobs
from numpy.typing import NDArray

from skad.metrics._validation import Pair

_CHUNK_PIXELS = 2**18, 2**24  # fewest and most that are sorted at once
_CHUNK_PER_THRESHOLD = 4  # pixels: more thresholds, fewer and larger chunks
_SAMPLE_STEP = 8  # the sample has one pixel of 8 x 8
_MIN_SAMPLE_PIXELS = 2**12  # a smaller sample says too little


@dataclass(frozen=True)
class NormalCounts:
    """Normal scores above, and at least as high as, each of some thresholds."""

    above: NDArray[np.int64]
    at_least: NDArray[np.int64]
    n_normal: int
    n_kept: int

    def __add__(self, other: NormalCounts) -> NormalCounts:
        return NormalCounts(
            self.above + other.above,
            self.at_least + other.at_least,
            self.n_normal + other.n_normal,
            self.n_kept + other.n_kept,
        )


@dataclass(frozen=True)
class ThresholdCounts:
    """Defective and normal pixels at every threshold.

    Attributes
    ----------
    thresholds : ndarray of shape (n_thresholds,)
        Distinct defective scores in ascending order.
    index_of : ndarray of shape (n_defective,)
        The threshold that each defective score is, as an index.
    n_defective : ndarray of shape (n_thresholds,)
        How many defective scores each threshold is.
    above, at_least : ndarray of shape (n_thresholds,)
        How many normal scores are larger than the threshold, and not smaller.
    n_normal : int
        The number of normal scores.
    """

    thresholds: NDArray[Any]
    index_of: NDArray[np.intp]
    n_defective: NDArray[np.int64]
    above: NDArray[np.int64]
    at_least: NDArray[np.int64]
    n_normal: int

    @property
    def false_positive_rates(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Rates just above each threshold, and at it."""
        return self.above / self.n_normal, self.at_least / self.n_normal


class Thresholds(NamedTuple):
    """Distinct scores in ascending order, and which of them each score is."""

    values: NDArray[Any]
    index_of: NDArray[np.intp]
    n_defective: NDArray[np.int64]

    @classmethod
    def of(cls, scores: NDArray[Any]) -> Thresholds:
        return cls(*np.unique(scores, return_inverse=True, return_counts=True))

    def with_counts(self, counts: NormalCounts) -> ThresholdCounts:
        return ThresholdCounts(
            self.values,
            self.index_of,
            self.n_defective,
            counts.above,
            counts.at_least,
            counts.n_normal,
        )


def no_counts(thresholds: NDArray[Any]) -> NormalCounts:
    """Start a sum of counts.

    Parameters
    ----------
    thresholds : ndarray of shape (n_thresholds,)
        Distinct defective scores.

    Returns
    -------
    counts : NormalCounts
        All zero.
    """
    zeros = np.zeros(thresholds.size, dtype=np.int64)
    return NormalCounts(zeros, zeros, 0, 0)


def count_sorted(
    thresholds: NDArray[Any], scores: NDArray[Any], n_normal: int
) -> NormalCounts:
    """Count the scores above, and at least as high as, each threshold.

    Parameters
    ----------
    thresholds : ndarray of shape (n_thresholds,)
        Distinct defective scores in ascending order.
    scores : ndarray of shape (n_scores,)
        Normal scores in ascending order, possibly without the lowest ones, or with
        -inf in place of scores that do not count.
    n_normal : int
        The number of normal scores that these stand for.

    Returns
    -------
    counts : NormalCounts
        The counts.
    """
    if scores.size == 0:
        return replace(no_counts(thresholds), n_normal=n_normal)
    left = np.searchsorted(scores, thresholds, side="left")
    right = left.copy()
    # Exact ties are rare in real maps: search the right side only for those.
    tied = scores[np.minimum(left, scores.size - 1)] == thresholds
    right[tied] = np.searchsorted(scores, thresholds[tied], side="right")
    return NormalCounts(scores.size - right, scores.size - left, n_normal, scores.size)


def _count(
    thresholds: NDArray[Any], scores: NDArray[Any], n_normal: int
) -> NormalCounts:
    scores.sort()
    return count_sorted(thresholds, scores, n_normal)


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
    thresholds: NDArray[Any],
    pairs: Iterable[Pair],
    *,
    floor: float | None = None,
) -> NormalCounts:
    """Count the normal pixels above each threshold, over all images.

    Parameters
    ----------
    thresholds : ndarray of shape (n_thresholds,)
        Distinct defective scores in ascending order.
    pairs : iterable of Pair
        Images.
    floor : float, optional
        Normal scores below it need not be counted.

    Returns
    -------
    counts : NormalCounts
        `n_kept` is the number of normal scores that are not below the floor.
    """
    total = no_counts(thresholds)
    if thresholds.size and (floor is None or floor < thresholds[0]):
        floor = thresholds[0]
    chunk = int(np.clip(_CHUNK_PER_THRESHOLD * thresholds.size, *_CHUNK_PIXELS))
    # Sorting, which takes the time, leaves the interpreter to a second thread.
    n_threads = min(2, effective_n_jobs(-1))
    waiting: deque[Future[NormalCounts]] = deque()
    with ThreadPoolExecutor(n_threads) as pool:
        for scores, n_normal in chunks(pairs, chunk):
            kept = scores[scores >= floor] if thresholds.size else scores[:0].copy()
            waiting.append(pool.submit(_count, thresholds, kept, n_normal))
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
    if sample.size < _MIN_SAMPLE_PIXELS:
        return None
    rank = int((1 - 1.05 * fraction) * (sample.size - 1))
    return float(np.partition(sample, rank)[rank])


def count_top(
    thresholds: NDArray[Any],
    pairs: Sequence[Pair],
    fraction: float,
) -> NormalCounts:
    """Count as `count_normal`, exactly where at most a fraction is above a threshold.

    Parameters
    ----------
    thresholds : ndarray of shape (n_thresholds,)
        Distinct defective scores in ascending order.
    pairs : sequence of Pair
        Images.
    fraction : float
        Fraction of the normal pixels. Thresholds with more of them above get some count
        that is at least this fraction.

    Returns
    -------
    counts : NormalCounts
        The counts.
    """
    floor = floor_of_top(pairs, fraction)
    counts = count_normal(thresholds, pairs, floor=floor)
    cut = floor is not None and floor > thresholds[0]
    if cut and counts.n_kept < fraction * counts.n_normal:  # the sample misled
        counts = count_normal(thresholds, pairs)
    return counts

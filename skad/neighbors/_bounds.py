"""Lower bounds of all distances between queries and a bank, by one matrix product.

The product of a query q and a row r, each extended by a few columns, is ::

    (-2 q, |q|^2, 1) . (r, 1, |r|^2) = |q|^2 + |r|^2 - 2 q.r = |q - r|^2

so a matrix product of the extended queries and rows gives all squared distances. Two
things make it cheap, and neither can make a distance too large by more than is known.

1. Rows are projected onto the leading principal directions of the bank; the norm of
   the residual is appended as one coordinate. With orthonormal directions V, the
   projection of q - r has the length |V q - V r|, and by the triangle inequality the
   residuals a and b of q and r differ by at least ||a| - |b||. So ::

       |V q - V r|^2 + (|a| - |b|)^2 <= |V q - V r|^2 + |a - b|^2 = |q - r|^2

   and such a projection never increases a distance: it gives lower bounds.

2. Coordinates are rounded to bfloat16 where the machine multiplies these faster.
   Rounding moves q by a known length m_q and r by m_r at most, so a computed distance
   is at most |q - r| + m_q + m_r.

What is left is the rounding of the product itself: `_noise` bounds it. A row no farther
from its query than d has therefore a value of at most (d + m_q + m_r)^2 + 2 noise,
which is what ``limits`` gives; every row with a larger value is farther than d.

Bounds are compared as integers: floats that are not negative have the order of their
bits, and NumPy compares 16-bit integers faster than anything compares bfloat16.

Where a row is only wanted that is likely to be near, `Bounds.rough` needs no bound. It
takes few directions, and the length of the residual from the Pythagorean theorem, which
rounds more and saves a product.
"""

import time
from functools import cache
from typing import Any

import numpy as np

from skad._matrices import product

_MIN_BFLOAT16_WORK = 2**26  # multiplications from which bfloat16 pays
_DIRECTION_SAMPLE = 4096  # rows that the directions are computed from
_KEPT_VARIANCE = 0.96  # share of the variance along the kept directions
_MIN_DIRECTIONS = 32  # fewer make a product no faster
_ROUGH_DIRECTIONS = 64  # that rough distances are along
_MAX_KEPT_SHARE = 0.6  # of the directions; from there on all columns are used
_PRODUCT_COLUMNS = 64  # of a partial product, which rounds little
_SMALL_PIECE = 16  # points; a product of fewer takes hardly less time
_ROUNDING_SHARE = 2.0**-24  # relative error of one rounding in float32
_UNDERFLOW_MARGIN = 1e-36  # above what underflows in a sum of squares in float32
_MAX_COORDINATE = 2.0**40  # of scaled rows; larger ones are cut
_CHUNK_ENTRIES = 2**18  # of a temporary: it stays in the cache


class Bounds:
    """Bounds for the distances to the rows of a bank.

    Parameters
    ----------
    rows : ndarray of shape (m, d)
        The bank.

    half : bool
        Whether to round to bfloat16.

    directions : bool
        Whether to look for leading directions.
    """

    def __init__(self, rows, *, half, directions):
        sample = _spread(rows, 256)
        origin = sample.mean(axis=0).astype(rows.dtype)
        largest = np.abs(sample - origin).max()
        self._scale = _scale(largest)
        self._origin = origin * rows.dtype.type(self._scale)
        self._half = half
        self._directions: Any = None  # an array, or a tensor where PyTorch multiplies
        if directions:
            found = _leading_directions(_spread(rows, _DIRECTION_SAMPLE) - origin)
            if found is not None:
                self._directions = self._shared(found)
                self._rough_directions = self._directions[:_ROUGH_DIRECTIONS]
                if half:
                    self._rough_directions = self._rough_directions.bfloat16()
        self._rows, moved, lengths = self._points(rows)
        self._rough_rows = self._rows
        if self._directions is not None and len(self._directions) > _ROUGH_DIRECTIONS:
            self._rough_rows, _, _ = self._points(rows, rough=True)
        self._moved, self._length = moved.max(), lengths.max()

    def of(self, queries, some=slice(None)):
        """Bound the distances from some queries.

        Parameters
        ----------
        queries : ndarray of shape (n, d)

        some : slice, default=slice(None)
            The rows of the bank to bound the distances to.

        Returns
        -------
        bounds : ndarray of shape (n, m), int16 or int32
            In the order of the squared distances that they bound.

        limits : callable
            Takes a distance per query, and gives the largest bound per query that
            a row no farther than this can have.
        """
        points, moved, lengths = self._points(queries, as_queries=True)
        noise = self._noise(lengths)

        def limits(distances):
            grown = distances * self._scale + moved + self._moved
            return self._bits(grown**2 + 2 * noise + _UNDERFLOW_MARGIN)

        return self._products(points, self._rows[some]), limits

    def rough(self, queries, some):
        """Integers (n, m) nearly in the order of the distances, in less time.

        Parameters
        ----------
        queries : ndarray of shape (n, d)

        some : slice
            The m rows of the bank to compare with.
        """
        points, _, _ = self._points(queries, as_queries=True, rough=True)
        return self._products(points, self._rough_rows[some])

    def _products(self, points, rows):
        """Products of the columns of queries and rows, as integers."""
        product = _product(points, rows)
        if not self._half:
            return product.view(np.int32)
        import torch

        return product.view(torch.int16).numpy()

    def _points(self, rows, *, as_queries=False, rough=False):
        """Columns of the product, how far each point was moved, and its length.

        A query's columns times a row's give the squared distance of their points:
        -2 times one point times the other, plus both squared lengths. As bfloat16
        has 8 bits, lengths are split over three columns.
        """
        n = rows.shape[1]
        if self._directions is not None:
            n = len(self._rough_directions if rough else self._directions) + 1
        n_parts = 3 if self._half else 1
        columns = self._empty((len(rows), n + 2 * n_parts))
        own, other = slice(n, n + n_parts), slice(n + n_parts, None)
        if as_queries:
            own, other = other, own
        columns[:, other] = 1
        moved, lengths = np.empty(len(rows)), np.empty(len(rows))
        in_cache = rough or self._directions is None
        n_entries = _CHUNK_ENTRIES if in_cache else 4 * _CHUNK_ENTRIES
        step = max(1, n_entries // rows.shape[1])
        for lo in range(0, len(rows), step):
            part = slice(lo, lo + step)
            points, moved[part] = self._mapped(rows[part], rough)
            if self._half:
                points, lost = _halved(points)
                moved[part] += 1.001 * lost
            lengths[part] = _lengths(points)
            squared = lengths[part] ** 2
            if as_queries:
                points *= -2
                squared += self._noise(lengths[part])  # so that no bound is negative
            columns[part, :n] = points
            for column in range(own.start, own.start + n_parts):
                rounded = self._shared(squared.astype(np.float32))
                if self._half:
                    rounded = rounded.bfloat16().float()
                columns[part, column] = rounded
                squared -= np.asarray(rounded)
        return columns, moved, lengths

    def _mapped(self, rows, rough):
        """Points in float32, and a bound on how far rounding moved each."""
        with np.errstate(over="ignore"):
            if self._scale != 1:
                rows = rows * rows.dtype.type(self._scale)
            points = (rows - self._origin).astype(np.float32, copy=False)
        points = self._shared(points)
        lengths = _lengths(points)
        if not lengths.max() < _MAX_COORDINATE:
            # To cut coordinates stretches no distance either.
            points = points.clip(-_MAX_COORDINATE, _MAX_COORDINATE)
            lengths = _lengths(points)
        if self._directions is None:
            return points, _ROUNDING_SHARE * 4 * lengths
        if rough:
            return self._projected_roughly(points, lengths), np.inf
        columns, slack = self._projected(points)
        return columns, slack * lengths

    def _projected_roughly(self, points, lengths):
        """The same for fewer directions, without a bound on the rounding."""
        if self._half:
            points = points.bfloat16()
        inside = _product(points, self._rough_directions)
        inside = inside.float() if self._half else inside
        rest = np.sqrt(np.maximum(lengths**2 - _lengths(inside) ** 2, 0))
        return self._with_rest(inside, rest)

    def _projected(self, points):
        """Points by the directions and the length of the rest, and the rounding.

        Rounding in a product of n columns moves an entry by n units of the lengths
        involved at most. In pieces of few columns that stays small, and the rest is
        taken from the rounded point, which its own rounding moves but little.
        """
        n_kept, n = self._directions.shape
        inside = sum(
            _times(
                points[:, lo : lo + _PRODUCT_COLUMNS],
                self._directions[:, lo : lo + _PRODUCT_COLUMNS].T,
            )
            for lo in range(0, n, _PRODUCT_COLUMNS)
        )
        rest = _lengths(points - _times(inside, self._directions))
        n_terms = 2 * (_PRODUCT_COLUMNS + n / _PRODUCT_COLUMNS + 4) + n_kept
        slack = _ROUNDING_SHARE * (n_kept**0.5 * n_terms + n + 4)
        return self._with_rest(inside, rest), slack

    def _with_rest(self, inside, rest):
        columns = self._shared(np.empty((len(inside), inside.shape[1] + 1), np.float32))
        columns[:, :-1] = inside
        columns[:, -1] = self._shared(rest)
        return columns

    def _shared(self, values):
        """The array for PyTorch where that multiplies: threads of two would clash."""
        if not self._half:
            return values
        import torch

        return torch.from_numpy(values)

    def _empty(self, shape):
        if not self._half:
            return np.empty(shape, np.float32)
        import torch

        return torch.empty(shape, dtype=torch.bfloat16, device="cpu")

    def _noise(self, lengths):
        """Bound on the rounding inside of the product, and of lengths."""
        n_columns = len(self._origin) + 8
        reach = lengths + getattr(self, "_length", 0.0)
        return 4 * n_columns * _ROUNDING_SHARE * reach**2

    def _bits(self, squared):
        """Integers above those of all bounds up to some squared distances."""
        margin = 2.0**-7 if self._half else 2.0**-20
        squared = np.minimum(squared * (1 + margin), 2.0**126)
        bits = squared.astype(np.float32).view(np.int32)
        return ((bits >> 16) + 1).astype(np.int16) if self._half else bits + 1


def _times(left, right):
    """The product of two arrays or of two tensors, in float32."""
    if isinstance(left, np.ndarray):
        return product(left, right)
    import torch

    return torch.from_numpy(product(left.numpy(), right.numpy()))


def _product(points, rows):
    """All products of points and rows, of arrays or of tensors.

    In bfloat16, PyTorch keeps what it compiles for each pair of sizes, about half a
    megabyte, for up to a thousand pairs. Pieces of the points whose sizes are powers of
    two have few sizes, and take no more time. Small pieces take as long as reading all
    rows does, so that the last points are filled up to one piece.
    """
    if isinstance(points, np.ndarray):
        return product(points, rows.T)
    import torch

    n = len(points)
    n_last = n % _SMALL_PIECE
    n_added = 2 ** (n_last - 1).bit_length() - n_last if n_last else 0
    shape = n + n_added, len(rows)
    result = torch.empty(shape, dtype=points.dtype, device="cpu")
    lo = 0
    while lo < len(result):
        hi = lo + 2 ** int(np.log2(len(result) - lo))
        piece = points[lo:hi]
        if hi > n:
            piece = torch.nn.functional.pad(piece, (0, 0, 0, n_added))
        torch.matmul(piece, rows.T, out=result[lo:hi])
        lo = hi
    return result[:n]


def _lengths(points):
    """Length of each row, for an array or a tensor."""
    if isinstance(points, np.ndarray):
        return np.sqrt(np.einsum("ij,ij->i", points, points))
    return points.norm(dim=1).numpy()


def _halved(points):
    """A tensor as bfloat16 rounds it, and how far that moved each row."""
    halved = points.bfloat16().float()
    return halved, _lengths(points.sub_(halved))


def _scale(largest):
    """A power of two, which makes scaling exact; 1 where float32 needs no other."""
    exponent = np.floor(np.log2(largest)) if largest > 0 else 0.0
    return 1.0 if abs(exponent) <= 20 else 2.0 ** -np.clip(exponent, -120, 120)


def plan(shape, n_queries):
    """Choose the bounds that pay for so many queries, by their multiplications.

    Returns
    -------
    arguments : dict
        For `Bounds`.
    """
    m, d = shape
    work = n_queries * m * d
    taken = 2 * min(m, _DIRECTION_SAMPLE) * d**2 + 30 * d**3 + m * d**2
    directions = 48 <= d <= 2048 and work > 8 * taken
    return {"half": work > _MIN_BFLOAT16_WORK and half_pays(), "directions": directions}


@cache
def half_pays():
    """Whether this machine multiplies bfloat16 faster; it is timed once."""
    import torch

    single = np.ones((256, 512), np.float32)
    half = torch.from_numpy(single).bfloat16()

    def seconds(matrix):
        runs = []
        for _ in range(5):
            start = time.perf_counter()
            _product(matrix, matrix)
            runs.append(time.perf_counter() - start)
        return min(runs)

    return seconds(half) < 0.75 * seconds(single)


def _leading_directions(sample):
    """Orthogonal directions of most variance, as rows; None if they would be many."""
    variances, directions = np.linalg.eigh(sample.T @ sample)
    kept = np.cumsum(variances[::-1]) < _KEPT_VARIANCE * variances.sum()
    n_kept = max(_MIN_DIRECTIONS, int(kept.sum()) + 1)
    if n_kept >= _MAX_KEPT_SHARE * len(kept):
        return None
    return directions[:, ::-1][:, :n_kept].T.astype(np.float32, order="C")


def _spread(rows, n_most):
    """At most so many of the rows, evenly spread, in float64."""
    picked = np.linspace(0, len(rows) - 1, min(len(rows), n_most)).astype(np.intp)
    return rows[picked].astype(np.float64)

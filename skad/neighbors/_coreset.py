"""Greedy k-centre coreset: farthest-first traversal, lazily.

The plain algorithm updates the distance of every row after every pick, one
memory-bound pass each. Distances to the selected set only ever fall, so a
distance computed some picks ago is an upper bound. Each round takes the rows
with the largest bounds, brings only those up to date with one matrix product
against the centres that they have missed, and picks greedily among them for as
long as the best beats every row left out. The rows selected, and their order,
are those of the plain algorithm.
"""

import numpy as np
from numpy.typing import ArrayLike
from sklearn.utils import check_array

from skad._matrices import squared_distances, upper_bounds
from skad._progress import progress
from skad._user_warning import warn_user

_CANDIDATE_ROWS = 256, 2048  # fewest and most that a round looks at
_CANDIDATE_BYTES = 1.2e7  # for these and their distances, or a tenth of X
_STALE_GROUPS = 4
_CHUNK_ENTRIES = 2**18  # entries of a temporary
_BLOCK_ROWS = 512  # whose mutual distances are taken at once


def greedy_coreset(
    X: ArrayLike,
    n_samples: int,
    *,
    start: int = 0,
    projection_dim: int | None = None,
    random_state: int | np.random.RandomState | None = 0,
    verbose: bool = False,
    on_interrupt: str = "raise",
) -> np.ndarray:
    """Select rows by farthest-first traversal.

    Every next row is the one farthest from all rows selected before, which
    makes the covering radius at most twice the best possible for that many
    rows.

    Parameters
    ----------
    X : array-like of shape (n, d)
        Rows, float32 or float64.

    n_samples : int
        Number of rows to select, from 1 to n.

    start : int, default=0
        The row selected first.

    projection_dim : int or None, default=None
        Take distances after a random projection to so many dimensions, which keeps
        them approximately; the published code of PatchCore projects to 128. None, or
        as many as X has, takes exact distances.

    random_state : int, RandomState instance or None, default=0
        Samples the projection.

    verbose : bool, default=False
        Print progress to the standard error stream.

    on_interrupt : {"raise", "keep"}, default="raise"
        What to do about Ctrl-C: "keep" returns the rows selected until then, with a
        warning. They are the coreset of that many rows.

    Returns
    -------
    indices : ndarray of shape (n_selected,), intp
        Selected rows in the order of selection, `start` first. Fewer than
        `n_samples` where every row equals a selected one before that.

    Raises
    ------
    ValueError
        If `X` is empty or not finite, `n_samples`, `start` or `projection_dim` is out
        of range, or `on_interrupt` is neither of its values.

    Notes
    -----
    Takes up to 15 % of the size of `X` in memory beside it, or 16 MB where that is
    more.

    By the lemma of Johnson and Lindenstrauss, a projection by independent normal
    numbers to k dimensions changes all squared distances between n rows by at most a
    share of the order of the square root of log(n) / k.

    References
    ----------
    T. F. Gonzalez, "Clustering to minimize the maximum intercluster distance",
    Theoretical Computer Science 38, 1985.

    K. Roth et al., "Towards Total Recall in Industrial Anomaly Detection",
    CVPR 2022, Algorithm 1.

    W. B. Johnson and J. Lindenstrauss, "Extensions of Lipschitz mappings into a Hilbert
    space", Contemporary Mathematics 26, 1984.

    Examples
    --------
    >>> import numpy as np
    >>> from skad.neighbors import greedy_coreset
    >>> greedy_coreset(np.array([[0.0], [1.0], [9.0], [5.0], [0.0]]), 3)
    array([0, 2, 3])
    """
    rows: np.ndarray = check_array(X, dtype=[np.float64, np.float32])
    for name, value, low, high in (
        ("n_samples", n_samples, 1, len(rows)),
        ("start", start, 0, len(rows) - 1),
    ):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise ValueError(f"{name} must be an integer, got {value!r}.")
        if not low <= value <= high:
            raise ValueError(
                f"{name}={value} is out of range: X has {len(rows)} rows, so {name} "
                f"must be between {low} and {high}."
            )
    if projection_dim is not None and not (
        isinstance(projection_dim, (int, np.integer))
        and not isinstance(projection_dim, bool)
        and projection_dim >= 1
    ):
        raise ValueError(
            f"projection_dim={projection_dim!r} must be a positive integer, or None "
            "for exact distances."
        )
    if on_interrupt not in ("raise", "keep"):
        raise ValueError(f"on_interrupt={on_interrupt!r} must be 'raise' or 'keep'.")
    rows = _projected(rows, projection_dim, random_state)
    return _Traversal(rows, n_samples, [start]).run(verbose, on_interrupt)


def extend_coreset(
    coreset,
    X,
    n_samples,
    *,
    projection_dim=None,
    random_state=0,
    verbose=False,
    on_interrupt="raise",
):
    """Select rows farthest from a coreset and from each other, unvalidated.

    Parameters are those of `greedy_coreset`.

    Returns
    -------
    indices : ndarray of shape (n_selected,), intp
        Rows of X in the order of selection; fewer than `n_samples` where every
        row equals a selected one before that.
    """
    both = _projected(np.concatenate([coreset, X]), projection_dim, random_state)
    traversal = _Traversal(both, len(coreset) + n_samples, range(len(coreset)))
    return traversal.run(verbose, on_interrupt)[len(coreset) :] - len(coreset)


def far_apart(rows, squared, known):
    """Indices of rows, in order, that are not near to one before them or a known one.

    Parameters
    ----------
    rows : ndarray of shape (n, d)

    squared : float
        The square of the distance up to which a row is near.

    known : ndarray of shape (m, d)
    """
    apart = np.empty(0, np.intp)
    for lo in range(0, len(rows), _BLOCK_ROWS):
        block = rows[lo : lo + _BLOCK_ROWS]
        before = np.concatenate([known, rows[apart]])
        nearest = squared_distances(block, before).min(axis=1, initial=np.inf)
        left = nearest > squared
        far = squared_distances(block, block) > squared
        taken = []
        for i in range(len(block)):
            if left[i]:
                taken.append(lo + i)
                left &= far[i]
        apart = np.concatenate([apart, np.array(taken, np.intp)])
    return apart


def _projected(rows, n_dimensions, random_state):
    """Rows after a random projection; as they are where that would not be shorter."""
    if n_dimensions is None or n_dimensions >= rows.shape[1]:
        return rows
    # It imports half of scikit-learn, which scoring does not need.
    from sklearn.random_projection import GaussianRandomProjection

    projection = GaussianRandomProjection(n_dimensions, random_state=random_state)
    scale = _scale_of(rows)
    return projection.fit_transform(rows if scale == 1 else rows * scale)


class _Traversal:
    """State of one farthest-first traversal over the rows of X.

    `starts` are the rows selected at the outset.
    """

    def __init__(self, X, n_samples, starts):
        self.X = X
        self.n_samples = n_samples
        self.scale = _scale_of(X)
        # Centring keeps norms, and with them the rounding of products, small.
        with np.errstate(over="ignore", invalid="ignore"):
            self.origin = X.mean(axis=0, dtype=np.float64) * self.scale
        if not np.isfinite(self.origin).all():  # the sum of float64 rows overflows
            self.origin = np.zeros(X.shape[1])
        self.picked = np.empty(n_samples, np.intp)
        self.n_picked = 0
        # Upper bound of the squared distance to the first `seen` centres, and
        # its float64 value for the first `settled` ones. Rounding can thus
        # cost time, but never another row.
        self.bound = np.full(len(X), np.inf)
        self.seen = np.zeros(len(X), np.int32)
        self.value = np.full(len(X), np.inf)
        self.settled = np.zeros(len(X), np.int32)
        self.picked[: len(starts)] = starts
        self.n_picked = len(starts)
        self.n_candidates = _n_candidates(X)
        step = max(1, _CHUNK_ENTRIES // X.shape[1])
        for lo in range(0, len(X), step):
            rows = np.arange(lo, min(lo + step, len(X)))
            self._refresh(rows, self._rows(rows))

    def run(self, verbose, on_interrupt):
        bar = progress(self.n_samples, "coreset", verbose, done=self.n_picked)
        with bar:
            try:
                while self.n_picked < self.n_samples and self._round():
                    bar.update(self.n_picked - bar.n)
            except KeyboardInterrupt:
                if on_interrupt == "raise":
                    raise
                warn_user(
                    f"interrupted after {self.n_picked} of {self.n_samples} rows of "
                    "the coreset; going on with these."
                )
        return self.picked[: self.n_picked].copy()

    def _rows(self, index):
        rows = self.X[index].astype(np.float64)
        if self.scale != 1:
            rows *= self.scale
        rows -= self.origin
        return rows

    def _round(self):
        """Refresh the rows with the largest bounds and pick among them."""
        n_left = max(0, len(self.bound) - self.n_candidates)
        if n_left:
            order = np.argpartition(self.bound, n_left - 1)
            candidates, left_out = order[n_left:], self.bound[order[n_left - 1]]
        else:
            candidates, left_out = np.arange(len(self.bound)), 0.0
        candidates.sort()  # of equally far rows the first is picked
        rows = self._rows(candidates)
        self._refresh(candidates, rows)
        contenders = self.bound[candidates] >= left_out
        candidates, rows = candidates[contenders], rows[contenders]
        self._settle(candidates, rows)
        radius = max(left_out, self.bound[candidates].max(initial=0))
        self._pick(candidates, rows, left_out)
        return radius > 0

    def _refresh(self, index, rows):
        """Bring upper bounds up to date in the arithmetic of X."""
        rows = rows.astype(self.X.dtype, copy=False)
        for part, missed in self._missed(self.seen, index):
            centres = self._rows(missed).astype(self.X.dtype, copy=False)
            reached = index[part]
            bound = upper_bounds(rows[part], centres)
            self.bound[reached] = np.minimum(self.bound[reached], bound)
        self.seen[index] = self.n_picked

    def _settle(self, index, rows):
        """Replace upper bounds by values, in float64."""
        for part, missed in self._missed(self.settled, index):
            value = squared_distances(rows[part], self._rows(missed)).min(axis=1)
            reached = index[part]
            self.value[reached] = np.minimum(self.value[reached], value)
        self.settled[index] = self.n_picked
        self.bound[index] = self.value[index]

    def _missed(self, seen, index):
        """Yield groups of rows with some of the centres that they have missed."""
        order = np.argsort(seen[index], kind="stable")
        for part in np.array_split(order, _STALE_GROUPS):
            if len(part) == 0:
                continue
            step = max(1, _CHUNK_ENTRIES // max(len(part), self.X.shape[1]))
            for lo in range(seen[index[part[0]]], self.n_picked, step):
                yield part, self.picked[lo : min(lo + step, self.n_picked)]

    def _pick(self, candidates, rows, left_out):
        """Pick while the best candidate beats all rows that were left out."""
        value = self.value[candidates]
        within = np.flatnonzero((value >= left_out) & (value > 0))
        if len(within) == 0:
            return
        candidates, rows, value = candidates[within], rows[within], value[within]
        gaps = squared_distances(rows, rows)
        while self.n_picked < self.n_samples:
            best = int(value.argmax())
            if value[best] < left_out or value[best] <= 0:
                break
            self.picked[self.n_picked] = candidates[best]
            self.n_picked += 1
            np.minimum(value, gaps[best], out=value)
        self.value[candidates] = self.bound[candidates] = value
        self.seen[candidates] = self.settled[candidates] = self.n_picked


def _scale_of(X):
    """A power of two, by which rows are multiplied where their squares need it.

    It is 1 as a rule. Squares of very large numbers overflow, and those of very small
    ones vanish; multiplied by a power of two, all distances keep their order.
    """
    exponent = int(np.frexp(max(X.max(), -X.min()))[1])
    # Of a sum of squares, this leaves a quarter of the range for the number of terms.
    if abs(exponent) <= 3 * np.finfo(X.dtype).maxexp // 8:
        return 1.0
    return float(np.ldexp(1.0, min(-exponent, np.finfo(X.dtype).maxexp - 1)))


def selection_bytes(
    n_rows: int, n_features: int, itemsize: int, projection_dim: int | None
) -> float:
    """Estimate of the bytes that a selection takes beside its rows.

    A random projection makes a copy of these, and its matrix in float64.
    """
    copy, n_columns = 0, n_features
    if projection_dim is not None and projection_dim < n_features:
        n_columns = projection_dim
        copy = n_rows * n_columns * itemsize + 8 * n_columns * n_features
    row = n_columns * itemsize
    most = (10 * n_rows + 4 * row) * n_rows  # with all rows in a round
    return copy + min(max(1.3 * _CANDIDATE_BYTES, 0.15 * n_rows * row), most)


def _n_candidates(X):
    """Number of rows to look at in a round, by the memory that they need.

    Of n rows of d columns, a round keeps float64 copies of the rows and of what is
    computed from them, 16 d bytes a row, and their mutual distances with temporaries,
    10 bytes for each of the n^2 pairs. With a budget of B bytes,
    10 n^2 + 16 d n = B, so n = (sqrt((16 d)^2 + 40 B) - 16 d) / 20.
    """
    room = max(_CANDIDATE_BYTES, X.nbytes / 10)
    row = 16 * X.shape[1]
    n = (np.sqrt(row**2 + 40 * room) - row) / 20
    return int(np.clip(n, *_CANDIDATE_ROWS))

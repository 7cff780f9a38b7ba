"""One Gaussian per position of the patch grid, learned from batches of images.

At one position, let x_i (d,) be the patches of n images, m their mean, C (n, d) the
rows c_i = x_i - m, and S = C'C. The covariance is S / (n - 1) + eps I. So the squared
Mahalanobis distance of a patch y is

    (n - 1) (y - m)' A^-1 (y - m)    with A = S + r I and r = (n - 1) eps.

From n >= d on, S (d, d) is kept, and A is factorised by Cholesky's method. While n < d,
the images themselves are kept, and by the Woodbury identity

    A^-1 = (I - C' (C C' + r I)^-1 C) / r,

only C C' + r I (n, n) is factorised. A sample of the images is kept beyond n = d too,
for the held-out scores behind the threshold; see `Gaussians.left_out`.
"""

from hashlib import blake2b
from typing import Any

import numpy as np

_CHUNK_ENTRIES = 2**22  # of a float64 temporary array (32 MB)


class Gaussians:
    """Mean and regularised covariance of the patches at each position.

    Call `add` with images, then `finish` once; `distances` and `left_out` can be called
    afterwards. Patches that are NaN do not count.

    Parameters
    ----------
    n_positions, n_features : int
        Patches of an image, and channels of a patch.

    dtype : dtype
        Of the images kept. All statistics are float64.

    eps : float
        Added to the diagonal of each covariance.

    n_kept : int
        Number of images to keep at least. These are the ones with the smallest hashes
        of their contents: a random sample that does not depend on the order of the
        images, nor on the batches that they come in.

    n_per_image : int, default=1
        One more than there are augmented views of each image. Wherever arrays of images
        are meant, each is followed by its views, and is kept with them. Numbers are
        those of images.
    """

    n_per_image = 1

    def __init__(
        self,
        n_positions: int,
        n_features: int,
        dtype: Any,
        eps: float,
        n_kept: int,
        n_per_image: int = 1,
    ):
        self.eps = eps
        self.n_kept = n_kept
        self.n_per_image = n_per_image
        self.n_images = 0  # and views of images
        self.counts = np.zeros(n_positions, np.int64)
        self.mean = np.zeros((n_positions, n_features))
        self.squares: Any = None  # S of each position, while learning, from n >= d on
        self.factor: Any = None  # Cholesky factors, once finished
        # Pages of memory are taken when they are written to: room for the worst case.
        room = max(n_kept, (n_features - 1) // n_per_image)
        shape = room * n_per_image, n_positions, n_features
        self.images = np.empty(shape, dtype)
        self.keys = np.empty(room, np.uint64)  # hashes of the images kept
        self.numbers = np.empty(room, np.int64)  # their places among all images
        self.start = 0  # number of the first image of the last call
        self.n_numbers = 0  # numbers given so far
        self.n_used = 0  # images kept so far

    @staticmethod
    def n_bytes(n_images, n_positions, n_features, itemsize, n_kept):
        """Estimate of the bytes of Gaussians, and of those that pass in between."""
        side = min(n_images, n_features)  # of a factor
        n_kept = min(n_images, max(n_kept, n_features - 1))
        chunk = min(_CHUNK_ENTRIES, n_images * n_positions * n_features)
        images = itemsize * n_kept * n_positions * n_features
        return 8.0 * n_positions * side**2 + images, 3 * 8.0 * chunk

    def add(self, images, numbers=None):
        """Learn from images (b, n_positions, n_features).

        `numbers`, counted from `start`, are their places among the images of this
        call; without them they are in the order of arrival.
        """
        n = self.n_per_image
        if numbers is None:
            numbers = self.n_numbers - self.start + np.arange(len(images) // n)
        numbers = self.start + numbers
        self.n_numbers = max(self.n_numbers, int(numbers.max(initial=-1)) + 1)
        step = max(1, _CHUNK_ENTRIES // images[0].size // n) * n
        for lo in range(0, len(images), step):
            block = images[lo : lo + step]
            self.n_images += len(block)
            if self.squares is None and self.n_images >= images.shape[2]:
                self._start_squares()
            if self.squares is not None:
                self._add_squares(block)
            self._keep_each(block, numbers[lo // n :])
        return self

    def join(self, other):
        """Learn from the images that another, finished one has learned from."""
        if other.is_low_rank:
            self.start = self.n_numbers
            return self.add(other.images, other.numbers)
        numbers = self.n_numbers + other.numbers
        self.n_numbers += other.n_numbers
        self.n_images += other.n_images
        if self.squares is None:
            self._start_squares()
        for part in self._parts(1):
            squares, n = other._squares(part), other.counts[part]
            self._add_to(part, squares, n, other.mean[part])
        self._keep_each(other.images, numbers)
        return self

    def reopened(self):
        """A copy that can learn from more images; this one stays as it is."""
        n, d = self.mean.shape
        new = Gaussians(
            n, d, self.images.dtype, self.eps, self.n_kept, self.n_per_image
        ).join(self)
        new.start = new.n_numbers
        return new

    def finish(self):
        """Compute means and Cholesky factors, which scoring needs."""
        self.images = self.images[: self.n_used * self.n_per_image]
        self.keys = self.keys[: self.n_used]
        self.numbers = self.numbers[: self.n_used]
        if (np.diff(self.numbers) < 0).any():  # else views, which take no memory
            arrived = np.argsort(self.numbers)
            self.images = self._with_views(arrived)
            self.keys, self.numbers = self.keys[arrived], self.numbers[arrived]
        n_rows = self.mean.shape[1]
        if self.squares is None:
            n_rows = len(self.images)
            inside = ~np.isnan(self.images[:, :, 0])
            self.counts = inside.sum(axis=0)
            for part in self._parts(n_rows):
                total = np.nan_to_num(self._rows(self.images, part)).sum(axis=1)
                self.mean[part] = total / np.maximum(self.counts[part], 1)[:, None]
            self.factor = np.empty((len(self.mean), n_rows, n_rows))
        else:
            self.factor, self.squares = self.squares, None
        for part in self._parts(n_rows):
            block = self.factor[part]
            if self.is_low_rank:
                centred = self._centred(self.images, part)
                block[...] = centred @ centred.transpose(0, 2, 1)
            _add_diagonal(block, self.eps * self._freedom(part))
            block[...] = _cholesky(block)
        return self

    @property
    def is_low_rank(self):
        """Whether there are fewer images than channels, which are all kept then."""
        return self.n_images < self.mean.shape[1]

    def distances(self, images):
        """Mahalanobis distances (b, n_positions), float64.

        NaN for patches that are NaN, and at positions never seen.
        """
        result = np.empty(images.shape[:2])
        step = max(1, _CHUNK_ENTRIES // images[0].size)
        for lo in range(0, len(images), step):
            block = slice(lo, lo + step)
            for part in self._parts(max(len(images[block]), self.factor.shape[1])):
                centred = self._rows(images[block], part) - self.mean[part, None]
                squared = self._squared_lengths(centred, part)
                squared[self.counts[part] == 0] = np.nan
                result[block, part] = np.sqrt(np.maximum(squared, 0)).T
        return result

    def left_out(self, report, n_together=1, scored=0):
        """Distances (n_kept, n_positions) of the images kept, each to all others.

        With `n_together` = `n_per_image`, each is left out together with its views, and
        the distances are those of the images, or with `scored` = k of their k-th views.

        Without image i, the mean is m - c_i / (n - 1). So x_i lies a c_i from it, with
        a = n / (n - 1), and the sums of squares are S - a c_i c_i'. With

            h = c_i' A^-1 c_i    for A = S + r I and r = (n - 2) eps,

        its leverage, the Sherman-Morrison formula gives the squared distance

            (n - 2) a^2 c_i' (A - a c_i c_i')^-1 c_i = (n - 2) a^2 h / (1 - a h).

        ``report(n)`` is called after every n positions.
        """
        if n_together > 1:
            return self._left_out_with_views(report, scored)
        result = np.full(self.images.shape[:2], np.nan)
        for part in self._parts(max(len(self.images), self.mean.shape[1])):
            n = self.counts[part][:, None].astype(np.float64)
            freedom = np.maximum(n - 2, 1)
            inside = ~np.isnan(self.images[:, part, 0]).T & (n > 1)
            n = np.maximum(n, 2)
            leverage = self._leverages(part, self.eps * freedom[:, 0])
            rest = 1 - n / (n - 1) * leverage
            squared = freedom * (n / (n - 1)) ** 2 * leverage / rest
            result[:, part] = np.where(
                inside, np.sqrt(np.maximum(squared, 0)), np.nan
            ).T
            report(part.stop - part.start)
        return result

    def _left_out_with_views(self, report, scored):
        """Distances of images kept, or a view of each, to all others and their views.

        Let c_j be the m centred rows of an image and its views, s their sum, and k the
        number of all other rows. Without the m rows, the mean is m - s / k, the sums of
        squares are S - sum(c_j c_j') - s s' / k, and row j lies c_j + s / k away.
        """
        grouped = self.images.reshape(self.n_used, self.n_per_image, *self.mean.shape)
        result = np.full((self.n_used, len(self.mean)), np.nan)
        for part in self._parts(self.mean.shape[1]):
            squares = self._squares(part)
            for i, image in enumerate(grouped):
                inside = ~np.isnan(image[:, part, 0])
                n_others = self.counts[part] - inside.sum(axis=0)
                freedom = np.maximum(n_others - 1.0, 1)
                centred = self._centred(image, part)
                total = centred.sum(axis=1)
                shift = total / np.maximum(n_others, 1)[:, None]
                rest = squares - centred.transpose(0, 2, 1) @ centred
                rest -= total[:, :, None] * shift[:, None]
                _add_diagonal(rest, self.eps * freedom)
                away = (centred[:, scored] + shift)[:, :, None]
                solved = _solve(_cholesky(rest), away)[:, :, 0]
                squared = freedom * np.einsum("pd,pd->p", solved, solved)
                is_known = inside[scored] & (n_others > 0)
                result[i, part] = np.where(is_known, np.sqrt(squared), np.nan)
            report(part.stop - part.start)
        return result

    def covariance(self, position):
        """Regularised covariance of one position, (n_features, n_features)."""
        part = slice(position, position + 1)
        result = self._squares(part)[0] / self._freedom(part)
        result[np.diag_indices_from(result)] += self.eps
        return result

    def __getstate__(self):
        # Factors are triangular: the half that is not zero is stored.
        state = self.__dict__.copy()
        below = np.tril_indices(self.factor.shape[1])
        state["factor"] = self.factor[:, below[0], below[1]]
        return state

    def __setstate__(self, state):
        self.__dict__.update(state)
        side = self.n_images if self.is_low_rank else self.mean.shape[1]
        below = np.tril_indices(side)
        packed, self.factor = self.factor, np.zeros((len(self.mean), side, side))
        self.factor[:, below[0], below[1]] = packed

    # -- sums of squares -----------------------------------------------------

    def _start_squares(self):
        n_positions, n_features = self.mean.shape
        self.squares = np.zeros((n_positions, n_features, n_features))
        if self.n_used:
            self._add_squares(self.images[: self.n_used * self.n_per_image])
        # From now on a sample of the images is kept, moved up in place.
        smallest = np.sort(np.argsort(self.keys[: self.n_used])[: self.n_kept])
        for slot, image in enumerate(smallest):
            self.images[self._rows_at(slot)] = self.images[self._rows_at(image)]
            self.keys[slot], self.numbers[slot] = self.keys[image], self.numbers[image]
        self.images = self.images[: self.n_kept * self.n_per_image]
        self.n_used = len(smallest)

    def _add_squares(self, images):
        for part in self._parts(len(images)):
            rows = self._rows(images, part)
            inside = ~np.isnan(rows[:, :, :1])
            n = inside.sum(axis=1)
            rows[~inside[:, :, 0]] = 0
            mean = rows.sum(axis=1) / np.maximum(n, 1)
            rows -= mean[:, None]
            rows *= inside
            self._add_to(part, None, n[:, 0], mean, rows)

    def _add_to(self, part, squares, n, mean, rows=()):
        """Add sums of squares around another mean, given or of centred rows.

        They grow by the outer product of the difference of the means times
        n1 n2 / (n1 + n2), as in `skad._moments.Moments`.
        """
        before = self.counts[part]
        after = np.maximum(before + n, 1)
        gap = np.where((n > 0)[:, None], mean - self.mean[part], 0)
        shift = np.sqrt(before * n / after)[:, None] * gap
        total = self.squares[part]
        if squares is not None:
            total += squares
            rows = shift[:, None]
        else:
            rows = np.concatenate([rows, shift[:, None]], axis=1)
        factor = _tensor(rows)
        _tensor(total).baddbmm_(factor.transpose(1, 2), factor)
        self.mean[part] += gap * (n / after)[:, None]
        self.counts[part] = before + n

    def _squares(self, part):
        """Centred sums of squares of a finished model."""
        if self.is_low_rank:
            centred = self._centred(self.images, part)
            return centred.transpose(0, 2, 1) @ centred
        factor = _tensor(self.factor[part])
        squares = (factor @ factor.transpose(1, 2)).numpy()
        _add_diagonal(squares, -self.eps * self._freedom(part))
        return squares

    # -- algebra ---------------------------------------------------------------

    def _squared_lengths(self, centred, part):
        """Squared Mahalanobis distances (p, b) of centred rows (p, b, d).

        With L L' = A, (n - 1) y' A^-1 y is (n - 1) |L^-1 y|^2; with L L' = C C' + r I,
        it is (|y|^2 - |L^-1 C y|^2) / eps.
        """
        factor = self.factor[part]
        if not self.is_low_rank:
            solved = _solve(factor, centred.transpose(0, 2, 1))
            return self._freedom(part)[:, None] * np.einsum(
                "pdb,pdb->pb", solved, solved
            )
        images = self._centred(self.images, part)
        solved = _solve(factor, images @ centred.transpose(0, 2, 1))
        explained = np.einsum("pmb,pmb->pb", solved, solved)
        return (np.einsum("pbd,pbd->pb", centred, centred) - explained) / self.eps

    def _leverages(self, part, ridge):
        """Leverages h of every image kept, (p, n_kept), for r = `ridge`.

        From C A^-1 C' = C C' (C C' + r I)^-1 = I - r (C C' + r I)^-1 follows, with
        L L' = C C' + r I, that h = 1 - r |L^-1 e_i|^2.
        """
        centred = self._centred(self.images, part)
        if not self.is_low_rank:
            squares = self._squares(part)
            _add_diagonal(squares, ridge)
            solved = _solve(_cholesky(squares), centred.transpose(0, 2, 1))
            return np.einsum("pdb,pdb->pb", solved, solved)
        kernel = centred @ centred.transpose(0, 2, 1)
        _add_diagonal(kernel, ridge)
        identity = np.broadcast_to(np.eye(len(self.images)), kernel.shape)
        solved = _solve(_cholesky(kernel), identity)
        return 1 - ridge[:, None] * np.einsum("pmb,pmb->pb", solved, solved)

    def _freedom(self, part):
        """Degrees of freedom of the covariance, n - 1, at least 1."""
        return np.maximum(self.counts[part] - 1.0, 1)

    def _rows(self, images, part):
        """Patches by position (p, b, d), a float64 copy."""
        return images[:, part].transpose(1, 0, 2).astype(np.float64, order="C")

    def _centred(self, images, part):
        """Centred patches by position (p, b, d); zero, which adds nothing, for NaN."""
        return np.nan_to_num(
            self._rows(images, part) - self.mean[part, None], copy=False
        )

    def _parts(self, n_rows):
        """Slices of positions, for temporary arrays of n_rows for each of them."""
        step = max(1, _CHUNK_ENTRIES // (max(n_rows, 1) * self.mean.shape[1]))
        for lo in range(0, len(self.mean), step):
            yield slice(lo, min(lo + step, len(self.mean)))

    # -- images kept -----------------------------------------------------------

    def _rows_at(self, slot):
        """Where an image that is kept is with its views."""
        return slice(slot * self.n_per_image, (slot + 1) * self.n_per_image)

    def _with_views(self, slots):
        """A copy of the images at some slots, with their views."""
        grouped = self.images.reshape(-1, self.n_per_image, *self.mean.shape)
        return grouped[slots].reshape(-1, *self.mean.shape)

    def _keep_each(self, images, numbers):
        n = self.n_per_image
        for i in range(len(images) // n):
            self._keep(images[i * n : (i + 1) * n], numbers[i])

    def _keep(self, image, number):
        """Keep an image if there is room, or if its hash is below the largest one."""
        digest = blake2b(image.tobytes(), digest_size=8).digest()
        key = np.uint64(int.from_bytes(digest, "little"))
        slot, room = self.n_used, len(self.images) // self.n_per_image
        if slot == room:
            slot = int(self.keys[:slot].argmax()) if slot else 0
            if slot == room or key >= self.keys[slot]:
                return
        else:
            self.n_used += 1
        self.images[self._rows_at(slot)] = image
        self.keys[slot], self.numbers[slot] = key, number


def _tensor(array):
    """A torch tensor on the memory of an array; on a copy if it is read-only."""
    import torch

    return torch.from_numpy(array if array.flags.writeable else array.copy())


def _cholesky(matrices):
    """Lower triangular factors; a ValueError if a matrix is not positive definite."""
    import torch

    factor, failed = torch.linalg.cholesky_ex(_tensor(matrices))
    if failed.any():
        raise ValueError(
            "eps is lost beside the variance of the features: a covariance is not "
            "positive definite. Take a larger eps, or scale the features."
        )
    return factor.numpy()


def _solve(factor, right):
    """Solve with lower triangular factors, for all positions at once."""
    import torch

    right = _tensor(np.ascontiguousarray(right))
    return torch.linalg.solve_triangular(_tensor(factor), right, upper=False).numpy()


def _add_diagonal(matrices, values):
    index = np.arange(matrices.shape[1])
    matrices[:, index, index] += np.asarray(values)[:, None]

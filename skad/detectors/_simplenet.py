"""SimpleNet (Liu et al., CVPR 2023): a discriminator between features and noise.

Features of normal images are adapted, by one linear layer as a rule (Section 3.2 of the
paper); Gaussian noise added to these makes negatives (Section 3.3); a small
discriminator learns to tell the two apart (Section 3.4). Its output for a patch, with
its sign changed, is the anomaly score of the patch. `skad.networks._simplenet` has the
networks.
"""

import math
from contextlib import contextmanager
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils._param_validation import Interval, StrOptions

from skad import networks
from skad._kept import prepared
from skad._moments import Moments
from skad._patches import image_scores, patch_maps, patch_rows
from skad._user_warning import warn_user
from skad.base import PatchDetector, TrainedDetector
from skad.networks._sampling import combined_seed, epoch_order
from skad.synthesis import perlin_mask

_BATCH_PATCHES = 256  # of a step at least, for the statistics of batch normalization
_SAMPLE_PATCHES = 20_000  # that the scale of the noise and the whitening come from


class SimpleNetDetector(TrainedDetector, PatchDetector):
    """Detect anomalies by a discriminator trained on normal features and noise.

    Parameters
    ----------
    max_epochs : int, default=160
        Passes over the training images. The model of the last one is kept.

    hidden_dim : int, default=1024
        Width of the discriminator.

    n_hidden_layers : int, default=1
        Its hidden layers, each with batch normalization.

    adaptor : {"linear", "mlp", None}, default="linear"
        What adapts the features before the discriminator: one linear layer, as in the
        paper; a perceptron of two linear layers with a leaky ReLU between them; or
        nothing.

    whiten : bool, default=False
        Adapt by the whitening of normal patches, which is not trained. Directions then
        vary alike, those too that normal patches hardly use, down to a hundredth of the
        mean variance; so noise of one size is as easy to see in each. A learned adaptor
        can make noise easy to tell by leaving directions out; defects along these it
        does not see.

    noise_std : float, default=0.015
        Standard deviation of the noise that makes negatives.

    relative_noise : bool, default=True
        Whether `noise_std` is a multiple of the features' own scale: the length by
        which a patch typically deviates from the mean patch, of whitened ones with
        `whiten`. False takes it as it is, as the paper does for its Wide ResNet-50.

    loss : {"truncated_l1", "cross_entropy"}, default="truncated_l1"
        Truncated l1 is the paper's Equation 8.

    margin : float or (float, float), default=0.5
        Outputs beyond which truncated l1 is content: th+ of normal patches and th- of
        those with noise, th+ > th-; a number m stands for (m, -m).

    learning_rate : float, default=2e-4
        Of the discriminator.

    adaptor_learning_rate : float, default=1e-4
        Of the adaptor, if it learns.

    schedule : {"constant", "cosine"}, default="constant"
        Whether both learning rates stay, as in the paper, or fall to 0 along half a
        cosine in the course of a `fit`. One that goes on, by `warm_start`, begins with
        the full rates.

    weight_decay : float, default=1e-5
        Of both.

    train_batch_size : int, default=4
        Images of a step; more where these have fewer than 256 patches together.

    upscale : int, default=1
        Factor by which the patch grid is enlarged first, bilinearly. 2 is
        SuperSimpleNet's.

    noise_mask : {None, "perlin"}, default=None
        Where the noise goes: everywhere, or in half of the copies into blobs of
        Perlin noise (SuperSimpleNet), so that what surrounds them stays normal.

    classification_head : bool, default=False
        Train a second head, which scores whole images by how patches lie together
        (SuperSimpleNet). Without it, the score of an image is its largest patch.
        It needs ``noise_mask="perlin"``.

    warm_start : bool, default=False
        Whether a second `fit` goes on training for `max_epochs` more.

    checkpoint_dir : path, default=None
        Folder for a checkpoint every half a minute. A process that was killed goes
        on from it when it fits the same data with the same settings, and ends with
        the same model.

    device : str, default="auto"
        Where to train. "auto" is a CUDA device where there is one, else the CPU.

    contamination : float, default=0.05
        Tolerated false-alarm rate on normal images, in (0, 0.5].

    calibration : {"auto", "kfold", "split", "train"}, default="auto"
        How the scores behind the threshold are held out. "auto" is "split": a fifth
        of the images is not trained on. "kfold" trains six times.

    threshold : {"tail", "rank"}, default="tail"
        How the threshold comes from the held-out scores: by a tail fitted to them,
        which keeps the false-alarm rate on average from few images, or by their
        conformal rank, which keeps it for any distribution and finds fewer anomalies
        where images are few.

    sigma : float, default=4.0
        Standard deviation in pixels of the Gaussian that smooths maps rendered at
        pixel size.

    random_state : int, RandomState instance or None, default=0
        Determines weights, noise and the order of images. Checkpoints need an int.

    verbose : bool, default=False
        Report progress, loss and speed on the standard error stream.

    Attributes
    ----------
    loss_curve_ : list of float
        Mean loss of each epoch so far.

    state_ : dict of ndarray
        Weights by name: ``adaptor.weight`` of shape (d, d), ``adaptor.bias`` with
        `whiten`, ``adaptor.0.weight``, ``adaptor.0.bias`` and ``adaptor.2.weight`` of a
        perceptron, and those of the discriminator and the head.

    noise_std_ : float
        Standard deviation of the noise that was used, in units of the features, of
        whitened ones with `whiten`.

    contamination_ : float
        False-alarm rate of the thresholds, as of the fit or of `set_contamination`.

    offset_ : float
        Threshold of `score_samples`.

    calibration_scores_ : ndarray of shape (n_held_out,), float64
        Held-out scores of normal images behind `offset_`, larger is more normal.

    calibration_maps_ : ndarray of shape (n_maps, h, w), float32
        Their patch scores, larger is more anomalous. Of more than 1,000 images whose
        maps take more than 256 MB together, those of a random sample.

    n_samples_seen_ : int
        Number of training images.

    n_features_in_ : int
        Number of channels of a patch.

    Notes
    -----
    The adaptor has no bias, which batch normalization would cancel; whitening has one,
    so that patches are small numbers about zero. The official code
    keeps the epoch that does best on the test set; this one never sees a test set.

    Ctrl-C ends training and keeps what was learned until then.

    References
    ----------
    .. [1] Z. Liu et al., "SimpleNet: A Simple Network for Image Anomaly Detection
       and Localization", CVPR 2023. Sections 3.2 to 3.4, Equations 5 to 9.
    .. [2] B. Rolih et al., "SuperSimpleNet: Unifying Unsupervised and Supervised
       Learning for Fast and Reliable Surface Defect Detection", ICPR 2024.

    Examples
    --------
    >>> import numpy as np
    >>> from skad import SimpleNetDetector
    >>> rng = np.random.default_rng(0)
    >>> normal = rng.normal(size=(40, 4, 4, 8)) * [1, 1, 1, 1, 0.01, 0.01, 0.01, 0.01]
    >>> anomalous = normal[:1].copy()
    >>> anomalous[0, 2, 1, 4:] += 1
    >>> detector = SimpleNetDetector(50, noise_std=0.2, learning_rate=5e-3).fit(normal)
    >>> detector.loss_curve_[-1] < detector.loss_curve_[0]
    True
    >>> detector.predict(anomalous)
    array([-1])
    >>> heat = detector.anomaly_map(anomalous)[0]
    >>> [int(i) for i in np.unravel_index(heat.argmax(), heat.shape)]
    [2, 1]
    """

    _label = "SimpleNet"
    _channels_last = False
    _auto_calibration = "split"
    _n_folds = 5  # each of them trains
    _parameter_constraints = {
        **PatchDetector._parameter_constraints,
        **TrainedDetector._parameter_constraints,
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "hidden_dim": [Interval(Integral, 1, None, closed="left")],
        "n_hidden_layers": [Interval(Integral, 1, None, closed="left")],
        "adaptor": [StrOptions({"linear", "mlp"}), None],
        "whiten": ["boolean"],
        "noise_std": [Interval(Real, 0, None, closed="neither")],
        "relative_noise": ["boolean"],
        "loss": [StrOptions({"truncated_l1", "cross_entropy"})],
        "margin": [Interval(Real, 0, None, closed="neither"), tuple, list],
        "adaptor_learning_rate": [Interval(Real, 0, None, closed="neither")],
        "schedule": [StrOptions({"constant", "cosine"})],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "upscale": [Interval(Integral, 1, None, closed="left")],
        "noise_mask": [StrOptions({"perlin"}), None],
        "classification_head": ["boolean"],
    }

    def __init__(
        self,
        max_epochs: int = 160,
        *,
        hidden_dim: int = 1024,
        n_hidden_layers: int = 1,
        adaptor: str | None = "linear",
        whiten: bool = False,
        noise_std: float = 0.015,
        relative_noise: bool = True,
        loss: str = "truncated_l1",
        margin: float | tuple[float, float] = 0.5,
        learning_rate: float = 2e-4,
        adaptor_learning_rate: float = 1e-4,
        schedule: str = "constant",
        weight_decay: float = 1e-5,
        train_batch_size: int = 4,
        upscale: int = 1,
        noise_mask: str | None = None,
        classification_head: bool = False,
        warm_start: bool = False,
        checkpoint_dir: str | Path | None = None,
        device: str = "auto",
        contamination: float = 0.05,
        calibration: str = "auto",
        threshold: str = "tail",
        sigma: float = 4.0,
        random_state: int | np.random.RandomState | None = 0,
        verbose: bool = False,
    ) -> None:
        self.max_epochs = max_epochs
        self.hidden_dim = hidden_dim
        self.n_hidden_layers = n_hidden_layers
        self.adaptor = adaptor
        self.whiten = whiten
        self.noise_std = noise_std
        self.relative_noise = relative_noise
        self.loss = loss
        self.margin = margin
        self.learning_rate = learning_rate
        self.adaptor_learning_rate = adaptor_learning_rate
        self.schedule = schedule
        self.weight_decay = weight_decay
        self.train_batch_size = train_batch_size
        self.upscale = upscale
        self.noise_mask = noise_mask
        self.classification_head = classification_head
        self.warm_start = warm_start
        self.checkpoint_dir = checkpoint_dir
        self.device = device
        self.contamination = contamination
        self.calibration = calibration
        self.threshold = threshold
        self.sigma = sigma
        self.random_state = random_state
        self.verbose = verbose

    # -- training: what is particular to SimpleNet; the rest is TrainedDetector's ---

    def _check_training(self, X):
        if self.classification_head and self.noise_mask is None:
            raise ValueError(
                "classification_head=True needs noise_mask='perlin': to learn what a "
                "normal image is, it must see copies without noise."
            )
        if self.whiten and self.adaptor != "linear":
            raise ValueError(
                f"whiten=True is an adaptor itself and takes the place of the linear "
                f"one; leave adaptor={self.adaptor!r} out."
            )
        self._margins()
        if self.warm_start and hasattr(self, "state_"):
            self._check_layers(X.shape[-1])

    def _margins(self):
        """The outputs th+ and th- of Equation 8."""
        margin: Any = self.margin
        if isinstance(margin, Real):
            return float(margin), -float(margin)
        margins = tuple(margin)
        numbers = len(margins) == 2 and all(isinstance(m, Real) for m in margins)
        if not numbers or not np.inf > margins[0] > margins[1] > -np.inf:
            raise ValueError(
                f"margin={self.margin!r} must be a positive number, or a pair (th+, "
                "th-) of numbers with th+ > th-."
            )
        return float(margins[0]), float(margins[1])

    def _check_layers(self, n_channels):
        """Refuse to continue a fit of other layers."""
        n_before = self.state_["discriminator.0.weight"].shape[1]
        if n_before != n_channels:
            raise ValueError(
                f"X has {n_channels} channels, but warm_start=True goes on from a fit "
                f"on {n_before}; set it to False."
            )
        fresh = networks.modules.seeded(self._networks, 0)
        if _shapes(networks.modules.arrays(fresh)) != _shapes(self.state_):
            raise ValueError(
                "warm_start=True goes on from a fit with other layers; give "
                "hidden_dim, n_hidden_layers, adaptor, whiten and classification_head "
                "the values of that fit, or set it to False."
            )

    def _fit_bytes(self, shape, itemsize, *, first):
        # Weights with gradients and moments; patches to score, of a fold or fifth.
        n_weights = shape[3] * (shape[3] + self.hidden_dim)
        n_weights += (self.n_hidden_layers - 1) * self.hidden_dim**2
        enlarged = self.upscale**2 * math.prod(shape) * itemsize
        sample = 8 * shape[3] * min(_SAMPLE_PATCHES, math.prod(shape[:3]))
        to_score = enlarged / 5 if self.upscale > 1 else 0.0
        return 4.0 * n_weights, 12.0 * n_weights + sample + to_score

    def _memory_advice(self):
        return (
            f"Reduce train_batch_size={self.train_batch_size}, hidden_dim="
            f"{self.hidden_dim}, upscale={self.upscale}, image_size of the features, "
            "or the number of images."
        )

    def _networks(self):
        return networks.simplenet.SimpleNet(
            self.n_features_in_,
            (self.hidden_dim,) * self.n_hidden_layers,
            classification_head=self.classification_head,
            whiten=self.whiten,
            adaptor=self.adaptor,
        )

    def _prepare_training(self, X, seed):
        """Set the standard deviation of the noise by the scale of normal patches."""
        mean, covariance = _patch_moments(X, seed)
        self._whitening = None
        if self.whiten:
            weight = _whitening(covariance)
            covariance = weight @ covariance @ weight.T
            adaptor = {"weight": weight, "bias": -weight @ mean}
            self._whitening = {k: v.astype(np.float32) for k, v in adaptor.items()}
        scale = np.sqrt(np.trace(covariance)) or 1.0
        self.noise_std_ = float(self.noise_std * (scale if self.relative_noise else 1))

    def _initial_networks(self, X):
        module, whitening = self._networks(), self.__dict__.pop("_whitening")
        if whitening is not None:
            networks.modules.with_arrays(module.adaptor, whitening)
        return module

    def _optimizer(self, module):
        return networks.simplenet.optimizer(
            module, self.adaptor_learning_rate, self.learning_rate, self.weight_decay
        )

    def _rate(self, step, n_steps):
        if self.schedule == "constant":
            return 1.0
        return networks.training.cosine(step, n_steps)

    def _n_images_at_once(self, X):
        """Images of a step, which together have enough patches."""
        n_patches = np.count_nonzero(~np.isnan(X[..., 0])) / len(X)
        return max(self.train_batch_size, int(np.ceil(_BATCH_PATCHES / n_patches)))

    def _n_batches(self, X):
        return -(-len(X) // self._n_images_at_once(X))

    def _n_steps(self, X):
        return self.max_epochs * self._n_batches(X)

    @contextmanager
    def _batches(self, X, seed):
        """Return the function that gives the batch of a step: grids, and noise."""
        n_at_once, n_batches = self._n_images_at_once(X), self._n_batches(X)
        n_done = n_batches * len(self.loss_curve_)

        def batch(step):
            epoch, position = divmod(n_done + step, n_batches)
            members = epoch_order(seed, epoch, len(X))[position * n_at_once :]
            grids, inside = _grids(X[members[:n_at_once]], self.upscale)
            seeds = seed, n_done + step
            shape = np.count_nonzero(inside), grids.shape[-1]
            noise = networks.simplenet.gaussian_noise(shape, seeds, self.noise_std_)
            noisy = inside
            if self.noise_mask == "perlin":
                rng = np.random.default_rng(combined_seed(*seeds))
                noisy = inside & [_blobs(inside.shape[1:], rng) for _ in inside]
            return grids, inside, noise, noisy

        yield batch

    def _loss(self, module, X):
        """Equation 8, or the cross-entropy, of patches and the same with noise."""
        output_loss = networks.simplenet.cross_entropy
        if self.loss == "truncated_l1":
            output_loss = partial(
                networks.simplenet.truncated_l1, margins=self._margins()
            )
        return partial(networks.simplenet.training_loss, module, output_loss)

    def _fingerprint(self, X):
        return (X,)

    def _curve(self, losses, X):
        """Mean loss of each epoch."""
        n_batches = self._n_batches(X)
        epochs = np.split(losses, range(n_batches, len(losses), n_batches))
        return [float(epoch.mean()) for epoch in epochs if len(epoch)]

    def _finish_training(self, X, seed):
        """Warn where the discriminator does no better than chance."""
        high, low = self._margins()
        guess = 2 * np.log(2) if self.loss == "cross_entropy" else high - low
        guess += np.log(2) * self.classification_head
        if self.loss_curve_[-1] > 0.95 * guess:
            warn_user(
                "the discriminator does not tell features from features with noise: "
                f"its last loss, {self.loss_curve_[-1]:.3g}, is about that of a guess, "
                f"{guess:.3g}, and scores say little. Train longer (max_epochs="
                f"{self.max_epochs}) or with more noise (noise_std={self.noise_std:g}; "
                "rows of a table, which spread in all directions as patches of a "
                "network do not, need about 1.5)."
            )

    # -- scores --------------------------------------------------------------

    def _score(self, X):
        grids, inside = _grids(X, self.upscale, dtype=X.dtype)
        rows = grids.reshape(-1, grids.shape[3]) if inside.all() else grids[inside]
        layers, output, module = self._scoring_layers(X.dtype)
        outputs = networks.simplenet.outputs_of(rows, layers, output)
        maps = patch_maps(-outputs, inside.ravel(), grids.shape[:3])
        if module is None:
            return image_scores(maps), maps
        return networks.simplenet.head_scores(module, grids, maps), maps

    def _scoring_layers(self, dtype):
        """Folded layers, last layer and second head, made once and kept."""

        def prepare():
            state = {k: v.astype(dtype) for k, v in self.state_.items()}
            layers, output = networks.simplenet.folded_layers(state)
            if not self.classification_head:
                return layers, output, None
            return (
                layers,
                output,
                networks.simplenet.scoring_module(self._networks, self.state_, dtype),
            )

        widths = self.hidden_dim, self.n_hidden_layers
        layout = *widths, self.adaptor, self.whiten, self.classification_head
        return prepared(self, prepare, self.state_, str(dtype), *layout)


def _shapes(state):
    return {name: values.shape for name, values in state.items()}


def _patch_moments(X, seed):
    """Mean (d,) and covariance (d, d), float64, of a sample of the patches."""
    rows, _ = patch_rows(X)
    if len(rows) > _SAMPLE_PATCHES:
        # Not every k-th: that may be the same columns of every grid.
        rng = np.random.default_rng(seed)
        rows = rows[rng.choice(len(rows), _SAMPLE_PATCHES, False)]
    moments = Moments().with_rows(rows)
    mean, covariance = moments.mean, moments.covariance
    if np.trace(covariance) <= (1e-12 * np.linalg.norm(mean)) ** 2:
        covariance = np.zeros_like(covariance)  # rounding of constant patches
    return mean, covariance


def _whitening(covariance):
    """Matrix W that makes the directions of patches vary alike.

    Parameters
    ----------
    covariance : ndarray of shape (d, d)
        C, of patches x.

    Returns
    -------
    weight : ndarray of shape (d, d), float64
        W; the identity for a covariance of zeros.

    Notes
    -----
    With C = U diag(v) U^T, the patches U^T x vary by v along their axes, each apart
    from the others. Divided by sqrt(v + f), they vary by v / (v + f): by about 1 where
    v is large, and by less, the more v is below the floor f, a hundredth of the mean
    variance. All that there is in such a direction may be rounding. So
    W = diag(1 / sqrt(v + f)) U^T.
    """
    floor = 0.01 * np.trace(covariance) / len(covariance)
    if floor == 0:
        return np.eye(len(covariance))
    variances, directions = np.linalg.eigh(covariance)
    return (directions / np.sqrt(variances.clip(0) + floor)).T


def _grids(X, upscale, dtype=np.float32):
    """Patch grids, enlarged, zero where a patch is NaN, and which patches are not."""
    inside = ~np.isnan(X[..., 0])
    grids = np.ascontiguousarray(X, dtype)
    if not inside.all():
        grids = np.where(inside[..., None], grids, 0)
    if upscale == 1:
        return grids, inside
    inside = inside.repeat(upscale, axis=1).repeat(upscale, axis=2)
    return networks.simplenet.upscaled(grids, upscale), inside


def _blobs(shape, rng):
    """Sample masks of Perlin noise for half of the images, empty ones for others."""
    if rng.random() < 0.5:
        return np.zeros(shape, bool)
    return perlin_mask(shape, rng)

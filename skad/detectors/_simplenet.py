"""SimpleNet (Liu et al., CVPR 2023): a discriminator between features and noise.

Good features are adapted by one linear layer (Section 3.2 of the paper); Gaussian
noise on these makes negatives (Section 3.3); a small discriminator learns to tell the
two apart (Section 3.4). What it says of a patch is the patch's score.
"""

from itertools import pairwise
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions

from skad._kept import prepared
from skad._moments import Moments
from skad._patches import image_scores, patch_maps, patch_rows
from skad._user_warning import warn_user
from skad.base import PatchDetector
from skad.networks._training import (
    arrays,
    cosine,
    generator,
    mixed,
    order,
    rebuilt,
    seeded,
    torch_device,
    train_estimator,
    with_arrays,
)
from skad.synthesis import perlin_mask

_SLOPE = 0.2  # of the discriminator below zero
_LEAST = 256  # patches of a step, for the statistics of a batch
_MOST = 20_000  # patches that the scale and the whitening are taken from


class SimpleNetDetector(PatchDetector):
    """Detect anomalies by a discriminator trained on good features and noise.

    Parameters
    ----------
    max_epochs : int, default=160
        Passes over the training images. The model of the last one is kept.

    hidden_dim : int, default=1024
        Width of the discriminator.

    n_hidden_layers : int, default=1
        Its hidden layers, each with batch normalization.

    whiten : bool, default=False
        Adapt by the whitening of good patches, which is not trained. Directions then
        vary alike, those too that good patches hardly use, down to a hundredth of the
        mean variance; noise of one size tells as much in each. A learned adaptor can
        make noise easy to tell by leaving directions out; defects along these it does
        not see.

    noise_std : float, default=0.015
        Standard deviation of the noise that makes negatives.

    relative_noise : bool, default=True
        Whether `noise_std` is a multiple of the features' own scale: the length by
        which a patch typically deviates from the mean patch, of whitened ones with
        `whiten`. False takes it as it is, as the paper does for its Wide ResNet-50.

    loss : {"truncated_l1", "cross_entropy"}, default="truncated_l1"
        Truncated l1 is the paper's Equation 8.

    margin : float, default=0.5
        Output from which truncated l1 is content, on both sides.

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

    batch_size : int, default=4
        Images of a step; more where these have fewer than 256 patches together.

    upscale : int, default=1
        Factor by which the patch grid is enlarged first, bilinearly. 2 is
        SuperSimpleNet's.

    noise_mask : {None, "perlin"}, default=None
        Where the noise goes: everywhere, or in half of the copies into blobs of
        Perlin noise (SuperSimpleNet), so that what surrounds them stays good.

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
        Tolerated false-alarm rate on good images, in (0, 0.5].

    calibration : {"auto", "kfold", "split", "train"}, default="auto"
        How the scores behind the threshold are held out. "auto" is "split": a fifth
        of the images is not trained on. "kfold" trains six times.

    threshold : {"tail", "rank"}, default="tail"
        How the threshold comes from the held-out scores: by a tail fitted to them,
        which keeps the false-alarm rate on average from few images, or by their
        conformal rank, which keeps it for any distribution and finds fewer anomalies
        where images are few.

    sigma : float, default=4.0
        Standard deviation in pixels of the Gaussian that smooths maps drawn at
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
        `whiten`, and those of the discriminator and the head.

    noise_std_ : float
        Standard deviation of the noise that was used, in units of the features, of
        whitened ones with `whiten`.

    contamination_ : float
        False-alarm rate of the thresholds, as of the fit or of `set_contamination`.

    offset_ : float
        Threshold of `score_samples`.

    calibration_scores_ : ndarray of shape (n_held_out,), float64
        Held-out scores of good images behind `offset_`, larger is more normal.

    calibration_maps_ : ndarray of shape (n_held_out, h, w), float32
        Their patch scores, larger is more anomalous.

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
    >>> good = rng.normal(size=(40, 4, 4, 8)) * [1, 1, 1, 1, 0.01, 0.01, 0.01, 0.01]
    >>> odd = good[:1].copy()
    >>> odd[0, 2, 1, 4:] += 1
    >>> detector = SimpleNetDetector(50, noise_std=0.2, learning_rate=5e-3).fit(good)
    >>> detector.loss_curve_[-1] < detector.loss_curve_[0]
    True
    >>> detector.predict(odd)
    array([-1])
    >>> heat = detector.anomaly_map(odd)[0]
    >>> [int(i) for i in np.unravel_index(heat.argmax(), heat.shape)]
    [2, 1]
    """

    loss_curve_: list[float]
    state_: dict[str, np.ndarray]
    _optimizer_state: dict[str, Any]
    _auto_calibration = "split"
    _n_folds = 5  # each of them trains
    _parameter_constraints = {
        **PatchDetector._parameter_constraints,
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "hidden_dim": [Interval(Integral, 1, None, closed="left")],
        "n_hidden_layers": [Interval(Integral, 1, None, closed="left")],
        "whiten": ["boolean"],
        "noise_std": [Interval(Real, 0, None, closed="neither")],
        "relative_noise": ["boolean"],
        "loss": [StrOptions({"truncated_l1", "cross_entropy"})],
        "margin": [Interval(Real, 0, None, closed="neither")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "adaptor_learning_rate": [Interval(Real, 0, None, closed="neither")],
        "schedule": [StrOptions({"constant", "cosine"})],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "upscale": [Interval(Integral, 1, None, closed="left")],
        "noise_mask": [StrOptions({"perlin"}), None],
        "classification_head": ["boolean"],
        "warm_start": ["boolean"],
        "checkpoint_dir": [str, Path, None],
        "device": [str],
    }

    def __init__(
        self,
        max_epochs=160,
        *,
        hidden_dim=1024,
        n_hidden_layers=1,
        whiten=False,
        noise_std=0.015,
        relative_noise=True,
        loss="truncated_l1",
        margin=0.5,
        learning_rate=2e-4,
        adaptor_learning_rate=1e-4,
        schedule="constant",
        weight_decay=1e-5,
        batch_size=4,
        upscale=1,
        noise_mask=None,
        classification_head=False,
        warm_start=False,
        checkpoint_dir=None,
        device="auto",
        contamination=0.05,
        calibration="auto",
        threshold="tail",
        sigma=4.0,
        random_state=0,
        verbose=False,
    ):
        self.max_epochs = max_epochs
        self.hidden_dim = hidden_dim
        self.n_hidden_layers = n_hidden_layers
        self.whiten = whiten
        self.noise_std = noise_std
        self.relative_noise = relative_noise
        self.loss = loss
        self.margin = margin
        self.learning_rate = learning_rate
        self.adaptor_learning_rate = adaptor_learning_rate
        self.schedule = schedule
        self.weight_decay = weight_decay
        self.batch_size = batch_size
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

    def _resolved_calibration(self):
        how = super()._resolved_calibration()
        if how == "kfold" and self.warm_start:
            raise ValueError(
                "calibration='kfold' with warm_start=True: the models of the folds "
                "would go on from one that has seen the images held out from them. "
                "Use 'split'."
            )
        return how

    def _fit(self, X):
        if self.classification_head and self.noise_mask is None:
            raise ValueError(
                "classification_head=True needs noise_mask='perlin': to learn what a "
                "good image is, it must see copies without noise."
            )
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        goes_on = self.warm_start and hasattr(self, "state_")
        d = X.shape[-1]
        if goes_on and self.state_["adaptor.weight"].shape[0] != d:
            raise ValueError(
                f"X has {d} channels, but warm_start=True goes on from a fit on "
                f"{self.state_['adaptor.weight'].shape[0]}; set it to False."
            )
        device = torch_device(self.device)
        module = seeded(lambda: self._module(d), seed)
        if goes_on:
            if _shapes(arrays(module)) != _shapes(self.state_):
                raise ValueError(
                    "warm_start=True goes on from a fit with other layers; give "
                    "hidden_dim, n_hidden_layers, whiten and classification_head the "
                    "values of that fit, or set it to False."
                )
            with_arrays(module, self.state_)
        else:
            self.loss_curve_ = []
            self._start(module, X, seed)
        module = module.to(device).train()
        optimizer = self._optimizer(module)
        n_patches = np.count_nonzero(~np.isnan(X[..., 0])) / len(X)
        n_at_once = max(self.batch_size, int(np.ceil(_LEAST / n_patches)))
        n_batches = -(-len(X) // n_at_once)
        n_steps, done = self.max_epochs * n_batches, len(self.loss_curve_)
        rates = [self.adaptor_learning_rate, self.learning_rate]

        def step(number):
            rate = cosine(number, n_steps) if self.schedule == "cosine" else 1.0
            for group, full in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * full
            epoch, batch = divmod(number, n_batches)
            members = order(seed, done + epoch, len(X))
            members = members[batch * n_at_once :][:n_at_once]
            draw = (seed, done * n_batches + number)
            loss = self._batch_loss(module, X[members], draw, device)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.detach()

        losses = train_estimator(
            self,
            step,
            {"module": module, "optimizer": optimizer},
            n_steps,
            "SimpleNet",
            lambda: (seed, done, X),
        )
        epochs = np.split(losses, range(n_batches, len(losses), n_batches))
        self.loss_curve_ = self.loss_curve_ + [
            float(e.mean()) for e in epochs if len(e)
        ]
        self.state_ = arrays(module)
        self._warn_of_guessing()

    def _warn_of_guessing(self):
        """Say so where training has not come to more than a guess."""
        guess = 2 * (np.log(2) if self.loss == "cross_entropy" else self.margin)
        guess += np.log(2) * self.classification_head
        if self.loss_curve_[-1] > 0.95 * guess:
            warn_user(
                "the discriminator does not tell features from features with noise: "
                f"its last loss, {self.loss_curve_[-1]:.3g}, is about that of a guess, "
                f"{guess:.3g}, and scores say little. Train longer (max_epochs="
                f"{self.max_epochs}) or with more noise (noise_std={self.noise_std:g}; "
                "rows of a table, which spread in all directions as patches of a "
                "network do not, need about 1.5).",
            )

    def _start(self, module, X, seed):
        """Set the size of the noise, and the whitening, by good patches."""
        rows, _ = patch_rows(X)
        if len(rows) > _MOST:
            # Not every k-th: that may be the same columns of every grid.
            rows = rows[np.random.default_rng(seed).choice(len(rows), _MOST, False)]
        moments = Moments().with_rows(rows)
        mean, covariance = moments.mean, moments.covariance
        if np.trace(covariance) <= (1e-12 * np.linalg.norm(mean)) ** 2:
            covariance = np.zeros_like(covariance)  # rounding of constant patches
        if self.whiten:
            weight = _whitening(covariance)
            start = {"weight": weight, "bias": -weight @ mean}
            start = {k: v.astype(np.float32) for k, v in start.items()}
            with_arrays(module["adaptor"], start)
            covariance = weight @ covariance @ weight.T
        scale = 1.0
        if self.relative_noise:
            scale = np.sqrt(np.trace(covariance)) or 1.0
        self.noise_std_ = float(self.noise_std * scale)

    def _module(self, d):
        widths = (self.hidden_dim,) * self.n_hidden_layers
        return _build(d, widths, self.classification_head, self.whiten)

    def _optimizer(self, module):
        from torch.optim import Adam

        adaptor = module["adaptor"].requires_grad_(not self.whiten).parameters()
        rest = [
            p
            for name, part in module.items()
            if name != "adaptor"
            for p in part.parameters()
        ]
        return Adam(
            [
                {"params": list(adaptor), "lr": self.adaptor_learning_rate},
                {"params": rest, "lr": self.learning_rate},
            ],
            weight_decay=self.weight_decay,
        )

    def _batch_loss(self, module, X, draw, device):
        """Loss of good patches and of the same with noise, in one batch."""
        import torch

        grids, inside = _grids(X, self.upscale)
        grids = torch.from_numpy(grids).to(device)
        n, h, w, d = grids.shape
        shown = torch.from_numpy(inside).to(device)
        adapted = module["adaptor"](grids[shown])
        noise = torch.randn(adapted.shape, generator=generator(*draw))
        noise = noise.to(device) * self.noise_std_
        noisy = np.ones((n, h, w), bool)
        if self.noise_mask == "perlin":
            rng = np.random.default_rng(mixed(*draw))
            noisy = np.stack([_blobs((h, w), rng) for _ in range(n)])
        noisy &= inside
        rows = torch.from_numpy(noisy[inside]).to(device)
        fake = (
            adapted + noise if noisy[inside].all() else adapted + noise * rows[:, None]
        )
        said = module["discriminator"](torch.cat([adapted, fake]))[:, 0]
        good = torch.cat([torch.ones_like(rows), ~rows])
        loss = self._loss_of(said, good)
        if not self.classification_head:
            return loss
        # The second head learns from what the first says, not the other way round.
        both = torch.cat([adapted, fake]).detach(), said.detach()
        features = torch.zeros((2 * n, h, w, d), device=device)
        heat = torch.zeros((2 * n, h, w), device=device)
        twice = torch.cat([shown, shown])
        features[twice], heat[twice] = both[0], -both[1]
        whole = module["head"](features, heat)
        bad = torch.from_numpy(noisy.any(axis=(1, 2))).to(device).float()
        bad = torch.cat([torch.zeros_like(bad), bad])
        return loss + torch.nn.functional.binary_cross_entropy_with_logits(whole, bad)

    def _loss_of(self, said, good):
        """Equation 8, or the cross-entropy, of outputs that should be high if good."""
        import torch

        said = torch.where(good, said, -said)
        if self.loss == "cross_entropy":
            losses = torch.nn.functional.softplus(-said)
        else:
            losses = torch.relu(self.margin - said)
        # The mean over good ones plus the mean over noisy ones, however many.
        total = losses[good].mean()
        return total if good.all() else total + losses[~good].mean()

    def _scoring_layers(self, dtype):
        """Layers, last layer and second head, as they were made for an earlier call."""

        def prepare():
            import torch

            state = {k: v.astype(dtype) for k, v in self.state_.items()}
            # Without noise in between, adaptor, layer and normalization are one matrix.
            layers = _folded(state)
            weight, offset = layers[0]
            if "adaptor.bias" in state:
                offset = offset + weight @ state["adaptor.bias"]
            layers[0] = weight @ state["adaptor.weight"], offset
            tail = state[f"discriminator.{3 * len(layers)}.weight"][0]
            if not self.classification_head:
                return layers, tail, None
            d = state["adaptor.weight"].shape[1]
            module = rebuilt(lambda: self._module(d), self.state_)
            return layers, tail, module.to(getattr(torch, str(dtype)))

        widths = self.hidden_dim, self.n_hidden_layers
        layout = *widths, self.whiten, self.classification_head
        return prepared(self, prepare, self.state_, str(dtype), *layout)

    def _score(self, X):
        grids, inside = _grids(X, self.upscale, dtype=X.dtype)
        rows = grids.reshape(-1, grids.shape[3]) if inside.all() else grids[inside]
        layers, tail, _ = self._scoring_layers(X.dtype)
        slope = X.dtype.type(_SLOPE)
        said = np.empty(len(rows), X.dtype)
        step = max(1, 2**22 // len(layers[0][0]))
        for lo in range(0, len(rows), step):
            hidden = rows[lo : lo + step]
            for weight, offset in layers:
                hidden = hidden @ weight.T
                hidden += offset
                np.maximum(hidden, hidden * slope, out=hidden)
            said[lo : lo + step] = hidden @ tail
        maps = patch_maps(-said, inside.ravel(), grids.shape[:3])
        if not self.classification_head:
            return image_scores(maps), maps
        return self._whole(grids, maps), maps

    def _whole(self, grids, maps):
        """What the second head says of images."""
        import torch

        module = self._scoring_layers(grids.dtype)[2]
        scores = np.empty(len(grids))
        with torch.inference_mode():
            for i in range(len(grids)):
                shown = ~np.isnan(maps[i])
                features = torch.zeros(
                    grids[i].shape, dtype=module["adaptor"].weight.dtype
                )
                features[shown] = module["adaptor"](torch.from_numpy(grids[i][shown]))
                heat = torch.from_numpy(np.where(shown, maps[i], 0))
                scores[i] = float(module["head"](features[None], heat[None]))
        return scores


def _build(d, widths, classification_head, whiten=False):
    """Adaptor, discriminator and head; weights of the layers are Xavier's."""
    from torch import nn

    hidden: list[nn.Module] = []
    for before, width in pairwise((d, *widths)):
        hidden += [
            nn.Linear(before, width),
            nn.BatchNorm1d(width),
            nn.LeakyReLU(_SLOPE),
        ]
    parts = {
        "adaptor": nn.Linear(d, d, bias=whiten),
        "discriminator": nn.Sequential(*hidden, nn.Linear(widths[-1], 1, bias=False)),
    }
    if classification_head:
        parts["head"] = _head(d)
    module = nn.ModuleDict(parts)
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_normal_(part.weight)
    return module


def _folded(state):
    """Weight and offset of each hidden layer, its batch normalization included."""
    layers, i = [], 0
    while f"discriminator.{i + 1}.running_var" in state:
        layer, norm = f"discriminator.{i}", f"discriminator.{i + 1}"
        variance = state[f"{norm}.running_var"]
        factor = state[f"{norm}.weight"] / np.sqrt(variance + variance.dtype.type(1e-5))
        offset = state[f"{layer}.bias"] - state[f"{norm}.running_mean"]
        weight = factor[:, None] * state[f"{layer}.weight"]
        layers.append((weight, state[f"{norm}.bias"] + factor * offset))
        i += 3
    return layers


def _head(d, width=128):
    """SuperSimpleNet's head: one number for all patches of an image together."""
    import torch
    from torch import nn

    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            self.join = nn.Sequential(
                nn.Conv2d(d + 1, width, 5, padding="same", bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(),
            )
            self.out = nn.Linear(2 * width + 2, 1)

        def forward(self, features, heat):
            heat = heat[..., None]
            joined = self.join(torch.cat([features, heat], -1).permute(0, 3, 1, 2))
            maps = torch.cat([joined, heat.permute(0, 3, 1, 2)], 1)
            pooled = torch.cat([maps.mean((2, 3)), maps.amax((2, 3))], 1)
            return self.out(pooled)[:, 0]

    return Head()


def _shapes(state):
    return {name: values.shape for name, values in state.items()}


def _whitening(covariance):
    """Matrix that makes the directions of patches vary alike, float64 (d, d).

    The less, the more a direction varies below a hundredth of the mean variance:
    all that there is in it may be rounding.
    """
    floor = 0.01 * np.trace(covariance) / len(covariance)
    if floor == 0:
        return np.eye(len(covariance))
    variances, directions = np.linalg.eigh(covariance)
    return (directions / np.sqrt(variances.clip(0) + floor)).T


def _grids(X, upscale, dtype=np.float32):
    """Patch grids, enlarged, zero where a patch is NaN, and which are not."""
    inside = ~np.isnan(X[..., 0])
    grids = np.ascontiguousarray(X, dtype)
    if not inside.all():
        grids = np.where(inside[..., None], grids, 0)
    if upscale == 1:
        return grids, inside
    import torch
    from torch.nn.functional import interpolate

    enlarged = interpolate(
        torch.from_numpy(grids).permute(0, 3, 1, 2),
        scale_factor=upscale,
        mode="bilinear",
        align_corners=False,
    )
    inside = inside.repeat(upscale, axis=1).repeat(upscale, axis=2)
    return np.ascontiguousarray(enlarged.permute(0, 2, 3, 1).numpy()), inside


def _blobs(shape, rng):
    """Blobs of Perlin noise in half of the cases, nothing in the others."""
    if rng.random() < 0.5:
        return np.zeros(shape, bool)
    return perlin_mask(shape, rng)

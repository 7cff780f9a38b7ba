"""Base of the detectors that train networks."""

import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils._param_validation import Interval

from skad import networks
from skad._kept import prepared
from skad.base._warnings import warn_of_collapse
from skad.images._batches import ImageReader, n_threads, remembered
from skad.networks._sampling import (
    combined_seed,
    fit_seed,
    image_means,
    prefetched,
    sample_at,
)
from skad.networks._torch_state import torch_device


class RememberedImages:
    """Training images, kept in memory once they have been read.

    Parameters
    ----------
    reader : ImageReader
        What reads them.
    """

    def __init__(self, reader):
        self.reader = reader
        self.read = remembered(reader)

    def __len__(self):
        return len(self.reader)

    def at(self, seed, position):
        """The image at a position of the sequence of all epochs."""
        return self.read(sample_at(seed, position, len(self)))

    def means(self):
        """The mean of each image, which tells data sets apart."""
        return image_means(self.read, len(self))


class TrainedDetector:
    """Mixin of the detectors that train networks with torch.

    It stands before `PatchDetector` or `ImageDetector` among the bases of a class.
    `_fit` runs the same steps for every method: seed, networks, optimizer, steps with
    checkpoints, and weights as NumPy arrays in `state_`. With ``warm_start=True``, a
    second fit continues with the networks and the optimizer of the first.

    Hooks say what is particular to a method; `data` is the training set, an array of
    patches or `RememberedImages`:

    ``_networks()``
        The module to train, on the CPU, with random weights. Required.
    ``_loss(module, data)``
        A function from a batch to the loss of the module. Required.
    ``_sampler(data, seed)``
        A function from the numbers of a step and of a sample to that sample, which
        runs in threads; or ``_batches(data, seed)`` for anything else. Required.
    ``_optimizer(module)``
        Required.
    ``_rate(step, n_steps)``
        Share of the learning rates at a step; 1 by default.
    ``_n_steps(data)``, ``_n_samples()``
        Length of the training, and samples of a step.
    ``_check_training(data)``, ``_prepare_training(data, seed)``
        Before every fit, and before one that does not continue another.
    ``_initial_networks(data)``
        `_networks`, unless weights start otherwise.
    ``_finish_training(data, seed)``
        After every fit, with `state_` set.
    ``_fingerprint(data)``
        What tells training sets apart, for the name of a checkpoint.

    Constructors take `train_batch_size`, `warm_start`, `checkpoint_dir`, `device`,
    `random_state` and `verbose`.
    """

    state_: dict[str, np.ndarray]
    loss_curve_: list[float]
    _optimizer_state: dict[str, Any]
    _label: str  # of the progress bar and of checkpoints
    _channels_last = True  # the layout of convolutional networks on CPUs
    _parameter_constraints: dict[str, Any] = {
        "train_batch_size": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "warm_start": ["boolean"],
        "checkpoint_dir": [str, Path, None],
        "device": [str],
    }
    # Given by the estimators.
    device: str
    warm_start: bool
    checkpoint_dir: Any
    random_state: Any
    n_jobs: Any
    train_batch_size: int
    max_steps: Any
    verbose: bool

    def _resolved_calibration(self):
        detector: Any = super()  # the base of detectors on patches or on images
        how = detector._resolved_calibration()
        if how == "kfold" and self.warm_start:
            raise ValueError(
                "calibration='kfold' with warm_start=True: the models of the folds "
                "would go on from one that learned from the images held out from them. "
                "Use 'split'."
            )
        return how

    def _fit(self, X):
        data = RememberedImages(X) if isinstance(X, ImageReader) else X
        self._check_training(data)
        seed = fit_seed(self.random_state)
        device = torch_device(self.device)
        if self.warm_start and hasattr(self, "state_"):
            module = networks.modules.seeded(self._networks, seed)
            networks.modules.with_arrays(module, self.state_)
        else:
            self.loss_curve_ = []
            self._prepare_training(data, seed)
            module = networks.modules.seeded(lambda: self._initial_networks(data), seed)
        module = networks.modules.placed(
            module, device, channels_last=self._channels_last
        )
        losses = self._train(module.train(), data, seed)
        self.loss_curve_ = self.loss_curve_ + self._curve(losses, data)
        self.state_ = networks.modules.arrays(module)
        self._finish_training(data, seed)

    def _train(self, module, data, seed):
        """Run all steps; the loss of each."""
        optimizer, n_steps = self._optimizer(module), self._n_steps(data)
        if self.warm_start and hasattr(self, "_optimizer_state"):
            networks.training.load_optimizer(
                optimizer, networks.modules.optimizer_tensors(self._optimizer_state)
            )
        loss_of = self._loss(module, data)
        with self._batches(data, seed) as batch:
            losses = networks.training.train(
                lambda step: loss_of(batch(step)),
                module,
                optimizer,
                n_steps,
                rate=lambda step: self._rate(step, n_steps),
                label=self._label,
                verbose=self.verbose,
                checkpoint=self._checkpoint(data, seed),
                what=f"a step of training {type(self).__name__}",
                advice_on_memory=self._memory_advice(),
            )
        if self.warm_start:
            self._optimizer_state = networks.modules.optimizer_arrays(optimizer)
        return losses

    def _checkpoint(self, data, seed):
        """File of the checkpoint; None without a folder for it."""
        if self.checkpoint_dir is None:
            return None
        settings = networks.training.result_settings(self)
        done = len(self.loss_curve_)
        fingerprint = self._fingerprint(data)
        return networks.training.checkpoint_file(
            self.checkpoint_dir, self._label.lower(), settings, seed, done, *fingerprint
        )

    def _trained_networks(self, *settings):
        """The trained module for scoring, made once and kept outside of the estimator.

        `settings` are whatever `_networks` depends on.
        """
        device = torch_device(self.device)
        return prepared(
            self,
            lambda: networks.modules.rebuilt(self._networks, self.state_).to(device),
            self.state_,
            str(device),
            *settings,
        )

    # -- hooks -------------------------------------------------------------------

    def _check_held_out(self, held_out):
        warn_of_collapse(self, held_out.scores, held_out.folds)

    def _fit_bytes(self, shape, itemsize, *, first):
        """Estimate for images: two batches.

        What the networks take is told by the first step of their training, and images
        are remembered where there is room.
        """
        return 0.0, 2.0 * self.train_batch_size * math.prod(shape[1:]) * itemsize

    def _memory_advice(self):
        estimator: Any = self
        return (
            f"Reduce train_batch_size={self.train_batch_size} or image_size="
            f"{estimator.image_size!r}."
        )

    def _networks(self):
        raise NotImplementedError(f"{type(self).__name__} defines no _networks().")

    def _initial_networks(self, data):
        return self._networks()

    def _optimizer(self, module):
        raise NotImplementedError(f"{type(self).__name__} defines no _optimizer().")

    def _loss(self, module: Any, data: Any) -> Callable:
        raise NotImplementedError(f"{type(self).__name__} defines no _loss().")

    def _sampler(self, data: Any, seed: int) -> Callable:
        raise NotImplementedError(f"{type(self).__name__} defines no _sampler().")

    @contextmanager
    def _batches(self, data: Any, seed: int) -> Iterator[Callable]:
        """Give a function from the number of a step to its samples."""
        make, n_samples = self._sampler(data, seed), self._n_samples()
        with ThreadPoolExecutor(n_threads(self.n_jobs)) as pool:
            yield prefetched(pool, make, n_samples, self._n_steps(data))

    def _n_samples(self):
        return self.train_batch_size

    def _n_steps(self, data):
        return self.max_steps

    def _rate(self, step, n_steps):
        return 1.0

    def _check_training(self, data):
        """Check the images and parameters of a training run; does nothing here."""

    def _prepare_training(self, data, seed):
        """Prepare what the loss needs, before the first step; does nothing here."""

    def _finish_training(self, data, seed):
        """Compute what scoring needs, after the last step; does nothing here."""

    def _fingerprint(self, data):
        return (data.means(),)

    def _curve(self, losses, data):
        """Convert the losses of the steps to `loss_curve_`; all of them here."""
        return losses


def sample_rng(seed, *numbers):
    """Random generator of one training sample, which its numbers seed."""
    return np.random.default_rng(combined_seed(seed, *numbers))

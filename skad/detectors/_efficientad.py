"""EfficientAD (Batzner et al., WACV 2024): where a student fails to follow its teacher.

A student learns, on good images only, to give what a pretrained teacher gives
(Section 3.2 of the paper); an autoencoder learns the same through a bottleneck, and
the student also learns to give what that gives (Section 3.3). Both disagreements are
maps, brought to one scale by quantiles of good images (Section 3.4).
"""

import copy
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions

from skad._kept import prepared
from skad._training_images import TrainingImages
from skad._user_warning import warn_user
from skad.base import ImageDetector
from skad.detectors._teacher import Teacher, colourless, distill_teacher
from skad.images._batches import NamedImages, remembered
from skad.networks._input import as_input
from skad.networks._pdn import AUTOENCODER_WIDTH, autoencoder, pdn, pdn_grid
from skad.networks._training import (
    arrays,
    mixed,
    order,
    rebuilt,
    seeded,
    torch_device,
    train_estimator,
    with_arrays,
)
from skad.synthesis._image import recoloured

_HARD = 0.999  # share of the differences that the student need not learn from
_QUANTILES = (0.9, 0.995)  # of the maps of good images, which become 0 and 0.1
_DECAY_AT = 0.95  # share of the steps after which the learning rate drops
_PENALTY_GREY = 0.3  # share of the penalty images that lose their colours
_AT_ONCE = 8  # images per pass when scoring


class EfficientADDetector(TrainingImages, ImageDetector):
    """Detect anomalies where a student and an autoencoder fail to follow a teacher.

    Parameters
    ----------
    model : {"small", "medium", "tiny"}, default="small"
        Layout of the student. "tiny", which is not the paper's, has a tenth of the
        operations of "small" where the teacher has 64 channels (1/6.4 where it has
        384): two processor cores train it in minutes.

    teacher : Teacher, path, torch.nn.Module or "distill"
        A `skad.detectors.Teacher`; the file of one, or of weights as others have
        published them; a module from images (b, 3, H, W), normalised as for ImageNet,
        to maps (b, c, h, w) on the grid of the student; or "distill" to make one
        from `features` on the training images and `penalty_images`.

    penalty_images : sequence of images or path of a folder, default=None
        Photographs of anything: the student is kept from following the teacher on
        these, so that it fails on what is not normal. Of a folder, those in the folders
        in it count, too. Without them, a warning. Clones share them. Images in memory
        do not travel in the pickle of a fitted model: where it is loaded, set them
        again before another `fit`.

    max_steps : int, default=70000
        Steps of training.

    features : PatchFeatures, default=None
        What ``teacher="distill"`` is to imitate.

    padding : bool, default=False
        Whether convolutions see a border of zeros. Without it, the outer 16 pixels
        of an image are covered by their neighbours' maps only.

    learning_rate : float, default=1e-4
        A tenth of it for the last twentieth of the steps.

    weight_decay : float, default=1e-5
        Of Adam.

    batch_size : int, default=1
        Images of a training step.

    image_size : int or (int, int), default=256
        Images are resized to this; any size from 64 pixels. The bottleneck of the
        autoencoder sees the whole image: its weights depend on the size.

    crop_size : int or (int, int), default=None
        The centre of the resized image that is looked at.

    warm_start : bool, default=False
        Whether a second `fit` goes on training for `max_steps` more.

    checkpoint_dir : path, default=None
        Folder for a checkpoint every half a minute. A process that was killed goes
        on from it when it fits the same images with the same settings, and ends
        with the same model.

    device : str, default="auto"
        "auto" is a CUDA device where there is one, else the CPU.

    contamination : float, default=0.05
        Tolerated false-alarm rate on good images, in (0, 0.5].

    calibration : {"auto", "kfold", "split", "train"}, default="auto"
        How the scores behind the threshold are held out. "auto" is "split": a fifth
        of the images is not trained on.

    threshold : {"tail", "rank"}, default="tail"
        How the threshold comes from the held-out scores: by a tail fitted to them,
        which keeps the false-alarm rate on average from few images, or by their
        conformal rank, which keeps it for any distribution and finds fewer anomalies
        where images are few.

    sigma : float, default=0.0
        Standard deviation in pixels of a Gaussian that smooths maps.

    on_error : {"raise", "skip"}, default="raise"
        What to do about an image that cannot be read.

    n_jobs : int, default=None
        Threads that read images; None is up to 4.

    random_state : int, RandomState instance or None, default=0
        Determines weights, augmentation and the order of images. Checkpoints need
        an int.

    verbose : bool, default=False
        Report progress, loss and speed on the standard error stream.

    Attributes
    ----------
    teacher_ : Teacher or torch.nn.Module
        The teacher that was used.

    state_ : dict of ndarray
        Weights of ``student`` and ``autoencoder`` by name.

    teacher_mean_, teacher_std_ : ndarray of shape (c,), float32
        Channel statistics of the teacher's output on the training images.

    quantiles_ : ndarray of shape (2, 2), float64
        Quantiles 0.9 and 0.995 of the student's and of the autoencoder's maps of a
        tenth of the training images that the networks have not seen.

    loss_curve_ : list of float
        Loss of each step so far.

    contamination_ : float
        False-alarm rate of the thresholds, as of the fit or of `set_contamination`.

    offset_ : float
        Threshold of `score_samples`.

    calibration_scores_ : ndarray of shape (n_held_out,), float64
        Held-out scores of good images behind `offset_`, larger is more normal.

    calibration_maps_ : ndarray of shape (n_held_out, h, w), float32
        Their maps, larger is more anomalous.

    n_samples_seen_ : int
        Number of training images.

    See Also
    --------
    skad.detectors.distill_teacher : Make a teacher.

    Notes
    -----
    The score of an image is the largest value of its map before anything is drawn:
    a border of zeros would give all very normal images the same score.

    Networks that the method uses as published need weights whose licence is often
    not stated; `distill_teacher` makes your own. The method may be covered by the
    European patent application EP4145401A1: ask a lawyer before you sell it.

    Ctrl-C ends training and keeps what was learned until then.

    References
    ----------
    .. [1] K. Batzner, L. Heckler, R. Koenig, "EfficientAD: Accurate Visual Anomaly
       Detection at Millisecond-Level Latencies", WACV 2024. Sections 3.1 to 3.4,
       Algorithms 1 to 3.

    Examples
    --------
    >>> from skad import EfficientADDetector, PCANetFeatures
    >>> from skad.datasets import make_textures
    >>> from skad.detectors import distill_teacher
    >>> data = make_textures(n_normal=30, n_anomalous=5, size=64, random_state=0)
    >>> teacher = distill_teacher(
    ...     PCANetFeatures(image_size=64), data.train, model="tiny", max_steps=30,
    ...     image_size=64, learning_rate=1e-3,
    ... )
    >>> detector = EfficientADDetector(
    ...     "tiny", teacher, data.train, max_steps=30, image_size=64,
    ...     learning_rate=1e-3,
    ... ).fit(data.train)
    >>> detector.anomaly_map(data.test).shape[1:]
    (64, 64)
    """

    _training_images = ("penalty_images",)
    loss_curve_: list[float]
    state_: dict[str, np.ndarray]
    _optimizer_state: dict[str, Any]
    _parameter_constraints = {
        **ImageDetector._parameter_constraints,
        "model": [StrOptions({"small", "medium", "tiny"})],
        "teacher": [Teacher, str, Path, HasMethods("forward"), None],
        "penalty_images": "no_validation",
        "features": [HasMethods("transform"), None],
        "max_steps": [Interval(Integral, 1, None, closed="left")],
        "padding": ["boolean"],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "warm_start": ["boolean"],
        "checkpoint_dir": [str, Path, None],
        "device": [str],
    }

    def __init__(
        self,
        model="small",
        teacher=None,
        penalty_images=None,
        max_steps=70_000,
        *,
        features=None,
        padding=False,
        learning_rate=1e-4,
        weight_decay=1e-5,
        batch_size=1,
        image_size=256,
        crop_size=None,
        warm_start=False,
        checkpoint_dir=None,
        device="auto",
        contamination=0.05,
        calibration="auto",
        threshold="tail",
        sigma=0.0,
        on_error="raise",
        n_jobs=None,
        random_state=0,
        verbose=False,
    ):
        self.model = model
        self.teacher = teacher
        self.penalty_images = penalty_images
        self.max_steps = max_steps
        self.features = features
        self.padding = padding
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.image_size = image_size
        self.crop_size = crop_size
        self.warm_start = warm_start
        self.checkpoint_dir = checkpoint_dir
        self.device = device
        self.contamination = contamination
        self.calibration = calibration
        self.threshold = threshold
        self.sigma = sigma
        self.on_error = on_error
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    def _images_at_once(self):
        return _AT_ONCE

    # -- training ------------------------------------------------------------

    def _fit(self, reader):
        self._check_training_images()
        if min(self._input_size()) < 64:
            raise ValueError(
                f"image_size={self.image_size!r} leaves less than 64 pixels; the "
                "autoencoder halves images five times."
            )
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        device = torch_device(self.device)
        if self.penalty_images is None:
            warn_user(
                "penalty_images=None: nothing keeps the student from following the "
                "teacher on defects as well. Pass photographs of many other things.",
            )
        goes_on = self.warm_start and hasattr(self, "state_")
        if not goes_on:
            self.loss_curve_ = []
            self.teacher_ = self._teacher(reader, seed)
        learned_from, validation = self._split(len(reader), seed)
        read = remembered(reader)
        teacher = self._teacher_network(device)
        if not goes_on:
            batches = (read(i)[None] for i in learned_from)
            self._set_statistics(teacher, batches, device)
        student, auto = seeded(self._networks, seed)
        if goes_on:
            with_arrays(student, _part(self.state_, "student"))
            with_arrays(auto, _part(self.state_, "autoencoder"))
        losses = self._train(teacher, student, auto, read, learned_from, seed, device)
        self.loss_curve_ = self.loss_curve_ + losses
        self.state_ = {
            **{f"student.{k}": v for k, v in arrays(student).items()},
            **{f"autoencoder.{k}": v for k, v in arrays(auto).items()},
        }
        self._set_quantiles(
            [self._raw_maps(read(i)[None]) for i in validation],
        )

    def _shared(self):
        shared = super()._shared()
        if isinstance(self.teacher, Teacher):  # nobody writes to its weights
            shared["teacher"] = self.teacher
        return shared

    def _teacher(self, reader, seed):
        if isinstance(self.teacher, Teacher) or hasattr(self.teacher, "forward"):
            return self.teacher
        if self.teacher is None:
            raise ValueError(
                "teacher=None: pass a Teacher (skad.detectors.distill_teacher makes "
                "one), a file of weights, or 'distill' with features=."
            )
        if self.teacher != "distill":
            return Teacher.load(self.teacher)
        if self.features is None:
            raise ValueError(
                "teacher='distill' needs features=, a PatchFeatures to imitate."
            )
        # Only a crop must be made here: paths are read when they are needed.
        whole = self.crop_size is None
        items = [reader.item(i) for i in range(len(reader))]
        names = [name for _, name in items]
        images = [
            item if whole else reader.read(i) for i, (item, _) in enumerate(items)
        ]
        if self.penalty_images is not None:
            others = self._side_reader("penalty_images", self._input_size())
            more = [others.item(i) for i in range(len(others))]
            images += [item for item, _ in more]
            names += [name for _, name in more]
        return distill_teacher(
            self.features,
            NamedImages(images, names),
            model=self.model,
            max_steps=self.max_steps,
            image_size=self._input_size(),
            checkpoint_dir=self.checkpoint_dir,
            device=self.device,
            random_state=seed,
            verbose=self.verbose,
        )

    def _split(self, n, seed):
        """Images to train on, and a tenth of all for the quantiles."""
        if n == 1:
            warn_user(
                "one training image: the scale of the maps comes from the image that "
                "was trained on.",
            )
            return np.array([0]), np.array([0])
        shuffled = np.random.default_rng(seed).permutation(n)
        n_validation = max(1, n // 10)
        return np.sort(shuffled[n_validation:]), np.sort(shuffled[:n_validation])

    def _networks(self):
        """Student and autoencoder."""
        size, c = self._input_size(), self._n_teacher_channels()
        grid = self._grid()
        return (
            pdn(self.model, 2 * c, padding=self.padding),
            autoencoder(c, size, grid, AUTOENCODER_WIDTH[self.model]),
        )

    def _grid(self):
        return pdn_grid(self._input_size(), padding=self.padding)

    def _n_teacher_channels(self):
        return len(self.teacher_mean_)

    def _teacher_network(self, device):
        if isinstance(self.teacher_, Teacher):
            return self.teacher_.network(padding=self.padding).to(device)
        tensors = [*self.teacher_.parameters(), *self.teacher_.buffers()]
        if all(
            t.device.type == device.type and device.index in (None, t.device.index)
            for t in tensors
        ):
            return self.teacher_
        return copy.deepcopy(self.teacher_).to(device)  # the user's own stays there

    def _taught(self, network, batch):
        """Output of the teacher, without gradients; the mode of each part stays."""
        import torch

        training = [part for part in network.modules() if part.training]
        try:
            with torch.no_grad():
                found = network.eval()(batch)
        finally:
            for part in training:
                part.training = True
        if tuple(found.shape[2:]) != self._grid():
            raise ValueError(
                f"teacher gives maps of {tuple(found.shape[2:])}, but the student "
                f"{self._grid()}; its stride must be 4, and padding="
                f"{self.padding} must be its own."
            )
        return found

    def _set_statistics(self, teacher, batches, device):
        """Mean and deviation of each of the teacher's channels, in two passes."""
        found = [
            self._taught(teacher, as_input(batch, device)).double().cpu().numpy()
            for batch in batches
        ]
        mean = np.mean([f.mean(axis=(0, 2, 3)) for f in found], axis=0)
        squares = [
            np.square(f - mean[:, None, None]).mean(axis=(0, 2, 3)) for f in found
        ]
        std = np.sqrt(np.mean(squares, axis=0))
        self.teacher_mean_ = mean.astype(np.float32)
        # A dead channel would divide by nothing.
        least = max(1e-6 * std.max(), 1e-30)
        self.teacher_std_ = np.maximum(std, least).astype(np.float32)

    def _train(self, teacher, student, auto, read, members, seed, device):
        import torch
        from torch.optim import Adam

        last = torch.channels_last
        student, auto = (m.to(device, memory_format=last) for m in (student, auto))
        student.train()
        auto.train()
        optimizer = Adam(
            [*student.parameters(), *auto.parameters()],
            self.learning_rate,
            weight_decay=self.weight_decay,
        )
        mean, std = (
            torch.tensor(s, device=device)[:, None, None]
            for s in (self.teacher_mean_, self.teacher_std_)
        )
        read_penalty, n_penalty = self._penalty_reader()
        done, n = len(self.loss_curve_), len(members)

        def step(number):
            rate = self.learning_rate
            for group in optimizer.param_groups:
                group["lr"] = rate if number < _DECAY_AT * self.max_steps else rate / 10
            rng = np.random.default_rng(mixed(seed, 2, done + number))
            ahead = [
                self.batch_size * (done + number) + i for i in range(self.batch_size)
            ]
            chosen = [members[order(seed, k // n, n)[k % n]] for k in ahead]
            good = np.stack([read(i) for i in chosen])
            changed = np.stack([_augmented(image, rng) for image in good])
            both = as_input(np.concatenate([good, changed]), device)
            wanted = (self._taught(teacher, both) - mean) / std
            target, target_changed = wanted.chunk(2)
            shown = [both]
            if read_penalty is not None:
                other = []
                for _ in chosen:
                    image = read_penalty(rng.integers(n_penalty))
                    grey = rng.random() < _PENALTY_GREY
                    other.append(colourless(image) if grey else image)
                shown.append(as_input(np.stack(other), device))
            # One pass of the student for all three kinds of images.
            said = student(torch.cat(shown))
            b, c = len(good), said.shape[1] // 2
            penalty = said[2 * b :, :c] if read_penalty is not None else None
            with torch.random.fork_rng():  # of the autoencoder's dropout
                torch.manual_seed(mixed(seed, 3, done + number))
                rebuilt = auto(both[b:])
            loss = (
                hard_loss(target, said[:b, :c])
                + torch.nn.functional.mse_loss(target_changed, rebuilt)
                + torch.nn.functional.mse_loss(rebuilt, said[b : 2 * b, c:])
            )
            if penalty is not None:
                loss = loss + penalty.square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.detach()

        return train_estimator(
            self,
            step,
            {"student": student, "autoencoder": auto, "optimizer": optimizer},
            self.max_steps,
            "EfficientAD",
            lambda: (seed, done, n, self.teacher_mean_, self.teacher_std_),
        )

    def _penalty_reader(self):
        """How to read centres of penalty images, and how many there are."""
        if self.penalty_images is None:
            return None, 0
        size = self._input_size()
        twice = 2 * size[0], 2 * size[1]
        reader = self._side_reader("penalty_images", twice, size)
        return remembered(reader), len(reader)

    # -- scores --------------------------------------------------------------

    def _set_quantiles(self, maps):
        """From the maps of good images, brought to the scale that scores have."""
        self.quantiles_ = np.array(
            [np.quantile([m[k] for m in maps], _QUANTILES) for k in (0, 1)]
        )
        low, high = self.quantiles_.T
        if np.any(high - low <= 1e-12 * np.abs(high)):
            warn_user(
                "maps of good images are constant: the scale of scores is arbitrary.",
            )

    def _scoring_networks(self, device):
        """Teacher, student and autoencoder, as they were made for an earlier call."""

        def prepare():
            student, auto = (
                rebuilt(lambda k=k: self._networks()[k], _part(self.state_, name))
                for k, name in enumerate(("student", "autoencoder"))
            )
            return self._teacher_network(device), student.to(device), auto.to(device)

        state, versions = dict(self.state_), ()
        if isinstance(self.teacher_, Teacher):
            weights = self.teacher_.state
            state.update({f"teacher.{k}": v for k, v in weights.items()})
        else:
            versions = _versions(self.teacher_)
        layout = self.model, self.padding, self._input_size(), versions
        return prepared(self, prepare, state, str(device), *layout)

    def _raw_maps(self, batch):
        """Disagreement of student and teacher, and of student and autoencoder."""
        import torch

        device = torch_device(self.device)
        teacher, student, auto = self._scoring_networks(device)
        with torch.inference_mode():
            mean, std = (
                torch.tensor(s, device=device)[:, None, None]
                for s in (self.teacher_mean_, self.teacher_std_)
            )
            batch = as_input(batch, device)
            wanted = (self._taught(teacher, batch) - mean) / std
            said = student(batch)
            c = wanted.shape[1]
            by_teacher = (wanted - said[:, :c]).square().mean(dim=1)
            by_auto = (auto(batch) - said[:, c:]).square().mean(dim=1)
        return by_teacher.cpu().numpy(), by_auto.cpu().numpy()

    def _score_batch(self, batch):
        low, high = self.quantiles_.T
        span = np.maximum(high - low, np.finfo(np.float32).tiny)
        raw = self._raw_maps(batch)
        scaled = [0.1 * (raw[k] - low[k]) / span[k] for k in (0, 1)]
        maps = (0.5 * scaled[0] + 0.5 * scaled[1]).astype(np.float32)
        return maps.max(axis=(1, 2)).astype(np.float64), maps

    def _rendering(self, window, grid):
        """Without padding, the grid covers the image but for a margin."""
        inner = []
        for side, n_cells, (start, stop) in zip(
            self._input_size(), grid, window, strict=True
        ):
            margin = 0 if self.padding else (side - 4 * n_cells) / 2 / side
            inner.append(
                (start + margin * (stop - start), stop - margin * (stop - start))
            )
        return super()._rendering(tuple(inner), grid)


def hard_loss(target, said, share=_HARD):
    """Mean of the largest squared differences (Equation 1): those above a quantile."""
    import torch

    differences = (target - said).square().flatten()
    n = len(differences)
    # torch.quantile sorts everything, and refuses more than 2**24 numbers.
    position = share * (n - 1)
    below = int(position)
    top = torch.topk(differences.detach(), n - below).values
    lower, upper = top[-1], top[-2] if len(top) > 1 else top[-1]
    least = lower + (position - below) * (upper - lower)
    return differences[differences >= least].mean()


def _augmented(image, rng):
    """Brightness, contrast or saturation changed by up to a fifth."""
    kind = ("brightness", "contrast", "saturation")[rng.integers(3)]
    return recoloured(image, kind, np.float32(rng.uniform(0.8, 1.2)))


def _versions(module):
    """What changes when a module's tensors are replaced or written to."""
    return id(module), *(
        (id(tensor), 0 if tensor.is_inference() else tensor._version)
        for tensor in (*module.parameters(), *module.buffers())
    )


def _part(state, name):
    return {
        k.removeprefix(f"{name}."): v
        for k, v in state.items()
        if k.startswith(f"{name}.")
    }

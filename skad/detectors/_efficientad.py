"""EfficientAD (Batzner et al., WACV 2024): where a student fails to follow its teacher.

A student learns, on normal images only, to give what a pretrained teacher gives
(Section 3.2 of the paper); an autoencoder learns the same through a bottleneck, and
the student also learns to give what that gives (Section 3.3). Both disagreements are
maps, brought to one scale by quantiles of normal images (Section 3.4).
"""

import copy
from collections.abc import Callable
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions

from skad import networks
from skad._kept import prepared
from skad._training_images import TrainingImages
from skad._user_warning import warn_user
from skad.base import ImageDetector, TrainedDetector
from skad.base._trained import sample_rng
from skad.detectors._teacher import Teacher, colourless, distill_teacher
from skad.images._batches import NamedImages, remembered
from skad.networks._sampling import combined_seed, sample_at
from skad.networks._torch_state import torch_device
from skad.synthesis._image import recoloured

_QUANTILES = (0.9, 0.995)  # of the maps of normal images, which become 0 and 0.1
_DECAY_AT_SHARE = (
    0.95  # share of the steps after which the learning rate drops to a tenth
)
_GREY_SHARE = 0.3  # of the penalty images, which lose their colours


class EfficientADDetector(TrainingImages, TrainedDetector, ImageDetector):
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

    train_batch_size : int, default=1
        Images of a training step.

    batch_size : int, default=8
        Images per forward pass when scoring.

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
        Tolerated false-alarm rate on normal images, in (0, 0.5].

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
        tenth of the training images that the networks were not trained on.

    loss_curve_ : list of float
        Loss of each step so far.

    contamination_ : float
        False-alarm rate of the thresholds, as of the fit or of `set_contamination`.

    offset_ : float
        Threshold of `score_samples`.

    calibration_scores_ : ndarray of shape (n_held_out,), float64
        Held-out scores of normal images behind `offset_`, larger is more normal.

    calibration_maps_ : ndarray of shape (n_maps, h, w), float32
        Their maps, larger is more anomalous. Of more than 1,000 images whose maps
        take more than 256 MB together, those of a random sample.

    n_samples_seen_ : int
        Number of training images.

    See Also
    --------
    skad.detectors.distill_teacher : Make a teacher.

    Notes
    -----
    The score of an image is the largest value of its map before it is rendered:
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
    _label = "EfficientAD"
    _parameter_constraints = {
        **ImageDetector._parameter_constraints,
        **TrainedDetector._parameter_constraints,
        "model": [StrOptions({"small", "medium", "tiny"})],
        "teacher": [Teacher, str, Path, HasMethods("forward"), None],
        "penalty_images": "no_validation",
        "features": [HasMethods("transform"), None],
        "max_steps": [Interval(Integral, 1, None, closed="left")],
        "padding": ["boolean"],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
    }

    def __init__(
        self,
        model: str = "small",
        teacher: Any = None,
        penalty_images: Any = None,
        max_steps: int = 70_000,
        *,
        features: Any = None,
        padding: bool = False,
        learning_rate: float = 1e-4,
        weight_decay: float = 1e-5,
        train_batch_size: int = 1,
        batch_size: int = 8,
        image_size: int | tuple[int, int] = 256,
        crop_size: int | tuple[int, int] | None = None,
        warm_start: bool = False,
        checkpoint_dir: str | Path | None = None,
        device: str = "auto",
        contamination: float = 0.05,
        calibration: str = "auto",
        threshold: str = "tail",
        sigma: float = 0.0,
        on_error: str = "raise",
        n_jobs: int | None = None,
        random_state: int | np.random.RandomState | None = 0,
        verbose: bool = False,
    ) -> None:
        self.model = model
        self.teacher = teacher
        self.penalty_images = penalty_images
        self.max_steps = max_steps
        self.features = features
        self.padding = padding
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.train_batch_size = train_batch_size
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

    # -- training: what is particular to EfficientAD; the rest is TrainedDetector's --

    def _check_training(self, images: Any) -> None:
        self._check_training_images()
        if min(self._input_size()) < 64:
            raise ValueError(
                f"image_size={self.image_size!r} leaves less than 64 pixels; the "
                "autoencoder halves images five times."
            )
        torch_device(self.device)  # an error about it comes before any warning
        if self.penalty_images is None:
            warn_user(
                "penalty_images=None: nothing keeps the student from following the "
                "teacher on defects as well. Pass photographs of many other things."
            )
        if len(images) == 1:
            warn_user(
                "one training image: the scale of the maps comes from the image that "
                "was trained on."
            )

    def _prepare_training(self, images: Any, seed: int) -> None:
        self.teacher_ = self._teacher(images.reader, seed)
        members, _ = _split(len(images), seed)
        batches = (images.read(i)[None] for i in members)
        self._set_statistics(batches, torch_device(self.device))

    def _set_statistics(self, batches: Any, device: Any) -> None:
        """Mean and standard deviation of each channel of the teacher's output."""
        self.teacher_mean_, self.teacher_std_ = networks.pdn.channel_statistics(
            self._teacher_network(device), batches, self._grid(), device
        )

    def _networks(self) -> Any:
        return networks.pdn.student_and_autoencoder(
            self.model,
            len(self.teacher_mean_),
            self._input_size(),
            padding=self.padding,
        )

    def _optimizer(self, module: Any) -> Any:
        return networks.pdn.adam(module, self.learning_rate, self.weight_decay)

    def _rate(self, step: int, n_steps: int) -> float:
        return 1.0 if step < _DECAY_AT_SHARE * n_steps else 0.1

    def _n_samples(self) -> int:
        return 1  # a whole batch, whose images share one generator

    def _sampler(self, images: Any, seed: int) -> Callable[[int, int], Any]:
        """Return the function that gives the batch of a step: images, and a seed."""
        n_done, size = len(self.loss_curve_), self.train_batch_size
        members, _ = _split(len(images), seed)
        read_penalty, n_penalty = self._penalty_reader()

        def batch(step: int, _: int) -> tuple[Any, ...]:
            rng = sample_rng(seed, 2, n_done + step)
            first = size * (n_done + step)
            positions = range(first, first + size)
            chosen = [members[sample_at(seed, i, len(members))] for i in positions]
            normal = np.stack([images.read(i) for i in chosen])
            augmented = np.stack([_augmented(image, rng) for image in normal])
            penalty = None
            if read_penalty is not None:
                penalty = np.stack(
                    [_penalty(read_penalty, n_penalty, rng) for _ in chosen]
                )
            return normal, augmented, penalty, combined_seed(seed, 3, n_done + step)

        return batch

    def _loss(self, module: Any, images: Any) -> Callable[..., Any]:
        device = torch_device(self.device)
        teacher = self._normalized_teacher(device)

        def loss(samples: Any) -> Any:
            return networks.pdn.training_loss(module, teacher, device, samples[0])

        return loss

    def _fingerprint(self, images: Any) -> tuple[Any, ...]:
        n_members = max(1, len(images) - max(1, len(images) // 10))
        return n_members, self.teacher_mean_, self.teacher_std_

    def _finish_training(self, images: Any, seed: int) -> None:
        _, validation = _split(len(images), seed)
        self._set_quantiles([self._raw_maps(images.read(i)[None]) for i in validation])

    def _penalty_reader(self) -> tuple[Any, int]:
        """Return a function that reads centres of penalty images, and their number."""
        if self.penalty_images is None:
            return None, 0
        height, width = self._input_size()
        twice = 2 * height, 2 * width
        reader = self._side_reader("penalty_images", twice, (height, width))
        return remembered(reader), len(reader)

    # -- the teacher ---------------------------------------------------------

    def _shared(self) -> dict[str, Any]:
        shared = super()._shared()
        if isinstance(self.teacher, Teacher):  # nobody writes to its weights
            shared["teacher"] = self.teacher
        return shared

    def _teacher(self, reader: Any, seed: int) -> Any:
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

    def _grid(self) -> tuple[int, int]:
        """Height and width of the maps."""
        return networks.pdn.pdn_grid(self._input_size(), padding=self.padding)

    def _teacher_network(self, device: Any) -> Any:
        if isinstance(self.teacher_, Teacher):
            return self.teacher_.network(padding=self.padding).to(device)
        tensors = [*self.teacher_.parameters(), *self.teacher_.buffers()]
        if all(
            t.device.type == device.type and device.index in (None, t.device.index)
            for t in tensors
        ):
            return self.teacher_
        return copy.deepcopy(self.teacher_).to(device)  # the user's own stays there

    def _normalized_teacher(self, device: Any) -> Any:
        return networks.pdn.NormalizedTeacher(
            self._teacher_network(device),
            self.teacher_mean_,
            self.teacher_std_,
            self._grid(),
            device,
        )

    # -- scores --------------------------------------------------------------

    def _set_quantiles(self, maps: Any) -> None:
        """Quantiles of the maps of normal images, which set the scale of the scores."""
        self.quantiles_ = np.array(
            [np.quantile([m[k] for m in maps], _QUANTILES) for k in (0, 1)]
        )
        low, high = self.quantiles_.T
        if np.any(high - low <= 1e-12 * np.abs(high)):
            warn_user(
                "maps of normal images are constant: the scale of scores is arbitrary."
            )

    def _scoring_networks(self, device: Any) -> Any:
        """Teacher, student and autoencoder, made once and cached outside of `self`."""

        def prepare() -> Any:
            module = networks.modules.rebuilt(self._networks, self.state_).to(device)
            teacher = self._teacher_network(device)
            return teacher, module["student"], module["autoencoder"]

        state, versions = dict(self.state_), ()
        if isinstance(self.teacher_, Teacher):
            weights = self.teacher_.state
            state.update({f"teacher.{k}": v for k, v in weights.items()})
        else:
            versions = _versions(self.teacher_)
        layout = self.model, self.padding, self._input_size(), versions
        return prepared(self, prepare, state, str(device), *layout)

    def _raw_maps(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Disagreement of student and teacher, and of student and autoencoder."""
        device = torch_device(self.device)
        teacher, student, autoencoder = self._scoring_networks(device)
        normalized = networks.pdn.NormalizedTeacher(
            teacher, self.teacher_mean_, self.teacher_std_, self._grid(), device
        )
        return networks.pdn.raw_maps(normalized, student, autoencoder, batch, device)

    def _score_batch(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        low, high = self.quantiles_.T
        span = np.maximum(high - low, np.finfo(np.float32).tiny)
        raw = self._raw_maps(batch)
        scaled = [0.1 * (raw[k] - low[k]) / span[k] for k in (0, 1)]
        maps = (0.5 * scaled[0] + 0.5 * scaled[1]).astype(np.float32)
        return maps.max(axis=(1, 2)).astype(np.float64), maps

    def _rendering(self, window: Any, grid: Any) -> dict[str, Any]:
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


def _split(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split images at random: to train on, and a tenth for the quantiles."""
    if n == 1:
        return np.array([0]), np.array([0])
    shuffled = np.random.default_rng(seed).permutation(n)
    n_validation = max(1, n // 10)
    return np.sort(shuffled[n_validation:]), np.sort(shuffled[:n_validation])


def _penalty(read: Any, n: int, rng: np.random.Generator) -> np.ndarray:
    """Read one of n penalty images, in some cases without its colours."""
    image = read(rng.integers(n))
    return colourless(image) if rng.random() < _GREY_SHARE else image


def _augmented(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Change brightness, contrast or saturation by up to a fifth."""
    change = ("brightness", "contrast", "saturation")[rng.integers(3)]
    return recoloured(image, change, np.float32(rng.uniform(0.8, 1.2)))


def _versions(module: Any) -> tuple[Any, ...]:
    """Versions of the tensors of a module, to notice that one has changed."""
    return id(module), *(
        (id(tensor), 0 if tensor.is_inference() else tensor._version)
        for tensor in (*module.parameters(), *module.buffers())
    )

"""DRAEM (Zavrtanik et al., ICCV 2021): learn to find synthetic anomalies.

One network restores images that were made anomalous, a second one compares what it
gives with what it got, and learns which pixels were changed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import rotate
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skad import networks
from skad._training_images import TrainingImages
from skad.base import ImageDetector, TrainedDetector
from skad.base._trained import sample_rng
from skad.images._batches import remembered
from skad.networks._torch_state import torch_device
from skad.synthesis import changed_texture, draem, procedural_texture

_ROTATED_SHARE = 0.3  # of the normal images, which are turned
_NORMAL_SHARE = 0.5  # of the images, which stay normal
_DECAY_AT_SHARES = (0.8, 0.9)  # shares of the steps after which the learning rate drops
_DECAY_FACTOR = 0.2


class DRAEMDetector(TrainingImages, TrainedDetector, ImageDetector):
    """Detect anomalies by networks that learned to find synthetic ones.

    Parameters
    ----------
    model : {"full", "tiny"}, default="full"
        Width of the networks. "full" has 97 million weights and needs a GPU; "tiny",
        which is not the paper's, has an eighth of the channels.

    texture_images : sequence of images or path of a folder, default=None
        What synthetic anomalies are made of: photographs of textures of all sorts. Of
        a folder, those in the folders in it count, too. Without them, textures are
        sampled procedurally. Clones share them. Images in memory do not travel in the
        pickle of a fitted model: where it is loaded, set them again before another
        `fit`.

    max_epochs : int, default=700
        Passes over the training images.

    rotation : float, default=90.0
        Three of ten training images are turned by up to this many degrees. Use 0
        where normal parts always lie the same way and turned ones are defects.

    learning_rate : float, default=1e-4
        A fifth of it from four fifths of the steps on, a fifth of that for the last
        tenth.

    train_batch_size : int, default=8
        Images of a training step.

    batch_size : int, default=8
        Images per forward pass when scoring.

    image_size : int or (int, int), default=256
        Images are resized to this; any size from 64 pixels.

    crop_size : int or (int, int), default=None
        The centre of the resized image that is looked at.

    warm_start : bool, default=False
        Whether a second `fit` goes on training for as many steps more.

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
        Threads that read images and put anomalies into them; None is up to 4. The
        result does not depend on it.

    random_state : int, RandomState instance or None, default=0
        Determines weights, synthetic anomalies and the order of images. Checkpoints
        need an int.

    verbose : bool, default=False
        Report progress, loss and speed on the standard error stream.

    Attributes
    ----------
    state_ : dict of ndarray
        Weights of the networks, ``reconstructive`` and ``discriminative``, by name.

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
    skad.synthesis.draem : Make one anomaly.

    Notes
    -----
    Maps are probabilities that a pixel was changed. The score of an image is the
    largest mean over 21 x 21 pixels, with zeros outside of the image; it is taken
    from the map at full resolution. Maps themselves are kept at a quarter of the
    resolution, as means of 4 x 4 pixels, since those of held-out images are part of
    the model.

    Paper and published code differ. As in the code, a texture's weight is uniform in
    0.2 to 1, images are turned by up to 90 degrees with black corners, and the
    learning rate drops twice to a fifth.

    Ctrl-C ends training and keeps what was learned until then.

    References
    ----------
    .. [1] V. Zavrtanik, M. Kristan, D. Skocaj, "DRAEM - A discriminatively trained
       reconstruction embedding for surface anomaly detection", ICCV 2021. Sections
       3.1 to 3.4, Equations 1 to 5.

    Examples
    --------
    >>> from skad import DRAEMDetector
    >>> from skad.datasets import make_textures
    >>> data = make_textures(n_normal=30, n_anomalous=5, size=64, random_state=0)
    >>> detector = DRAEMDetector(
    ...     "tiny", max_epochs=2, image_size=64, learning_rate=1e-3
    ... ).fit(data.train)
    >>> detector.anomaly_map(data.test).shape[1:]
    (64, 64)
    """

    _training_images = ("texture_images",)
    _label = "DRAEM"
    _parameter_constraints = {
        **ImageDetector._parameter_constraints,
        **TrainedDetector._parameter_constraints,
        "model": [StrOptions({"full", "tiny"})],
        "texture_images": "no_validation",
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "rotation": [Interval(Real, 0, 180, closed="both")],
    }

    def __init__(
        self,
        model: str = "full",
        texture_images: Any = None,
        max_epochs: int = 700,
        *,
        rotation: float = 90.0,
        learning_rate: float = 1e-4,
        train_batch_size: int = 8,
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
        self.texture_images = texture_images
        self.max_epochs = max_epochs
        self.rotation = rotation
        self.learning_rate = learning_rate
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

    # -- training: what is particular to DRAEM; the rest is TrainedDetector's -------

    def _check_training(self, images: Any) -> None:
        self._check_training_images()
        if min(self._input_size()) < 64:
            raise ValueError(
                f"image_size={self.image_size!r} leaves less than 64 pixels; the "
                "networks halve images five times."
            )

    def _networks(self) -> Any:
        return networks.unet.draem_networks(self.model)

    def _optimizer(self, module: Any) -> Any:
        return networks.unet.adam(module, self.learning_rate)

    def _rate(self, step: int, n_steps: int) -> float:
        return _DECAY_FACTOR ** sum(
            step >= share * n_steps for share in _DECAY_AT_SHARES
        )

    def _n_steps(self, images: Any) -> int:
        return self.max_epochs * -(-len(images) // self.train_batch_size)

    def _sampler(self, images: Any, seed: int) -> Callable[[int, int], Any]:
        """Return the function that gives a sample: image, with an anomaly, and mask."""
        n_done, read_texture = len(self.loss_curve_), self._texture_reader()

        def sample(step: int, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            position = self.train_batch_size * (n_done + step) + k
            rng = sample_rng(seed, 1, position)
            image = images.at(seed, position)
            return _sample(image, rng, self.rotation, read_texture)

        return sample

    def _loss(self, module: Any, images: Any) -> Callable[..., Any]:
        device = torch_device(self.device)
        return partial(networks.unet.training_loss, module, device)

    def _texture_reader(self) -> Callable[..., Any] | None:
        """Return a function that reads a random texture image; None without any."""
        if self.texture_images is None:
            return None
        reader = self._side_reader("texture_images", self._input_size())
        read = remembered(reader)
        return lambda rng: read(rng.integers(len(reader)))

    # -- scores --------------------------------------------------------------

    def reconstruct(self, X: Any) -> np.ndarray:
        """Restore images, as the first network does, to see what it has learned.

        Parameters
        ----------
        X : sequence of images
            As in `fit`.

        Returns
        -------
        images : ndarray of shape (n, H, W, 3), float32
            In [0, 1], of `image_size` or `crop_size`; NaN for an image that was
            skipped.
        """
        check_is_fitted(self)
        return self._restored(self._to_score(X)[0])

    def _restored(self, reader: Any) -> Any:
        shape = len(reader), *self._input_size(), 3
        images = np.full(shape, np.nan, np.float32)
        for index, batch in reader.indexed_batches(self._images_at_once()):
            images[index] = networks.unet.restored_images(
                self._trained_networks(self.model), batch, torch_device(self.device)
            )
        self._warn_of_skipped(reader, len(reader), scoring=True)
        return images

    def _score_batch(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return networks.unet.scores_and_maps(
            self._trained_networks(self.model), batch, torch_device(self.device)
        )


def _sample(
    image: np.ndarray, rng: np.random.Generator, rotation: float, read_texture: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make a sample: normal image, the same perhaps with an anomaly, and mask."""
    if rng.random() < _ROTATED_SHARE and rotation > 0:
        angle = rng.uniform(-rotation, rotation)
        image = rotate(image, angle, reshape=False, order=1, mode="constant")
        image = np.clip(image, 0, 1)
    if rng.random() < _NORMAL_SHARE:
        return image, image, np.zeros(image.shape[:2], bool)
    if read_texture is None:
        texture = procedural_texture(image.shape, rng)
    else:
        texture = changed_texture(read_texture(rng), rng)
    return image, *draem(image, rng, texture=texture)

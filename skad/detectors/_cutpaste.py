"""CutPaste (Li et al., CVPR 2021): features that were learned to detect pasted parts.

A network learns to recognise images of which a part was pasted somewhere else; its
features of normal images are a Gaussian, and the distance from that is the score.
"""

from collections.abc import Callable
from functools import partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

import numpy as np
from sklearn.utils._param_validation import Interval, StrOptions

from skad import networks
from skad.base import ImageDetector, TrainedDetector
from skad.base._trained import sample_rng
from skad.networks._torch_state import torch_device
from skad.synthesis import cutpaste, cutpaste_scar
from skad.synthesis._image import jittered

# The synthetic anomalies that each variant tells from a normal image.
_ANOMALIES = {
    "3way": (cutpaste, cutpaste_scar),
    "patch": (cutpaste,),
    "scar": (cutpaste_scar,),
}
_SHIFT_SHARE = 0.05  # largest random translation, as a share of the image
_JITTER_SHARE = 0.1  # strength of the random change of an image's colours
_SAMPLE_POSITIONS = 2**16  # that the Gaussian of the maps is learned from


class CutPasteDetector(TrainedDetector, ImageDetector):
    """Detect anomalies by features that learned to recognise pasted parts.

    Parameters
    ----------
    variant : {"3way", "patch", "scar"}, default="3way"
        What the network learns to tell from normal images: a pasted box, a thin
        turned one, or both, each as a class of its own.

    backbone : str, default="resnet18"
        Name of a convolutional timm model.

    weights : False, path or None, default=False
        Where its training starts. False is at random, as in the paper; a path names
        a .safetensors or .pth file; None takes timm's pretrained weights, downloaded
        once. Other than at random, use a tenth of the learning rate.

    max_steps : int, default=65536
        Steps of training; 256 epochs of 256 updates in the paper.

    learning_rate : float, default=0.03
        Of the first step; half a cosine brings it to zero at the last one.

    weight_decay : float, default=3e-5
        Of stochastic gradient descent with a momentum of 0.9.

    train_batch_size : int, default=32
        Normal images of a training step, which also takes one copy of each with a
        pasted part, or two for "3way": 64 or 96 images, as in the paper.

    batch_size : int, default=32
        Images per forward pass when scoring.

    image_size : int or (int, int), default=256
        Images are resized to this.

    crop_size : int or (int, int), default=None
        The centre of the resized image that is looked at.

    warm_start : bool, default=False
        Whether a second `fit` goes on training for `max_steps` more, from the
        learning rate of the first step.

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
        Threads that read and change images; None is up to 4. The result does not
        depend on it.

    random_state : int, RandomState instance or None, default=0
        Determines weights, synthetic anomalies and the order of images. Checkpoints
        need an int.

    verbose : bool, default=False
        Report progress, loss and speed on the standard error stream.

    Attributes
    ----------
    state_ : dict of ndarray
        Weights of ``backbone`` and ``head`` by name.

    location_ : ndarray of shape (d,), float64
        Mean of the pooled features of normal images.

    precision_ : ndarray of shape (d, d), float64
        Inverse of their covariance, shrunk as Ledoit and Wolf do.

    map_location_, map_precision_ : ndarray of shape (d,) and (d, d), float64
        The same of the features of single positions.

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
    skad.synthesis.cutpaste : Make one anomaly.
    skad.synthesis.cutpaste_scar : Make a thin one.

    Notes
    -----
    The score of an image is the Mahalanobis distance of its features, pooled over
    all positions before the classifier: a Gaussian density, as in the paper. Maps
    are not the paper's, which trains a second network on patches: they are distances
    of the features of each position, before pooling, under one Gaussian of all
    positions of the training images, or of 65,536 of them. They are as coarse as the
    network's last layer, and the score of an image is not their largest value.

    The paper leaves open the classifier and by how much images are shifted and their
    colours changed: two hidden layers of 512 and 128, up to a twentieth of the image,
    and factors from 0.9 to 1.1. Of one image, all versions see the same shift and
    colours, so that these say nothing about the class.

    With pretrained weights, batch normalization keeps the statistics that came with
    them, as in the paper, where that fine-tunes.

    Ctrl-C ends training and keeps what was learned until then.

    References
    ----------
    .. [1] C.-L. Li, K. Sohn, J. Yoon, T. Pfister, "CutPaste: Self-Supervised Learning
       for Anomaly Detection and Localization", CVPR 2021. Sections 2.1 to 2.4,
       Equations 1 and 2.

    Examples
    --------
    >>> from skad import CutPasteDetector
    >>> from skad.datasets import make_textures
    >>> data = make_textures(n_normal=30, n_anomalous=5, size=64, random_state=0)
    >>> detector = CutPasteDetector(
    ...     backbone="resnet10t", max_steps=5, train_batch_size=8, image_size=64
    ... ).fit(data.train)
    >>> detector.anomaly_map(data.test).shape[1:]
    (64, 64)
    """

    _label = "CutPaste"
    _parameter_constraints = {
        **ImageDetector._parameter_constraints,
        **TrainedDetector._parameter_constraints,
        "variant": [StrOptions(set(_ANOMALIES))],
        "backbone": [str],
        "weights": [str, Path, None, bool],
        "max_steps": [Interval(Integral, 1, None, closed="left")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
    }

    def __init__(
        self,
        variant: str = "3way",
        backbone: str = "resnet18",
        weights: str | Path | Literal[False] | None = False,
        max_steps: int = 65_536,
        *,
        learning_rate: float = 0.03,
        weight_decay: float = 3e-5,
        train_batch_size: int = 32,
        batch_size: int = 32,
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
        self.variant = variant
        self.backbone = backbone
        self.weights = weights
        self.max_steps = max_steps
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

    # -- training: what is particular to CutPaste; the rest is TrainedDetector's ----

    def _networks(self, weights: Any = False) -> Any:
        n_classes = 1 + len(_ANOMALIES[self.variant])
        return networks.cutpaste.cutpaste_network(self.backbone, weights, n_classes)

    def _initial_networks(self, images: Any) -> Any:
        return self._networks(self.weights)

    def _optimizer(self, network: Any) -> Any:
        return networks.cutpaste.sgd(network, self.learning_rate, self.weight_decay)

    def _rate(self, step: int, n_steps: int) -> float:
        return networks.training.cosine(step, n_steps)

    def _sampler(self, images: Any, seed: int) -> Callable[[int, int], Any]:
        """Return the function that gives an image and its copies with pasted parts."""
        n_done, anomalies = len(self.loss_curve_), _ANOMALIES[self.variant]

        def versions(step: int, k: int) -> list[np.ndarray]:
            position = self.train_batch_size * (n_done + step) + k
            rng = sample_rng(seed, 1, position)
            image = jittered(
                _shifted(images.at(seed, position), rng), rng, _JITTER_SHARE
            )
            return [image, *(anomaly(image, rng)[0] for anomaly in anomalies)]

        return versions

    def _loss(self, network: Any, images: Any) -> Callable[..., Any]:
        if self.weights is not False:
            networks.cutpaste.freeze_statistics(network["backbone"])
        device = torch_device(self.device)
        return partial(networks.cutpaste.classification_loss, network, device)

    def _finish_training(self, images: Any, seed: int) -> None:
        """Learn Gaussians of the training images and of their positions."""
        rng = sample_rng(seed, 2)
        share = -(-_SAMPLE_POSITIONS // len(images))
        pooled, positions = [], []
        for batch in images.reader.batches(self.batch_size):
            maps = self._feature_maps(batch)
            pooled.append(maps.mean(axis=(1, 2)))
            for rows in maps.reshape(len(maps), -1, maps.shape[3]):
                if len(rows) > share:
                    rows = rng.choice(rows, share, replace=False)
                positions.append(rows)
        self.location_, self.precision_ = _gaussian(np.concatenate(pooled))
        self.map_location_, self.map_precision_ = _gaussian(np.concatenate(positions))

    # -- scores --------------------------------------------------------------

    def _feature_maps(self, batch: np.ndarray) -> np.ndarray:
        """Features (b, h, w, d), float64, of images (b, H, W, 3)."""
        network = self._trained_networks(self.backbone, self.variant)
        device = torch_device(self.device)
        return networks.cutpaste.feature_maps(network, batch, device)

    def _score_batch(self, batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        maps = self._feature_maps(batch)
        scores = _distances(maps.mean(axis=(1, 2)), self.location_, self.precision_)
        maps = _distances(maps, self.map_location_, self.map_precision_)
        return scores, maps.astype(np.float32)


def _shifted(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shift an image by a few pixels, mirrored at its border."""
    height, width = image.shape[:2]
    most = [int(_SHIFT_SHARE * side) for side in (height, width)]
    top, left = (int(rng.integers(2 * m + 1)) for m in most)
    margins = [(m, m) for m in most]
    padded = np.pad(image, (*margins, (0, 0)), mode="reflect")
    return padded[top : top + height, left : left + width]


def _gaussian(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and precision of rows; of equal ones, the distance is Euclidean."""
    if np.ptp(rows, axis=0).max() == 0:
        return rows[0], np.eye(rows.shape[1])
    # Slow to import, and only fits need it.
    from sklearn.covariance import LedoitWolf

    fitted = LedoitWolf().fit(rows)
    return fitted.location_, fitted.precision_


def _distances(
    rows: np.ndarray, location: np.ndarray, precision: np.ndarray
) -> np.ndarray:
    """Mahalanobis distances of rows (..., d)."""
    centred = rows - location
    squares = np.einsum("...d,...d->...", centred @ precision, centred)
    return np.sqrt(np.maximum(squares, 0))

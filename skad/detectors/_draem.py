"""DRAEM (Zavrtanik et al., ICCV 2021): learn to find what was put into good images.

One network restores images that were made anomalous, a second one compares what it
gives with what it got, and learns to say which pixels were changed.
"""

from concurrent.futures import ThreadPoolExecutor
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from scipy.ndimage import rotate
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skad._kept import prepared
from skad._training_images import TrainingImages
from skad.base import ImageDetector
from skad.images._batches import n_threads, remembered
from skad.networks._training import (
    arrays,
    contents,
    made_ahead,
    mixed,
    order,
    rebuilt,
    seeded,
    torch_device,
    train_estimator,
    with_arrays,
)
from skad.networks._unet import WIDTHS, discriminative, reconstructive
from skad.synthesis import changed_texture, draem, procedural_texture

_ROTATED = 0.3  # share of the good images that are turned
_CLEAN = 0.5  # share of the images that stay good
_DECAY_AT = (0.8, 0.9)  # shares of the steps after which the learning rate drops
_DECAY = 0.2


class DRAEMDetector(TrainingImages, ImageDetector):
    """Detect anomalies by networks that learned to find synthetic ones.

    Parameters
    ----------
    model : {"full", "tiny"}, default="full"
        Width of the networks. "full" has 97 million weights and needs a GPU; "tiny",
        which is not the paper's, has an eighth of the channels.

    texture_images : sequence of images or path of a folder, default=None
        What synthetic anomalies are made of: photographs of textures of all kinds. Of
        a folder, those in the folders in it count, too. Without them, textures are
        sampled procedurally. Clones share them. Images in memory do not travel in the
        pickle of a fitted model: where it is loaded, set them again before another
        `fit`.

    max_epochs : int, default=700
        Passes over the training images.

    max_steps : int, default=None
        Steps of training, in place of `max_epochs`.

    rotation : float, default=90.0
        Three of ten training images are turned by up to this many degrees. Use 0
        where good parts always lie the same way and turned ones are defects.

    learning_rate : float, default=1e-4
        A fifth of it from four fifths of the steps on, a fifth of that for the last
        tenth.

    batch_size : int, default=8
        Images of a training step.

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
        Held-out scores of good images behind `offset_`, larger is more normal.

    calibration_maps_ : ndarray of shape (n_held_out, h, w), float32
        Their maps, larger is more anomalous.

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
    ...     "tiny", max_steps=5, image_size=64, learning_rate=1e-3
    ... ).fit(data.train)
    >>> detector.anomaly_map(data.test).shape[1:]
    (64, 64)
    """

    _training_images = ("texture_images",)
    loss_curve_: list[float]
    state_: dict[str, np.ndarray]
    _optimizer_state: dict[str, Any]
    _parameter_constraints = {
        **ImageDetector._parameter_constraints,
        "model": [StrOptions(set(WIDTHS))],
        "texture_images": "no_validation",
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "max_steps": [Interval(Integral, 1, None, closed="left"), None],
        "rotation": [Interval(Real, 0, 180, closed="both")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "warm_start": ["boolean"],
        "checkpoint_dir": [str, Path, None],
        "device": [str],
    }

    def __init__(
        self,
        model="full",
        texture_images=None,
        max_epochs=700,
        *,
        max_steps=None,
        rotation=90.0,
        learning_rate=1e-4,
        batch_size=8,
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
        self.texture_images = texture_images
        self.max_epochs = max_epochs
        self.max_steps = max_steps
        self.rotation = rotation
        self.learning_rate = learning_rate
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

    # -- training ------------------------------------------------------------

    def _fit(self, reader):
        self._check_training_images()
        if min(self._input_size()) < 64:
            raise ValueError(
                f"image_size={self.image_size!r} leaves less than 64 pixels; the "
                "networks halve images five times."
            )
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        networks = seeded(self._networks, seed)
        goes_on = self.warm_start and hasattr(self, "state_")
        if goes_on:
            with_arrays(networks, self.state_)
        else:
            self.loss_curve_ = []
        losses = self._train(networks, reader, seed)
        self.loss_curve_ = self.loss_curve_ + losses
        self.state_ = arrays(networks)

    def _networks(self):
        from torch.nn import ModuleDict

        first, second = WIDTHS[self.model]
        return ModuleDict(
            {
                "reconstructive": reconstructive(first),
                "discriminative": discriminative(second),
            }
        )

    def _train(self, networks, reader, seed):
        import torch

        device = torch_device(self.device)
        networks = networks.to(device, memory_format=torch.channels_last).train()
        rate_at_first = self.learning_rate
        optimizer = torch.optim.Adam(networks.parameters(), rate_at_first)
        n, done = len(reader), len(self.loss_curve_)
        n_steps = self.max_steps or self.max_epochs * -(-n // self.batch_size)
        read, read_texture = remembered(reader), self._texture_reader()

        def make(number, k):
            position = self.batch_size * (done + number) + k
            image = read(order(seed, position // n, n)[position % n])
            rng = np.random.default_rng(mixed(seed, 1, position))
            return _sample(image, rng, self.rotation, read_texture)

        def step(number):
            rate = rate_at_first * _DECAY ** sum(
                number >= share * n_steps for share in _DECAY_AT
            )
            for group in optimizer.param_groups:
                group["lr"] = rate
            good, changed, masks = (
                torch.from_numpy(np.stack(part)).to(device)
                for part in zip(*samples(number), strict=True)
            )
            good, changed = good.permute(0, 3, 1, 2), changed.permute(0, 3, 1, 2)
            restored, logits = _compared(networks, changed)
            loss = (
                torch.nn.functional.mse_loss(restored, good)
                + (1 - ssim(restored, good))
                + focal_loss(logits.softmax(dim=1), masks)
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss.detach()

        with ThreadPoolExecutor(n_threads(self.n_jobs)) as pool:
            samples = made_ahead(pool, make, self.batch_size, n_steps)
            return train_estimator(
                self,
                step,
                {"networks": networks, "optimizer": optimizer},
                n_steps,
                "DRAEM",
                lambda: (seed, done, contents(read, n)),
            )

    def _texture_reader(self):
        """From a random generator to a photograph of a texture; None to draw them."""
        if self.texture_images is None:
            return None
        reader = self._side_reader("texture_images", self._input_size())
        read = remembered(reader)
        return lambda rng: read(rng.integers(len(reader)))

    # -- scores --------------------------------------------------------------

    def reconstruct(self, X):
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

    def _restored(self, reader):
        shape = len(reader), *self._input_size(), 3
        images = np.full(shape, np.nan, np.float32)
        for index, batch in reader.indexed_batches(self._images_at_once()):
            restored = self._seen(batch)[0].clamp(0, 1)
            images[index] = restored.permute(0, 2, 3, 1).cpu().numpy()
        self._warn_of_skipped(reader, len(reader), scoring=True)
        return images

    def _seen(self, batch):
        """What the trained networks give for images (b, H, W, 3)."""
        import torch

        device = torch_device(self.device)
        networks = prepared(
            self,
            lambda: rebuilt(self._networks, self.state_).to(device),
            self.state_,
            str(device),
            self.model,
        )
        with torch.inference_mode():
            batch = torch.from_numpy(batch).to(device).permute(0, 3, 1, 2)
            return _compared(networks, batch)

    def _score_batch(self, batch):
        import torch

        with torch.inference_mode():
            maps = self._seen(batch)[1].softmax(dim=1)[:, 1]
            scores = largest_mean(maps)
            size = tuple(-(-side // 4) for side in maps.shape[1:])
            maps = torch.nn.functional.adaptive_avg_pool2d(maps, size)
        return scores.cpu().double().numpy(), maps.cpu().numpy()


def _sample(image, rng, rotation, read_texture):
    """A good image, perhaps turned, one that may be anomalous, and where it is."""
    if rng.random() < _ROTATED and rotation > 0:
        angle = rng.uniform(-rotation, rotation)
        image = rotate(image, angle, reshape=False, order=1, mode="constant")
        image = np.clip(image, 0, 1)
    if rng.random() < _CLEAN:
        return image, image, np.zeros(image.shape[:2], bool)
    if read_texture is None:
        texture = procedural_texture(image.shape, rng)
    else:
        texture = changed_texture(read_texture(rng), rng)
    return image, *draem(image, rng, texture=texture)


def _compared(networks, images):
    """The images as restored, and logits of good and anomalous for each pixel."""
    import torch

    restored = networks["reconstructive"](images)
    return restored, networks["discriminative"](torch.cat([restored, images], dim=1))


def ssim(a, b):
    """Mean structural similarity of images (b, c, H, W) in [0, 1] (Equation 1).

    A Gaussian window of 11 pixels and sigma 1.5, with zeros outside of the images.
    """
    import torch

    def smoothing(n):
        """A matrix whose rows are the window at each position, cut at the borders."""
        at = torch.arange(n, dtype=a.dtype, device=a.device)
        return (window * (at[:, None, None] + offsets == at[:, None])).sum(dim=2)

    offsets = torch.arange(-5, 6, dtype=a.dtype, device=a.device)
    window = torch.exp(-offsets.square() / (2 * 1.5**2))
    window = window / window.sum()
    # Products of matrices take a tenth of the time of convolutions of one channel.
    down, right = smoothing(a.shape[2]), smoothing(a.shape[3]).T
    stacked = torch.stack([a, b, a * a, b * b, a * b])
    mean_a, mean_b, square_a, square_b, product = down @ stacked @ right
    both = mean_a * mean_b
    squares = mean_a.square() + mean_b.square()
    c1, c2 = 0.01**2, 0.03**2
    similar = (2 * both + c1) * (2 * (product - both) + c2)
    return (similar / ((squares + c1) * (square_a + square_b - squares + c2))).mean()


def focal_loss(probabilities, masks, gamma=2.0, smooth=1e-5):
    """Focal loss of class probabilities (b, 2, H, W) for masks (b, H, W).

    Labels are clipped to `smooth` from 0 and 1.
    """
    anomalous = masks.to(probabilities.dtype).clamp(smooth, 1 - smooth)
    good = 1 - anomalous
    of_class = good * probabilities[:, 0] + anomalous * probabilities[:, 1] + smooth
    return -((1 - of_class) ** gamma * of_class.log()).mean()


def largest_mean(maps):
    """Largest mean over 21 x 21 pixels of each map (b, H, W), zeros around it."""
    from torch.nn.functional import avg_pool2d

    return avg_pool2d(maps[:, None], 21, stride=1, padding=10).amax(dim=(1, 2, 3))

"""PRN (Zhang et al., CVPR 2023): what differs from prototypes of normal images.

A frozen network describes an image on several scales. The squared difference to the
nearest of some normal images' descriptions goes, with the description itself, into a
network that learns to mark defects: known ones, where there are some, and synthetic
anomalies. `skad.networks._prn` has the networks.
"""

from collections.abc import Sequence
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_consistent_length

from skad import networks
from skad._checks import check_labels
from skad._kept import prepared
from skad._training_images import TrainingImages
from skad.base import ImageDetector, TrainedDetector
from skad.detectors._prn_samples import (
    Samples,
    check_masks,
    read_defect_mask,
    resized_mask,
)
from skad.images._batches import remembered
from skad.networks._torch_state import own_torch_state, torch_device
from skad.networks._weights import is_reproducible

_STRIDES = (4, 8, 16, 32)  # of the feature maps, in pixels of the image


class PRNDetector(TrainingImages, TrainedDetector, ImageDetector):
    """Learn to mark defects from what differs from prototypes of normal images.

    A few defects in training, best with masks, make it better; without any it learns
    from synthetic anomalies alone.

    Parameters
    ----------
    backbone : str, default="resnet18"
        A network of timm with feature maps of strides 4, 8, 16 and 32. The bare name
        stands for the weights that timm prefers, "resnet18.a1_in1k"; the paper's are
        those of "resnet18.tv_in1k".

    layers : "auto" or sequence of four str, default="auto"
        Names of the modules that give these; "auto" takes the last one of each.

    weights : path, None or False, default=None
        File of its weights (.safetensors or .pth); None downloads those of timm; False
        is random. A fitted detector holds them, as far as the network runs.

    backbone_kwargs : dict, default=None
        More arguments of ``timm.create_model``.

    model : {"full", "tiny"}, default="full"
        "full" is the paper's. "tiny", which is not, first brings the feature maps to
        16, 32, 64 and 64 channels and has one layer of attention: with
        ``image_size=128`` and ``train_batch_size=16``, a processor core takes 100 steps
        a minute.

    attention : {"auto", "per_element", "size_independent"}, default="auto"
        Whether queries, keys and values have a factor and an offset for each channel
        and position inside a patch, as in the paper, or for each channel only, so that
        no weight depends on the image size. "auto" is "per_element" for the full model
        and "size_independent" for the tiny one.

    prototype_ratio : float, default=0.1
        Prototypes per training image, of which there is at least one.

    max_steps : int, default=5000
        Steps of training. The paper's 700 epochs are about 4900 steps of 32 normal
        images for 224 of them.

    texture_images : sequence of images or path of a folder, default=None
        Photographs of textures to make synthetic anomalies of. Of a folder, those in
        the folders in it count, too. Without them, textures are sampled procedurally.
        Clones share them. Images in memory do not travel in the pickle of a fitted
        model: where it is loaded, set them again before another `fit`.

    foreground : {"auto"} or None, default=None
        "auto" puts synthetic anomalies on the part only, where the background is plain
        (`skad.synthesis.foreground_mask`).

    flips : bool, default=False
        Whether training images are mirrored at random, along both sides: for parts
        that are normal when mirrored, too, which helps with few defects.

    extended_ratio : float, default=0.5
        Share of the real defects of a step, where they have masks, that are extended:
        pasted into a normal image, turned, scaled and moved
        (`skad.synthesis.extended_anomaly`). The others are seen as they are. 1 is the
        paper's: 16 extended anomalies among 64 images.

    optimizer : {"adamw", "adam"}, default="adamw"
        Whether weights decay beside the gradient, or by it, as in the paper.

    learning_rate : float, default=1e-4
        Of the optimizer. Where steps are few, as on a processor, try 1e-3.

    schedule : {"constant", "cosine"}, default="constant"
        Whether the learning rate stays, as in the paper, or falls to 0 along a half
        cosine over `max_steps`.

    weight_decay : float, default=1e-2
        AdamW shrinks weights by this share of the learning rate. Adam adds this share
        of the weights to the gradient, where it can outweigh that of the focal loss,
        which is tiny.

    focal_weight : float, default=5.0
        Weight of the focal loss.

    train_batch_size : int, default=64
        Images of a training step, at least 3: half of them normal, a quarter with real
        defects, a quarter with synthetic anomalies; without real ones, half of them.

    batch_size : int, default=8
        Images per forward pass when scoring.

    image_size : int or (int, int), default=256
        Images are resized to this, a multiple of 32.

    crop_size : int or (int, int), default=None
        The centre of the resized image that is looked at, a multiple of 32.

    warm_start : bool, default=False
        Whether a second `fit` goes on training for `max_steps` more, with the same
        prototypes.

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
        of the normal images is not learned from.

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
        Determines weights, clusters, synthetic anomalies and the order of images.
        Checkpoints need an int.

    verbose : bool, default=False
        Report progress, loss and speed on the standard error stream.

    Attributes
    ----------
    layers_ : tuple of str
        Names of the modules of strides 4, 8, 16 and 32.

    prototypes_ : list of three ndarray of shape (k, c, h, w), float32
        Of the feature maps of strides 4, 8 and 16.

    state_ : dict of ndarray
        Weights of the trained network.

    weights_sha256_ : str
        Of the frozen network, which is not pickled: it is built again where it is
        needed, and must be the same.

    loss_curve_ : list of float
        Loss of each step so far.

    n_defects_seen_ : int
        Number of defective images that were learned from.

    contamination_ : float
        False-alarm rate of the thresholds, as of the fit or of `set_contamination`.

    offset_ : float
        Threshold of `score_samples`, from normal images only.

    calibration_scores_ : ndarray of shape (n_held_out,), float64
        Held-out scores of normal images behind `offset_`, larger is more normal.

    calibration_maps_ : ndarray of shape (n_maps, h, w), float32
        Their maps, larger is more anomalous. Of more than 1,000 images whose maps
        take more than 256 MB together, those of a random sample.

    n_samples_seen_ : int
        Number of normal images that were given.

    See Also
    --------
    skad.model_selection.OneClassSplit : With ``supervised=True``, folds that learn from
        some defects and test on others.

    Notes
    -----
    The score of an image is the mean of the 100 largest pixels of its map at
    `image_size`. Maps are kept at a quarter of that size, as means of 4 x 4 pixels.

    With as many channels as "resnet18" has and images of 256 pixels, 77.5 million
    numbers are trained, 72.5 of them in the attention layers. 21.9 of these belong to
    one position inside a patch each; with ``attention="size_independent"`` they are
    replaced by 65 thousand.

    A known defect is used in place, or cut out, turned, scaled and pasted into a normal
    image; the latter needs its mask. Without a mask, it is not known which pixels are
    defective: the cross-entropy of the image's score is added to the loss, from which
    less is learned.

    The background of a synthetic anomaly is a training image, and so the score of an
    image of the training set says little: `fit` holds images out for the threshold. Do
    not test on defects that were passed to `fit`.

    The network and the losses of ``model="full"`` are the paper's; these defaults are
    not: `optimizer`, `extended_ratio`, the weights that timm gives to "resnet18", and
    5,000 steps, however many images there are. `skad.presets.PRESETS["prn"]` has the
    paper's, but for the steps.

    Unlike in the code published for PRN, normalization in the frozen network keeps its
    statistics during training, a texture is blended on the scale of the image, the
    model is that of the last step, and every batch is composed alike. As in that code,
    labels in the focal loss are smoothed by 1e-5. Normal images are taken as they are.

    Ctrl-C ends training and keeps what was learned until then.

    References
    ----------
    .. [1] H. Zhang et al., "Prototypical Residual Networks for Anomaly Detection and
       Localization", CVPR 2023. Section 3.

    Examples
    --------
    >>> from skad import PRNDetector
    >>> from skad.datasets import make_textures
    >>> data = make_textures(n_normal=20, n_anomalous=8, size=64, random_state=0)
    >>> X = [*data.train, *data.test[-3:]]
    >>> detector = PRNDetector(
    ...     "resnet10t", weights=False, model="tiny", image_size=64, max_steps=2,
    ...     train_batch_size=4,
    ... ).fit(X, [1] * 20 + [-1] * 3, masks=[None] * 20 + list(data.masks[-3:]))
    >>> detector.anomaly_map(data.test[:-3]).shape[1:]
    (64, 64)
    """

    # Searches and cross-validation then split masks together with the images.
    __metadata_request__fit = {"masks": True}

    _training_images = ("texture_images",)
    _label = "PRN"
    _channels_last = False
    _parameter_constraints = {
        **ImageDetector._parameter_constraints,
        **TrainedDetector._parameter_constraints,
        "backbone": [str],
        "layers": [StrOptions({"auto"}), tuple, list],
        "weights": [str, Path, None, "boolean"],
        "backbone_kwargs": [dict, None],
        "model": [StrOptions({"full", "tiny"})],
        "attention": [StrOptions({"auto", "per_element", "size_independent"})],
        "prototype_ratio": [Interval(Real, 0, 1, closed="right")],
        "max_steps": [Interval(Integral, 1, None, closed="left")],
        "texture_images": "no_validation",
        "foreground": [StrOptions({"auto"}), None],
        "flips": ["boolean"],
        "extended_ratio": [Interval(Real, 0, 1, closed="both")],
        "optimizer": [StrOptions({"adamw", "adam"})],
        "schedule": [StrOptions({"constant", "cosine"})],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "focal_weight": [Interval(Real, 0, None, closed="left")],
        "train_batch_size": [Interval(Integral, 3, None, closed="left")],
    }

    def __init__(
        self,
        backbone: str = "resnet18",
        layers: str | Sequence[str] = "auto",
        weights: str | Path | Literal[False] | None = None,
        *,
        backbone_kwargs: dict[str, Any] | None = None,
        model: str = "full",
        attention: str = "auto",
        prototype_ratio: float = 0.1,
        max_steps: int = 5000,
        texture_images: Any = None,
        foreground: str | None = None,
        flips: bool = False,
        extended_ratio: float = 0.5,
        optimizer: str = "adamw",
        learning_rate: float = 1e-4,
        schedule: str = "constant",
        weight_decay: float = 1e-2,
        focal_weight: float = 5.0,
        train_batch_size: int = 64,
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
        self.backbone = backbone
        self.layers = layers
        self.weights = weights
        self.backbone_kwargs = backbone_kwargs
        self.model = model
        self.attention = attention
        self.prototype_ratio = prototype_ratio
        self.max_steps = max_steps
        self.texture_images = texture_images
        self.foreground = foreground
        self.flips = flips
        self.extended_ratio = extended_ratio
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.schedule = schedule
        self.weight_decay = weight_decay
        self.focal_weight = focal_weight
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

    def fit(self, X: Any, y: Any = None, masks: Any = None) -> Self:
        """Learn from normal images, and from defective ones if there are any.

        Parameters
        ----------
        X : sequence of images
            Paths, `PIL.Image`, arrays (H, W[, C]), one array (n, H, W[, C]) or
            a torch tensor (n, C, H, W).

        y : array-like of shape (n,), optional
            +1 for normal, -1 for defective. Defective images are learned from; they
            have no part in the threshold.

        masks : sequence of n masks, optional
            None for a normal image, or for a defective one whose defect nobody has
            marked; else a path, an image, or an array (H, W) that is not zero where
            defective. A mask is resized and cropped as its image is; a defect of which
            the crop leaves nothing is not learned from.

        Returns
        -------
        self : object
            The same object.

        Raises
        ------
        ValueError
            If X is empty, if no normal image is left, if masks and labels contradict
            each other, or if a parameter is out of range.

        skad.images.ImageError
            If an image or a mask cannot be read. With ``on_error="skip"`` images that
            cannot are left out, and a `SkippedImageWarning` lists them.
        """
        self._validate_params()
        self._check_input_size()
        with self._limited():
            defects = self._defects_to_learn_from(X, y, masks)
        reader, positions = self._to_learn_from(X, y, reset=True)
        self.n_samples_seen_ = 0
        self._defects = defects
        try:
            with own_torch_state():
                self._learn(reader, positions, first=True)
        finally:
            del self._defects
        self.n_defects_seen_ = len(defects)
        return self

    def _check_input_size(self):
        if any(side % _STRIDES[-1] for side in self._input_size()):
            name = "image_size" if self.crop_size is None else "crop_size"
            raise ValueError(
                f"{name}={getattr(self, name)!r} must be a multiple of "
                f"{_STRIDES[-1]}, the stride of the coarsest feature map."
            )

    # -- known defects -------------------------------------------------------

    def _defects_to_learn_from(self, X, y, masks):
        """List known defects: a function that reads the image, and the mask or None."""
        X = self._checked_images(X)
        masks = None if masks is None else list(masks)
        if masks is not None and len(masks) != len(X):
            raise ValueError(
                f"masks has {len(masks)} entries, but X {len(X)}; pass one for each "
                "image, None for a normal one."
            )
        if y is None:
            if masks is not None and any(mask is not None for mask in masks):
                raise ValueError(
                    "masks without y: pass y, +1 for normal and -1 for defective "
                    "images."
                )
            return []
        check_consistent_length(X, y)
        labels = check_labels(y)
        masks = check_masks(masks, labels)
        chosen = np.flatnonzero(labels == -1)
        if len(chosen) == 0:
            return []
        reader = self._reader(X)[chosen]
        if self.on_error == "skip":
            found = [i for i, _ in reader.each(reader.read, range(len(reader)))]
            self._warn_of_skipped(reader, len(reader))
            reader, chosen = reader[np.array(found)], chosen[found]
        read = remembered(reader)
        defects = []
        for k, i in enumerate(chosen):
            mask = None
            if masks[i] is not None:
                mask, frame = read_defect_mask(masks[i], i), self._frame()
                mask = resized_mask(mask, frame.resized(mask.shape), frame.crop)
            if mask is None or mask.any():
                defects.append((lambda k=k: read(k), mask))
        return defects

    # -- training: what is particular to PRN; the rest is TrainedDetector's ---------

    def _check_training(self, images):
        self._check_training_images()

    def _prepare_training(self, images, seed):
        """Build the frozen network, and learn prototypes of the normal images."""
        self._encoder_seed = seed
        self.__dict__.pop("_encoder_weights", None)
        encoder = self._encoder(torch_device(self.device))
        self.layers_ = encoder.names
        self.weights_sha256_ = encoder.sha256
        self._keep_weights(encoder)
        n_clusters = max(1, int(self.prototype_ratio * len(images)))
        # One scale at a time: those of all images together may not fit into memory.
        self.prototypes_ = [
            networks.prn.level_prototypes(
                encoder, images.read, len(images), k, n_clusters, seed, self.batch_size
            )
            for k in range(3)
        ]
        self._n_coarsest = encoder.channels[-1]

    def _networks(self):
        per_element = self.attention == "per_element" or (
            self.attention == "auto" and self.model == "full"
        )
        height, width = self._input_size()
        return networks.prn.residual_network(
            [*(p.shape[1] for p in self.prototypes_), self._n_coarsest],
            [(height // s, width // s) for s in _STRIDES],
            self.model,
            per_element=per_element,
        )

    def _optimizer(self, network):
        build = networks.prn.OPTIMIZERS[self.optimizer]
        return build(
            network.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
        )

    def _rate(self, step, n_steps):
        if self.schedule == "constant":
            return 1.0
        return networks.training.cosine(step, n_steps)

    def _sampler(self, images, seed):
        n_done, textures = len(self.loss_curve_), None
        if self.texture_images is not None:
            textures = self._side_reader("texture_images", self._input_size())
        samples = Samples(
            images.read,
            len(images),
            self._defects,
            self._input_size(),
            self.train_batch_size,
            seed,
            textures,
            self.foreground,
            self.flips,
            self.extended_ratio,
        )
        return lambda step, k: samples(n_done + step, k)

    def _loss(self, network, images):
        encoder = self._known_encoder(torch_device(self.device))
        return networks.prn.TrainingLoss(
            network, encoder, self.prototypes_, self.focal_weight
        )

    def _fingerprint(self, images):
        defects = [part for defect in self._defects for part in _contents(defect)]
        return self.weights_sha256_, images.means(), *defects

    # -- the frozen network --------------------------------------------------

    def _encoder(self, device):
        return networks.prn_encoder.built_encoder(
            self.backbone,
            self.layers if isinstance(self.layers, str) else tuple(self.layers),
            self.weights,
            self.backbone_kwargs or {},
            self._encoder_seed,
            device,
            getattr(self, "_encoder_weights", None),
        )

    def _keep_weights(self, encoder):
        """Store weights that cannot be loaded again by name."""
        if not is_reproducible(self.backbone, self.weights):
            black = np.zeros((1, *self._input_size(), 3), np.float32)
            self._encoder_weights = networks.prn_encoder.fitted_weights(encoder, black)

    def _known_encoder(self, device):
        """Build the encoder; refuse other weights than those of the fit."""
        encoder, known = self._encoder(device), self.weights_sha256_
        if (encoder.sha256, encoder.names) != (known, self.layers_):
            raise ValueError(
                f"backbone={self.backbone!r} has other weights (sha256 "
                f"{encoder.sha256[:12]}...) or layers than at fit ({known[:12]}...); "
                "fit again."
            )
        return encoder

    # -- scores --------------------------------------------------------------

    def _scoring_networks(self, device):
        """Network and prototypes, made once and cached outside of `self`."""

        def prepare():
            network = networks.modules.rebuilt(self._networks, self.state_).to(device)
            return network, networks.modules.tensors(self.prototypes_, device)

        prototypes = {f"prototypes.{k}": p for k, p in enumerate(self.prototypes_)}
        layout = self.model, self.attention, self._input_size()
        state = {**self.state_, **prototypes}
        return prepared(self, prepare, state, str(device), *layout)

    def _score_batch(self, batch):
        device = torch_device(self.device)
        encoder = self._known_encoder(device)
        network, prototypes = self._scoring_networks(device)
        return networks.prn.scores_and_maps(network, encoder, prototypes, batch)


def _contents(defect):
    """Arrays that identify a known defect: its image, and its mask, if any."""
    read, mask = defect
    return read(), np.empty(0) if mask is None else mask

"""SPD (Zou et al., ECCV 2022): a pretrained network that learns to spot differences.

It is fine-tuned, without labels, so that an image is near its versions of other colours
and crops, and far from those of which a small part was changed.
"""

import copy
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

import numpy as np
from sklearn.utils._param_validation import Interval, StrOptions

from skad import networks
from skad.features._network import PatchFeatures
from skad.images._batches import n_threads, remembered
from skad.networks._sampling import combined_seed, epoch_order, prefetched
from skad.networks._weights import IMAGENET_MEAN, IMAGENET_STD
from skad.synthesis import smooth_blend, strong_view, weak_view


class SPDPatchFeatures(PatchFeatures):
    """Patch features of a pretrained network, fine-tuned on your normal images.

    `fit` fine-tunes the network as SPot-the-Difference does: a self-supervised loss,
    plus one that separates an image from a copy of which a small part was changed.
    Then these are `PatchFeatures` like any others.

    Parameters
    ----------
    backbone : str or torch.nn.Module, default="wide_resnet50_2"
        As of `PatchFeatures`. A copy of your own network is trained, all of its
        parameters; yours stays as it is.

    layers : sequence of str or "auto", default=("layer2", "layer3")
        As of `PatchFeatures`. The last of them is what training looks at.

    base : {"simsiam", "simclr", "moco", "supervised"}, default="simsiam"
        The loss beside SPD's: agreement of two views through a predictor; or of two
        views against other images of the batch; or against those of a queue.
        "supervised" is a classifier that tells changed images from others.

    spd_weight : float, default=0.1
        Weight of SPD's loss.

    max_steps : int, default=200
        Steps of training.

    train_batch_size : int, default=16
        Images of a step, at most as many as there are. The network sees five views of
        each; two for "supervised".

    learning_rate : float, default=1e-4
        Of the first step; half a cosine brings it to zero at the last one.

    weight_decay : float, default=1e-4
        Of stochastic gradient descent with a momentum of 0.9.

    temperature : float, default=0.2
        Of the similarities of "simclr" and "moco".

    projection_dim : int, default=128
        Dimensions in which views are compared.

    checkpoint_dir : path, default=None
        Folder for a checkpoint every half a minute. A process that was killed goes
        on from it when it fits the same images with the same settings, and ends
        with the same network.

    weights, backbone_kwargs : default=None
        As of `PatchFeatures`.

    image_size, crop_size, resize : default=224, None, "exact"
        As of `PatchFeatures`; for training, too.

    patch_size, patch_stride, embedding : default=3, 1, "auto"
        As of `PatchFeatures`.

    pretrain_dim, target_dim, n_components, reduction, grid : as in PatchFeatures
        As of `PatchFeatures`. Principal axes are those of the trained network.

    pooled, region : default=False, None
        As of `PatchFeatures`. Training looks at whole images, whatever the region.

    mean, std, batch_size, device, precision, cache_dir, on_error : as in PatchFeatures
        As of `PatchFeatures`. Training is in "float32" always.

    n_jobs : int, default=None
        Threads that read and change images; None is up to four. The result does not
        depend on it.

    random_state : int, RandomState instance or None, default=0
        Samples views, the order of images, and whatever starts at random. Checkpoints
        need an int.

    verbose : bool, default=False
        Report progress, loss and speed on the standard error stream.

    Attributes
    ----------
    state_ : dict of ndarray
        Weights of the trained network by name.

    loss_curve_ : list of float
        Loss of each step.

    grid_shape_ : (int, int)
        Rows and columns of the patch grid.

    n_features_out_ : int
        Channels of a patch feature.

    layers_ : tuple of str
        The modules taken.

    weights_sha256_ : str
        SHA-256 of the trained network's parameters.

    components_ : ndarray of shape (n_components,) or (n_components, n), or None
        Dimensions kept, or axes.

    region_ : ndarray of shape (H, W), bool, or None
        The mask that `region` was when `fit` read it.

    skipped_ : list of (int, str)
        Images that `fit_transform` could not read, and why.

    See Also
    --------
    PatchFeatures : The same without training.
    skad.synthesis.smooth_blend : What makes the changed copies.

    Notes
    -----
    The paper pre-trains on ImageNet; here, a network that is pretrained already is
    fine-tuned on the images at hand, for which the paper makes no claim. Sizes and
    strengths of the views are not in it, either.

    Batch normalization of the network keeps the statistics that it came with, since
    few images and small batches would spoil them; its factors and offsets are trained.
    No gradient is stopped in SPD's loss, and for "moco" all of its embeddings come from
    the encoder that is trained. Modules after the last of `layers` keep their weights,
    which matters for `pooled` only.

    In the paper, "supervised" is a classification of ImageNet with an auxiliary
    classifier for changed images. Normal images are of one class, whose cross-entropy
    is zero: only the auxiliary classifier is left, weighed by `spd_weight`.

    Trained weights are part of the pickle. Ctrl-C ends training and keeps what was
    learned until then.

    References
    ----------
    .. [1] Y. Zou, J. Jeong, L. Pemula, D. Zhang, O. Dabeer, "SPot-the-Difference
       Self-Supervised Pre-training for Anomaly Detection and Segmentation", ECCV 2022,
       Section 3.

    Examples
    --------
    >>> from skad import SPDPatchFeatures
    >>> from skad.datasets import make_textures
    >>> images = make_textures(n_normal=8, n_anomalous=1, size=64, random_state=0).train
    >>> features = SPDPatchFeatures(
    ...     "resnet10t", layers="auto", max_steps=2, train_batch_size=4, weights=False,
    ...     image_size=64,
    ... )
    >>> features.fit_transform(images).shape
    (8, 8, 8, 1024)
    >>> len(features.loss_curve_)
    2
    """

    state_: dict[str, np.ndarray]
    loss_curve_: list[float]

    _parameter_constraints = {
        **PatchFeatures._parameter_constraints,
        "base": [StrOptions({"simsiam", "simclr", "moco", "supervised"})],
        "spd_weight": [Interval(Real, 0, None, closed="left")],
        "max_steps": [Interval(Integral, 1, None, closed="left")],
        "train_batch_size": [Interval(Integral, 1, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "projection_dim": [Interval(Integral, 1, None, closed="left")],
        "checkpoint_dir": [str, Path, None],
    }
    _unsigned = (
        *PatchFeatures._unsigned,
        *("base", "spd_weight", "max_steps", "train_batch_size", "learning_rate"),
        *("weight_decay", "temperature", "projection_dim", "checkpoint_dir"),
    )

    def __init__(
        self,
        backbone: Any = "wide_resnet50_2",
        layers: str | Sequence[str] = ("layer2", "layer3"),
        *,
        base: str = "simsiam",
        spd_weight: float = 0.1,
        max_steps: int = 200,
        train_batch_size: int = 16,
        learning_rate: float = 1e-4,
        weight_decay: float = 1e-4,
        temperature: float = 0.2,
        projection_dim: int = 128,
        checkpoint_dir: str | Path | None = None,
        weights: str | Path | Literal[False] | None = None,
        backbone_kwargs: dict[str, Any] | None = None,
        image_size: int | tuple[int, int] = 224,
        crop_size: int | tuple[int, int] | None = None,
        resize: str = "exact",
        patch_size: int = 3,
        patch_stride: int = 1,
        embedding: str = "auto",
        pretrain_dim: int = 1024,
        target_dim: int = 1024,
        n_components: int | None = None,
        reduction: str = "random",
        grid: tuple[int, int] | None = None,
        pooled: bool | str = False,
        region: Any = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        batch_size: int | str = "auto",
        device: str = "auto",
        precision: str = "float32",
        cache_dir: str | Path | None = None,
        on_error: str = "raise",
        n_jobs: int | None = None,
        random_state: int | np.random.RandomState | None = 0,
        verbose: bool = False,
    ) -> None:
        super().__init__(
            backbone,
            layers,
            weights=weights,
            backbone_kwargs=backbone_kwargs,
            image_size=image_size,
            crop_size=crop_size,
            resize=resize,
            patch_size=patch_size,
            patch_stride=patch_stride,
            embedding=embedding,
            pretrain_dim=pretrain_dim,
            target_dim=target_dim,
            n_components=n_components,
            reduction=reduction,
            grid=grid,
            pooled=pooled,
            region=region,
            mean=mean,
            std=std,
            batch_size=batch_size,
            device=device,
            precision=precision,
            cache_dir=cache_dir,
            on_error=on_error,
            n_jobs=n_jobs,
            random_state=random_state,
            verbose=verbose,
        )
        self.base = base
        self.spd_weight = spd_weight
        self.max_steps = max_steps
        self.train_batch_size = train_batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.temperature = temperature
        self.projection_dim = projection_dim
        self.checkpoint_dir = checkpoint_dir

    def _backbone(self) -> Any:
        """The trained network; before training, the one that it starts from."""
        device, own = self._device(), not isinstance(self.backbone, str)
        kwargs = self.backbone_kwargs or {}
        if not hasattr(self, "state_"):
            if own:
                module = copy.deepcopy(self.backbone).to(device)
                return networks.frozen.Backbone(module, IMAGENET_MEAN, IMAGENET_STD)
            return networks.frozen.named_backbone(
                self.backbone, self.weights, kwargs, self._seed, device, fold=False
            )
        # The module of one's own is told from others by its weights.
        key = self.weights_sha256_, repr(sorted(kwargs.items())), *self._module_names()
        name = type(self.backbone).__name__ if own else self.backbone

        def build() -> Any:
            if own:
                module = networks.modules.with_arrays(
                    copy.deepcopy(self.backbone), self.state_
                )
                return networks.frozen.Backbone(
                    module.to(device), IMAGENET_MEAN, IMAGENET_STD
                )
            return networks.frozen.with_trained_weights(
                self.backbone, kwargs, self.state_, device, self._module_names()
            )

        return networks.frozen.tuned_backbone((name, *key), build, device)

    # -- training ------------------------------------------------------------

    def _fit(self, images: Any) -> None:
        self._check_settings()  # a fit that is refused leaves the last one as it is
        for name in ("state_", "loss_curve_"):
            self.__dict__.pop(name, None)
        start = self._fit_network()
        black = np.zeros((1, *self._input_size(), self._n_channels()), np.float32)
        last = list(self._outputs(start, black, list(self.layers_))[0])[-1]
        backbone = networks.frozen.Backbone(
            copy.deepcopy(start.module), start.mean, start.std
        )
        self.loss_curve_ = self._train(backbone, last, images)
        self.state_ = networks.modules.arrays(backbone.module)
        self.weights_sha256_ = networks.frozen.Backbone(
            backbone.module, None, None
        ).sha256
        if self._learns_axes():
            self._learn_axes(images, self._backbone())

    def _keep_weights(self, backbone: Any, probe: Any) -> None:
        """Store nothing: all weights are in `state_`."""

    def _train(self, backbone: Any, last: Any, images: Any) -> list[float]:
        """Fine-tune the module of `backbone` in place; the loss of each step."""
        read = remembered(images)
        # One pass finds the images that can be read, and what tells them from others.
        means = dict(
            images.each(lambda i: read(i).mean(dtype=np.float64), range(len(images)))
        )
        self._warn_of_skipped(images, len(images))
        n_images = self._images_of_a_step(len(means))
        backbone.module.eval().requires_grad_(True)
        module = networks.modules.seeded(
            lambda: self._training_networks(backbone, last, n_images), self._seed
        ).to(self._device())
        loss = networks.spd.SPDLoss(
            module,
            lambda network, views: self._pooled(network, views, last),
            self.base,
            self.spd_weight,
            self.temperature,
        )
        members = _Members(self._seed, len(means), n_images)
        sampler = self._sampler(read, list(means), members)

        def loss_of(step: int) -> Any:
            views = np.stack(samples(step), axis=1)  # (views, batch, H, W, C)
            views = self._as_input(views.reshape(-1, *views.shape[2:]), backbone)
            return loss(views, members(step), step)

        with ThreadPoolExecutor(n_threads(self.n_jobs)) as pool:
            samples = prefetched(pool, sampler, n_images, self.max_steps)
            return networks.training.train(
                loss_of,
                module,
                networks.spd.sgd(module, self.learning_rate, self.weight_decay),
                self.max_steps,
                rate=lambda step: networks.training.cosine(step, self.max_steps),
                label="SPD",
                verbose=self.verbose,
                checkpoint=self._checkpoint(np.array(list(means.values()))),
                what=f"a step of training {type(self).__name__}",
                advice_on_memory=(
                    f"Reduce train_batch_size={self.train_batch_size} or image_size="
                    f"{self.image_size!r}."
                ),
                advice="With checkpoint_dir, fit goes on from its last checkpoint.",
            )

    def _images_of_a_step(self, n_available: int) -> int:
        n_images = min(self.train_batch_size, n_available)
        if self.base in ("simclr", "moco") and n_images < 2:
            raise ValueError(
                f"base={self.base!r} tells images from each other, but a batch has "
                f"{n_images}; pass more images, a larger train_batch_size, or "
                "base='simsiam'."
            )
        return n_images

    def _sampler(
        self, read: Any, readable: Any, members: Any
    ) -> Callable[[int, int], Any]:
        """Return the function from a step and the number of an image to its views."""

        def views(step: int, k: int) -> Any:
            rng = np.random.default_rng(combined_seed(self._seed, 1, step, k))
            image = read(readable[members(step)[k]])
            if self.base == "supervised":
                return spd_views(image, rng)[1:]
            return [
                *spd_views(image, rng),
                strong_view(image, rng),
                strong_view(image, rng),
            ]

        return views

    def _pooled(self, network: Any, views: Any, last: Any) -> Any:
        """Mean outputs (b, c) of the module `last` of a network."""
        return networks.frozen.Backbone(network, None, None).vectors(
            views, last, self._layouts[last]
        )

    def _training_networks(self, backbone: Any, last: Any, n_images: int) -> Any:
        """The network, and what training needs beside it."""
        black = np.zeros((1, *self._input_size(), self._n_channels()), np.float32)
        n_features = networks.spd.n_pooled(
            lambda network, images: self._pooled(network, images, last),
            backbone.module,
            self._as_input(black, backbone),
        )
        return networks.spd.SPDNetworks(
            backbone.module, self.base, n_features, self.projection_dim, n_images
        )

    def _checkpoint(self, means: np.ndarray) -> Any:
        """File of the checkpoint; None without a folder for it."""
        if self.checkpoint_dir is None:
            return None
        settings = networks.training.result_settings(self)
        return networks.training.checkpoint_file(
            self.checkpoint_dir,
            "spd",
            settings,
            self._seed,
            self.weights_sha256_,
            means,
        )


class _Members:
    """Which images a step takes: whole steps of each epoch, in an order of its own."""

    def __init__(self, seed: int, n: int, n_at_once: int) -> None:
        self.seed, self.n, self.n_at_once = seed, n, n_at_once

    def __call__(self, step: int) -> np.ndarray:
        epoch, position = divmod(step, self.n // self.n_at_once)
        first = position * self.n_at_once
        return epoch_order(self.seed, epoch, self.n)[first : first + self.n_at_once]


def spd_views(
    image: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Make two augmented views of an image, the second with a pasted part."""
    return image, weak_view(image, rng), smooth_blend(weak_view(image, rng), rng)[0]

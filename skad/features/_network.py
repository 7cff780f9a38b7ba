"""Patch features of a pretrained network (Section 3.1 of the PatchCore paper)."""

from collections.abc import Iterator, Sequence
from hashlib import sha256
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import numpy as np
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions

from skad import networks
from skad._checks import check_size
from skad._patch_array import PatchArray
from skad._patches import patch_rows
from skad.features._base import Extract, PatchFeatureTransformer
from skad.features._layer_maps import LayerMaps
from skad.features._principal import principal_axes, random_dimensions
from skad.networks._weights import identity


class PatchFeatures(LayerMaps):
    """Patch features from the middle of a pretrained network.

    Parameters
    ----------
    backbone : str or torch.nn.Module, default="wide_resnet50_2"
        Name of a timm model, optionally with its weight tag
        ("wide_resnet50_2.tv_in1k" has the weights of the papers; the bare name
        stands for timm's own choice, "racm_in1k"), or
        "skad_small", a small network that comes with skad and needs no download,
        or your own network, which is used in evaluation mode as it is.

    layers : sequence of str or "auto", default=("layer2", "layer3")
        Modules whose outputs are taken: names from timm's ``feature_info``, or
        any dotted module name. "auto" takes strides 8 and 16 of a convnet, or
        blocks at half and three quarters of a transformer; of your own network, the
        last modules at strides 8 and 16. The network runs no further than the last
        of them. `fit` measures on a probe image where their outputs belong, and
        refuses those that are not in the order of the image.

    weights : None, path or False, default=None
        None takes timm's pretrained weights, downloaded once, or those that come
        with skad. A path names a
        .safetensors or .pth file. False takes random weights.

    backbone_kwargs : dict, default=None
        Passed to ``timm.create_model``. ``{"in_chans": n}`` is for images of n
        channels, by default 3: arrays (H, W, n), .npy files of them, or tensors
        (n, H, W). With 1, colour images become grey; with 3, grey ones become
        colour; any other number the images must have. Trained weights are
        adapted. Your own network is asked for its first ``Conv2d``.

    image_size : int or (int, int), default=224
        Every image is resized to exactly this height and width (bilinear,
        antialiased), unless `resize` is "short".

    crop_size : int or (int, int), default=None
        Centre of the resized image to keep. None keeps the whole image: a crop
        hides defects at the border. ``image_size=256, crop_size=224, resize="short"``
        is the protocol of the papers.

    resize : {"exact", "short"}, default="exact"
        What `image_size` is. "exact" resizes to this height and width, whatever the
        aspect ratio of an image. "short" resizes until the short side has so many
        pixels, keeps the aspect ratio, and cuts out the centre: `crop_size`, or a
        square. What is beyond it is not looked at.

    patch_size : int, default=3
        Side p, odd, of the neighbourhood that a patch feature averages over.

    patch_stride : int, default=1
        Take neighbourhoods around every so many positions of each level, along both
        sides, so that the patch grid has as many times fewer rows and columns
        (Equation 3 of PatchCore). As in its published code, the grid is then stretched
        over the image; its patches lie up to half a stride before where maps show
        them. Not with "replicate", which takes no neighbourhoods.

    embedding : {"auto", "mean1d", "concat", "mean", "replicate"}, default="auto"
        "mean1d" pools as the official PatchCore code does; "concat" keeps the
        channels of every level, averaged over the neighbourhood; "mean" is the mean of
        these over the levels, which must have as many channels as each other, as
        SubspaceAD takes it from the blocks of a transformer; "replicate"
        repeats coarse levels to the finest grid without averaging, as PaDiM
        does. "auto" is "concat" for "skad_small", whose 128 channels mean1d would
        blow up to 1,024, and "mean1d" for every other network.

    pretrain_dim, target_dim : int, default=1024
        Sizes of the two poolings of "mean1d".

    n_components : int, default=None
        Keep so many dimensions, chosen by `reduction`. None keeps all.

    reduction : {"random", "pca"}, default="random"
        How these are chosen: sampled once at random, as PaDiM does, or the leading
        principal axes of the patches of the normal images, which the paper compares
        it with. For "pca", the network sees the images once more in `fit`.

    grid : int or (int, int), default=None
        Rows and columns of the patch grid. None takes the finest level's.

    pooled : bool or str, default=False
        Let a descriptor of the whole image travel with its patches, for
        `SPADEDetector`. True takes the pooled output of a timm model, which then
        runs to its end; a str names a module whose output is averaged over its
        positions, the only choice for your own network.

    region : mask, default=None
        What to look at in every image, True or not zero, as `skad.images.read_mask`
        takes it; it is stretched over the image as passed. None looks everywhere.
        `fit` reads it: a file is not needed afterwards. Masks for single images
        are the argument `regions` of `fit_transform` and `transform`.

    mean, std : sequence of floats, default=None
        Normalisation of values in [0, 1], one for each channel or one for all;
        None takes the backbone's own, or ImageNet's for your own network, and
        their average where the images are not RGB.

    batch_size : int or "auto", default="auto"
        Images per pass through the network. "auto" is 32 on a GPU. On a CPU, whose
        cache holds no more, it is 4 of up to 256 x 256 pixels, fewer of larger ones.

    device : str, default="auto"
        "auto" is a CUDA device where there is one, else the CPU.

    precision : {"float32", "bfloat16", "float16"}, default="float32"
        Arithmetic of the network. The features are float32 always. On the bottles
        of MVTec AD, "bfloat16" changed PatchCore's scores by 1.3 % in the median
        and 6 % at most; the image AUROC stayed at 1.000.

    cache_dir : path, default=None
        Folder that keeps the features of every image, keyed by its content,
        the weights and the settings, so that a search over detectors extracts
        each image once, also across processes and sessions.

    on_error : {"raise", "skip"}, default="raise"
        What to do about an image that cannot be read. "skip" warns, gives NaN
        for it, and detectors then neither learn from it nor score it.

    n_jobs : int, default=None
        Threads that read images beside the network; None is up to four.

    random_state : int, RandomState instance or None, default=0
        Draws random weights and random dimensions.

    verbose : bool, default=False
        Report progress on the standard error stream.

    Attributes
    ----------
    grid_shape_ : (int, int)
        Rows and columns of the patch grid.

    n_features_out_ : int
        Channels of a patch feature.

    layers_ : tuple of str
        The modules taken.

    weights_sha256_ : str
        SHA-256 of the network's parameters.

    components_ : ndarray of shape (n_components,) or (n_components, n), or None
        Dimensions kept; with ``reduction="pca"`` the axes, unit vectors of all n
        dimensions.

    region_ : ndarray of shape (H, W), bool, or None
        The mask that `region` was when `fit` read it.

    skipped_ : list of (int, str)
        Images that `fit_transform` could not read, and why.

    Notes
    -----
    A fitted estimator is complete: its pickle holds the weights of the part of the
    network that runs, 100 MB for "wide_resnet50_2" with its default `layers`, and
    needs neither file nor download. Where `weights` is False, or the network is
    "skad_small" as it comes with skad, there is no need: these are built again. A
    network of your own travels with the estimator, its tensors on the CPU.

    References
    ----------
    .. [1] K. Roth et al., "Towards Total Recall in Industrial Anomaly
       Detection", CVPR 2022. Equations 1 to 4.
    .. [2] T. Defard et al., "PaDiM", ICPR workshops 2021. Section III-A; "random" and
       "pca" are compared in Section V-A.
    .. [3] C. Lendering, E. Akdag and E. Bondarev, "SubspaceAD: Training-Free
       Few-Shot Anomaly Detection via Subspace Modeling", arXiv 2602.23013, 2026.

    Examples
    --------
    >>> import numpy as np
    >>> from skad import PatchFeatures
    >>> images = np.random.default_rng(0).random((2, 64, 64, 3))
    >>> features = PatchFeatures(
    ...     "resnet10t", layers="auto", weights=False, image_size=64
    ... )
    >>> features.fit_transform(images).shape
    (2, 8, 8, 1024)
    """

    _parameter_constraints = {
        **PatchFeatureTransformer._parameter_constraints,
        "backbone": [str, HasMethods(["forward", "state_dict"])],
        "layers": [StrOptions({"auto"}), tuple, list],
        "weights": [str, Path, None, bool],
        "backbone_kwargs": [dict, None],
        "patch_size": [Interval(Integral, 1, None, closed="left")],
        "patch_stride": [Interval(Integral, 1, None, closed="left")],
        "embedding": [StrOptions({"auto", "mean1d", "concat", "mean", "replicate"})],
        "pretrain_dim": [Interval(Integral, 1, None, closed="left")],
        "target_dim": [Interval(Integral, 1, None, closed="left")],
        "n_components": [Interval(Integral, 1, None, closed="left"), None],
        "reduction": [StrOptions({"random", "pca"})],
        "grid": [Interval(Integral, 1, None, closed="left"), tuple, list, None],
        "pooled": ["boolean", str],
        "mean": ["array-like", None],
        "std": ["array-like", None],
        "device": [str],
        "batch_size": [
            Interval(Integral, 1, None, closed="left"),
            StrOptions({"auto"}),
        ],
        "precision": [StrOptions({"float32", "bfloat16", "float16"})],
        "cache_dir": [str, Path, None],
        "random_state": ["random_state"],
    }

    # Parameters that change no feature, or only through what is signed beside them.
    _unsigned: tuple[str, ...] = (
        *("backbone", "weights", "layers", "batch_size", "cache_dir", "device"),
        *("on_error", "n_jobs", "verbose", "random_state", "region"),
    )

    def __init__(
        self,
        backbone: Any = "wide_resnet50_2",
        layers: str | Sequence[str] = ("layer2", "layer3"),
        *,
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
        grid: int | tuple[int, int] | None = None,
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
        self.backbone = backbone
        self.layers = layers
        self.weights = weights
        self.backbone_kwargs = backbone_kwargs
        self.image_size = image_size
        self.crop_size = crop_size
        self.resize = resize
        self.patch_size = patch_size
        self.patch_stride = patch_stride
        self.embedding = embedding
        self.pretrain_dim = pretrain_dim
        self.target_dim = target_dim
        self.n_components = n_components
        self.reduction = reduction
        self.grid = grid
        self.pooled = pooled
        self.region = region
        self.mean = mean
        self.std = std
        self.batch_size = batch_size
        self.device = device
        self.precision = precision
        self.cache_dir = cache_dir
        self.on_error = on_error
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    def _images_at_once(self) -> int:
        if self.batch_size != "auto":
            return self.batch_size
        if self._device().type != "cpu":
            return 32
        height, width = self._input_size()
        return int(np.clip(4 * 256**2 // (height * width), 1, 4))

    def _fit_images(self, images: Any, y: Any) -> Extract | None:
        backbone = self._fit_normal(images, y)
        if backbone is None:  # a subclass has trained another one
            return None
        return lambda index, batch: self._features_of(backbone, batch)

    def _fit(self, images: Any) -> Any:
        """Measure the network, and learn the axes from images; returns the network."""
        backbone = self._fit_network()
        self._learn_axes(images, backbone)
        return backbone

    def _fit_network(self) -> Any:
        """Measure the network on a black image; returns it."""
        self._check_settings()
        for name in ("_weights", "layers_"):
            self.__dict__.pop(name, None)
        self._seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        self.layers_ = self._check_layers(self._backbone())
        backbone = self._backbone()
        self._check_pooled(backbone.module)
        self.weights_sha256_ = backbone.sha256
        self.components_: np.ndarray | None = None
        self._centre: np.ndarray | None = None  # that axes are through
        self._embedding = self._chosen_embedding()
        self._measure(backbone)
        # A black image tells the shapes.
        shape = (1, *self._input_size(), self._n_channels())
        probe = np.zeros(shape, np.float32)
        levels, pooled = self._levels(backbone, probe, self._last_layer)
        self._check_levels(levels)
        self._n_pooled = 0 if pooled is None else pooled.shape[1]
        self.grid_shape_ = self._grid(levels)
        n_features = self._embed(levels).shape[1]
        self._choose_dimensions(n_features)
        self.n_features_out_ = self.n_components or n_features
        self._own_levels = self._describe_levels(levels)
        self._keep_weights(backbone, probe)
        return backbone

    def _choose_dimensions(self, n_features: int) -> None:
        """Sample the dimensions that are kept; axes are learned from images later."""
        if self.n_components is None:
            return
        if self.n_components > n_features:
            raise ValueError(
                f"n_components={self.n_components} exceeds the {n_features} "
                f"dimensions of layers {self.layers_}."
            )
        if self.reduction == "random":
            self.components_ = random_dimensions(
                n_features, self.n_components, self._seed
            )

    def _learn_axes(self, images: Any, backbone: Any) -> None:
        """Learn principal axes from the patches of images, where these are asked for.

        Patches outside of `region` have no part in them.
        """
        if self.n_components is None or self.reduction != "pca":
            return
        found = principal_axes(self._rows_inside(images, backbone), self.n_components)
        if found is None:
            self._warn_of_skipped(images, len(images))  # raises if none could be read
            raise ValueError("region leaves no patch to learn principal axes from.")
        self.components_, self._centre = found

    def _rows_inside(self, images: Any, backbone: Any) -> Iterator[np.ndarray]:
        """Yield the patches (m, n) of batches of images, in all of their dimensions."""
        looked_at = self.regions(None, len(images))
        for index, batch in images.indexed_batches(self._images_at_once()):
            features = self._features_of(backbone, batch)
            yield patch_rows(self._cut(looked_at, features, index, images))[0]

    def _check_levels(self, levels: Any) -> None:
        counts = [level.shape[1] for level in levels]
        if self._embedding == "mean" and len(set(counts)) > 1:
            raise ValueError(
                f"embedding='mean' averages over the layers {self.layers_}, but these "
                f"have {', '.join(map(str, counts))} channels; choose layers of as "
                "many channels, as the blocks of a transformer, or embedding='concat'."
            )

    def _chosen_embedding(self) -> str:
        if self.embedding != "auto":
            return self.embedding
        own = not isinstance(self.backbone, str)
        return "concat" if not own and self.backbone == "skad_small" else "mean1d"

    def _describe_levels(self, levels: Any) -> tuple[Any, ...]:
        """Number of channels and grid of each level, where they are kept apart."""
        joined = self._embedding in ("mean1d", "mean")
        if joined or (self.n_components is not None and self.reduction == "pca"):
            return ()
        counts = [level.shape[1] for level in levels]
        if self.components_ is not None:
            ends = np.searchsorted(self.components_, np.cumsum(counts))
            counts = np.diff(ends, prepend=0).tolist()
        grids = [self.grid_shape_] * len(levels)
        if self._embedding == "replicate":
            grids = [tuple(level.shape[2:]) for level in levels]
        return tuple(
            (count, grid) for count, grid in zip(counts, grids, strict=True) if count
        )

    def _extraction(self) -> Extract:
        backbone = self._checked_backbone()
        return lambda index, batch: self._features_of(backbone, batch)

    def _extract(self, batch: np.ndarray) -> np.ndarray:
        return self._features_of(self._checked_backbone(), batch)

    def _features_of(self, backbone: Any, batch: np.ndarray) -> np.ndarray:
        """Patch features of a batch of images, with descriptors where there are any."""
        import torch

        with torch.inference_mode():
            levels, pooled = self._levels(backbone, batch, self._last_layer)
            patches = self._patches(levels).cpu().numpy()
            if pooled is None:
                return patches
            return PatchArray(patches, pooled.cpu().numpy(), self._own_levels)

    def _patches(self, levels: Any) -> Any:
        """Patch features (b, h, w, d), float32, from the maps of all layers."""
        import torch

        embedded = self._embed(levels)
        if self.components_ is None:
            return embedded.permute(0, 2, 3, 1).float()
        if self._centre is None:
            kept = embedded[:, torch.as_tensor(self.components_)]
            return kept.permute(0, 2, 3, 1).float()
        axes, centre = (
            torch.as_tensor(values, device=embedded.device)
            for values in (self.components_, self._centre)
        )
        return (embedded.permute(0, 2, 3, 1).float() - centre) @ axes.T

    def _embed(self, levels: Any) -> Any:
        if self._embedding == "replicate":
            return networks.embedding.replicate(levels, self.grid_shape_)
        if self._embedding == "mean1d":
            return networks.embedding.mean1d(
                levels,
                self.grid_shape_,
                self.patch_size,
                self.pretrain_dim,
                self.target_dim,
                self.patch_stride,
            )
        join = getattr(networks.embedding, self._embedding)  # concat or mean
        return join(levels, self.grid_shape_, self.patch_size, self.patch_stride)

    def _grid(self, levels: Any) -> tuple[int, int]:
        if self.grid is not None:
            return check_size(self.grid, "grid", allow_int=True)
        finest = max((level.shape[2:] for level in levels), key=np.prod)
        return -(-finest[0] // self.patch_stride), -(-finest[1] // self.patch_stride)

    def _check_settings(self) -> None:
        self._device()
        if self.patch_size % 2 == 0:
            raise ValueError(
                f"patch_size={self.patch_size} is even; a neighbourhood has a centre "
                "only if it is odd."
            )
        if self.patch_stride > 1 and self.embedding == "replicate":
            raise ValueError(
                f"patch_stride={self.patch_stride}: embedding='replicate' takes no "
                "neighbourhoods; choose 'concat', or grid for fewer patches."
            )
        if isinstance(self.backbone, str) or self.weights is True:
            identity(self.weights, None)
        if not isinstance(self.backbone, str) and self.weights is not None:
            raise ValueError(
                f"weights={self.weights!r} goes with a backbone given by name; load "
                "the weights of your own network before you pass it."
            )

    def _signature(self) -> str:
        settings = self.get_params()
        for irrelevant in self._unsigned:
            del settings[irrelevant]
        settings["embedding"] = self._embedding
        backbone = self._backbone()
        components: Any = self.components_
        if self._centre is not None:  # many numbers: their digest tells them apart
            components = sha256(components.tobytes() + self._centre.tobytes())
            components = components.hexdigest()
        elif components is not None:
            components = components.tolist()
        return (
            f"3 {backbone.sha256} {backbone.module} {self.layers_} {components} "
            f"{sorted(settings.items())}"
        )

"""Patch features of a pretrained network (Section 3.1 of the PatchCore paper)."""

from collections.abc import Sequence
from hashlib import sha256
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import numpy as np
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions

from skad.features._base import PatchFeatureTransformer
from skad.features._network_patches import NetworkPatches


class PatchFeatures(NetworkPatches):
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

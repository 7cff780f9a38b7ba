"""What `PatchFeatures` is built on: a network, run on images for their patches."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import numpy as np
from sklearn.utils import check_random_state

from skad import networks
from skad._checks import check_size
from skad._patch_array import PatchArray
from skad._patches import patch_rows
from skad.features._base import Extract, PatchFeatureTransformer
from skad.features._principal import principal_axes, random_dimensions
from skad.networks._torch_state import torch_device
from skad.networks._weights import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    identity,
    is_reproducible,
)


class NetworkPatches(PatchFeatureTransformer):
    """Base of `PatchFeatures`: builds the network, and runs it on images."""

    backbone: Any
    layers: str | Sequence[str]
    weights: str | Path | Literal[False] | None
    backbone_kwargs: dict[str, Any] | None
    pooled: bool | str
    mean: Sequence[float] | None
    std: Sequence[float] | None
    device: str
    precision: str
    batch_size: Any
    patch_size: int
    patch_stride: int
    embedding: str
    pretrain_dim: int
    target_dim: int
    n_components: Any
    reduction: str
    grid: int | tuple[int, int] | None
    random_state: int | np.random.RandomState | None
    layers_: tuple[str, ...]
    components_: np.ndarray | None
    _centre: np.ndarray | None  # that the axes are through
    weights_sha256_: str
    _seed: int
    _layouts: dict[str, Any]
    _last_layer: str | None

    # -- fitting -------------------------------------------------------------------

    def _fit(self, images: Any) -> Any:
        """Measure the network, and learn the axes from images; returns the network."""
        backbone = self._fit_network()
        if self._learns_axes():
            self._learn_axes(images, backbone)
        return backbone

    def _learns_axes(self) -> bool:
        return self.n_components is not None and self.reduction == "pca"

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
        self.components_ = self._centre = None
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

    def _chosen_embedding(self) -> str:
        if self.embedding != "auto":
            return self.embedding
        own = not isinstance(self.backbone, str)
        return "concat" if not own and self.backbone == "skad_small" else "mean1d"

    def _check_levels(self, levels: Any) -> None:
        counts = [level.shape[1] for level in levels]
        if self._embedding == "mean" and len(set(counts)) > 1:
            raise ValueError(
                f"embedding='mean' averages over the layers {self.layers_}, but these "
                f"have {', '.join(map(str, counts))} channels; choose layers of as "
                "many channels, as the blocks of a transformer, or embedding='concat'."
            )

    def _grid(self, levels: Any) -> tuple[int, int]:
        if self.grid is not None:
            return check_size(self.grid, "grid", allow_int=True)
        finest = max((level.shape[2:] for level in levels), key=np.prod)
        return -(-finest[0] // self.patch_stride), -(-finest[1] // self.patch_stride)

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

    def _describe_levels(self, levels: Any) -> tuple[Any, ...]:
        """Number of channels and grid of each level, where they are kept apart."""
        if self._embedding in ("mean1d", "mean") or self._learns_axes():
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

    def _learn_axes(self, images: Any, backbone: Any) -> None:
        """Learn principal axes from the patches of images, inside of their regions."""
        found = principal_axes(self._rows_inside(images, backbone), self.n_components)
        if found is None:
            self._warn_of_skipped(images, len(images))  # raises if none could be read
            raise ValueError(
                "region and regions leave no patch to learn principal axes from."
            )
        self.components_, self._centre = found

    def _rows_inside(self, images: Any, backbone: Any) -> Iterator[np.ndarray]:
        """Yield the patches (m, n) of batches of images, in all of their dimensions."""
        for index, batch in images.indexed_batches(self._images_at_once()):
            features = self._features_of(backbone, batch)
            if images.regions is not None:
                sizes = self._sizes_that_count(images, index)
                windows = [self.window(size) for size in sizes]
                positions = images.positions[index]
                features = images.regions.cut(features, positions, windows)
            yield patch_rows(features)[0]

    # -- from images to patches ----------------------------------------------------

    def _fit_images(self, images: Any, y: Any) -> Extract | None:
        backbone = self._fit_normal(images, y)
        if backbone is None:  # a subclass has trained another one
            return None
        return lambda index, batch: self._features_of(backbone, batch)

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

    def _images_at_once(self) -> int:
        if self.batch_size != "auto":
            return self.batch_size
        if self._device().type != "cpu":
            return 32
        height, width = self._input_size()
        return int(np.clip(4 * 256**2 // (height * width), 1, 4))

    # -- the network ---------------------------------------------------------------

    def _n_channels(self) -> int:
        from torch.nn import Conv2d

        if isinstance(self.backbone, str):
            n_channels = (self.backbone_kwargs or {}).get("in_chans", 3)
            if not isinstance(n_channels, Integral) or n_channels < 1:
                raise ValueError(
                    f"backbone_kwargs={self.backbone_kwargs!r}: in_chans must be a "
                    "positive integer, the number of channels of the images."
                )
            return int(n_channels)
        parts = self.backbone.modules()
        return next((p.in_channels for p in parts if isinstance(p, Conv2d)), 3)

    def _device(self) -> Any:
        return torch_device(self.device)

    def _backbone(self) -> Any:
        if not isinstance(self.backbone, str):
            return networks.frozen.Backbone(
                self.backbone.to(self._device()), IMAGENET_MEAN, IMAGENET_STD
            )
        kwargs = self.backbone_kwargs or {}
        if hasattr(self, "_weights"):
            return networks.frozen.fitted_backbone(
                self._weights, kwargs, self._device()
            )
        return networks.frozen.named_backbone(
            self.backbone,
            self.weights,
            kwargs,
            self._seed,
            self._device(),
            self._module_names(),
        )

    def _checked_backbone(self) -> Any:
        """The network, which must be the one that `fit` had."""
        backbone = self._backbone()
        if isinstance(self.backbone, str) and backbone.sha256 != self.weights_sha256_:
            raise ValueError(
                f"backbone={self.backbone!r} has other weights (sha256 "
                f"{backbone.sha256[:12]}...) than at fit "
                f"({self.weights_sha256_[:12]}...): this version of torch, timm or "
                "skad builds it differently; fit again."
            )
        return backbone

    def _keep_weights(self, backbone: Any, probe: np.ndarray) -> None:
        """Keep what is needed to build the network again where no file is at hand."""
        if not isinstance(self.backbone, str):
            return
        if is_reproducible(self.backbone, self.weights):
            return
        self._weights = networks.frozen.fitted_weights(
            backbone,
            self.backbone,
            lambda: self._levels(backbone, probe.copy(), self._last_layer),
        )
        kwargs = self.backbone_kwargs or {}
        networks.frozen.fitted_backbone(self._weights, kwargs, self._device(), backbone)

    def _module_names(self) -> list[str]:
        """Names of the modules whose outputs are taken."""
        pooled = [self.pooled] if isinstance(self.pooled, str) else []
        return list(dict.fromkeys([*getattr(self, "layers_", ()), *pooled]))

    def _check_layers(self, backbone: Any) -> tuple[str, ...]:
        module = backbone.module
        if self.layers == "auto":
            if hasattr(module, "feature_info"):
                return networks.frozen.automatic_layers(module)
            return self._measured_layers(backbone)
        known = dict(module.named_modules())
        absent = [name for name in self.layers if name not in known or name == ""]
        if absent or len(self.layers) == 0:
            name = self.backbone if isinstance(self.backbone, str) else "your network"
            choices = ", ".join(networks.frozen.available_layers(module))
            raise ValueError(
                f"layers={tuple(self.layers)!r}: {name} has no module "
                f"{', '.join(map(repr, absent))}. Choose from {choices}, or "
                "layers='auto'."
            )
        return tuple(self.layers)

    def _measured_layers(self, backbone: Any) -> tuple[str, ...]:
        """Layers of strides 8 and 16, by the outputs of a network of one's own."""
        names = [name for name, _ in backbone.module.named_modules() if name]
        image = np.zeros((1, *self._input_size(), self._n_channels()), np.float32)
        with backbone.arithmetic(self.precision):
            batch = self._as_input(image, backbone)
            return networks.frozen.layers_by_stride(backbone, batch, names)

    def _check_pooled(self, module: Any) -> None:
        if self.pooled is True and not hasattr(module, "forward_head"):
            raise ValueError(
                "pooled=True needs a timm model; name the module of your own network "
                "whose output describes the image."
            )
        if isinstance(self.pooled, str):
            known = [name for name, _ in module.named_modules() if name]
            if self.pooled not in known:
                choices = ", ".join(networks.frozen.available_layers(module))
                raise ValueError(
                    f"pooled={self.pooled!r} is no module of the network. Choose from "
                    f"{choices} or any dotted module name."
                )

    def _measure(self, backbone: Any) -> Any:
        """Find out how to read the outputs, and which module the network ends with."""
        names = self._module_names()

        def run(images: Any) -> Any:
            return self._outputs(backbone, images, names)

        self._layouts, self._last_layer = networks.layout.measured_layouts(
            backbone, run, names, self.pooled, self._input_size(), self._n_channels()
        )
        if self.pooled is True:
            self._last_layer = None  # the pooled output comes at the very end

    def _levels(
        self, backbone: Any, batch: np.ndarray, last: str | None = None
    ) -> tuple[list[Any], Any]:
        """Feature maps of the layers, and the descriptors or None."""
        with self._explained(backbone):
            maps, vector = backbone.feature_maps(
                batch,
                self._layouts,
                last,
                self.pooled,
                self._per_channel("mean", backbone.mean, batch.shape[3]),
                self._per_channel("std", backbone.std, batch.shape[3]),
                self.precision,
            )
        return [maps[name] for name in self.layers_], vector

    def _outputs(
        self,
        backbone: Any,
        batch: np.ndarray,
        names: Sequence[str],
        last: str | None = None,
    ) -> Any:
        """Outputs of modules for a batch, and the pooled output, or None."""
        with backbone.arithmetic(self.precision):
            batch = self._as_input(batch, backbone)
            with self._explained(backbone):
                return backbone.outputs(batch, names, last, self.pooled)

    def _as_input(self, batch: np.ndarray, backbone: Any) -> Any:
        return networks.input.normalized(
            batch,
            self._device(),
            self._per_channel("mean", backbone.mean, batch.shape[3]),
            self._per_channel("std", backbone.std, batch.shape[3]),
            dtype=backbone.dtype,
            in_place=True,  # the reader's own array, which nobody needs any more
        )

    def _per_channel(self, name: str, own: Any, n_channels: int) -> np.ndarray:
        """The values of `mean` or `std`, one for each channel or one for all."""
        given = getattr(self, name)
        values = np.asarray(own if given is None else given)
        if given is None and len(own) != n_channels:
            values = np.full(n_channels, values.mean())
        if values.shape not in ((1,), (n_channels,)):
            raise ValueError(
                f"{name}={given!r} has shape {values.shape}; pass {n_channels} values, "
                "one for each channel of the images, or a sequence of 1 for all."
            )
        return values.astype(np.float32)

    @contextmanager
    def _explained(self, backbone: Any) -> Iterator[None]:
        """Name the size of images, in errors of a network that cannot run on them."""
        try:
            yield
        except (RuntimeError, AssertionError, IndexError) as error:
            raise ValueError(
                f"the network cannot run on images of image_size="
                f"{self.image_size!r}, crop_size={self.crop_size!r} "
                f"({self._input_size()} pixels, {backbone.dtype}): {error}"
            ) from error

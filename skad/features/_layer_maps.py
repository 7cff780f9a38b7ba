"""A network and the feature maps of its layers: what `PatchFeatures` is built on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from numbers import Integral
from pathlib import Path
from typing import Any, Literal

import numpy as np

from skad import networks
from skad.features._base import PatchFeatureTransformer
from skad.networks._torch_state import torch_device
from skad.networks._weights import IMAGENET_MEAN, IMAGENET_STD, is_reproducible


class LayerMaps(PatchFeatureTransformer):
    """Base of `PatchFeatures`: builds the network, and gives the maps of its layers."""

    backbone: Any
    layers: str | Sequence[str]
    weights: str | Path | Literal[False] | None
    backbone_kwargs: dict[str, Any] | None
    pooled: bool | str
    mean: Sequence[float] | None
    std: Sequence[float] | None
    device: str
    precision: str
    layers_: tuple[str, ...]
    weights_sha256_: str
    _seed: int
    _layouts: dict[str, Any]
    _last_layer: str | None

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

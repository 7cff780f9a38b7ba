"""Feature transformers as modules that a graph is traced from."""

from typing import Any

import torch
from torch import nn

from skad.export._registry import features_module, refuse_setting
from skad.features import PatchFeatures
from skad.networks import input as network_input


class NetworkFeatures(nn.Module):
    """`PatchFeatures`: its own network, asked as it asks it."""

    mean: torch.Tensor
    std: torch.Tensor

    def __init__(self, transformer: PatchFeatures) -> None:
        super().__init__()
        self.transformer = transformer
        self.backbone = transformer._checked_backbone()
        self.network = self.backbone.module
        n_channels = transformer._n_channels()
        for name in ("mean", "std"):
            values = transformer._per_channel(
                name, getattr(self.backbone, name), n_channels
            )
            self.register_buffer(name, torch.from_numpy(values))

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, Any]:
        """Patch features and descriptors.

        The network runs to its end, as a tracer cannot follow a run that is broken
        off; what no output needs is not in the graph.
        """
        batch = network_input.normalized_tensor(images, self.mean, self.std)
        known = self.transformer
        maps, pooled = self.backbone.maps_of(batch, known._layouts, None, known.pooled)
        return known._patches([maps[name] for name in known.layers_]), pooled


@features_module.register
def _(transformer: PatchFeatures) -> nn.Module:
    if transformer.precision != "float32":
        refuse_setting(transformer, "precision", "fit with precision='float32'")
    module = NetworkFeatures(transformer)
    if module.backbone.dtype != torch.float32:
        refuse_setting(
            transformer,
            "backbone",
            f"its weights are {module.backbone.dtype}: convert it by .float()",
        )
    return module

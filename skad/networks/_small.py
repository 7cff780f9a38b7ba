"""The backbone that ships with skad: a small network that imitates a large one.

It learned to give, for photographs and generated pictures, the features that a
MobileNetV2 with ImageNet weights gives at strides 8 and 16, as the student of
knowledge distillation does. The metadata of its file of weights says how, and
``benchmarks/skad_small.py`` does it.

It has the layers of MobileNetV2 [1]_ up to stride 16, with kernels of 4 where the
stride is 2, but for the block that takes most of the time there, with 96 channels at
stride 2. In its place ``layer0`` has a dense convolution, which makes the step to
stride 4 at once, and two of 1 x 1. Its positions look where those of MobileNetV2
do: further to the right and down than the middle of their part of the image, by about
4 pixels at stride 8 and 8 at stride 16.

References
----------
.. [1] Sandler, Howard, Zhu, Zhmoginov, Chen: MobileNetV2: Inverted Residuals and Linear
   Bottlenecks, CVPR 2018. Table 2.
"""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

WEIGHTS = Path(__file__).with_name("skad_small.safetensors")
# As timm describes its networks.
CONFIG: dict[str, Any] = {
    "input_size": (3, 224, 224),
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
    "num_classes": 0,
    "first_conv": "stem.0.0",
    "classifier": None,
    "license": "bsd-3-clause",
}


class SkadSmall(nn.Module):
    """Maps at strides 8 and 16, with the channels of MobileNetV2's."""

    output_fmt = "NCHW"
    pretrained_cfg: dict[str, Any]

    def __init__(self, in_chans: int = 3, num_classes: int = 0) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = 96
        self.stem = nn.Sequential(
            _layer(in_chans, 32, 4, stride=2, act=True),
            _layer(32, 32, 3, groups=32, act=True),
            _layer(32, 16, 1),
        )
        self.layer0 = nn.Sequential(
            _layer(16, 96, 4, stride=2, act=True),
            _layer(96, 128, 1, act=True),
            _layer(128, 24, 1),
        )
        self.layer1 = nn.Sequential(_Bottleneck(24, 24, 144))
        self.layer2 = nn.Sequential(
            _Bottleneck(24, 32, 144, stride=2),
            *(_Bottleneck(32, 32, 192) for _ in range(2)),
        )
        self.layer3 = nn.Sequential(
            _Bottleneck(32, 64, 192, stride=2),
            *(_Bottleneck(64, 64, 384) for _ in range(3)),
            _Bottleneck(64, 96, 384),
            *(_Bottleneck(96, 96, 576) for _ in range(2)),
        )
        self.feature_info = [
            {"module": "layer2", "num_chs": 32, "reduction": 8},
            {"module": "layer3", "num_chs": 96, "reduction": 16},
        ]

    def levels(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Feature maps at strides 8 and 16."""
        level2 = self.layer2(self.layer1(self.layer0(self.stem(x))))
        return level2, self.layer3(level2)

    def reset_classifier(self, num_classes: int, global_pool: Any = None) -> None:
        """Do nothing: the network has no classifier."""
        self.num_classes = num_classes

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """The map at stride 16."""
        return self.levels(x)[1]

    def forward_head(self, x: torch.Tensor, pre_logits: bool = True) -> torch.Tensor:
        """The mean over its positions."""
        return x.mean(dim=(2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """One vector per image."""
        return self.forward_head(self.forward_features(x))


class _Bottleneck(nn.Module):
    """Many channels, each filtered by itself, and few again: Table 1 of [1]_."""

    def __init__(self, n_in: int, n_out: int, width: int, stride: int = 1) -> None:
        super().__init__()
        kernel = 4 if stride == 2 else 3
        self.residual = stride == 1 and n_in == n_out
        self.body = nn.Sequential(
            _layer(n_in, width, 1, act=True),
            _layer(width, width, kernel, stride, groups=width, act=True),
            _layer(width, n_out, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.body(x)
        return x + y if self.residual else y


def _layer(
    n_in: int,
    n_out: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    act: bool = False,
) -> nn.Sequential:
    """A convolution, its normalization, and an activation."""
    padding = (kernel - 1) // 2
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(n_out),
        *([nn.ReLU6(inplace=True)] if act else []),
    )


def is_plain(weights: Any, kwargs: dict[str, Any]) -> bool:
    """Whether `build` does it: the weights need no adapting, and there is no option."""
    n_channels = kwargs.get("in_chans", 3)
    return not set(kwargs) - {"in_chans"} and (
        weights is False or (weights is None and n_channels == 3)
    )


def build(pretrained: bool, in_chans: int = 3) -> SkadSmall:
    """The network, with the attributes that timm gives to its own."""
    module = SkadSmall(in_chans)
    if pretrained:
        module.load_state_dict(load_file(WEIGHTS))
    module.pretrained_cfg = CONFIG | {"architecture": "skad_small"}
    return module

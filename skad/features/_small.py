"""The backbone that ships with skad: a small network that imitates a large one.

It learned to give, for photographs and generated pictures, the features that a
MobileNetV2 with ImageNet weights gives at strides 8 and 16, as the student of
knowledge distillation does. The metadata of its file of weights says how, and
``benchmarks/skad_small.py`` does it.

Kernels of even width halve the maps, so that every position of a map looks at the
middle of its part of the image. Those of MobileNetV2 look half a position further
to the right and down.
"""

from pathlib import Path

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

WEIGHTS = Path(__file__).with_name("skad_small.safetensors")
LEVELS = {"layer2": 32, "layer3": 96}
WIDTHS = (16, 32, 80, 160)  # channels at strides 2, 4, 8 and 16


class SkadSmall(nn.Module):
    """Maps at strides 8 and 16, with the channels of MobileNetV2's."""

    output_fmt = "NCHW"

    def __init__(self, in_chans=3, num_classes=0, widths=WIDTHS):
        super().__init__()
        self.num_classes = num_classes
        a, b, c, d = widths
        self.stem = nn.Sequential(_halve(in_chans, a), _halve(a, b))
        self.stage2 = nn.Sequential(_halve(b, c), _Block(c), _Block(c))
        self.layer2 = nn.Conv2d(c, LEVELS["layer2"], 1)
        self.stage3 = nn.Sequential(_halve(c, d), _Block(d), _Block(d))
        self.layer3 = nn.Conv2d(d, LEVELS["layer3"], 1)
        self.feature_info = [
            {"module": "layer2", "num_chs": LEVELS["layer2"], "reduction": 8},
            {"module": "layer3", "num_chs": LEVELS["layer3"], "reduction": 16},
        ]

    def levels(self, x):
        """Both maps."""
        x = self.stage2(self.stem(x))
        level2 = self.layer2(x)
        return level2, self.layer3(self.stage3(x))

    def forward_features(self, x):
        """The map at stride 16."""
        return self.levels(x)[1]

    def forward_head(self, x, pre_logits=True):
        """The mean over its positions."""
        return x.mean(dim=(2, 3))

    def forward(self, x):
        """One vector per image."""
        return self.forward_head(self.forward_features(x))


class _Block(nn.Module):
    """Two convolutions, whose result is added to their input."""

    def __init__(self, width):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.act = nn.ReLU()

    def forward(self, x):
        y = self.act(self.norm1(self.conv1(x)))
        return self.act(x + self.norm2(self.conv2(y)))


def _halve(n_in, n_out):
    """A map of half the height and width."""
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(n_out),
        nn.ReLU(),
    )


default_cfgs = generate_default_cfgs(
    {
        "skad_small": {
            "file": str(WEIGHTS),
            "input_size": (3, 224, 224),
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "num_classes": 0,
            "first_conv": "stem.0.0",
            "classifier": None,
            "license": "bsd-3-clause",
        }
    }
)


@register_model
def skad_small(pretrained=False, **kwargs):
    """A small network for 224 x 224 pixels, 1.4 million weights."""
    return build_model_with_cfg(SkadSmall, "skad_small", pretrained, **kwargs)

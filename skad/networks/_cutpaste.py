"""Network of CutPaste (Li et al., CVPR 2021): a backbone and a classifier.

The classifier tells normal images from those in which a part was pasted (Equation 1);
what the backbone gives before it describes an image (Section 2.3).
"""

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm

from skad.networks._backbone import build
from skad.networks._input import normalized

_HIDDEN_UNITS = (512, 128)  # widths of the hidden layers between features and classes


def cutpaste_network(name: str, weights: Any, n_classes: int) -> nn.ModuleDict:
    """A convolutional network of timm and a classifier, with random weights.

    Parameters
    ----------
    name : str
        Of the ``backbone``, whose own classifier is removed.

    weights : None, path or False
        Of the backbone, as of `skad.networks._backbone.build`.

    n_classes : int
        Of the ``head``.

    Returns
    -------
    network : torch.nn.ModuleDict
        Random weights come from torch's global generator.
    """
    # Without its classifier from the start, timm would not mind if a file held none of
    # the names that it looks for.
    backbone = build(name, weights, {"num_classes": 0} if weights is False else {})
    backbone.reset_classifier(0)
    layers: list[nn.Module] = []
    n_in = backbone.num_features
    for n_out in _HIDDEN_UNITS:
        layers += [
            nn.Linear(n_in, n_out, bias=False),
            nn.BatchNorm1d(n_out),
            nn.ReLU(inplace=True),
        ]
        n_in = n_out
    layers.append(nn.Linear(n_in, n_classes))
    return nn.ModuleDict({"backbone": backbone, "head": nn.Sequential(*layers)})


def freeze_statistics(module: Any) -> None:
    """Let batch normalization use the statistics that came with the weights."""
    for part in module.modules():
        if isinstance(part, _BatchNorm):
            part.eval()


def sgd(module: Any, learning_rate: float, weight_decay: float) -> torch.optim.SGD:
    """Stochastic gradient descent with a momentum of 0.9."""
    return torch.optim.SGD(
        module.parameters(), learning_rate, momentum=0.9, weight_decay=weight_decay
    )


def classification_loss(network: Any, device: Any, versions: Any) -> torch.Tensor:
    """Cross-entropy of telling which version of an image each is (Equation 1).

    Parameters
    ----------
    network : torch.nn.ModuleDict

    device : torch.device

    versions : list of b lists of n_classes ndarray of shape (H, W, 3), float32
        Of each image in [0, 1], in the order of the classes.

    Returns
    -------
    loss : torch.Tensor
        One number.
    """
    stacked = np.stack(versions)  # (b, n_classes, H, W, 3)
    images = normalized(stacked.reshape(-1, *stacked.shape[2:]), device)
    classes = torch.arange(stacked.shape[1], device=device)
    pooled = _maps(network["backbone"], images).mean(dim=(2, 3))
    return cross_entropy(network["head"](pooled), classes.repeat(len(stacked)))


@torch.inference_mode()
def feature_maps(network: Any, images: np.ndarray, device: Any) -> np.ndarray:
    """Features before pooling, float64 (b, h, w, d), of images (b, H, W, 3)."""
    maps = _maps(network["backbone"], normalized(images, device))
    return maps.permute(0, 2, 3, 1).cpu().double().numpy()


def _maps(backbone: Any, images: torch.Tensor) -> torch.Tensor:
    """Feature maps of a network before its pooling, (b, d, h, w)."""
    maps = backbone.forward_features(images)
    if maps.ndim != 4 or maps.shape[1] != backbone.num_features:
        raise ValueError(
            f"backbone: its features have shape {tuple(maps.shape)}, not maps (b, "
            f"{backbone.num_features}, h, w); choose a convolutional network, such as "
            "'resnet18'."
        )
    return maps

"""The parameter ``weights`` of everything that takes a network by its name.

This module does not need torch.
"""

from pathlib import Path
from typing import Any

# Mean and standard deviation of ImageNet's photographs, channels red, green and blue
# in [0, 1]: what networks that were trained on ImageNet take their images by.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def identity(weights: Any, seed: Any) -> str:
    """A text that tells the weights of a network from others within a process.

    Raises
    ------
    ValueError
        If weights is True.

    FileNotFoundError
        If weights names a file that does not exist.
    """
    if weights is True:
        raise ValueError(
            "weights=True is ambiguous; None takes the pretrained weights, a path "
            "names a file, and False takes random weights."
        )
    if weights is None:
        return "pretrained"
    if weights is False:
        return f"random {seed}"
    if not Path(weights).is_file():
        raise FileNotFoundError(
            f"weights={str(weights)!r} does not exist; set_params(weights=) to a "
            ".safetensors or .pth file, to None for the pretrained weights, or to "
            "False for random ones."
        )
    stat = Path(weights).stat()
    return f"{Path(weights).resolve()} {stat.st_size} {stat.st_mtime_ns}"


def is_reproducible(name: str, weights: Any) -> bool:
    """Whether a name and a seed are all it takes to build the network anywhere."""
    return weights is False or (weights is None and name.split(".")[0] == "skad_small")

"""Which kind of object an item is, told without importing torch or pandas."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from skad.images._errors import Source

ITEM_KINDS = (
    "a path, a PIL image, an array (H, W) or (H, W, 1|3|4), or a torch tensor (C, H, W)"
)


def has_base(kind: type, module: str, name: str) -> bool:
    """Whether a class or a base of it is called `name` in package `module`."""
    return any(
        base.__name__ == name and base.__module__.split(".")[0] == module
        for base in kind.__mro__
    )


def is_tensor(x: object) -> bool:
    """Whether `x` is a torch tensor, also of a subclass such as Parameter."""
    return has_base(type(x), "torch", "Tensor")


def is_item_type(kind: type) -> bool:
    """Whether instances of `kind` can be one image."""
    known = (str, os.PathLike, Image.Image, np.ndarray)
    return issubclass(kind, known) or has_base(kind, "torch", "Tensor")


def as_path(item: object) -> str | None:
    """Text of a path item, None for everything else."""
    if isinstance(item, str | os.PathLike):
        return str(os.fsdecode(item))
    return None


def tensor_to_numpy(tensor: Any, source: Source) -> NDArray[Any]:
    """Array of a tensor from any device, axes as they are."""
    try:
        tensor = tensor.detach().cpu()
        if str(tensor.dtype) == "torch.bfloat16":  # a type that numpy lacks
            tensor = tensor.float()
        return np.asarray(tensor.numpy())
    except (TypeError, RuntimeError, NotImplementedError) as err:
        raise source.error(
            f"the torch tensor cannot become a numpy array ({err})",
            "pass a dense tensor of an ordinary type",
        ) from err


def type_name(x: object) -> str:
    """Short name of the type of `x` with its article, for messages."""
    if x is None:
        return "None"
    name = type(x).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"

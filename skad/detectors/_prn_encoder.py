"""The frozen network of PRN: built once per process, and known by its weights."""

from functools import lru_cache
from hashlib import sha256
from pathlib import Path

import numpy as np

from skad._training import arrays, seeded
from skad.detectors._teacher import as_input

STRIDES = (4, 8, 16, 32)


class Encoder:
    """A frozen network in evaluation mode, and which of its levels are taken."""

    def __init__(self, module, layers, device):
        self.module = module.requires_grad_(False).eval().to(device)
        self.device = device
        self.sha256 = digest(module)
        info = module.feature_info
        info = info if isinstance(info, list) else info.info
        names = [level["module"] for level in info]
        if layers == "auto":
            strides = [level["reduction"] for level in info]
            absent = sorted(set(STRIDES) - set(strides))
            if absent:
                raise ValueError(
                    f"layers='auto': the network has no level of stride {absent[0]}, "
                    f"only of {sorted(set(strides))}; choose a backbone with levels of "
                    "strides 4, 8, 16 and 32, such as 'resnet18'."
                )
            chosen = [len(strides) - 1 - strides[::-1].index(s) for s in STRIDES]
        else:
            if len(layers) != len(STRIDES) or not set(layers) <= set(names):
                raise ValueError(
                    f"layers={layers!r} must be four of {', '.join(names)}, of strides "
                    "4, 8, 16 and 32, or 'auto'."
                )
            chosen = [names.index(name) for name in layers]
            strides = [info[i]["reduction"] for i in chosen]
            if tuple(strides) != STRIDES:
                raise ValueError(
                    f"layers={layers!r} have the strides {strides}; choose those of "
                    f"{STRIDES}, or 'auto'."
                )
        self.names = tuple(names[i] for i in chosen)
        self.channels = [info[i]["num_chs"] for i in chosen]
        self._chosen = chosen

    def levels(self, batch, n=4):
        """The first n levels (b, c, h, w) of images (b, H, W, 3) in [0, 1]."""
        import torch

        with torch.no_grad():
            return self.module.forward_intermediates(
                as_input(batch, self.device),
                indices=self._chosen[:n],
                stop_early=True,
                intermediates_only=True,
                output_fmt="NCHW",
            )


class Arguments:
    """What builds an encoder but does not tell it from others: all are equal."""

    def __init__(self, weights, kwargs, seed):
        self.weights, self.kwargs, self.seed = weights, kwargs, seed

    def __eq__(self, other):
        return isinstance(other, Arguments)

    def __hash__(self):
        return 0


@lru_cache(maxsize=2)
def built_encoder(name, layers, identity, kwargs_text, device, arguments):
    """The encoder, built once per process."""
    import timm

    kwargs = dict(arguments.kwargs)
    if arguments.weights is not False:
        kwargs["pretrained"] = True
    if arguments.weights:
        kwargs["pretrained_cfg_overlay"] = {"file": str(arguments.weights)}
    try:
        module = seeded(lambda: timm.create_model(name, **kwargs), arguments.seed)
    except Exception as error:  # whatever torch, timm and safetensors raise here
        raise ValueError(
            f"backbone={name!r} could not be built with weights="
            f"{arguments.weights!r}: {error}. Pass weights= a .safetensors or .pth "
            "file of this model; None downloads them, or finds them in the cache."
        ) from error
    if not hasattr(module, "forward_intermediates"):
        raise ValueError(
            f"backbone={name!r} does not give its levels (forward_intermediates of "
            f"timm {timm.__version__}); choose another one, such as 'resnet18'."
        )
    return Encoder(module, layers, device)


def identity(weights, seed):
    """What tells weights from others within a process."""
    if weights is True:
        raise ValueError(
            "weights=True is ambiguous; None takes the pretrained weights, a path "
            "names a file."
        )
    if weights is None:
        return "pretrained"
    if weights is False:
        return f"random {seed}"
    if not Path(weights).is_file():
        raise FileNotFoundError(
            f"weights={str(weights)!r} does not exist; set_params(weights=) to a "
            ".safetensors or .pth file, or to None to download timm's weights."
        )
    stat = Path(weights).stat()
    return f"{Path(weights).resolve()} {stat.st_size} {stat.st_mtime_ns}"


def digest(module):
    """SHA-256 over names, shapes and values of all parameters and buffers."""
    found = sha256()
    for name, value in arrays(module).items():
        found.update(f"{name}{value.shape}{value.dtype}".encode())
        found.update(np.ascontiguousarray(value).tobytes())
    return found.hexdigest()

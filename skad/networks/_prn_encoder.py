"""The frozen network of PRN: built once per process, and known by its weights."""

from hashlib import sha256
from typing import Any

import numpy as np
import timm
import torch

from skad._kept import ByteBounded, size_in_bytes
from skad.networks._backbone import build, used_arrays
from skad.networks._input import normalized
from skad.networks._modules import arrays, seeded
from skad.networks._torch_state import running
from skad.networks._weights import identity

STRIDES = (4, 8, 16, 32)
_encoders = ByteBounded(2**29, keep_last=True)


class Encoder:
    """A frozen network in evaluation mode, and which of its feature maps are taken."""

    def __init__(self, module: Any, layers: Any, device: Any) -> None:
        self.module = module.requires_grad_(False).eval().to(device)
        self.device = device
        self.sha256 = digest(module)
        info = getattr(module, "feature_info", None) or []
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

    @property
    def nbytes(self) -> int:
        """Bytes of the weights, for the cache."""
        return size_in_bytes(self.module)

    def feature_maps(self, batch: np.ndarray, n: int = 4) -> list[torch.Tensor]:
        """The first n feature maps (b, c, h, w) of images (b, H, W, 3) in [0, 1]."""
        with torch.no_grad():
            return self.module.forward_intermediates(
                normalized(batch, self.device),
                indices=self._chosen[:n],
                stop_early=True,
                intermediates_only=True,
                output_fmt="NCHW",
            )


def built_encoder(
    name: str,
    layers: Any,
    weights: Any,
    kwargs: Any,
    seed: Any,
    device: Any,
    known: Any = None,
) -> Encoder:
    """The encoder of a network, built once per process.

    Parameters
    ----------
    name, weights, kwargs
        As of `skad.networks._backbone.build`.

    layers : "auto" or tuple of str

    seed : int
        Of random weights.

    device : torch.device

    known : dict, optional
        Of `fitted_weights`; `weights` and `seed` have no part then.
    """
    source = identity(weights, seed) if known is None else known["sha256"]
    key = (name, layers, source, repr(sorted(kwargs.items())), str(device))
    with running:
        return _encoders.get(
            key, lambda: _build(name, layers, weights, kwargs, seed, device, known)
        )


def fitted_weights(encoder: Encoder, batch: np.ndarray) -> dict[str, Any]:
    """Weights of the part of an encoder that runs, with which to build it again."""
    return {
        "sha256": encoder.sha256,
        "arrays": used_arrays(encoder.module, lambda: encoder.feature_maps(batch)),
    }


def _build(
    name: str,
    layers: Any,
    weights: Any,
    kwargs: Any,
    seed: Any,
    device: Any,
    known: Any,
) -> Encoder:
    if known is None:
        module = seeded(lambda: build(name, weights, kwargs), seed)
    else:
        module = seeded(lambda: build(name, False, kwargs), seed)
        state = {k: torch.tensor(v) for k, v in known["arrays"].items()}
        module.load_state_dict(state, strict=False)
    encoder = Encoder(module, layers, device)
    if not hasattr(module, "forward_intermediates"):
        raise ValueError(
            f"backbone={name!r} does not give its levels (forward_intermediates of "
            f"timm {timm.__version__}); choose another one, such as 'resnet18'."
        )
    if known is not None:
        encoder.sha256 = known["sha256"]
    return encoder


def digest(module: Any) -> str:
    """SHA-256 over names, shapes and values of all parameters and buffers."""
    found = sha256()
    for name, value in arrays(module).items():
        found.update(f"{name}{value.shape}{value.dtype}".encode())
        found.update(np.ascontiguousarray(value).tobytes())
    return found.hexdigest()

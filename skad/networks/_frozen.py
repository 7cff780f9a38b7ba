"""Frozen networks: built once per process, run no further than needed."""

from contextlib import contextmanager
from functools import cached_property
from hashlib import sha256
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import torch

from skad._kept import ByteBounded, size_in_bytes
from skad.networks._backbone import build as build_network
from skad.networks._backbone import used_arrays
from skad.networks._folding import fold_norms, fold_pairs
from skad.networks._input import normalized
from skad.networks._modules import seeded, with_arrays
from skad.networks._torch_state import running
from skad.networks._weights import identity

# Those of several estimators together, or the one of a single estimator.
_backbones = ByteBounded(2**30, keep_last=True)


class Layout(NamedTuple):
    """How to read an output: its order of axes, and its grid of tokens."""

    order: str  # "NCHW", "NHWC", "NLC" or "NCL"
    first: int = 0  # tokens that come before those of the image
    grid: tuple[int, int] | None = None  # of tokens


def as_map(output, layout):
    """An output as maps (b, c, h, w) of float32."""
    if layout.order == "NHWC":
        output = output.permute(0, 3, 1, 2)
    if layout.grid is None:
        return output.float()
    if layout.order == "NLC":
        output = output.transpose(1, 2)
    n = layout.grid[0] * layout.grid[1]
    output = output[:, :, layout.first : layout.first + n]
    return output.float().unflatten(2, layout.grid).clone()


def tensor_of(output):
    """A module's output, or the first part of one that puts out several things."""
    while isinstance(output, (tuple, list)) and len(output):
        output = output[0]
    return output


class Backbone:
    """A frozen network whose modules are asked for their outputs.

    Parameters
    ----------
    module : torch.nn.Module
        The network, on its device.

    mean, std : sequence of float
        Normalisation of its images, one value per channel of values in [0, 1].

    Attributes
    ----------
    changed : frozenset of str or None
        Modules whose output is not what it was when the network was made; None where
        that is not known.

    folded : list of (str, str)
        Pairs of modules that became one.
    """

    def __init__(self, module, mean, std):
        self.module = module
        self.mean = mean
        self.std = std
        self.changed: frozenset[str] | None = frozenset()
        self.folded: list[tuple[str, str]] = []

    @property
    def nbytes(self):
        """Bytes of the weights, for the cache."""
        return size_in_bytes(self.module)

    @cached_property
    def sha256(self):
        """SHA-256 over names, shapes and values of all parameters and buffers."""
        digest = sha256()
        for name, value in self.module.state_dict().items():
            value = value.detach().cpu().contiguous()
            digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def dtype(self):
        """Type of the network's weights, in which it computes."""
        dtypes = {p.dtype for p in self.module.parameters() if p.is_floating_point()}
        if len(dtypes) > 1:
            raise ValueError(
                f"backbone: its parameters are of {len(dtypes)} dtypes, "
                f"{', '.join(sorted(map(str, dtypes)))}; convert your network to one "
                "of them, as by .float()."
            )
        return dtypes.pop() if dtypes else torch.float32

    @cached_property
    def device(self):
        """Where the network is."""
        tensors = chain(self.module.parameters(), self.module.buffers())
        return next((tensor.device for tensor in tensors), torch.device("cpu"))

    def arithmetic(self, precision):
        """Context of "float32", "bfloat16" or "float16"."""
        return torch.autocast(
            self.device.type,
            dtype=getattr(torch, precision),
            enabled=precision != "float32",
        )

    def feature_maps(self, images, layouts, last, pooled, mean, std, precision):
        """Feature maps of modules for a batch of images, and its descriptors.

        Parameters
        ----------
        images : ndarray of shape (b, H, W, C), float32
            In [0, 1]. On the CPU they are overwritten, which saves a copy.

        layouts : dict of Layout or None
            By the names of the modules; None of one that puts out vectors.

        last : str or None
            The module after which the network need not run on; None is its end.

        pooled : bool or str
            True asks for the pooled output of a timm model, a str for the mean output
            of this module.

        mean, std : array-like of shape (C,) or (1,)
            Normalisation of the images.

        precision : {"float32", "bfloat16", "float16"}
            Arithmetic of the network.

        Returns
        -------
        maps : dict of Tensor (b, c, h, w), float32
            By name, of modules that have a layout.

        descriptors : Tensor (b, p), float32, or None
            None where `pooled` is False.
        """
        with self.arithmetic(precision):
            batch = normalized(
                images, self.device, mean, std, dtype=self.dtype, in_place=True
            )
            return self.maps_of(batch, layouts, last, pooled)

    def maps_of(self, batch, layouts, last, pooled):
        """As `feature_maps`, for a batch as the network takes it, (b, C, H, W)."""
        taken, vector = self.outputs(batch, list(layouts), last, pooled)
        maps = {n: as_map(taken[n], k) for n, k in layouts.items() if k}
        if isinstance(pooled, str):
            vector = taken[pooled].float()
            if layouts[pooled] is not None:
                vector = maps[pooled].mean(dim=(2, 3))
        return maps, vector

    def outputs(self, batch, names, last=None, pooled=False):
        """Outputs of the named modules as they are, in the order in which they came.

        Returns them by name, and the pooled output where `pooled` is True.
        """
        taken: dict[str, Any] = {}
        vector = None

        def take(name):
            def hook(module, inputs, output):
                if name not in taken:
                    # A later layer may work in place.
                    output = tensor_of(output)
                    taken[name] = getattr(output, "clone", lambda: output)()
                if name == last:
                    raise _Reached

            return hook

        with running, _evaluating(self.module):
            handles = [
                self.module.get_submodule(name).register_forward_hook(take(name))
                for name in sorted(names, key=lambda name: name == last)
            ]
            try:
                if pooled is True:
                    features = self.module.forward_features(batch)
                    vector = self.module.forward_head(features, pre_logits=True).float()
                else:
                    self.module(batch)
            except _Reached:
                pass
            finally:
                for handle in handles:
                    handle.remove()
        absent = [name for name in names if name not in taken]
        if absent:
            raise ValueError(
                f"layers: the network never runs {absent}; choose modules that take "
                "part in its forward pass."
            )
        return taken, vector

    def vectors(self, batch, name, layout):
        """Mean outputs (b, c) of one module, for training; no module after it runs.

        The network is in whichever mode it is, and gradients pass.
        """
        taken = []

        def take(module, inputs, output):
            output = tensor_of(output)
            if output.ndim != 2:
                output = as_map(output, layout).mean(dim=(2, 3))
            taken.append(output.float())
            raise _Reached

        handle = self.module.get_submodule(name).register_forward_hook(take)
        try:
            self.module(batch)
        except _Reached:
            pass
        finally:
            handle.remove()
        return taken[0]


class _Reached(Exception):
    """The last level is there: the rest of the network need not run."""


@contextmanager
def _evaluating(module):
    """Evaluation mode, no gradients, and every training flag put back after."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for part in training:
            part.training = True


def named_backbone(name, weights, kwargs, seed, device, outputs=(), *, fold=True):
    """A timm backbone from the cache of this process, built if it is not there.

    Its normalizations are folded into its convolutions unless the output of one of
    these is among `outputs`, or `fold` is False.
    """
    key = (name, identity(weights, seed), repr(sorted(kwargs.items())), str(device))

    def build(fold):
        module = seeded(lambda: build_network(name, weights, kwargs), seed)
        return _as_backbone(module, kwargs, device, fold=fold)

    with running:
        backbone = _backbones.get((*key, fold), lambda: build(fold))
        if backbone.changed is None or backbone.changed.intersection(outputs):
            backbone = _backbones.get((*key, False), lambda: build(False))
        return backbone


def fitted_weights(backbone, name, run):
    """All that `fitted_backbone` needs to build a network again, without a file.

    Parameters
    ----------
    backbone : Backbone

    name : str

    run : callable
        Runs the part of the network that is needed.

    Returns
    -------
    weights : dict
    """
    config = backbone.module.pretrained_cfg
    # A name that points to a hub or to a folder stands for one of timm's models.
    if ":" in name and config.get("architecture"):
        name = config["architecture"]
    return {
        "name": name,
        "arrays": used_arrays(backbone.module, run),
        "folded": list(backbone.folded),
        "mean": tuple(backbone.mean),
        "std": tuple(backbone.std),
        "sha256": backbone.sha256,
    }


def fitted_backbone(weights, kwargs, device, built=None):
    """The network of `fitted_weights`, from the cache of this process or built.

    `built` is put there without building it.
    """
    arrays = weights["arrays"]
    parts = sha256("\n".join(sorted(arrays)).encode()).hexdigest()
    key = (weights["name"], weights["sha256"], parts, repr(sorted(kwargs.items())))

    def build():
        module = build_network(weights["name"], False, kwargs)
        fold_pairs(module.requires_grad_(False), weights["folded"])
        module = _on_device(module, device)
        module.load_state_dict(
            {k: torch.tensor(v) for k, v in arrays.items()}, strict=False
        )
        backbone = Backbone(module, weights["mean"], weights["std"])
        backbone.sha256 = weights["sha256"]
        return backbone

    def make():
        return seeded(build, 0) if built is None else built

    with running:
        return _backbones.get((*key, str(device)), make)


def tuned_backbone(key, build, device):
    """A network that one estimator has trained, from the cache of this process."""
    with running:
        return _backbones.get(("tuned", *key, str(device)), build)


def with_trained_weights(name, kwargs, state, device, outputs=()):
    """A timm backbone with weights from arrays, folded as by `named_backbone`."""
    for fold in (True, False):
        module = seeded(lambda: build_network(name, False, kwargs), 0)
        with_arrays(module, state)
        backbone = _as_backbone(module, kwargs, device, fold=fold)
        if backbone.changed is not None and not backbone.changed.intersection(outputs):
            break
    return backbone


def _on_device(module, device):
    """The module, frozen, as it runs fastest on a device."""
    module = module.requires_grad_(False).eval().to(device)
    if torch.device(device).type == "cpu":
        module = module.to(memory_format=torch.channels_last)
    return module


def _as_backbone(module, kwargs, device, *, fold):
    config = module.pretrained_cfg
    config.pop("state_dict", None)  # a second copy of the weights
    backbone = Backbone(_on_device(module, device), config["mean"], config["std"])
    if fold:
        _fold(backbone, kwargs)
    return backbone


def _fold(backbone, kwargs):
    _ = backbone.sha256  # of the weights as they were given
    n_channels, *size = backbone.module.pretrained_cfg["input_size"]
    n_channels, size = (
        kwargs.get("in_chans", n_channels),
        kwargs.get("img_size", size),
    )
    size = (size, size) if isinstance(size, int) else tuple(size)
    backbone.changed, backbone.folded = fold_norms(backbone.module, n_channels, size)


def automatic_layers(module):
    """The levels to take where the user leaves the choice: strides 8 and 16.

    For transformers, whose blocks all have one stride, blocks at half and
    three quarters of the depth.
    """
    info = module.feature_info
    info = info if isinstance(info, list) else info.info
    known = dict(module.named_modules())
    info = [level for level in info if level["module"] in known]
    if not info:
        raise ValueError(
            "layers='auto': timm tells no modules of this network; name them. Choose "
            f"from {', '.join(available_layers(module))} or any dotted module name."
        )
    names = [level["module"] for level in info]
    strides = np.array([level["reduction"] for level in info])
    if len(set(strides.tolist())) == 1:
        return names[len(names) // 2], names[3 * len(names) // 4]
    chosen = [names[np.flatnonzero(strides == s)[-1]] for s in (8, 16) if s in strides]
    return tuple(chosen) or (names[-1],)


def layers_by_stride(backbone, batch, names):
    """The last modules at strides 8 and 16, or the deepest maps that there are."""
    found: dict[float, str] = {}

    def watch(name):
        def hook(module, inputs, output):
            output = tensor_of(output)
            if getattr(output, "ndim", 0) == 4 and output.shape[2] > 1:
                found[round(batch.shape[2] / output.shape[2])] = name

        return hook

    handles = [
        backbone.module.get_submodule(name).register_forward_hook(watch(name))
        for name in names
    ]
    try:
        backbone.outputs(batch, [])
    finally:
        for handle in handles:
            handle.remove()
    chosen = [found[stride] for stride in (8, 16) if stride in found]
    if not chosen and found:
        chosen = [found[max(found)]]
    if not chosen:
        raise ValueError(
            "layers='auto': no module of your network puts out maps (b, c, h, w); name "
            "the modules to take."
        )
    return tuple(chosen)


def available_layers(module):
    """Names to offer in an error message."""
    known = [name for name, _ in module.named_modules()]
    info = getattr(module, "feature_info", None)
    if info is not None:
        info = info if isinstance(info, list) else info.info
        names = [level["module"] for level in info if level["module"] in known]
        if names:
            return names
    return [name for name in known if name.count(".") <= 1][1:30]

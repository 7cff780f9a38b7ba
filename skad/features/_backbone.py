"""Frozen networks: built once per process, run no further than needed."""

from contextlib import contextmanager
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np

from skad import networks
from skad._kept import ByteBounded, size_in_bytes
from skad.features._layout import as_map, tensor_of
from skad.networks._torch_state import running
from skad.networks._weights import identity

# Those of several estimators together, or the one of a single estimator.
_backbones = ByteBounded(2**30, keep_last=True)


class Backbone:
    """A network with the levels that are taken from it.

    `changed` names the modules whose output is not what it was when the network
    was made; `folded` the pairs of modules that became one.
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
        import torch

        digest = sha256()
        for name, value in self.module.state_dict().items():
            value = value.detach().cpu().contiguous()
            digest.update(f"{name}{tuple(value.shape)}{value.dtype}".encode())
            digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @cached_property
    def dtype(self):
        """Type of the network's weights, in which it computes."""
        import torch

        kinds = {p.dtype for p in self.module.parameters() if p.is_floating_point()}
        if len(kinds) > 1:
            raise ValueError(
                f"backbone: its parameters are of {len(kinds)} dtypes, "
                f"{', '.join(sorted(map(str, kinds)))}; convert your network to one of "
                "them, as by .float()."
            )
        return kinds.pop() if kinds else torch.float32

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
    import torch

    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for part in training:
            part.training = True


def named_backbone(name, weights, kwargs, seed, device, wanted=(), *, fold=True):
    """A timm backbone from the cache of this process, built if it is not there.

    Its normalizations are folded into its convolutions unless the output of one of
    these is `wanted`, or `fold` is False.
    """
    key = (name, identity(weights, seed), repr(sorted(kwargs.items())), str(device))

    def build(fold):
        module = networks.modules.seeded(
            lambda: networks.backbone.build(name, weights, kwargs), seed
        )
        return _as_backbone(module, kwargs, device, fold=fold)

    with running:
        backbone = _backbones.get((*key, fold), lambda: build(fold))
        if backbone.changed is None or backbone.changed.intersection(wanted):
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
        "arrays": networks.backbone.used_arrays(backbone.module, run),
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

    import torch

    def build():
        module = networks.backbone.build(weights["name"], False, kwargs)
        networks.folding.fold_pairs(module.requires_grad_(False), weights["folded"])
        module = _on_device(module, device)
        module.load_state_dict(
            {k: torch.tensor(v) for k, v in arrays.items()}, strict=False
        )
        backbone = Backbone(module, weights["mean"], weights["std"])
        backbone.sha256 = weights["sha256"]
        return backbone

    def make():
        return networks.modules.seeded(build, 0) if built is None else built

    with running:
        return _backbones.get((*key, str(device)), make)


def tuned_backbone(key, build, device):
    """A network that one estimator has trained, from the cache of this process."""
    with running:
        return _backbones.get(("tuned", *key, str(device)), build)


def with_trained_weights(name, kwargs, state, device, wanted=()):
    """A timm backbone with weights from arrays, folded as by `named_backbone`."""
    for fold in (True, False):
        module = networks.modules.seeded(
            lambda: networks.backbone.build(name, False, kwargs), 0
        )
        networks.modules.with_arrays(module, state)
        backbone = _as_backbone(module, kwargs, device, fold=fold)
        if backbone.changed is not None and not backbone.changed.intersection(wanted):
            break
    return backbone


def _on_device(module, device):
    """The module, frozen, as it runs fastest on a device."""
    import torch

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
    backbone.changed, backbone.folded = networks.folding.fold_norms(
        backbone.module, n_channels, size
    )


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

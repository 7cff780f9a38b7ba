"""Frozen networks: built once per process, run no further than needed."""

from collections import OrderedDict
from contextlib import contextmanager
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import numpy as np

from skad._torch_state import running
from skad._training import with_arrays
from skad.features._folding import fold_norms

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_KEPT = 4  # backbones kept in memory
_backbones: "OrderedDict[tuple, Backbone]" = OrderedDict()


class Backbone:
    """A network with the levels that are taken from it.

    `changed` names the modules whose output is not what it was when the network
    was made.
    """

    def __init__(self, module, mean, std):
        self.module = module
        self.mean = mean
        self.std = std
        self.changed: frozenset[str] | None = frozenset()

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

    def levels(self, batch, names, last=None, pooled=False):
        """Outputs of the named modules, as maps (b, c, h, w), in that order.

        Runs the network up to the module `last`; without it, to the end.
        Returns the maps, the name of the module that finished last, and one
        vector (b, p) per image: the network's pooled output where `pooled` is
        True, or the mean output of the module that it names; None otherwise.
        """
        taken, vector = {}, None

        def take(name):
            def hook(module, inputs, output):
                if name not in taken:
                    taken[name] = _as_map(output, name, self.module, batch.shape[2:])
                if name == last:
                    raise _Reached

            return hook

        def describe(module, inputs, output):
            nonlocal vector
            vector = _as_vector(output, pooled, self.module, batch.shape[2:])

        with running, _evaluating(self.module):
            handles = [
                self.module.get_submodule(name).register_forward_hook(take(name))
                for name in names
            ]
            if isinstance(pooled, str):
                # Before the hooks of the levels, the last of which may stop the run.
                module = self.module.get_submodule(pooled)
                handles.append(module.register_forward_hook(describe, prepend=True))
                handles.append(module.register_forward_hook(take(pooled)))
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
        wanted = [*names, *([pooled] if isinstance(pooled, str) else [])]
        absent = [name for name in wanted if name not in taken]
        if absent:
            raise ValueError(
                f"layers: the network never runs {absent}; choose modules that take "
                "part in its forward pass."
            )
        return [taken[name] for name in names], list(taken)[-1], vector

    def vectors(self, batch, name):
        """Mean outputs (b, c) of one module, for training; no module after it runs.

        The network is in whichever mode it is, and gradients pass.
        """
        taken = []

        def take(module, inputs, output):
            taken.append(_as_vector(output, name, self.module, batch.shape[2:]))
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


def _as_map(output, name, module, image_size):
    """The output of a layer as (b, c, h, w): tokens and channels-last included."""
    if not hasattr(output, "ndim"):
        raise ValueError(
            f"layers: the output of {name!r} is a {type(output).__name__}, not a "
            "tensor; choose a module inside or after it."
        )
    if output.ndim == 4:
        if getattr(module, "output_fmt", "NCHW") == "NHWC":
            output = output.permute(0, 3, 1, 2)
        return output.float().clone()  # a later layer may work in place
    if output.ndim == 3:
        tokens = output[:, getattr(module, "num_prefix_tokens", 0) :]
        height, width = _token_grid(tokens.shape[1], image_size, name)
        return tokens.float().transpose(1, 2).unflatten(2, (height, width)).clone()
    raise ValueError(
        f"layers: the output of {name!r} has shape {tuple(output.shape)}; expected "
        "maps (b, c, h, w) or tokens (b, n, c)."
    )


def _as_vector(output, name, module, image_size):
    """The output of a layer as one vector per image: the mean over positions."""
    if getattr(output, "ndim", 0) == 2:
        return output.float().clone()
    return _as_map(output, name, module, image_size).mean(dim=(2, 3))


def _token_grid(n_tokens, image_size, name):
    """Rows and columns of a token sequence, in the proportion of the image."""
    height, width = image_size
    rows = round((n_tokens * height / width) ** 0.5)
    if rows < 1 or n_tokens % rows:
        raise ValueError(
            f"layers: {n_tokens} tokens of {name!r} do not form a grid for images of "
            f"{height} x {width} pixels; choose an image_size that is a multiple of "
            "the patch size."
        )
    return rows, n_tokens // rows


def named_backbone(name, weights, kwargs, seed, device, wanted=(), *, fold=True):
    """A timm backbone from the cache of this process, built if it is not there.

    Its normalizations are folded into its convolutions unless the output of one of
    these is `wanted`, or `fold` is False.
    """
    key = (name, _identity(weights, seed), repr(sorted(kwargs.items())), str(device))
    with running:
        backbone = _kept(key, name, weights, kwargs, seed, device, fold=fold)
        if backbone.changed is None or backbone.changed.intersection(wanted):
            backbone = _kept(key, name, weights, kwargs, seed, device, fold=False)
        return backbone


def tuned_backbone(name, kwargs, state, device, wanted=()):
    """A timm backbone that nobody else uses, with weights from arrays.

    Its normalizations are folded as those of `named_backbone` are.
    """
    for fold in (True, False):
        backbone = _build(name, False, kwargs, 0, device, fold=False)
        with_arrays(backbone.module, state)
        if fold:
            _fold(backbone, kwargs)
        if backbone.changed is not None and not backbone.changed.intersection(wanted):
            break
    return backbone


def _kept(key, *arguments, fold):
    key = (*key, fold)
    if key not in _backbones:
        _backbones[key] = _build(*arguments, fold=fold)
    _backbones.move_to_end(key)
    while len(_backbones) > _KEPT:
        _backbones.popitem(last=False)
    return _backbones[key]


def _identity(weights, seed):
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


def _build(name, weights, kwargs, seed, device, *, fold):
    import timm
    import torch

    from skad.features._small import WEIGHTS  # makes the name known to timm

    if weights is None and name == "skad_small":
        weights = WEIGHTS
    if not timm.is_model(name.split(".")[0]) and ":" not in name:
        close = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        raise ValueError(
            f"backbone={name!r} is not a model of timm {timm.__version__}."
            + (f" Similar names: {', '.join(close)}." if close else "")
        )
    kwargs = dict(kwargs)
    if weights is None:
        _require_download(name)
        kwargs["pretrained"] = True
    try:
        if weights:
            source = _source(name, str(weights), kwargs.get("in_chans", 3))
            kwargs.update(pretrained=True, pretrained_cfg_overlay=source)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = _create(name, kwargs)
    except Exception as error:  # whatever torch, timm and safetensors raise here
        source = "random weights" if weights is False else f"weights={weights!r}"
        raise ValueError(
            f"backbone={name!r} could not be built with {source}: {error}. Check that "
            "the file belongs to this model and its backbone_kwargs."
        ) from error
    module.requires_grad_(False)
    config = module.pretrained_cfg
    config.pop("state_dict", None)  # a second copy of the weights
    module = module.eval().to(device)
    if torch.device(device).type == "cpu":
        module = module.to(memory_format=torch.channels_last)
    backbone = Backbone(module, config["mean"], config["std"])
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
    backbone.changed = fold_norms(backbone.module, n_channels, size)


def _source(name, file, n_channels):
    """Where timm takes the weights from: a file, or what is made of it.

    timm takes the first convolution of any file for one of three channels, starts
    it at random where it cannot adapt that, and rounds the result to the type in
    the file. So it is adapted here, by timm's own rule, and only if it must be.
    """
    import timm
    from timm.models import adapt_input_conv, load_state_dict

    config = timm.get_pretrained_cfg(name)
    if n_channels == 3 or config is None or not config.first_conv or config.custom_load:
        return {"file": file}
    state = load_state_dict(file)
    keys = [f"{conv}.weight" for conv in np.atleast_1d(config.first_conv)]
    if any(key not in state for key in keys):  # a file whose names timm translates
        return {"file": file}
    for key in keys:
        found = state[key].shape[1]
        if found == n_channels:
            continue
        try:
            state[key] = adapt_input_conv(n_channels, state[key].float())
        except (NotImplementedError, AssertionError) as error:
            raise ValueError(
                f"its first convolution has {found} channels, which cannot be adapted "
                f"to in_chans={n_channels}"
            ) from error
    return {"state_dict": state, "first_conv": None}


def _create(name, kwargs):
    import timm

    try:  # transformers then take images of any multiple of their patch size
        return timm.create_model(name, dynamic_img_size=True, **kwargs)
    except TypeError as error:
        if "dynamic_img_size" not in str(error):
            raise
        return timm.create_model(name, **kwargs)


def _require_download(name):
    """Fail at once, with what to do, where weights can be neither found nor fetched."""
    import timm
    from huggingface_hub import constants, try_to_load_from_cache

    config = timm.get_pretrained_cfg(name)
    if config is None or not config.has_weights:
        raise ValueError(
            f"timm has no pretrained weights for backbone={name!r}; pass weights= a "
            "file, or weights=False for random ones."
        )
    if not config.hf_hub_id:
        return
    files = ("model.safetensors", "pytorch_model.bin")
    if any(
        isinstance(try_to_load_from_cache(config.hf_hub_id, file), str)
        for file in files
    ):
        return
    reason = "offline mode is set (HF_HUB_OFFLINE)"
    if not constants.HF_HUB_OFFLINE:
        reason = _unreachable(constants.ENDPOINT)
    if reason:
        raise OSError(
            f"the pretrained weights of backbone={name!r} are not in the cache folder "
            f"{constants.HF_HUB_CACHE} and cannot be downloaded: {reason}. Either pass "
            "weights= a .safetensors or .pth file, or copy that cache folder from a "
            "machine that has them (HF_HUB_CACHE names it), or use "
            'backbone="skad_small", which comes with skad.'
        )


def _unreachable(endpoint):
    """Why a host does not answer within seconds; an empty text if it does."""
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    try:
        with urlopen(Request(endpoint, method="HEAD"), timeout=5):
            return ""
    except HTTPError:
        return ""  # it answers, if only to refuse
    except (OSError, ValueError) as error:
        return f"{endpoint} does not answer ({error})"


def automatic_layers(module):
    """The levels to take where the user leaves the choice: strides 8 and 16.

    For transformers, whose blocks all have one stride, blocks at half and
    three quarters of the depth.
    """
    info = getattr(module, "feature_info", None)
    if info is None:
        raise ValueError(
            "layers='auto' needs a timm model; name the modules of your own network."
        )
    info = info if isinstance(info, list) else info.info
    names = [level["module"] for level in info]
    strides = np.array([level["reduction"] for level in info])
    if len(set(strides.tolist())) == 1:
        return names[len(names) // 2], names[3 * len(names) // 4]
    chosen = [names[np.flatnonzero(strides == s)[-1]] for s in (8, 16) if s in strides]
    return tuple(chosen) or (names[-1],)


def available_layers(module):
    """Names to offer in an error message."""
    info = getattr(module, "feature_info", None)
    if info is not None:
        info = info if isinstance(info, list) else info.info
        return [level["module"] for level in info]
    return [name for name, _ in module.named_modules() if name.count(".") <= 1][1:30]

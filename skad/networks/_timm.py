"""Networks of timm by name: from its pretrained weights, from a file or from a seed.

timm takes a second to import, and torch's compiler comes with it.
"""

from difflib import get_close_matches
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import numpy as np
import timm
from huggingface_hub import constants, try_to_load_from_cache
from timm.models import (
    adapt_input_conv,
    build_model_with_cfg,
    generate_default_cfgs,
    load_state_dict,
    register_model,
)

from skad.networks._small import CONFIG, WEIGHTS, SkadSmall

# The name of the network that ships with skad becomes known to timm.
default_cfgs = generate_default_cfgs({"skad_small": CONFIG | {"file": str(WEIGHTS)}})


@register_model
def skad_small(pretrained=False, **kwargs):
    """A small network for 224 x 224 pixels, 0.6 million weights."""
    return build_model_with_cfg(SkadSmall, "skad_small", pretrained, **kwargs)


def build(name, weights, kwargs):
    """A network as of `skad.networks._backbone.build`, by its arguments."""
    if not timm.is_model(name.split(".")[0]) and ":" not in name:
        close = get_close_matches(name, timm.list_models(), n=5)
        raise ValueError(
            f"backbone={name!r} is not a model of timm {timm.__version__}."
            + (f" Similar names: {', '.join(close)}." if close else "")
        )
    if weights is None and name == "skad_small":
        weights = WEIGHTS
    kwargs = dict(kwargs)
    if weights is None:
        _require_download(name)
        kwargs["pretrained"] = True
    try:
        if weights:
            source = _source(name, str(weights), kwargs.get("in_chans", 3))
            kwargs.update(pretrained=True, pretrained_cfg_overlay=source)
        return _create(name, kwargs)
    except Exception as error:  # whatever torch, timm and safetensors raise here
        source = "random weights" if weights is False else f"weights={weights!r}"
        raise ValueError(
            f"backbone={name!r} could not be built with {source}: {error}. Check that "
            "the file belongs to this model and its backbone_kwargs."
        ) from error


def _source(name, file, n_channels):
    """Tell timm which weights to load: a file, or its arrays.

    timm takes the first convolution of any file for one of three channels, starts
    it at random where it cannot adapt that, and rounds the result to the type in
    the file. So it is adapted here, by timm's own rule, and only if it must be.
    """
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
    try:  # transformers then take images of any multiple of their patch size
        return timm.create_model(name, dynamic_img_size=True, **kwargs)
    except TypeError as error:
        if "dynamic_img_size" not in str(error):
            raise
        return timm.create_model(name, **kwargs)


def _require_download(name):
    """Fail at once, with what to do, where weights can be neither found nor fetched."""
    source, _, place = name.partition(":")
    if place:  # a model on a hub, or in a folder
        hub_id = place if source in ("hf-hub", "hf_hub") else None
    else:
        config = timm.get_pretrained_cfg(name)
        if config is None or not config.has_weights:
            raise ValueError(
                f"timm has no pretrained weights for backbone={name!r}; pass weights= "
                "a file, or weights=False for random ones."
            )
        hub_id = config.hf_hub_id
    if not hub_id:
        return
    files = ("model.safetensors", "pytorch_model.bin")
    if any(isinstance(try_to_load_from_cache(hub_id, file), str) for file in files):
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
    try:
        with urlopen(Request(endpoint, method="HEAD"), timeout=5):
            return ""
    except HTTPError:
        return ""  # it answers, if only to refuse
    except (OSError, ValueError) as error:
        return f"{endpoint} does not answer ({error})"

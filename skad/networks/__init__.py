"""Networks: the one place that builds, trains and runs torch modules.

Its modules import torch at their top, so they are loaded only when they are first
used: after ``from skad import networks``, ``networks.unet`` is the module
``skad.networks._unet``. What must not load torch lives in ``_torch_state``,
``_sampling`` and ``_weights``.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import skad.networks._backbone as backbone
    import skad.networks._cutpaste as cutpaste
    import skad.networks._folding as folding
    import skad.networks._input as input
    import skad.networks._modules as modules
    import skad.networks._pdn as pdn
    import skad.networks._prn as prn
    import skad.networks._prn_encoder as prn_encoder
    import skad.networks._simplenet as simplenet
    import skad.networks._spd as spd
    import skad.networks._training as training
    import skad.networks._unet as unet

_MODULES = (
    "backbone",
    "cutpaste",
    "folding",
    "input",
    "modules",
    "pdn",
    "prn",
    "prn_encoder",
    "simplenet",
    "spd",
    "training",
    "unet",
)


def __getattr__(name):
    if name not in _MODULES:
        raise AttributeError(f"module 'skad.networks' has no attribute {name!r}")
    return import_module(f"skad.networks._{name}")

"""Networks: the one place that builds, trains and runs torch modules.

Its modules import torch at their top, so they are loaded only when they are first
used: after ``from skad import networks``, ``networks.unet`` is the module
``skad.networks._unet``. What must not load torch lives in ``_torch_state``,
``_sampling`` and ``_weights``.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what __getattr__ gives
    from skad.networks import _backbone as backbone  # noqa: F401
    from skad.networks import _cutpaste as cutpaste  # noqa: F401
    from skad.networks import _embedding as embedding  # noqa: F401
    from skad.networks import _folding as folding  # noqa: F401
    from skad.networks import _frozen as frozen  # noqa: F401
    from skad.networks import _input as input  # noqa: F401
    from skad.networks import _layout as layout  # noqa: F401
    from skad.networks import _modules as modules  # noqa: F401
    from skad.networks import _pcanet as pcanet  # noqa: F401
    from skad.networks import _pdn as pdn  # noqa: F401
    from skad.networks import _prn as prn  # noqa: F401
    from skad.networks import _prn_encoder as prn_encoder  # noqa: F401
    from skad.networks import _simplenet as simplenet  # noqa: F401
    from skad.networks import _spd as spd  # noqa: F401
    from skad.networks import _training as training  # noqa: F401
    from skad.networks import _unet as unet  # noqa: F401

_MODULES = (
    "backbone",
    "cutpaste",
    "embedding",
    "folding",
    "frozen",
    "input",
    "layout",
    "modules",
    "pcanet",
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
    module = import_module(f"skad.networks._{name}")
    globals()[name] = module  # the next time, this function is not called
    return module

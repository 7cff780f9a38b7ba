"""Published data sets and folder layouts, label conversion and generated images."""

from skad.datasets._elpv import load_elpv
from skad.datasets._folders import load_mvtec, load_visa
from skad.datasets._labels import to_outlier_labels
from skad.datasets._textures import make_textures

__all__ = [
    "load_elpv",
    "load_mvtec",
    "load_visa",
    "make_textures",
    "to_outlier_labels",
]

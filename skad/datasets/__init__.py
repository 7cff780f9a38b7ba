"""Folder layouts of published data sets, label conversion and generated images."""

from skad.datasets._folders import load_mvtec, load_visa
from skad.datasets._labels import to_outlier_labels
from skad.datasets._textures import make_textures

__all__ = ["load_mvtec", "load_visa", "make_textures", "to_outlier_labels"]

"""Published data sets and folder layouts, label conversion and generated images."""

from skad.datasets._any_folder import load_folder
from skad.datasets._beside import load_dagm, load_kolektor, load_kolektor2
from skad.datasets._elpv import load_elpv
from skad.datasets._folders import load_btad, load_mpdd, load_mvtec
from skad.datasets._labels import to_outlier_labels
from skad.datasets._load import list_categories, load
from skad.datasets._mvtec_ad2 import load_mvtec_ad2
from skad.datasets._mvtec_loco import load_mvtec_loco, saturation_areas
from skad.datasets._one_class import load_cifar10, one_class_split
from skad.datasets._real_iad import load_real_iad
from skad.datasets._shanghaitech import load_shanghaitech
from skad.datasets._textures import make_textures
from skad.datasets._visa import load_visa

__all__ = [
    "list_categories",
    "load",
    "load_btad",
    "load_cifar10",
    "load_dagm",
    "load_elpv",
    "load_folder",
    "load_kolektor",
    "load_kolektor2",
    "load_mpdd",
    "load_mvtec",
    "load_mvtec_ad2",
    "load_mvtec_loco",
    "load_real_iad",
    "load_shanghaitech",
    "load_visa",
    "make_textures",
    "one_class_split",
    "saturation_areas",
    "to_outlier_labels",
]

"""Models in files without pickle, which a stranger may send."""

from skad.persistence._info import model_info
from skad.persistence._load import load
from skad.persistence._save import save

__all__ = ["load", "model_info", "save"]

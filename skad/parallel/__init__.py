"""Fitting and scoring over many processes or machines."""

from skad.parallel._fit_parts import fit_parts
from skad.parallel._scorer import Scorer

__all__ = ["Scorer", "fit_parts"]

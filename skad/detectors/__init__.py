"""The methods, one module each."""

from skad.detectors._padim import PaDiMDetector
from skad.detectors._patchcore import PatchCoreDetector
from skad.detectors._simplenet import SimpleNetDetector
from skad.detectors._spade import SPADEDetector
from skad.detectors._subspace import SubspaceDetector

__all__ = [
    "PaDiMDetector",
    "PatchCoreDetector",
    "SPADEDetector",
    "SimpleNetDetector",
    "SubspaceDetector",
]

"""The methods, one module each."""

from skad.detectors._cutpaste import CutPasteDetector
from skad.detectors._draem import DRAEMDetector
from skad.detectors._efficientad import EfficientADDetector
from skad.detectors._fusion import FusionDetector
from skad.detectors._padim import PaDiMDetector
from skad.detectors._patchcore import PatchCoreDetector
from skad.detectors._patchwise import PatchwiseDetector
from skad.detectors._prn import PRNDetector
from skad.detectors._puad import ImagePUADDetector, PUADDetector
from skad.detectors._simplenet import SimpleNetDetector
from skad.detectors._spade import SPADEDetector
from skad.detectors._subspace import SubspaceDetector
from skad.detectors._teacher import Teacher, distill_teacher

__all__ = [
    "CutPasteDetector",
    "DRAEMDetector",
    "EfficientADDetector",
    "FusionDetector",
    "ImagePUADDetector",
    "PRNDetector",
    "PUADDetector",
    "PaDiMDetector",
    "PatchCoreDetector",
    "PatchwiseDetector",
    "SPADEDetector",
    "SimpleNetDetector",
    "SubspaceDetector",
    "Teacher",
    "distill_teacher",
]

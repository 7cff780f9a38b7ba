"""The methods, one module each."""

from skad.detectors._patchcore import PatchCoreDetector

__all__ = ["PatchCoreDetector"]

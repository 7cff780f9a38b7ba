"""Visual anomaly detection for scikit-learn users.

Learn from images of good parts only, then tell for a new image whether it is
defective, and where. Every method is a scikit-learn estimator.

Importing this package is cheap: torch and timm are imported by the first
estimator that needs them.
"""

from importlib import import_module

__version__ = "0.1.0.dev0"

_EXPORTS = {
    "CutPasteDetector": "skad.detectors",
    "DRAEMDetector": "skad.detectors",
    "EfficientADDetector": "skad.detectors",
    "FusedFeatures": "skad.features",
    "FusionDetector": "skad.detectors",
    "ImagePUADDetector": "skad.detectors",
    "PCANetFeatures": "skad.features",
    "PRNDetector": "skad.detectors",
    "PUADDetector": "skad.detectors",
    "PaDiMDetector": "skad.detectors",
    "PatchCoreDetector": "skad.detectors",
    "PatchFeatures": "skad.features",
    "Patchwise": "skad.features",
    "PatchwiseDetector": "skad.detectors",
    "Pipeline": "skad.pipeline",
    "SPADEDetector": "skad.detectors",
    "SPDPatchFeatures": "skad.features",
    "SimpleNetDetector": "skad.detectors",
    "SubspaceDetector": "skad.detectors",
    "SyntheticAnomalies": "skad.synthesis",
    "TiledFeatures": "skad.features",
    "anomaly_map": "skad.pipeline",
    "inspect": "skad.inspection",
    "load": "skad.persistence",
    "make_pipeline": "skad.pipeline",
    "model_info": "skad.persistence",
    "save": "skad.persistence",
}

__all__ = ["__version__", *_EXPORTS]


def __getattr__(name):
    if name not in _EXPORTS:
        raise AttributeError(f"module 'skad' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__():
    return sorted([*globals(), *_EXPORTS])

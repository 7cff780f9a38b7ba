"""A fitted model as one ONNX graph, and a detector that runs it.

Importing this package is cheap: `OnnxDetector` loads NumPy and onnxruntime alone, and
`to_onnx` loads torch when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what __getattr__ gives
    from skad.export._gate import ExportMismatch
    from skad.export._onnx_detector import OnnxDetector
    from skad.export._to_onnx import to_onnx

_EXPORTS = {
    "ExportMismatch": "skad.export._gate",
    "OnnxDetector": "skad.export._onnx_detector",
    "to_onnx": "skad.export._to_onnx",
}

__all__ = ["ExportMismatch", "OnnxDetector", "to_onnx"]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'skad.export' has no attribute {name!r}")
    return getattr(import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])

"""What a file says of the model in it."""

import importlib.metadata
import json
from typing import Any

import skad
from skad._chain import Chain
from skad.export._graph import reading_step


def metadata(chain: Chain, size: tuple[int, int]) -> dict[str, str]:
    """Texts by name, for ``metadata_props`` of an ONNX file.

    Parameters
    ----------
    chain : Chain
        Of the model.

    size : (int, int)
        Height and width of the images that the graph takes.
    """
    detector, source = chain.final, reading_step(chain)
    known: dict[str, Any] = {
        "skad_version": skad.__version__,
        "torch_version": importlib.metadata.version("torch"),
        "timm_version": importlib.metadata.version("timm"),
        "detector": type(detector).__name__,
        "features": "" if chain.images is None else type(source).__name__,
        "size": json.dumps(list(size)),
        "image_size": json.dumps(list(source._frame()[0])),
        "crop_size": json.dumps(source._frame()[1]),
        "contamination": repr(float(detector.contamination_)),
        "offset": repr(float(detector.offset_)),
        "pixel_threshold": repr(float(chain.pixel_threshold(size))),
        "n_calibration_images": str(len(detector.calibration_scores_)),
        "n_training_images": str(detector.n_samples_seen_),
        "networks": json.dumps(networks(chain)),
    }
    return {name: str(value) for name, value in known.items()}


def networks(chain: Chain) -> list[dict[str, Any]]:
    """Name, SHA-256 of the weights and licence of each network inside of a model."""
    found = []
    for part in _parts([chain.images, chain.final]):
        if not hasattr(part, "weights_sha256_"):
            continue
        name = part.backbone
        found.append(
            {
                "backbone": name if isinstance(name, str) else type(name).__name__,
                "sha256": part.weights_sha256_,
                "licence": _licence(part),
            }
        )
    return found


def _parts(estimators: list[Any]) -> list[Any]:
    """Estimators, and those inside of them."""
    found: list[Any] = []
    for estimator in estimators:
        if estimator is None or any(estimator is part for part in found):
            continue
        found.append(estimator)
        inner: list[Any] = []
        for value in vars(estimator).values():
            inner += value if isinstance(value, (list, tuple)) else [value]
        found += _parts([v for v in inner if hasattr(v, "get_params")])
    return found


def _licence(part: Any) -> str:
    """What timm knows of the licence of pretrained weights."""
    if part.weights is False:
        return "random weights"
    config = getattr(part._backbone().module, "pretrained_cfg", None) or {}
    return str(config.get("license") or "not known")

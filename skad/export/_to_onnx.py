"""Write a fitted model as one ONNX graph that is proven to answer as the model does."""

from __future__ import annotations

import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from skad._chain import Chain
from skad._checks import check_size
from skad._optional import optional
from skad.base import BaseDetector
from skad.export import _gate
from skad.export._graph import Model, reading_step
from skad.export._metadata import metadata
from skad.export._onnx_detector import OUTPUTS, OnnxDetector
from skad.export._registry import on_cpu
from skad.images import read_image
from skad.images._containers import check_images
from skad.networks._torch_state import own_torch_state

_OPSET = 18
_OLDEST_TORCH = (2, 9)
_LARGEST_FILE = 2**31 - 1  # bytes that protobuf writes
_TRACED = 2  # images of the batch that the graph is traced with


def to_onnx(
    model: Any,
    path: str | os.PathLike[str],
    *,
    size: int | tuple[int, int] | None = None,
    check: Sequence[Any] | None = None,
) -> None:
    """Write a fitted model as one ONNX graph that answers as the model does.

    The graph takes raw images and does all that the model does: it resizes, runs the
    network, scores, and decides by the calibrated thresholds. Before the file is put
    in its place, onnxruntime and the model answer for the images of `check`.

    Parameters
    ----------
    model : estimator
        Fitted: a pipeline of features and a detector, a detector that takes images, a
        search, or a `FrozenEstimator` around one of these.

    path : path
        File to write, such as "part.onnx". An existing one is replaced.

    size : int or (int, int)
        Height and width in pixels of the images on the line. The graph takes images of
        this size only, and its maps and masks have it. None takes the size of the
        images of `check`.

    check : sequence of images, default=None
        Images for the comparison, in a form that the model takes, 8 bits per channel,
        of one size. Real ones, normal and defective, prove most. None takes four
        generated ones: noise, stripes, a gradient and blocks.

    Raises
    ------
    ExportMismatch
        If onnxruntime answers differently. Scores, decisions and maps may differ by
        1e-5 of their size. Labels, p-values and masks must be the same, but for a
        value that lies as close to its threshold. No file is left.

    NotImplementedError
        If a step of the model, or a setting of it, has no graph; the message says
        what to use.

    ValueError
        If neither `size` nor `check` is given, if `check` does not fit to `size`, if
        the model reads no images, or if the graph is larger than 2 GB.

    ImportError
        If a package of the extra "line" is missing, or torch is older than 2.9.

    sklearn.exceptions.NotFittedError
        If the model is not fitted.

    See Also
    --------
    OnnxDetector : Runs such a file without torch.

    Notes
    -----
    Input ``image``, uint8 (n, H, W, 3), red, green and blue; a grey image is repeated
    three times. Networks for another number of channels than 1 or 3 take that number.
    Outputs: ``score`` (n,), ``decision`` (n,) and ``p_value`` (n,), float64, ``label``
    (n,), int64, 1 or -1, ``map`` (n, H, W), float32, ``mask`` (n, H, W), bool. The
    number of images n may differ from call to call. ``metadata_props`` tell the
    versions, the networks with SHA-256 and licence, `contamination`, the number of
    calibration images, thresholds and sizes.

    Examples
    --------
    >>> import tempfile
    >>> import skad
    >>> from skad.datasets import make_textures
    >>> from skad.export import OnnxDetector, to_onnx
    >>> data = make_textures(n_normal=24, n_anomalous=4, size=64, random_state=0)
    >>> features = skad.PatchFeatures("skad_small", layers="auto", image_size=64)
    >>> model = skad.make_pipeline(features, skad.SubspaceDetector()).fit(data.train)
    >>> with tempfile.TemporaryDirectory() as folder:  # doctest: +SKIP
    ...     to_onnx(model, f"{folder}/part.onnx", check=data.test)
    ...     OnnxDetector(f"{folder}/part.onnx").predict(data.test[-4:])
    array([-1, -1, -1, -1])
    """
    _require_packages()
    chain = Chain(model)
    if not isinstance(chain.final, BaseDetector):
        raise ValueError(
            f"to_onnx takes a fitted detector of skad, or a pipeline that ends in one, "
            f"got {type(model).__name__}."
        )
    source = reading_step(chain)
    check_is_fitted(chain.final, "offset_")
    chain.final = on_cpu(chain.final)
    if chain.images is not None:
        chain.images = on_cpu(chain.images)
    images = _check_images(check, size, source)
    path = Path(path)
    temporary = _temporary(path)
    try:
        with own_torch_state():
            temporary.write_bytes(_traced(model, chain, images.shape[1:]))
        _compare(temporary, chain, images)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _require_packages() -> None:
    version = tuple(int(part) for part in torch.__version__.split(".")[:2])
    if version < _OLDEST_TORCH:
        raise ImportError(
            f"to_onnx needs torch {'.'.join(map(str, _OLDEST_TORCH))} or later, found "
            f"{torch.__version__}: pip install -U torch. OnnxDetector needs none."
        )
    for package in ("onnx", "onnxscript", "onnxruntime"):
        optional(package, "to_onnx", "line")


def _check_images(
    check: Sequence[Any] | None, size: Any, source: Any
) -> NDArray[np.uint8]:
    """Images of `check` (n, H, W, C) as the graph takes them, or generated ones."""
    if size is not None:
        size = check_size(size, allow_int=True)
    n_channels = source._n_channels()
    n_channels = 3 if n_channels == 1 else n_channels
    if check is None:
        if size is None:
            raise ValueError(
                "to_onnx: size=None and check=None do not tell the size of the images "
                "on the line; pass size=(H, W), or check=[...] with images of it."
            )
        return generated_images(size, n_channels)
    images = []
    for i, item in enumerate(check_images(check, "check", n_channels=n_channels)):
        where = f"check[{i}]"
        image = read_image(item, where=where, n_channels=n_channels)
        if image.dtype != np.uint8:
            raise ValueError(
                f"{where} has more than 8 bits per channel; the graph takes uint8."
            )
        size = image.shape[:2] if size is None else size
        if image.shape[:2] != size:
            raise ValueError(
                f"{where} has {image.shape[0]} x {image.shape[1]} pixels, but the "
                f"graph takes images of {size[0]} x {size[1]}; pass images of one size."
            )
        images.append(np.broadcast_to(image, (*image.shape[:2], n_channels)))
    return np.stack(images)


def generated_images(size: tuple[int, int], n_channels: int) -> NDArray[np.uint8]:
    """Noise, stripes, a gradient and blocks (4, H, W, C)."""
    rng = np.random.default_rng(0)
    rows, columns = np.indices(size)
    planes = [
        rng.integers(0, 256, size),
        127 + 100 * np.sin(0.3 * rows + 0.2 * columns),
        255 * (rows + columns) / max(1, sum(size) - 2),
        np.where((rows // 16 + columns // 16) % 2, 200, 60),
    ]
    images = np.stack(planes)[..., None] + rng.normal(0, 3, (4, 1, 1, n_channels))
    return images.clip(0, 255).astype(np.uint8)


def _traced(model: Any, chain: Chain, shape: tuple[int, int, int]) -> bytes:
    """ONNX file of a model for raw images of this shape (H, W, C)."""
    module = Model(chain, shape[:2]).eval().cpu()
    example = torch.zeros((_TRACED, *shape), dtype=torch.uint8)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program: Any = torch.onnx.export(
            module,
            (example,),
            dynamo=True,
            verbose=False,
            opset_version=_OPSET,
            input_names=["image"],
            output_names=list(OUTPUTS),
            dynamic_shapes={"image": {0: torch.export.Dim("n")}},
        )
    n_bytes = sum(
        value.const_value.nbytes for value in program.model.graph.initializers.values()
    )
    if n_bytes > _LARGEST_FILE:
        raise ValueError(
            f"the graph has {n_bytes / 2**30:.1f} GB of constants, more than the 2 GB "
            "that an ONNX file holds. Set bank_size or a smaller coreset_ratio, fewer "
            "channels (n_components, target_dim), or a smaller image_size."
        )
    program.model.metadata_props.update(metadata(model, chain, shape[:2]))
    program.model.producer_name = "skad"
    return program.model_proto.SerializeToString()


def _temporary(path: Path) -> Path:
    """A new file in the folder of `path`."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path={str(path)!r}: its folder does not exist.")
    handle, name = tempfile.mkstemp(".onnx", f".{path.stem}-", path.parent)
    os.close(handle)
    return Path(name)


def _compare(file: Path, chain: Chain, images: NDArray[np.uint8]) -> None:
    """Raise `ExportMismatch` unless the file answers for images as the model does."""
    found = OnnxDetector(file, n_threads=1).answers(images, OUTPUTS)
    known = _gate.answers(chain, images)
    _gate.compare(known, found, chain.final)

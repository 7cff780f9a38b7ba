"""Run a graph of `to_onnx` with NumPy and onnxruntime alone.

This module imports no module that loads torch, timm, scikit-learn or scipy.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skad._optional import optional

OUTPUTS = ("score", "decision", "label", "p_value", "map", "mask")


class OnnxDetector:
    """Score images by a file of `to_onnx`, without torch, timm or scikit-learn.

    Parameters
    ----------
    path : path
        The file.

    batch_size : int, default=1
        Images that the graph gets at once. Memory grows with it.

    n_threads : int, default=0
        Threads of onnxruntime; 0 leaves the choice to it.

    Attributes
    ----------
    size : (int, int)
        Height and width in pixels of the images that the graph takes.

    n_channels : int
        Their channels, 3 for grey images too.

    metadata : dict
        What the file says of the model, by names that begin with ``skad_*``: versions,
        networks, thresholds and sizes. All values are texts, most of them JSON.

    Raises
    ------
    FileNotFoundError
        If there is no such file.

    ValueError
        If it is no file of `to_onnx`, or if a parameter is out of range.

    ImportError
        If onnxruntime is not installed.

    See Also
    --------
    to_onnx : Writes the file.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        batch_size: int = 1,
        n_threads: int = 0,
    ) -> None:
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("n_threads", n_threads, 0),
        ):
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(
                    f"{name}={value!r} must be an integer from {least} on."
                )
        if not os.path.isfile(path):
            raise FileNotFoundError(f"path={str(path)!r} does not exist.")
        self.batch_size = batch_size
        self._session = _session(path, n_threads)
        self.metadata: dict[str, str] = dict(
            self._session.get_modelmeta().custom_metadata_map
        )
        if "skad_size" not in self.metadata:
            raise ValueError(f"path={str(path)!r} is no file of skad.export.to_onnx.")
        height, width = json.loads(self.metadata["skad_size"])
        self.size = height, width
        self.n_channels = int(self._session.get_inputs()[0].shape[3])

    def score_samples(self, X: Sequence[Any]) -> NDArray[np.float64]:
        """Score images; larger is more normal.

        Parameters
        ----------
        X : sequence of images
            Paths, `PIL.Image`, or arrays (H, W), (H, W, 1) or (H, W, 3) of uint8, or
            one array (n, H, W[, C]), all of the size of the graph.

        Returns
        -------
        scores : ndarray of shape (n,), float64
            Of any range, as of the model.

        Raises
        ------
        ValueError
            If an image has another size, dtype or number of channels.
        """
        return self.answers(X, ("score",))["score"]

    def decision_function(self, X: Sequence[Any]) -> NDArray[np.float64]:
        """Score images against the threshold; negative is anomalous.

        Parameters
        ----------
        X : sequence of images
            As in `score_samples`.

        Returns
        -------
        decision : ndarray of shape (n,), float64
            The score less the threshold.
        """
        return self.answers(X, ("decision",))["decision"]

    def predict(self, X: Sequence[Any]) -> NDArray[np.int64]:
        """Decide for each image: +1 is normal, -1 is anomalous.

        Parameters
        ----------
        X : sequence of images
            As in `score_samples`.

        Returns
        -------
        labels : ndarray of shape (n,), int64
            By the threshold in the file.
        """
        return self.answers(X, ("label",))["label"]

    def p_value(self, X: Sequence[Any]) -> NDArray[np.float64]:
        """Conformal p-value of each image: small for anomalies.

        Parameters
        ----------
        X : sequence of images
            As in `score_samples`.

        Returns
        -------
        p : ndarray of shape (n,), float64
            In (0, 1].
        """
        return self.answers(X, ("p_value",))["p_value"]

    def anomaly_map(self, X: Sequence[Any]) -> NDArray[np.float32]:
        """Anomaly score of each pixel; larger is more anomalous.

        Parameters
        ----------
        X : sequence of images
            As in `score_samples`.

        Returns
        -------
        maps : ndarray of shape (n, H, W), float32
            Of any range, of the size of the images.
        """
        return self.answers(X, ("map",))["map"]

    def predict_mask(self, X: Sequence[Any]) -> NDArray[np.bool_]:
        """Mark the anomalous pixels.

        Parameters
        ----------
        X : sequence of images
            As in `score_samples`.

        Returns
        -------
        masks : ndarray of shape (n, H, W), bool
            True where the map exceeds the threshold in the file.
        """
        return self.answers(X, ("mask",))["mask"]

    def answers(
        self, X: Sequence[Any] | NDArray[Any], names: Sequence[str] = OUTPUTS
    ) -> dict[str, NDArray[Any]]:
        """Give several answers from one run of the graph.

        Parameters
        ----------
        X : sequence of images
            As in `score_samples`.

        names : sequence of str, default=all
            Which ones: "score", "decision", "label", "p_value", "map", "mask".

        Returns
        -------
        answers : dict of ndarray
            By name, each as the method that gives it alone.

        Raises
        ------
        ValueError
            As `score_samples`, or if there is no such output.
        """
        unknown = [name for name in names if name not in OUTPUTS]
        if isinstance(names, str) or unknown or len(names) == 0:
            raise ValueError(
                f"names={names!r}: pass a list of some of {', '.join(OUTPUTS)}."
            )
        if isinstance(X, (str, os.PathLike)) or not hasattr(X, "__len__"):
            raise ValueError(
                f"X is a {type(X).__name__}; pass a sequence of images, as [image]."
            )
        if len(X) == 0:
            raise ValueError("X is empty: pass one image at least.")
        found = [
            self._session.run(list(names), {"image": batch})
            for batch in self._batches(X)
        ]
        return {
            name: np.concatenate(parts)
            for name, parts in zip(names, zip(*found, strict=True), strict=True)
        }

    def _batches(self, X: Any) -> Iterator[NDArray[np.uint8]]:
        for lo in range(0, len(X), self.batch_size):
            some = range(lo, min(lo + self.batch_size, len(X)))
            yield np.stack([self._image(X[i], i) for i in some])

    def _image(self, item: Any, i: int) -> NDArray[np.uint8]:
        """One image (H, W, C) as the graph takes it."""
        image = _pixels(item, i)
        if image.dtype != np.uint8:
            raise ValueError(f"X[{i}] has dtype {image.dtype}; the graph takes uint8.")
        if image.ndim == 2:
            image = image[..., None]
        if image.ndim != 3:
            raise ValueError(f"X[{i}] has shape {image.shape}; one image is (H, W, C).")
        if self.n_channels == 3 and image.shape[2] == 4:
            image = image[..., :3]  # alpha
        if image.shape[:2] != self.size:
            raise ValueError(
                f"X[{i}] has {image.shape[0]} x {image.shape[1]} pixels, but the graph "
                f"takes images of {self.size[0]} x {self.size[1]}; export the model "
                "again with the size of these images."
            )
        if image.shape[2] not in (1, self.n_channels):
            raise ValueError(
                f"X[{i}] has {image.shape[2]} channels, but the graph takes "
                f"{self.n_channels}."
            )
        return np.broadcast_to(image, (*self.size, self.n_channels))


def _session(path: Any, n_threads: int) -> Any:
    """Session of onnxruntime on the CPU."""
    runtime: Any = optional("onnxruntime", "OnnxDetector", "line")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = n_threads
    options.log_severity_level = 3  # errors
    try:
        return runtime.InferenceSession(
            os.fspath(path), options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:
        raise ValueError(
            f"path={str(path)!r} is no graph that onnxruntime can run: {error}"
        ) from error


def _pixels(item: Any, i: int) -> NDArray[Any]:
    """Pixels of a path, a PIL image or an array."""
    if isinstance(item, (str, os.PathLike)):
        from PIL import Image

        try:
            with Image.open(item) as image:
                return _upright(image, i)
        except OSError as error:
            raise ValueError(
                f"X[{i}] ({str(item)!r}) cannot be read: {error}"
            ) from error
    return _upright(item, i) if hasattr(item, "getexif") else np.asarray(item)


def _upright(image: Any, i: int) -> NDArray[Any]:
    """Colour pixels of a PIL image, turned as its EXIF says."""
    from PIL import ImageOps

    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"):
        raise ValueError(
            f"X[{i}] has the mode {image.mode!r} of Pillow; the graph takes 8 bits per "
            "channel."
        )
    return np.asarray(ImageOps.exif_transpose(image).convert("RGB"))

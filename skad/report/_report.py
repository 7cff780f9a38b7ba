"""Write the results of a model for many images as one page."""

from __future__ import annotations

import heapq
import os
import tempfile
from base64 import b64encode
from collections.abc import Sequence, Sized
from datetime import datetime
from hashlib import sha256
from importlib.resources import files
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from skad._chain import Chain
from skad._checks import check_labels
from skad._optional import optional
from skad._progress import progress
from skad.images import read_image, read_mask
from skad.images._read import as_path
from skad.inspection import Inspection, inspect
from skad.report import _thumbnails as thumbnails
from skad.report._card import model_card, short_promise

_SUFFIXES = (".html", ".htm")
_MOST_DEFECTS = 50  # of one image that the page lists


def write_report(
    path: str | os.PathLike[str],
    model: Any,
    X: Any,
    y: ArrayLike | None = None,
    masks: Sequence[Any] | None = None,
    *,
    kinds: ArrayLike | None = None,
    title: str | None = None,
    n_pictures: int = 2000,
    verbose: bool = False,
) -> None:
    """Write the results of a model for many images as one page for any browser.

    The page shows the scores and the threshold, counts what another threshold would
    reject, and has a gallery of the images with heat maps, masks and boxes, a table of
    their defects, and what is known about the model. It is one file that needs no
    network: mail it, or put it on a disk.

    Parameters
    ----------
    path : path
        File to write, which ends in .html; an old one is replaced once the new one is
        complete.

    model : estimator
        A fitted detector of skad, a pipeline that ends in one, a search that was
        fitted, or a `FrozenEstimator` around any of these.

    X : sequence of images, or ndarray of patch features
        What the model's `predict` takes. A file that cannot be read is on the page
        with the reason. Of patch features, the page shows maps only.

    y : array-like of shape (n_images,), default=None
        +1 for normal, -1 for anomalous. With labels, the page also counts defects
        that are found and missed.

    masks : sequence of n_images masks, default=None
        True masks of the images, as `skad.images.read_mask` takes them, in the size of
        the image; None for an image without one.

    kinds : array-like of shape (n_images,), default=None
        Kind of each image, such as "scratch", by which the page filters.

    title : str, default=None
        Heading of the page. None names the detector.

    n_pictures : int, default=2000
        Number of images, the most suspicious ones, that have a picture on the page. The
        others have a score only, so that size of the page and memory stay bounded.

    verbose : bool, default=False
        Report progress on the standard error stream.

    Raises
    ------
    sklearn.exceptions.NotFittedError
        If the model is not fitted.

    ImportError
        If jinja2 is not installed.

    FileNotFoundError
        If the folder of `path` does not exist.

    TypeError
        If the model does not end in a detector of skad, or X is no sequence.

    ValueError
        If `path` is a folder or ends otherwise, X is empty, the lengths of X, y,
        masks and kinds differ, a mask has another size than its image, or labels are
        not +1 and -1.

    See Also
    --------
    skad.inspect : The same results for a program.

    Notes
    -----
    A page has about 20 kB per image, 25 at most. Thumbnails have up to 384 pixels, and
    a defect of a single pixel is still seen in their masks.

    Masks and boxes are those of the model's own threshold of pixels; the slider of the
    page moves the threshold of image scores only.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import skad
    >>> from skad.datasets import make_textures
    >>> from skad.report import write_report
    >>> data = make_textures(n_normal=24, n_anomalous=4, size=64, random_state=0)
    >>> features = skad.PatchFeatures("skad_small", image_size=64)
    >>> model = skad.make_pipeline(features, skad.PatchCoreDetector()).fit(data.train)
    >>> path = Path(tempfile.mkdtemp()) / "fabric.html"
    >>> write_report(
    ...     path, model, data.test, data.y_test, data.masks, kinds=data.defect_types
    ... )
    >>> path.stat().st_size < 25_000 * len(data.test) + 100_000
    True
    """
    target = _checked_path(path)
    inspections = inspect(model, X)
    n = _checked_length(X)
    labels = None if y is None else _of_length(check_labels(y), n, "y")
    names = None if kinds is None else [str(k) for k in _of_length(kinds, n, "kinds")]
    if masks is not None:
        _of_length(masks, n, "masks")
    if isinstance(n_pictures, bool) or not isinstance(n_pictures, Integral):
        raise TypeError(f"n_pictures={n_pictures!r} must be an integer.")
    if n_pictures < 0:
        raise ValueError(f"n_pictures={n_pictures} must be 0 or more.")
    pictures = _Pictures(model, X, masks, n_pictures)
    template = _template()  # before the long work, for it may not be installed
    records = []
    with progress(n, "images", verbose, unit="image") as bar:
        for found in inspections:
            records.append(_record(found, labels, names))
            pictures.add(found)
            bar.update(1)
    _write(target, template, model, title, records, pictures.kept())


def _record(
    found: Any, labels: np.ndarray | None, kinds: list[str] | None
) -> dict[str, Any]:
    """What the page knows about an image, beside its pictures."""
    i, path = found.index, as_path(found.source)
    record: dict[str, Any] = {"index": i, "name": path or f"image {i}"}
    if labels is not None:
        record["truth"] = int(labels[i])
    if kinds is not None:
        record["kind"] = kinds[i]
    if found.label == 0:
        nothing = "nothing of the image lies inside of its region"
        return {**record, "error": found.error or nothing}
    return record | {
        "score": found.score,
        "p": found.p_value,
        "size": list(found.anomaly_map.shape),
        "n_defects": len(found.defects),
        "defects": [
            [d.area, *d.bbox, *np.round(d.centroid, 2), float(f"{d.peak:.6g}")]
            for d in found.defects[:_MOST_DEFECTS]
        ],
    }


class _Pictures:
    """Pictures of the most suspicious images, as data URLs.

    Parameters
    ----------
    model, X, masks : as of `write_report`

    n_pictures : int
        Number of images whose pictures are kept.
    """

    def __init__(self, model: Any, X: Any, masks: Any, n_pictures: int) -> None:
        self.chain, self.X, self.masks = Chain(model), X, masks
        self.n_pictures = n_pictures
        takes_images = hasattr(self.chain.final, "image_sizes")
        self.reads = self.chain.final if takes_images else self.chain.images
        self.usual = float(np.median(self.chain.final.calibration_maps_))
        self._heap: list[tuple[float, int, dict[str, str]]] = []

    def add(self, found: Inspection) -> None:
        """Make the pictures of an image, unless enough others are more suspicious."""
        true = self._true_mask(found)
        key = -found.score, -found.index
        full = len(self._heap) >= self.n_pictures
        if found.label == 0 or (full and (not self._heap or key < self._heap[0][:2])):
            return
        made = self._made(found)
        if true is not None and true.any():
            made["truth"] = thumbnails.mask_picture(true, thumbnails.TRUE_COLOR)
        put = heapq.heappushpop if full else heapq.heappush
        put(self._heap, (*key, made))

    def kept(self) -> dict[int, dict[str, str]]:
        """Pictures by the positions of their images."""
        return {-negative: made for _, negative, made in self._heap}

    def _made(self, found: Any) -> dict[str, str]:
        """Pictures of an image that has a score, and so a map."""
        made = {}
        image = self._image(found)
        if image is not None:
            made["image"] = thumbnails.picture(image)
        made["heat"] = thumbnails.heat_map(
            found.anomaly_map, self.usual, found.pixel_threshold
        )
        if found.mask.any():
            made["mask"] = thumbnails.mask_picture(found.mask, thumbnails.FOUND_COLOR)
        return made

    def _image(self, found: Inspection) -> np.ndarray | None:
        """The image in the geometry of its map; None for features."""
        if self.reads is None:
            return None
        item = found.source
        if self.chain.before:
            one = item[None] if hasattr(self.X, "shape") else [item]
            item = self.chain.entering(one)[0]
        with self.reads._limited():
            return read_image(
                item, where=f"X[{found.index}]", n_channels=self.reads._n_channels()
            )

    def _true_mask(self, found: Inspection) -> np.ndarray | None:
        mask = None if self.masks is None else self.masks[found.index]
        if mask is None:
            return None
        size = None if found.anomaly_map is None else found.anomaly_map.shape
        return read_mask(mask, where=f"masks[{found.index}]", size=size)


# -- the page ------------------------------------------------------------------


def _write(
    target: Path,
    template: Any,
    model: Any,
    title: str | None,
    records: list[dict[str, Any]],
    pictures: dict[int, dict[str, str]],
) -> None:
    """Render the page beside its place, and put it there when it is complete."""
    detector = Chain(model).final
    data = {
        "images": records,
        "threshold": detector.offset_,
        "hasMasks": any("truth" in urls for urls in pictures.values()),
        "heldOut": [] if detector._in_sample else detector.calibration_scores_.tolist(),
    }
    css, script = (_packaged(name) for name in ("page.css", "page.js"))
    parts = template.generate(
        title=title or f"Inspection by {type(detector).__name__}",
        n_images=len(records),
        date=datetime.now().strftime("%d %B %Y"),
        css=css,
        css_hash=_hash(css),
        script=script,
        script_hash=_hash(script),
        data=data,
        pictures=pictures,
        card=model_card(model),
        promise=short_promise(detector),
    )
    handle, unfinished = tempfile.mkstemp(suffix=".html", dir=target.parent)
    try:
        with open(handle, "w", encoding="utf-8", errors="replace", newline="") as file:
            file.writelines(parts)
        _give_usual_rights(unfinished)
        os.replace(unfinished, target)
    except BaseException:
        os.unlink(unfinished)
        raise


def _give_usual_rights(path: str) -> None:
    """Give a temporary file, which its owner alone can read, those of a new file."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(path, 0o666 & ~mask)


def _template() -> Any:
    jinja2 = optional("jinja2", "write_report", "line")
    environment = jinja2.Environment(autoescape=True, trim_blocks=True)
    return environment.from_string(_packaged("page.html"))


def _packaged(name: str) -> str:
    return (files("skad.report") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    """What the page's policy calls a script or style that it may use."""
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"


# -- checks ----------------------------------------------------------------------


def _checked_path(path: Any) -> Path:
    target = Path(path)
    if target.is_dir():
        raise ValueError(f"path={str(path)!r} is a folder; name a file in it.")
    if target.suffix.lower() not in _SUFFIXES:
        raise ValueError(f"path={str(path)!r} must end in .html.")
    if not target.parent.is_dir():
        raise FileNotFoundError(
            f"path={str(path)!r}: there is no folder {str(target.parent)!r}; make it."
        )
    return target


def _checked_length(X: Any) -> int:
    if not isinstance(X, Sized):
        raise TypeError(
            f"X is of type {type(X).__name__}, which has no length; pass a list of "
            "images or an array of them."
        )
    return len(X)


def _of_length(values: Any, n: int, name: str) -> Any:
    if len(values) != n:
        raise ValueError(
            f"{name} has {len(values)} entries, but X has {n} images; pass one for "
            "each image."
        )
    return values

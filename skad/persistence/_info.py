"""What a file says of its model, to be read without loading it."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from os import PathLike
from typing import Any

import skad
from skad._chain import Chain, unwrap
from skad.base import BaseDetector
from skad.persistence._objects import objects

FORMAT = 1  # of the file; a higher one is refused
_PACKAGES = ("numpy", "scipy", "scikit-learn", "torch", "timm", "skops")


def described(model: Any) -> dict[str, Any]:
    """What a file says of a model: versions, networks, thresholds and the date."""
    detector = Chain(model).final
    if not isinstance(detector, BaseDetector):
        detector = None
    scores = getattr(detector, "calibration_scores_", None)
    seen = getattr(detector, "n_samples_seen_", None)
    rate = getattr(detector, "contamination_", None)
    return {
        "format": FORMAT,
        "saved": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": _versions(),
        "model": _name(model),
        "contamination": None if rate is None else float(rate),
        "n_calibration_images": None if scores is None else len(scores),
        "n_training_images": None if seen is None else int(seen),
        "networks": _networks(model),
    }


def _versions() -> dict[str, str]:
    found = {"skad": skad.__version__, "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _name(model: Any) -> str:
    """The class of a model, with those of the steps in it."""
    inner = unwrap(model)
    name = type(model).__name__
    if inner is not model:
        return f"{name}({_name(inner)})"
    if hasattr(model, "steps"):
        steps = [step for _, step in model.steps if step not in (None, "passthrough")]
        return f"{name}({', '.join(map(_name, steps))})"
    return name


def _networks(model: Any) -> list[dict[str, Any]]:
    """What is known of each network that an estimator takes by its name."""
    found: list[dict[str, Any]] = []
    for one in _all_networks(model):
        if one not in found:
            found.append(one)
    # An estimator may hold others twice, as they were passed and as they were fitted.
    fitted = [{**one, "sha256": None} for one in found if one["sha256"]]
    return [one for one in found if one not in fitted]


def _all_networks(model: Any) -> Iterator[dict[str, Any]]:
    for value, _ in objects(unwrap(model)):
        name = getattr(value, "backbone", None)
        if not isinstance(name, str) or not hasattr(value, "weights"):
            continue
        if value.weights is None:
            weights = "pretrained"
        else:
            weights = "random" if value.weights is False else "file"
        yield {
            "used_by": type(value).__name__,
            "backbone": _without_folder(name),
            "weights": weights,
            "sha256": getattr(value, "weights_sha256_", None),
            "licence": licence_of(name, value.weights),
        }


def _without_folder(name: str) -> str:
    """A name of timm, without the folder that a local one may begin with."""
    source, _, place = name.partition(":")
    return name if source != "local-dir" else f"{source}:{place.split('/')[-1]}"


def licence_of(backbone: str, weights: Any) -> str | None:
    """The licence of the weights of a network, or None where it is not known.

    Parameters
    ----------
    backbone : str
        Name of a network, as of `PatchFeatures`.

    weights : None, path or False
        As of `PatchFeatures`. The licence of a file is not known, and random weights
        have none.

    Returns
    -------
    licence : str or None
        As timm gives it, such as "apache-2.0".
    """
    if weights is not None or ":" in backbone:
        return None
    if backbone == "skad_small":
        return "bsd-3-clause"
    import timm

    config = timm.get_pretrained_cfg(backbone)
    return None if config is None else config.license


def model_info(path: str | PathLike[str]) -> dict[str, Any]:
    """Read what a file of `save` says of its model, without loading the model.

    Parameters
    ----------
    path : path
        The file.

    Returns
    -------
    info : dict
        - "saved" : str, date and time in UTC;
        - "versions" : dict of str, of skad and what it is built on;
        - "model" : str, the names of the classes;
        - "contamination" : float or None, rate of false alarms of the thresholds;
        - "n_calibration_images", "n_training_images" : int or None;
        - "networks" : list of dict, one per network that the model takes by its name,
          with "used_by", "backbone", "weights" ("pretrained", "random" or "file"),
          "sha256" and "licence", None where they are not known;
        - "format" : int, version of the format of the file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.

    ValueError
        If it is not a whole file of `save`.

    See Also
    --------
    save : Writes such a file.

    Examples
    --------
    >>> import skad, tempfile
    >>> from skad.datasets import make_textures
    >>> data = make_textures(n_normal=30, n_anomalous=2, size=64, random_state=0)
    >>> features = skad.PatchFeatures("skad_small", image_size=64)
    >>> model = skad.make_pipeline(features, skad.SubspaceDetector()).fit(data.train)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     skad.save(model, f"{folder}/part.skad")
    ...     info = skad.model_info(f"{folder}/part.skad")
    >>> info["model"], info["n_calibration_images"]
    ('Pipeline(PatchFeatures, SubspaceDetector)', 30)
    >>> info["networks"][0]["licence"]
    'bsd-3-clause'
    """
    from skad.persistence._load import opened

    with opened(path) as (_, archive):
        return read_info(archive)


def read_info(archive: Any) -> dict[str, Any]:
    """The description in an archive of `opened`."""
    return json.loads(archive.read("skad.json"))

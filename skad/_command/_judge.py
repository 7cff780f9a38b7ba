"""The verbs that look at a model and its results."""

from __future__ import annotations

import csv
import json
import sys
from argparse import Namespace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

import skad
from skad.images import list_images

_N_CHECKED = 16  # images for which a graph is compared with its model


def evaluate(arguments: Namespace) -> None:
    """Print all metrics of a labelled data set."""
    from skad.datasets import load

    model = skad.load(arguments.model)
    data = load(arguments.images, require_masks=False)
    with TemporaryDirectory(prefix="skad-") as folder:
        _print_values(_metrics(model, data, Path(folder)), arguments.json)


def _metrics(model: Any, data: Any, folder: Path) -> dict[str, Any]:
    """All metrics of a data set; maps go to a folder, and memory holds one of them."""
    from skad import metrics

    n = len(data.test)
    masked = set(range(n)) - set(data.unmasked)
    if data.masks is None or all(data.masks[i] is None for i in masked):
        masked = set()
    labels, decisions = np.empty(n, int), np.empty(n)
    for i, one in enumerate(skad.inspect(model, data.test, maps=bool(masked))):
        if one.label == 0:
            raise ValueError(f"{one.source}: {one.error or 'has no label'}")
        labels[i], decisions[i] = one.label, one.decision
        if i in masked:
            np.save(folder / f"{i}.npy", one.anomaly_map)
    y = np.asarray(data.y_test)
    values: dict[str, Any] = {
        "n_normal": int((y == 1).sum()),
        "n_anomalous": int((y == -1).sum()),
        "false_alarms": float((labels[y == 1] == -1).mean()),
        "found": float((labels[y == -1] == -1).mean()),
        "image_auroc": float(metrics.image_auroc(y, decisions)),
        "image_average_precision": float(metrics.image_average_precision(y, decisions)),
        "image_f1_max": float(metrics.image_f1_max(y, decisions)),
    }
    if masked:
        known = sorted(masked)
        maps = [folder / f"{i}.npy" for i in known]
        pixels = metrics.pixel_metrics([data.masks[i] for i in known], maps)
        values |= {name: float(value) for name, value in pixels.items()}
    return values


def suspects(arguments: Namespace) -> None:
    """Print the training images, the most suspicious first."""
    from skad.inspection import suspects as ranked

    images = list_images(arguments.images)
    found = ranked(skad.load(arguments.model), images)
    rows = [
        {"path": str(images[i]), "score": float(score), "flagged": bool(flagged)}
        for i, score, flagged in zip(
            found.indices, found.scores, found.flagged, strict=True
        )
    ]
    if arguments.json:
        print(json.dumps(rows))
        return
    table = csv.DictWriter(
        sys.stdout, ["path", "score", "flagged"], lineterminator="\n"
    )
    table.writeheader()
    table.writerows(rows)


def report(arguments: Namespace) -> None:
    """Write the page of results."""
    from skad.report import write_report

    model = skad.load(arguments.model)
    images, labelled = _with_labels(arguments.images)
    write_report(
        arguments.output, model, images, verbose=sys.stderr.isatty(), **labelled
    )
    shown = {"file": arguments.output, "n_images": len(images)}
    print(
        json.dumps(shown)
        if arguments.json
        else f"{shown['file']}: {len(images)} images"
    )


def _with_labels(folder: str) -> tuple[list[Any], dict[str, Any]]:
    """Images of a folder; of a data set, its test images with what is known of them."""
    if not (Path(folder) / "train").is_dir():
        return list_images(folder, nested=True), {}
    from skad.datasets import load

    data = load(folder, require_masks=False)
    known = {"y": data.y_test, "masks": data.masks, "kinds": data.defect_types}
    return list(data.test), known


def export(arguments: Namespace) -> None:
    """Write the graph, if it answers as the model does."""
    from skad.export import to_onnx

    images = list_images(arguments.images, nested=True)
    chosen = np.linspace(0, len(images) - 1, min(len(images), _N_CHECKED)).astype(int)
    images = [images[i] for i in chosen]
    to_onnx(skad.load(arguments.model), arguments.output, check=images)
    shown = {"file": arguments.output, "n_checked": len(images)}
    text = f"{arguments.output}: answers as the model does for {len(images)} images"
    print(json.dumps(shown) if arguments.json else text)


def info(arguments: Namespace) -> None:
    """Print what a file says of its model."""
    found = skad.model_info(arguments.model)
    if arguments.json:
        print(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        if name == "versions":
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        elif name == "networks":
            value = "; ".join(
                f"{one['backbone']} ({one['weights']}, licence "
                f"{one['licence'] or 'not known'}, sha256 {one['sha256']})"
                for one in value
            )
        print(f"{name}: {value}")


def _print_values(values: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(values))
        return
    for name, value in values.items():
        print(f"{name}: {value if isinstance(value, int) else f'{value:.4f}'}")

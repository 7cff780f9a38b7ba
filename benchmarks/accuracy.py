"""Accuracy, speed, size and memory of every method on real images.

    python benchmarks/accuracy.py

prints one line per data set and method and writes them to ``docs/accuracy.csv``,
which the documentation shows. Every case runs in a process of its own, one after
the other, from image files to maps at the size of the images.

Needs folders in MVTec layout and a file of weights; by default those in ``shared/``
beside the checkout. Other ones, for example::

    python benchmarks/accuracy.py --data /data/mvtec --sets bottle cable \
        --backbone wide_resnet50_2.tv_in1k --weights "" --levels layer1 layer2 layer3
"""

import argparse
import csv
import json
import os
import pickle
import subprocess
import sys
import time
from pathlib import Path

SHARED = Path(__file__).resolve().parents[2] / "shared"
COLUMNS = {
    "set": "Set",
    "method": "Method",
    "image_auroc": "Image AUROC",
    "pixel_auroc": "Pixel AUROC",
    "pro": "PRO",
    "pixel_ap": "Pixel AP",
    "found": "Defects found",
    "false_alarms": "False alarms",
    "fit_s": "Fit, s",
    "image_ms": "Image, ms",
    "size_mb": "Pickle, MB",
    "memory_mb": "Fit memory, MB",
}


def methods(options):
    """Pipelines by name; the last two levels have strides 8 and 16."""
    from skad import (
        PaDiMDetector,
        PatchCoreDetector,
        PatchFeatures,
        PCANetFeatures,
        Pipeline,
        SimpleNetDetector,
        SPADEDetector,
        SubspaceDetector,
    )

    def network(layers, **parameters):
        return PatchFeatures(
            options.backbone,
            layers=tuple(layers),
            weights=options.weights or None,
            backbone_kwargs=json.loads(options.backbone_kwargs),
            **parameters,
        )

    def small(**parameters):
        return PatchFeatures("skad_small", embedding="concat", **parameters)

    deep = options.levels[1:]
    two = {"layers": deep, "embedding": "concat"}
    cells = {"layers": deep, "embedding": "replicate", "pooled": True}
    three = {"layers": options.levels, "embedding": "replicate", "n_components": 100}
    retrieval = {"metric": "cosine", "position_radius": 1, "image_score": "max"}
    return {
        "PatchCore": Pipeline([network(**two), PatchCoreDetector()]),
        "PatchCore, 1 %": Pipeline([network(**two), PatchCoreDetector(0.01)]),
        "PaDiM": Pipeline([network(**three), PaDiMDetector()]),
        "SPADE": Pipeline([network(**cells), SPADEDetector()]),
        "SPADE as RAD": Pipeline([network(**cells), SPADEDetector(**retrieval)]),
        "Subspace": Pipeline([network(**two), SubspaceDetector()]),
        "SimpleNet, 20 epochs": Pipeline([network(**two), SimpleNetDetector(20)]),
        "PatchCore, skad_small": Pipeline([small(), PatchCoreDetector()]),
        "PatchCore 1 %, skad_small": Pipeline([small(), PatchCoreDetector(0.01)]),
        "Subspace, skad_small": Pipeline([small(), SubspaceDetector()]),
        "PatchCore, random": Pipeline([small(weights=False), PatchCoreDetector()]),
        "PatchCore, PCANet": Pipeline([PCANetFeatures(), PatchCoreDetector()]),
        "Subspace, PCANet": Pipeline([PCANetFeatures(), SubspaceDetector()]),
    }


def measure(options, category, method):
    """One case, in this process."""
    import numpy as np

    from skad.datasets import load_mvtec
    from skad.metrics import image_auroc, pixel_metrics

    data = load_mvtec(options.data, category)
    model = methods(options)[method]
    features = model[0]
    if hasattr(features, "backbone"):  # what the network itself takes is not counted
        features.fit_transform(data.train[:32])
    before = peak_memory()
    reset_peak_memory()
    start = time.perf_counter()
    model.fit(data.train)
    fit_s = time.perf_counter() - start
    memory = peak_memory() - before
    start = time.perf_counter()
    maps = model.anomaly_map(data.test)
    image_s = (time.perf_counter() - start) / len(data.test)
    decision = model.decision_function(data.test)
    good = np.asarray(data.y_test) == 1
    pixels = pixel_metrics(data.masks, maps)
    return {
        "set": category,
        "method": method,
        "image_auroc": f"{image_auroc(data.y_test, decision):.3f}",
        "pixel_auroc": f"{pixels['pixel_auroc']:.3f}",
        "pro": f"{pixels['pro_score']:.3f}",
        "pixel_ap": f"{pixels['pixel_average_precision']:.3f}",
        "found": f"{np.mean(decision[~good] < 0):.0%}",
        "false_alarms": f"{np.mean(decision[good] < 0):.0%}",
        "fit_s": f"{fit_s:.1f}",
        "image_ms": f"{1e3 * image_s:.0f}",
        "size_mb": f"{len(pickle.dumps(model)) / 1e6:.1f}",
        "memory_mb": f"{memory / 1e6:.0f}",
    }


def reset_peak_memory():
    Path("/proc/self/clear_refs").write_text("5")


def peak_memory():
    """Largest memory in use since the last reset, in bytes (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith("VmHWM")) * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=SHARED / "data", type=Path)
    parser.add_argument(
        "--sets", nargs="+", default=["mvtec_bottle_256", "magnetic_tile"]
    )
    parser.add_argument("--methods", nargs="+", help="default: all of them")
    parser.add_argument("--backbone", default="mobilenetv2_100")
    parser.add_argument(
        "--weights",
        default=SHARED / "weights" / "mobilenetv2_100_imagenet.safetensors",
        help="file of weights; empty for timm's own",
    )
    parser.add_argument("--backbone-kwargs", default='{"pad_type": "same"}')
    parser.add_argument(
        "--levels",
        nargs=3,
        default=["blocks.1", "blocks.2", "blocks.4"],
        help="modules of strides 4, 8 and 16",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", default="docs/accuracy.csv", type=Path)
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.case:
        print(json.dumps(measure(options, *options.case)))
        return
    threads = str(options.threads)
    environment = dict(
        os.environ, OMP_NUM_THREADS=threads, OPENBLAS_NUM_THREADS=threads
    )
    rows = []
    print(" | ".join(COLUMNS.values()))
    for category in options.sets:
        for method in options.methods or methods(options):
            command = [sys.executable, *sys.argv, "--case", category, method]
            answer = subprocess.run(
                command, env=environment, check=True, stdout=subprocess.PIPE, text=True
            )
            rows.append(json.loads(answer.stdout.splitlines()[-1]))
            print(" | ".join(rows[-1].values()), flush=True)
    with options.output.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS.values())
        writer.writerows(row.values() for row in rows)


if __name__ == "__main__":
    main()

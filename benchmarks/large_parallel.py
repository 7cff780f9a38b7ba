"""Fit on many machines: what parts and merges take, and where merging holds all up.

    python benchmarks/large.py --part parallel

times `skad.parallel.fit_parts` in one process and in two, the merges of detectors of
growing parts, and measures what a part sends back. A simulation with these numbers then
tells how long 10,000 to 10 million images take on 100 machines, each of which fits one
part at a time, while one process receives and merges all parts. With ``--write`` it
draws ``docs/_static/machines.png`` and writes ``docs/parts.csv`` and
``docs/machines.csv``.
"""

import csv
import pickle
import tempfile
import time
import warnings
from pathlib import Path

import numpy as np
from harness import limit_threads, photographs, publish, timing
from joblib.externals.loky import get_reusable_executor
from PIL import Image
from sklearn.base import clone

DOCS = Path(__file__).resolve().parents[1] / "docs"
MACHINES = 100
BANDWIDTH = 125e6  # bytes per second that the merging process receives: 1 Gbit/s
MOST = "10,000,000"  # images, of which the table of the docs tells
BANK_SIZE = 4096
HEADER = ("detector", "fit, per image", "bytes of a part", "of these, per image")
HEADER += ("merges, larger and larger", "1 process", "2 processes", "ratio")
SIMULATED = ("detector", "images", "part_size", "parts", "time", "merges", "1 machine")


def image_files(options, folder, n, side):
    """Photographs by flips, shifts and brightness, until there are n of them."""
    originals = [Image.open(path).convert("RGB") for path in photographs(options)]
    rng = np.random.default_rng(0)
    paths = []
    for i in range(n):
        pixels = np.asarray(originals[i % len(originals)].resize((side, side)))
        pixels = np.roll(pixels, rng.integers(0, side, 2), (0, 1))
        pixels = np.clip(pixels * rng.uniform(0.9, 1.1), 0, 255).astype(np.uint8)
        paths.append(Path(folder, f"{i:06d}.jpg"))
        Image.fromarray(pixels[:, :: (-1) ** i]).save(paths[-1], quality=95)
    return paths


def detectors(options):
    """Detectors that merge, by name. The bank of every part is full."""
    from skad import PaDiMDetector, PatchCoreDetector, SubspaceDetector

    return {
        "Subspace": SubspaceDetector(),
        "PaDiM": PaDiMDetector(),
        "PatchCore": PatchCoreDetector(bank_size=64 if options.small else BANK_SIZE),
    }


def measured(model, paths, part_size):
    """Seconds per image, bytes of a part, those per image, and seconds of a merge."""
    parts, started = [], time.perf_counter()
    for lo in range(0, len(paths), part_size):
        parts.append(clone(model).fit(paths[lo : lo + part_size])[-1])
    per_image = (time.perf_counter() - started) / len(paths)
    n_bytes = len(pickle.dumps(parts[0], protocol=5))
    # What is held out of each image; the rest does not depend on their number.
    held_out = getattr(parts[0], "calibration_maps_", None)
    per_map = 0 if held_out is None else held_out.nbytes // len(held_out)
    merges = []
    while len(parts) > 1:
        started = time.perf_counter()
        pairs = list(zip(parts[::2], parts[1::2], strict=True))
        parts = [left.merge(right) for left, right in pairs]
        merges.append((time.perf_counter() - started) / len(parts))
    return per_image, n_bytes, per_map, merges


def wall_time(model, paths, part_size, n_jobs):
    """Seconds of `fit_parts`, in processes that have imported everything before."""
    from joblib import parallel_config

    from skad.parallel import fit_parts

    with parallel_config("loky", n_jobs=n_jobs, inner_max_num_threads=1):
        fit_parts(model, paths[: 2 * n_jobs * 4], part_size=4)
        started = time.perf_counter()
        fit_parts(model, paths, part_size=part_size)
        return time.perf_counter() - started


def simulate(n_images, part_size, per_image, n_bytes, merge, machines=MACHINES):
    """Seconds until all parts are merged, and those that the merges take.

    Parts come in order; merges follow the tree of `skad.parallel`, one at a time.
    """
    n_parts = -(-n_images // part_size)
    received = merged = busy = 0.0
    for part in range(n_parts):
        fitted = (part // machines + 1) * min(part_size, n_images) * per_image
        received = max(received, fitted) + n_bytes / BANDWIDTH
        # Part number `part` completes as many pairs as its number ends in ones.
        n_merges = (~part & (part + 1)).bit_length() - 1
        merged = max(merged, received) + n_merges * merge
        busy += n_merges * merge
    return merged, busy


def draw(curves):
    """Hours against the number of images, for each detector and size of parts."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(curves), sharey=True, figsize=(9, 3.2))
    for axis, (name, lines) in zip(np.atleast_1d(axes), curves.items(), strict=True):
        for label, points in lines.items():
            axis.loglog(*zip(*points, strict=True), "o-", ms=3, label=label)
        axis.set(title=name, xlabel="images")
    np.atleast_1d(axes)[0].set_ylabel(f"hours on {MACHINES} machines")
    np.atleast_1d(axes)[0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(DOCS / "_static" / "machines.png", dpi=150)


def simulated(name, per_image, n_bytes, per_map, merges, part_size):
    """Rows of the table of simulations, and points of the plot by kind of part."""
    rows, lines = [], {}
    for size in (1024, 16_384, 0):
        label = f"part_size={size}" if size else f"{4 * MACHINES} parts"
        for n_images in (10_000, 100_000, 1_000_000, 10_000_000):
            some = size or -(-n_images // (4 * MACHINES))
            sent = n_bytes + per_map * (some - part_size)
            total, busy = simulate(n_images, some, per_image, sent, max(merges))
            lines.setdefault(label, []).append((n_images, total / 3600))
            rows.append(
                [
                    name,
                    f"{n_images:,}",
                    f"{some:,}",
                    f"{-(-n_images // some):,}",
                    *(
                        f"{seconds / 3600:.3g} h"
                        for seconds in (total, busy, n_images * per_image)
                    ),
                ]
            )
    return rows, lines


def parallel(options):
    """Measure parts, simulate machines, and print a table of each."""
    from skad import PatchFeatures, make_pipeline

    n, part_size, side = (48, 6, 64) if options.small else (512, 64, 224)
    limit_threads(1)
    warnings.simplefilter("ignore")
    features = PatchFeatures("skad_small", image_size=side)
    rows, many_machines, curves = [], [], {}
    with tempfile.TemporaryDirectory() as folder:
        paths = image_files(options, folder, n, side)
        features.fit_transform(paths[:4])  # imports and builds what it needs
        for name, detector in detectors(options).items():
            model = make_pipeline(features, detector)
            found = measured(model, paths, part_size)
            per_image, n_bytes, per_map, merges = found
            walls = [wall_time(model, paths, part_size, jobs) for jobs in (1, 2)]
            rows.append(
                [
                    name,
                    timing(per_image),
                    f"{n_bytes:,}",
                    f"{per_map:,}",
                    ", ".join(timing(seconds) for seconds in merges),
                    *map(timing, walls),
                    f"{walls[0] / walls[1]:.2f}",
                ]
            )
            print(*rows[-1], sep=" | ", flush=True)
            more, curves[name] = simulated(name, *found, part_size)
            many_machines += more
    # Idle workers would keep the process that started this one waiting for minutes.
    get_reusable_executor().shutdown()
    publish(options, "parts", rows, HEADER)
    publish(options, "machines", many_machines, SIMULATED)
    if options.write:
        draw(curves)
        for name, header, table in (
            ("parts", HEADER, rows),
            ("machines", SIMULATED, [row for row in many_machines if row[1] == MOST]),
        ):
            with open(DOCS / f"{name}.csv", "w", newline="") as file:
                csv.writer(file).writerows([header, *table])

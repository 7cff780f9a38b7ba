"""Fit on many machines: what parts and merges take, and where merging holds all up.

    python benchmarks/large.py --part parallel

times `skad.parallel.fit_parts` in one process and in two, the merges of detectors of
growing parts, and measures what a part sends back. A simulation with these numbers then
tells how long 10,000 to 10 million images take on 100 machines, each of which fits one
part at a time, while one process receives and merges all parts. With ``--write`` it
draws ``docs/_static/machines.png`` and writes ``docs/machines.csv``.
"""

import csv
import pickle
import tempfile
import time
import warnings
from copy import deepcopy
from inspect import signature
from pathlib import Path

import numpy as np
from harness import limit_threads, photographs, publish, timing
from joblib.externals.loky import get_reusable_executor
from PIL import Image

DOCS = Path(__file__).resolve().parents[1] / "docs"
MACHINES = 100
BANDWIDTH = 125e6  # bytes per second that the merging process receives: 1 Gbit/s
HEADER = ("detector", "fit, per image", "bytes of a part", "merges, larger and larger")
HEADER += ("1 process", "2 processes", "ratio")
SIMULATED = ("detector", "images", "part_size", "parts", "time", "merging", "1 machine")


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
    """Detectors that merge, by name."""
    from skad import PaDiMDetector, PatchCoreDetector, SubspaceDetector

    patchcore = PatchCoreDetector(0.01)
    if "bank_size" in signature(PatchCoreDetector).parameters:
        patchcore.set_params(bank_size=256 if options.small else 16_384)
    return {
        "Subspace": SubspaceDetector(),
        "PaDiM": PaDiMDetector(),
        "PatchCore": patchcore,
    }


def measured(detector, features, part_size):
    """Seconds per image, bytes of a part, and seconds of merges by parts per side."""
    parts, started = [], time.perf_counter()
    for lo in range(0, len(features), part_size):
        parts.append(deepcopy(detector).fit(features[lo : lo + part_size]))
    per_image = (time.perf_counter() - started) / len(features)
    n_bytes = len(pickle.dumps(parts[0], protocol=5))
    merges = {}
    while len(parts) > 1:
        started = time.perf_counter()
        pairs = list(zip(parts[::2], parts[1::2], strict=False))
        joined = [left.merge(right) for left, right in pairs]
        size = joined[0].n_samples_seen_ / 2 / part_size
        merges[size] = (time.perf_counter() - started) / len(joined)
        parts = joined
    return per_image, n_bytes, merges


def wall_time(model, paths, part_size, n_jobs):
    """Seconds of `fit_parts`, in processes that have imported everything before."""
    from joblib import parallel_config

    from skad.parallel import fit_parts

    with parallel_config("loky", n_jobs=n_jobs, inner_max_num_threads=1):
        fit_parts(model, paths[: 2 * n_jobs * 4], part_size=4)
        started = time.perf_counter()
        fit_parts(model, paths, part_size=part_size)
        return time.perf_counter() - started


def power_law(seconds):
    """Factor and exponent of time against size, from a straight line in logarithms."""
    x, y = np.log(list(seconds)), np.log(list(seconds.values()))
    if len(x) < 2:
        return float(np.exp(y[0])), 0.0
    exponent, start = np.polyfit(x, y, 1)
    return float(np.exp(start)), max(float(exponent), 0.0)


def simulate(n_images, part_size, per_image, n_bytes, law, machines=MACHINES):
    """Seconds until all parts are merged, and those that the merges take.

    Parts come in order; merges follow the tree of `skad.parallel`, one at a time.
    `law` holds for parts of that size.
    """
    n_parts = -(-n_images // part_size)
    factor, exponent = law
    received = merged = busy = 0.0
    for part in range(n_parts):
        fitted = (part // machines + 1) * min(part_size, n_images) * per_image
        received = max(received, fitted) + n_bytes / BANDWIDTH
        # Part number `part` completes as many pairs as its number ends in ones.
        n_merges = (~part & (part + 1)).bit_length() - 1
        seconds = sum(factor * (2.0**level) ** exponent for level in range(n_merges))
        merged = max(merged, received) + seconds
        busy += seconds
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


def parallel(options):
    """Measure parts, simulate machines, and print a table of each."""
    from skad import PatchFeatures, make_pipeline

    small = options.small
    n, part_size, side = (48, 6, 64) if small else (2048, 128, 224)
    limit_threads(1)
    warnings.simplefilter("ignore")
    features = PatchFeatures("skad_small", image_size=side)
    rows, simulated, curves = [], [], {}
    with tempfile.TemporaryDirectory() as folder:
        paths = image_files(options, folder, n, side)
        features.fit_transform(paths[:4])  # imports and builds what it needs
        started = time.perf_counter()
        grids = features.fit_transform(paths)
        extraction = (time.perf_counter() - started) / n
        for name, detector in detectors(options).items():
            per_image, n_bytes, merges = measured(detector, grids, part_size)
            per_image += extraction
            model = make_pipeline(features, detector)
            walls = [wall_time(model, paths, part_size, jobs) for jobs in (1, 2)]
            law = power_law(merges)
            rows.append(
                [
                    name,
                    timing(per_image),
                    f"{n_bytes:,}",
                    ", ".join(timing(seconds) for seconds in merges.values()),
                    *map(timing, walls),
                    f"{walls[0] / walls[1]:.2f}",
                ]
            )
            curves[name] = {}
            # The state of all but a PatchCore without bank_size has a largest size.
            grows = name == "PatchCore" and "bank_size" not in detector.get_params()
            if not grows:
                law = max(merges.values()), 0.0
            maps = 0 if name == "PaDiM" else 4 * int(np.prod(grids.shape[1:3]))
            for size in (1024, 16_384, 0):
                for n_images in (10_000, 100_000, 1_000_000, 10_000_000):
                    some = size or -(-n_images // (4 * MACHINES))
                    scale = some / part_size
                    sent = n_bytes + maps * (some - part_size)
                    sent = n_bytes * scale if grows else max(sent, maps)
                    scaled = law[0] * scale ** law[1], law[1]
                    total, busy = simulate(n_images, some, per_image, sent, scaled)
                    n_parts = -(-n_images // some)
                    label = f"part_size={size}" if size else "400 parts"
                    curves[name].setdefault(label, []).append((n_images, total / 3600))
                    simulated.append(
                        [
                            name,
                            f"{n_images:,}",
                            f"{some:,}",
                            f"{n_parts:,}",
                            f"{total / 3600:.3g} h",
                            f"{busy / 3600:.3g} h",
                            f"{n_images * per_image / 3600:.3g} h",
                        ]
                    )
    # Idle workers would keep the process that started this one waiting for minutes.
    get_reusable_executor().shutdown()
    publish(options, "parts", rows, HEADER)
    publish(options, "machines", simulated, SIMULATED)
    if options.write:
        draw(curves)
        with open(DOCS / "machines.csv", "w", newline="") as file:
            csv.writer(file).writerows([SIMULATED, *simulated])

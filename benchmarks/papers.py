"""Repeat the tables of the papers: all categories of a data set, several seeds.

    python benchmarks/papers.py --data /data/mvtec_ad --table patchcore

The data set is one that `skad.datasets.load` recognises, the settings are those of
`skad.presets`. Each category and seed is a row of ``papers-TABLE.csv``, written as soon
as it is measured: a run that was cut goes on where it was. At the end, and after each
row, ``papers-TABLE.md`` has the mean over the categories, with the standard deviation
over the seeds, and beside it what was published for MVTec AD, with its source.

Nothing is chosen on the test set: what trains is taken as it is after its last step.
Images are resized and cropped as in the paper, and metrics are computed on what is
left, with masks resized to nearest neighbours.

"efficientad" needs ``--teacher``, a file in whose name ``{model}`` stands for small or
medium, and ``--penalty-images``, "draem" and "prn" need
``--textures``. "prn" learns from ten anomalous test images of each category, which are
then left out of the test. ``--small`` shows in a minute that a table comes out: with
untrained networks, small images and few steps. Its numbers mean nothing.
"""

import argparse
import csv
import json
import math
import sys
import time
from pathlib import Path

import numpy as np
from papers_tables import TABLES

METRICS = {
    "image_auroc": "Image AUROC",
    "image_f1": "Image F1-max",
    "pixel_auroc": "Pixel AUROC",
    "pro": "PRO",
    "pixel_ap": "Pixel AP",
    "pixel_f1": "Pixel F1-max",
    "fit_s": "Fit, s",
    "image_ms": "Image, ms",
}
KEYS = ("row", "layout", "category", "seed", "settings")
COLUMNS = (*KEYS, "n_train", "n_test", *METRICS)
SHORT_SIDE, CROP = 256, 224  # pixels, of the papers on feature banks
N_ANOMALIES = 10  # that PRN learns from


def arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder of a data set")
    parser.add_argument("--table", choices=TABLES, required=True)
    parser.add_argument("--categories", nargs="+", help="default: all")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from 0 on")
    parser.add_argument("--shots", type=int, help="learn from so many images, sampled")
    parser.add_argument(
        "--teacher", type=Path, help="file, for EfficientAD: t_{model}.pth"
    )
    parser.add_argument("--penalty-images", type=Path, help="folder, for EfficientAD")
    parser.add_argument("--textures", type=Path, help="folder, for DRAEM and PRN")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, help="the CSV file")
    parser.add_argument("--small", action="store_true", help="to see that it runs")
    return parser


def main():
    options = arguments().parse_args()
    if options.seeds < 1 or (options.shots or 1) < 1:
        raise SystemExit("--seeds and --shots must be at least 1.")
    options.output = options.output or Path(f"papers-{options.table}.csv")
    from skad.datasets import list_categories

    names = list_categories(options.data)
    if unknown := set(options.categories or ()) - set(names):
        raise SystemExit(
            f"--categories {', '.join(sorted(unknown))}: {options.data} has "
            f"{', '.join(names) or 'none'}."
        )
    categories = options.categories or names or [None]
    rows = table(options)
    done = read(options.output)
    for seed in range(options.seeds):
        for category in categories:
            for row in rows:
                measure_new(options, row, category, seed, done)
                text = report(options, rows, done)
                options.output.with_suffix(".md").write_text(text)
    print(report(options, rows, done))


def table(options):
    """Rows of a table; say what its presets lack."""
    from skad.presets import PRESETS

    given = needed(options)
    rows = TABLES[options.table]
    lacking = {name for row in rows for name in PRESETS[row.preset].needs} - set(given)
    if lacking and not options.small:
        flags = {"texture_images": "--textures"}
        names = (flags.get(n, "--" + n.replace("_", "-")) for n in sorted(lacking))
        raise SystemExit(f"--table {options.table} needs {' and '.join(names)}.")
    if options.shots is None:
        return rows
    few = f"{options.shots} image{'s' * (options.shots > 1)}"
    return [
        row._replace(name=f"{row.name}: {few}", shots=options.shots, published={})
        for row in rows
    ]


def needed(options):
    """Images and weights that were passed, as parameters of the detector."""
    given = {
        "teacher": options.teacher,
        "penalty_images": options.penalty_images,
        "texture_images": options.textures,
    }
    return {name: path for name, path in given.items() if path is not None}


def measure_new(options, row, category, seed, done):
    """Measure a row that the file does not have yet, and write it."""
    from skad.datasets import load

    data = load(options.data, category)
    key = {
        "row": row.name,
        "layout": data.layout,
        "category": data.category,
        "seed": str(seed),
        "settings": settings(options, row),
    }
    if any(key.items() <= old.items() for old in done):
        return
    new = key | {k: str(v) for k, v in measure(options, row, data, seed).items()}
    append(options.output, new)
    done.append(new)
    text = " | ".join(f"{METRICS[k]} {show(k, float(new[k]))}" for k in METRICS)
    print(f"{row.name}, {category}, seed {seed}: {text}", file=sys.stderr, flush=True)


def settings(options, row):
    """What a result depends on beside the data and the seed, as text."""
    paths = {name: str(path) for name, path in needed(options).items()}
    return json.dumps({"shots": row.shots, "small": options.small, **paths})


def measure(options, row, data, seed):
    from skad.metrics import image_auroc, image_f1_max, pixel_metrics
    from skad.presets import PRESETS

    preset = PRESETS[row.preset]
    learned = anomalies(data, seed) if row.preset == "prn" else set()
    train, y, masks = training(row, data, learned, seed)
    test, y_test, test_masks = tested(data, learned)
    if len(set(y_test)) < 2:
        raise SystemExit(
            f"{data.category}: the test part has one class of images only."
        )
    crop = preset.features is not None and "crop_size" in preset.features
    if crop:
        train, test, test_masks = frame(train), frame(test), frame_masks(test_masks)
    model = build(options, preset, crop, seed)
    start = time.perf_counter()
    model.fit(train) if y is None else model.fit(train, y, masks)
    fit_s = time.perf_counter() - start
    start = time.perf_counter()
    maps = model.anomaly_map(test)
    image_s = (time.perf_counter() - start) / len(test)
    scores = model.score_samples(test)
    pixels = dict.fromkeys(("auroc", "ap", "f1", "pro"), math.nan)
    if test_masks is not None:
        found = pixel_metrics(test_masks, maps)
        pixels = {
            "auroc": found["pixel_auroc"],
            "ap": found["pixel_average_precision"],
            "f1": found["pixel_f1_max"],
            "pro": found["pro_score"],
        }
    return {
        "n_train": len(train),
        "n_test": len(test),
        "image_auroc": image_auroc(y_test, scores),
        "image_f1": image_f1_max(y_test, scores),
        "pixel_auroc": pixels["auroc"],
        "pro": pixels["pro"],
        "pixel_ap": pixels["ap"],
        "pixel_f1": pixels["f1"],
        "fit_s": fit_s,
        "image_ms": 1e3 * image_s,
    }


def anomalies(data, seed):
    """Positions of the anomalous test images that PRN learns from."""
    found = [i for i in np.flatnonzero(data.y_test == -1) if i not in data.unmasked]
    n = min(N_ANOMALIES, len(found) // 2)  # some must be left to test
    return set(np.random.default_rng(seed).choice(found, n, replace=False).tolist())


def training(row, data, learned, seed):
    """Images to learn from; with anomalous ones their labels and masks as well."""
    train = list(data.train)
    if row.shots is not None:
        n = min(row.shots, len(train))
        chosen = np.random.default_rng(seed).choice(len(train), n, replace=False)
        train = [train[i] for i in np.sort(chosen)]
    if not learned:
        return train, None, None
    chosen = sorted(learned)
    y = np.repeat([1, -1], [len(train), len(chosen)])
    masks = [None] * len(train) + [data.masks[i] for i in chosen]
    return train + [data.test[i] for i in chosen], y, masks


def tested(data, learned):
    """Test images, their labels and masks, without those that were learned from."""
    left_out = learned | (set(data.unmasked) if data.masks is not None else set())
    kept = [i for i in range(len(data.test)) if i not in left_out]
    masks = None if data.masks is None else [data.masks[i] for i in kept]
    return [data.test[i] for i in kept], data.y_test[kept], masks


def frame(images):
    """Resize the short side and cut out the centre, as the papers do."""
    from skad.images import read_image, resize_image

    return [
        crop(resize_image(pixels, size_of(pixels)))
        for pixels in (read_image(image) for image in images)
    ]


def frame_masks(masks):
    from skad.images import read_mask, resize_image

    if masks is None:
        return None
    read = [None if mask is None else read_mask(mask) for mask in masks]
    return [
        None
        if mask is None
        else crop(
            resize_image(
                mask[..., None].astype(np.uint8), size_of(mask), resample="nearest"
            )
        )[..., 0].astype(bool)
        for mask in read
    ]


def size_of(pixels):
    from skad.images import resize_short_side

    return resize_short_side(pixels.shape[:2], SHORT_SIDE)


def crop(pixels):
    from skad.images import center_crop_box

    top, left = center_crop_box(pixels.shape[:2], CROP)
    return pixels[top : top + CROP, left : left + CROP]


def build(options, preset, cropped, seed):
    """The model of a preset; images that were cropped before need no other crop."""
    own = {name: needed(options).get(name) for name in preset.needs}
    own = {name: path for name, path in own.items() if path is not None}
    if "teacher" in own:
        own["teacher"] = str(own["teacher"]).format(**preset.parameters)
    if preset.features is None:
        own["device"] = options.device
        return preset.make(random_state=seed, **own, **(small(preset, options)))
    features = {"device": options.device}
    if cropped:
        features |= {"image_size": CROP, "crop_size": None}
    if options.small:
        features |= {"weights": False, "image_size": 56}
    # Thresholds are not looked at: no scores are held out for them.
    own["calibration"] = "train"
    return preset.make(
        random_state=seed, patch_features=features, **own, **small(preset, options)
    )


def small(preset, options):
    """Few steps, small networks and images, whatever the preset says."""
    from skad import PatchFeatures

    if not options.small:
        return {}
    if preset.detector.__name__ == "EfficientADDetector":
        features = PatchFeatures("skad_small", n_components=64, image_size=128)
        changes = {"teacher": "distill", "features": features}
    else:
        changes = {}
    changes |= {
        "model": "tiny",
        "max_steps": 2,
        "max_epochs": 1,
        "image_size": 64,
        "train_batch_size": 4,
        "weights": False,
    }
    return {
        name: value
        for name, value in changes.items()
        if name in preset.detector().get_params()
        and (preset.features is None or name != "image_size")
    }


def read(path):
    """Rows of the file; a last one that was cut while it was written is removed."""
    if not path.exists():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        path.write_bytes(whole)
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    if reader.fieldnames and tuple(reader.fieldnames) != COLUMNS:
        raise SystemExit(f"{path} is another table: name a file with --output.")
    return rows


def append(path, row):
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        if not path.stat().st_size:
            writer.writeheader()
        writer.writerow(row)


def report(options, rows, done):
    """The table in Markdown: means over categories, deviations over seeds."""
    lines = [
        f"| Method | {' | '.join(METRICS.values())} | Categories, seeds | Source |",
        f"|---|{'---|' * (len(METRICS) + 2)}",
    ]
    for row in rows:
        own = [r for r in done if r["row"] == row.name]
        own = [r for r in own if r["settings"] == settings(options, row)]
        if not own:
            continue
        categories = {r["category"] for r in own}
        # The mean over some of the categories does not compare with that over all.
        groups = [
            [r for r in own if r["seed"] == seed] for seed in {r["seed"] for r in own}
        ]
        whole = [some for some in groups if len(some) == len(categories)]
        cells = [spread(key, whole) for key in METRICS]
        source = f"{', '.join(sorted({r['layout'] for r in own}))}, skad"
        source += ", --small: no result" if options.small else ""
        counts = f"{len(categories)}, {len(whole)}"
        lines.append(f"| {row.name} | {' | '.join(cells)} | {counts} | {source} |")
        if row.published:
            values = " | ".join(str(row.published.get(key, "")) for key in METRICS)
            source = f"MVTec AD, {row.source}"
            lines.append(f"| {row.name}, published | {values} | 15 | {source} |")
    return "\n".join(lines) + "\n"


def spread(key, seeds):
    """Mean over seeds of the means over categories, and its standard deviation."""
    means = [math.fsum(float(r[key]) for r in some) / len(some) for some in seeds]
    text = show(key, float(np.mean(means)) if means else math.nan)
    if len(means) < 2 or not text:
        return text
    return f"{text} ± {show(key, float(np.std(means, ddof=1)))}"


def show(key, value):
    """Percent with one digit, times as they are."""
    if math.isnan(value):
        return ""
    return f"{value:.1f}" if key in ("fit_s", "image_ms") else f"{100 * value:.1f}"


if __name__ == "__main__":
    main()

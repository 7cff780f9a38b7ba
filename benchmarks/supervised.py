"""PRN, which learns from ten defects of each of two types, beside PatchCore.

    python benchmarks/supervised.py

The types are the first two by name; all other defects are for the test, and so are all
normal test images. Both look through one frozen network and at the same images.
Types that were learned from and other types are reported apart.
"""

import time

import numpy as np
from harness import limit_threads, parser, publish, timing

from skad import PatchCoreDetector, PatchFeatures, Pipeline, PRNDetector
from skad.datasets import load_mvtec
from skad.metrics import image_auroc, pixel_metrics

BACKBONE = "mobilenetv2_100"
HEADER = ("test defects", "detector", "pixel AP", "PRO", "pixel AUROC", "image AUROC")
HEADER += ("fit takes",)


def sampled(defect_types, n_types, n, seed):
    """Indices of defects to learn from, and the names of their types."""
    rng = np.random.default_rng(seed)
    defect_types = np.asarray(defect_types)
    names = sorted(set(defect_types) - {"good"})[:n_types]
    chosen = [
        rng.choice(np.flatnonzero(defect_types == name), n, replace=False)
        for name in names
    ]
    return np.sort(np.concatenate(chosen)), names


def detectors(options):
    backbone = {"weights": options.weights, "backbone_kwargs": {"pad_type": "same"}}
    prn = PRNDetector(
        BACKBONE,
        **backbone,
        model="tiny",
        max_steps=options.max_steps,
        image_size=options.image_size,
        train_batch_size=options.batch_size,
        learning_rate=options.learning_rate,
        schedule="cosine",
        flips=True,
        random_state=options.seed,
        verbose=True,
    )
    patches = PatchFeatures(BACKBONE, layers="auto", embedding="concat", **backbone)
    # No threshold is looked at, so none is paid for.
    patchcore = Pipeline([patches, PatchCoreDetector(calibration="train")])
    return {"PRN": prn, "PatchCore": patchcore}


def main():
    arguments = parser(__doc__)
    arguments.add_argument("--category", default="magnetic_tile")
    arguments.add_argument(
        "--kinds", type=int, default=2, help="defect types to learn from"
    )
    arguments.add_argument("--defects", type=int, default=10, help="of each type")
    arguments.add_argument("--max-steps", type=int, default=1000)
    arguments.add_argument("--image-size", type=int, default=192)
    arguments.add_argument("--batch-size", type=int, default=16)
    arguments.add_argument("--learning-rate", type=float, default=1e-3)
    arguments.add_argument("--seed", type=int, default=0)
    options = arguments.parse_args()
    if not options.weights.is_file():
        raise SystemExit(f"{options.weights} does not exist; see --weights.")
    data = load_mvtec(options.data, options.category)
    normal, tested = data.train, np.arange(len(data.test))
    if options.small:
        options.defects, options.max_steps, options.image_size = 2, 2, 64
        normal = normal[:20]
        _, first = np.unique(data.defect_types, return_index=True)
        tested = np.concatenate([np.arange(i, i + 4) for i in first])
    limit_threads(options.threads)
    defect_types = np.asarray(data.defect_types)[tested]
    learned, seen_types = sampled(
        defect_types, options.kinds, options.defects, options.seed
    )
    defects = tested[learned]
    tested = np.delete(tested, learned)
    defect_types = np.delete(defect_types, learned)
    seen = [data.test[i] for i in defects]
    known = {
        "X": [*normal, *seen],
        "y": np.repeat([1, -1], [len(normal), len(seen)]),
        "masks": [None] * len(normal) + [data.masks[i] for i in defects],
    }
    test = [data.test[i] for i in tested]
    masks = [data.masks[i] for i in tested]
    is_normal, is_seen = defect_types == "good", np.isin(defect_types, seen_types)
    unseen_types = sorted(set(defect_types) - {"good", *seen_types})
    parts = {
        "all": np.ones(len(defect_types), bool),
        f"seen types ({', '.join(seen_types)})": is_normal | is_seen,
        f"unseen types ({', '.join(unseen_types)})": ~is_seen,
    }
    rows = {part: [] for part in parts}
    for name, model in detectors(options).items():
        start = time.perf_counter()
        model = model.fit(**known) if name == "PRN" else model.fit(normal)
        seconds = time.perf_counter() - start
        print(f"{name} is fitted after {timing(seconds)}.", flush=True)
        scores, maps = model.score_samples(test), model.anomaly_map(test)
        for part, chosen in parts.items():
            index = np.flatnonzero(chosen)
            found = pixel_metrics([masks[i] for i in index], [maps[i] for i in index])
            image = image_auroc(np.where(is_normal[index], 1, -1), scores[index])
            rows[part].append(
                [
                    f"{part}: {np.sum(~is_normal[index])}",
                    name,
                    *(
                        f"{found[key]:.3f}"
                        for key in (
                            "pixel_average_precision",
                            "pro_score",
                            "pixel_auroc",
                        )
                    ),
                    f"{image:.3f}",
                    timing(seconds) if part == "all" else "",
                ]
            )
    lines = [line for part in rows.values() for line in part]
    publish(options, "supervised", lines, HEADER)


if __name__ == "__main__":
    main()

"""Features with and without SPD's training on the normal images.

    python benchmarks/spd.py

With `--rates`, the learning rate is compared on training images that are held out, half
of them with a part pasted elsewhere by CutPaste's scar, and the test images are not
looked at.
"""

import time

import numpy as np
from harness import limit_threads, parser, publish, timing

from skad import PatchCoreDetector, PatchFeatures, SPDPatchFeatures
from skad.datasets import load_mvtec
from skad.images import read_image
from skad.metrics import image_auroc, pixel_metrics
from skad.pipeline import Pipeline
from skad.synthesis import cutpaste_scar

HEADER = ("case", "image AUROC", "pixel AP", "PRO", "training takes")


def features(cls, options, **more):
    return cls(
        "mobilenetv2_100",
        layers="auto",
        weights=options.weights,
        backbone_kwargs={"pad_type": "same"},
        embedding="concat",
        image_size=options.image_size,
        **more,
    )


def trained(options, seed, rate):
    return features(
        SPDPatchFeatures,
        options,
        base=options.base,
        max_steps=options.steps,
        train_batch_size=options.batch,
        learning_rate=rate,
        random_state=seed,
        verbose=True,
    )


def held_out(images, n=60):
    """Every so-many-th image for a test, each with a copy that is damaged."""
    chosen = np.linspace(0, len(images) - 1, min(n, len(images) // 3)).astype(int)
    train = [image for i, image in enumerate(images) if i not in set(chosen)]
    test, labels, masks = [], [], []
    for i in chosen:
        image = read_image(images[i])
        changed, mask = cutpaste_scar(image, np.random.default_rng(i))
        test += [image, (255 * changed).round().astype(np.uint8)]
        labels += [1, -1]
        masks += [np.zeros_like(mask), mask]
    return train, test, np.array(labels), masks


def line(case, model, train, test, labels, masks):
    start = time.perf_counter()
    model[0].fit(train)
    seconds = time.perf_counter() - start
    found = model[0].transform(train)
    model[1].fit(found)
    scores = model.score_samples(test)
    metrics = pixel_metrics(masks, model.anomaly_map(test))
    curve = getattr(model[0], "loss_curve_", None)
    took = timing(seconds)
    if curve is not None:
        tenth = max(1, len(curve) // 10)
        first, last = np.mean(curve[:tenth]), np.mean(curve[-tenth:])
        took += f", loss {first:.2f} to {last:.2f}"
    cells = [case, f"{image_auroc(labels, scores):.3f}"]
    cells += [
        f"{metrics['pixel_average_precision']:.3f}",
        f"{metrics['pro_score']:.3f}",
        took,
    ]
    print(cells, flush=True)
    return cells


def main():
    arguments = parser(__doc__)
    arguments.add_argument(
        "--sets", nargs="+", default=["mvtec_bottle_256", "magnetic_tile"]
    )
    arguments.add_argument("--base", default="simsiam")
    arguments.add_argument("--steps", type=int, default=200)
    arguments.add_argument("--batch", type=int, default=16)
    arguments.add_argument("--rate", type=float, default=1e-4)
    arguments.add_argument("--seeds", type=int, default=2)
    arguments.add_argument("--image-size", type=int, default=160)
    arguments.add_argument("--most", type=int, default=762, help="training images")
    arguments.add_argument("--rates", type=float, nargs="+", help="to choose from")
    options = arguments.parse_args()
    limit_threads(options.threads)
    if options.small:
        options.steps, options.batch, options.seeds = 2, 4, 1
        options.sets, options.most, options.image_size = options.sets[:1], 20, 64
    rows = []
    for name in options.sets:
        data = load_mvtec(options.data, name)
        train = data.train[:: -(-len(data.train) // options.most)]
        judged = (train, data.test, data.y_test, data.masks)
        runs = [(seed, options.rate) for seed in range(options.seeds)]
        if options.rates:
            judged, runs = held_out(train), [(0, rate) for rate in options.rates]
        plain = Pipeline([features(PatchFeatures, options), PatchCoreDetector()])
        rows.append(line(f"{name}, pretrained", plain, *judged))
        for seed, rate in runs:
            model = Pipeline([trained(options, seed, rate), PatchCoreDetector()])
            case = f"{name}, SPD ({options.base}), rate {rate:g}, seed {seed}"
            rows.append(line(case, model, *judged))
    publish(options, "spd", rows, HEADER)


if __name__ == "__main__":
    main()

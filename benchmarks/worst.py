"""Image scores by the worst patch, against a search of all patches.

    python benchmarks/worst.py

Each set's test images are scored one at a time, by banks of about 16,000 rows of
`skad_small`, or of the 1,024 channels of MobileNetV2. Both ways give the same bits,
which is checked. In "random", no patch is much worse than the others; of "known" ones,
all are rows of the bank, and none can be ruled out. The last rows are from
arrays of pixels: `predict` beside its features alone, `skad.inspect` with all of its
answers beside `anomaly_map` alone, and both beside the network on a batch that lies
ready.
"""

import numpy as np
from harness import (
    cost_row,
    limit_threads,
    network_of,
    parser,
    publish,
    race,
    row,
)
from PIL import Image

from skad import PatchCoreDetector, PatchFeatures, Pipeline, inspect
from skad.datasets import load_mvtec

SETS = {"bottles": "mvtec_bottle_256", "magnetic tiles": "magnetic_tile"}
N_ROWS = 16_000


def networks(options):
    small = PatchFeatures("skad_small", embedding="concat", image_size=224)
    large = PatchFeatures(
        "mobilenetv2_100",
        layers="auto",
        weights=options.weights,
        backbone_kwargs={"pad_type": "same"},
    )
    return {128: small, 1024: large}


def detector_of(X, n_rows):
    n_patches = X.shape[0] * X.shape[1] * X.shape[2]
    return PatchCoreDetector(min(0.99, n_rows / n_patches), calibration="train").fit(X)


def compare(case, detector, X, rounds, target):
    """Search of all patches of each image, and of the worst ones."""
    for _ in range(3):  # more is prepared once more has been looked up
        detector._score(X)

    def every():
        return np.concatenate([detector._score(X[i : i + 1])[0] for i in range(len(X))])

    def worst():
        return np.concatenate(
            [detector._image_scores(X[i : i + 1]) for i in range(len(X))]
        )

    seconds, scores = race({"worst": worst, "every": every}, rounds)
    np.testing.assert_array_equal(scores["worst"], scores["every"])
    ours, peer = (seconds[name] / len(X) for name in ("worst", "every"))
    return row(case, ours, "search of all patches", peer, target)


def from_pixels(features, detector, files, rounds):
    """A decision beside its features, and all answers beside the map alone."""
    images = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    model = Pipeline([features, detector])
    network = network_of(features, np.zeros((1, 3, 224, 224), np.float32))

    def each(function):
        return lambda: [function([image]) for image in images]

    racers = {
        "predict": each(model.predict),
        "features": each(features.transform),
        "inspect": each(lambda image: list(inspect(model, image))),
        "anomaly_map": each(model.anomaly_map),
        "network": lambda: [network() for _ in images],
    }
    seconds, _ = race(racers, rounds)
    per_image = {name: total / len(images) for name, total in seconds.items()}
    case = f"skad_small, {len(detector.bank_):,} rows"
    cases = (
        ("predict", "predict", "its features alone", "features", 1.5),
        ("predict", "predict", "bare network", "network", None),
        ("inspect", "inspect, all answers", "anomaly_map alone", "anomaly_map", 1.1),
        ("inspect", "inspect, all answers", "bare network", "network", None),
    )
    return [
        cost_row(f"{title}, {case}", per_image[name], peer, per_image[bare], at_most)
        for name, title, peer, bare, at_most in cases
    ]


def main():
    options = parser(__doc__).parse_args()
    limit_threads(options.threads)
    n_train, n_test, n_rows = (3, 3, 600) if options.small else (200, 40, N_ROWS)
    rows = []
    for title, name in SETS.items():
        if not (options.data / name).is_dir():
            print(f"{title} are not in {options.data}: left out.", flush=True)
            continue
        data = load_mvtec(options.data, name)
        test = data.test[:: max(1, len(data.test) // n_test)][:n_test]
        for d, features in networks(options).items():
            detector = detector_of(features.fit_transform(data.train[:n_train]), n_rows)
            X = np.asarray(features.transform(test))
            case = f"{title}, {len(detector.bank_):,} x {d}"
            rows.append(compare(case, detector, X, options.rounds, 6))
            if d == 128:
                last = features, detector, test
    rng = np.random.default_rng(0)
    for d in (128, 1024):
        X = rng.standard_normal((n_rows // 784 + 2, 28, 28, d), np.float32)
        detector = detector_of(X, n_rows)
        test = rng.standard_normal((3, 28, 28, d), np.float32)
        known = np.resize(detector.bank_[::-1], test.shape)  # the last rows selected
        for name, images in (("random", test), ("known", known)):
            case = f"{name}, {len(detector.bank_):,} x {d}"
            rows.append(compare(case, detector, images, options.rounds, 1 / 1.05))
    rows += from_pixels(*last, options.rounds)
    publish(options, "worst", rows)


if __name__ == "__main__":
    main()

"""Whether PCANet's filters add anything to the network that comes with skad.

    python benchmarks/fusion.py

Two PatchCores, one on each, and weighted sums of their image scores and of their maps,
standardised by what held-out good images score. Sets of `--data`, by `--sets`.
"""

import numpy as np
from harness import limit_threads, parser, publish

from skad import PatchCoreDetector, PatchFeatures, PCANetFeatures, Pipeline
from skad.datasets import load_mvtec
from skad.metrics import image_auroc, pixel_metrics

SHARES = (0.0, 0.25, 0.5, 1.0)  # of PCANet in the sum


def standardised(features, data):
    """Image scores and maps of the test images, in deviations of good ones."""
    model = Pipeline([features, PatchCoreDetector(0.01)]).fit(data.train)
    good, good_maps = model[-1].calibration_scores_, model[-1].calibration_maps_
    scores = (model.score_samples(data.test) - good.mean()) / good.std()
    maps = [
        (one - good_maps.mean()) / good_maps.std()
        for one in model.anomaly_map(data.test)
    ]
    return scores, maps


def measured(name, data):
    """Rows of the table for one set."""
    small = standardised(PatchFeatures("skad_small", embedding="concat"), data)
    pcanet = standardised(PCANetFeatures(), data)
    for share in SHARES:
        scores = (1 - share) * small[0] + share * pcanet[0]
        maps = [
            (1 - share) * a + share * b
            for a, b in zip(small[1], pcanet[1], strict=True)
        ]
        found = pixel_metrics(data.masks, maps)
        values = (image_auroc(data.y_test, scores), found["pixel_auroc"])
        cells = (f"{value:.3f}" for value in (*values, found["pro_score"]))
        yield [name, f"{share:.0%}", *cells]


def main():
    arguments = parser(__doc__)
    arguments.add_argument(
        "--sets", nargs="+", default=["mvtec_bottle_256", "magnetic_tile"]
    )
    options = arguments.parse_args()
    limit_threads(options.threads)
    rows = []
    for name in options.sets:
        data = load_mvtec(options.data, name)
        if options.small:
            kept = np.r_[0:8, len(data.test) - 8 : len(data.test)]
            data.train = data.train[:20]
            data.test = [data.test[i] for i in kept]
            data.masks = [data.masks[i] for i in kept]
            data.y_test = data.y_test[kept]
        rows += measured(name, data)
    header = ("set", "share of PCANet", "image AUROC", "pixel AUROC", "PRO")
    publish(options, "fusion", rows, header)


if __name__ == "__main__":
    main()

"""Whether PCANet's filters add anything to the network that comes with skad.

    python benchmarks/fusion.py

PatchCore on both, by the share that PCANet has in the distance: sets of `--data`, by
`--sets`, and the drawn textures of `make_textures`.
"""

import numpy as np
from harness import limit_threads, parser, publish

from skad import FusedFeatures, PatchCoreDetector, Pipeline
from skad.datasets import load_mvtec, make_textures
from skad.metrics import image_auroc, pixel_metrics

SHARES = (0.0, 0.25, 0.5, 1.0)  # of PCANet in the squared distance
TEXTURES = ("fabric", "metal", "granite")


def named(options, name):
    """One set; of drawn textures, other pictures than the quickstart's."""
    if name in TEXTURES:
        return make_textures(30, 40, texture=name, size=224, random_state=1)
    return load_mvtec(options.data, name)


def measured(name, data, fraction):
    """Rows of the table for one set."""
    for share in SHARES:
        model = Pipeline([FusedFeatures(share=share), PatchCoreDetector(fraction)])
        model.fit(data.train)
        found = pixel_metrics(data.masks, model.anomaly_map(data.test))
        auroc = image_auroc(data.y_test, model.score_samples(data.test))
        values = (auroc, found["pixel_auroc"], found["pro_score"])
        yield [name, f"{share:.0%}", *(f"{value:.3f}" for value in values)]


def main():
    arguments = parser(__doc__)
    arguments.add_argument(
        "--sets", nargs="+", default=[*TEXTURES, "mvtec_bottle_256", "magnetic_tile"]
    )
    options = arguments.parse_args()
    limit_threads(options.threads)
    rows = []
    for name in options.sets:
        data = named(options, name)
        if options.small:
            kept = np.r_[0:8, len(data.test) - 8 : len(data.test)]
            data.train = data.train[:20]
            data.test = [data.test[i] for i in kept]
            data.masks = [data.masks[i] for i in kept]
            data.y_test = data.y_test[kept]
        # A bank of one percent, but of no fewer than 30 images' tenth.
        rows += measured(name, data, 0.1 if len(data.train) <= 30 else 0.01)
    header = ("set", "share of PCANet", "image AUROC", "pixel AUROC", "PRO")
    publish(options, "fusion", rows, header)


if __name__ == "__main__":
    main()

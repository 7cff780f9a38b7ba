"""PCANet, and its fusion with skad_small, beside skad_small and its bare network.

    python benchmarks/pcanet.py --threads 1

CPU time, the least of several runs, so that other work on the machine counts for
little. Images are bottles; those to transform and to score are in memory, those to
learn from are files.
"""

import time

import numpy as np
import torch
from harness import cost_row, limit_threads, network_of, parser, publish, timing
from PIL import Image

from skad import (
    FusedFeatures,
    FusionDetector,
    PatchCoreDetector,
    PatchFeatures,
    PCANetFeatures,
    Pipeline,
)

SIZE, FIT_SIZE, BATCH = 256, 224, 16
MOST_SECONDS = 15  # of a fit


def cpu_time(run, rounds):
    """Least CPU seconds of some runs, after one that does not count."""
    run()
    seconds = []
    for _ in range(rounds):
        start = time.process_time()
        run()
        seconds.append(time.process_time() - start)
    return min(seconds)


def skad_small(size):
    return PatchFeatures("skad_small", embedding="concat", image_size=size)


def transforms(files, images, rounds):
    """One image, and a batch, through either features and the bare network."""
    small, filters = skad_small(SIZE).fit(files[:1]), PCANetFeatures(SIZE).fit(files)
    rows = []
    for some in (images[:1], images[:BATCH]):
        n = len(some)
        ours, theirs, bare = (
            cpu_time(run, rounds) / n
            for run in (
                lambda some=some: filters.transform(some),
                lambda some=some: small.transform(some),
                network_of(small, torch.rand(n, 3, SIZE, SIZE)),
            )
        )
        case = f"PCANet, {n} at once"
        rows.append(cost_row(case, ours, "skad_small", theirs, 2))
        rows.append(cost_row(case, ours, "bare network of skad_small", bare))
    return rows


def fusion(files, images, rounds):
    """A decision on one image from its pixels, beside its features and the network."""
    features = FusedFeatures(skad_small(SIZE))
    model = Pipeline([features, FusionDetector(PatchCoreDetector())]).fit(files)
    decision, alone, bare = (
        cpu_time(run, rounds)
        for run in (
            lambda: [model.predict(image[None]) for image in images],
            lambda: [model[0].transform(image[None]) for image in images],
            network_of(model[0].first_, torch.rand(1, 3, SIZE, SIZE)),
        )
    )
    n, case = len(images), "Fusion, predict"
    return [
        cost_row(case, decision / n, "its features", alone / n),
        cost_row(case, decision / n, "bare network of skad_small", bare),
    ]


def fit(files):
    start = time.process_time()
    PCANetFeatures(FIT_SIZE).fit_transform(files)
    seconds = time.process_time() - start
    missed = " (missed)" * (seconds > MOST_SECONDS)
    case = f"PCANet, fit_transform of {len(files)} images"
    return [[case, timing(seconds), f"<= {MOST_SECONDS} s{missed}"]]


def main():
    options = parser(__doc__).parse_args()
    folder = options.data / "mvtec_bottle_256"
    files = sorted((folder / "train" / "good").glob("*"))[: 6 if options.small else 100]
    tested = sorted((folder / "test").glob("*/*"))
    tested = tested[:: max(1, len(tested) // BATCH)][: 2 if options.small else BATCH]
    images = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in tested])
    limit_threads(options.threads)
    rows = fit(files)
    header = ("case", "CPU time", "target")
    publish(options, "pcanet fit", rows, header)
    rows = transforms(files, images, options.rounds)
    rows += fusion(files, images, options.rounds)
    header = ("case", "skad", "peer", "its time", "cost", "target")
    publish(options, "pcanet", rows, header)


if __name__ == "__main__":
    main()

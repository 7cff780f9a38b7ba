"""Defects among the normal images: what they cost, and what leaving out suspects gains.

    python benchmarks/contamination.py --write

Bottles and magnetic tiles of `--data`, features of `skad_small` at 112 px. Of the
images to learn from, a share is defects, sampled from those of the set; all other
defects and the normal test images are tested. Each row is the mean of the repetitions.
"""

import warnings

import numpy as np
from harness import limit_threads, parser, publish
from sklearn.base import clone
from sklearn.metrics import roc_auc_score

from skad import PatchCoreDetector, PatchFeatures, SubspaceDetector
from skad.datasets import load_mvtec
from skad.inspection import suspects

SIZE, SHARES, MOST = 112, (0.0, 0.02, 0.05, 0.1), 200
SETS = {"bottle": "mvtec_bottle_256", "magnetic tile": "magnetic_tile"}
DETECTORS = {
    "PatchCore": PatchCoreDetector(coreset_ratio=0.01),
    "Subspace": SubspaceDetector(),
}
FITS = ("as it is", "flagged left out", "worst left out", "no defects")
HEADER = ("set", "detector", "defects mixed in", "flagged: defects", "flagged: normal")
HEADER += ("defects among the worst",)
HEADER += tuple(f"{fit}: found" for fit in FITS)
HEADER += tuple(f"{fit}: AUROC" for fit in FITS)


def features_of(options, name):
    """Patch features of the images to learn from, normal test images, and defects."""
    data = load_mvtec(options.data, name)
    test = np.asarray(data.test, object)
    features = PatchFeatures("skad_small", embedding="concat", image_size=SIZE)
    parts = data.train, test[data.y_test == 1], test[data.y_test == -1]
    return [np.asarray(features.fit_transform(list(part))) for part in parts]


def judged(detector, X, y, normal, bad):
    """Share of the defects found, and image AUROC, of a detector fitted on X and y."""
    model = clone(detector).fit(X, y)
    scores = model.score_samples(np.concatenate([normal, bad]))
    labels = np.repeat([1, 0], [len(normal), len(bad)])
    found = np.mean(scores[len(normal) :] < model.offset_)
    return (found, roc_auc_score(labels, scores)), model


def one(detector, parts, share, seed):
    """Flagged defects and normal images, defects among the worst, and four fits."""
    train, normal, bad = parts
    rng = np.random.default_rng([seed, round(1000 * share)])
    n_bad = round(share * min(len(train), MOST))
    clean = train[rng.permutation(len(train))[: min(len(train), MOST) - n_bad]]
    order = rng.permutation(len(bad))
    X = np.concatenate([clean, bad[order[:n_bad]]])
    is_bad = np.arange(len(X)) >= len(clean)
    tested = normal, bad[order[n_bad:]]
    before, model = judged(detector, X, None, *tested)
    list_ = suspects(model, X)
    flagged = list_.indices[list_.flagged]
    worst = list_.indices[: 2 * n_bad]
    # The person who looks at the worst recognises the defects among them.
    seen = worst[is_bad[worst]]
    fits = [before]
    for left_out in (flagged, seen, np.flatnonzero(is_bad)):
        y = np.ones(len(X), int)
        y[left_out] = -1
        fits.append(
            before if len(left_out) == 0 else judged(detector, X, y, *tested)[0]
        )
    counts = is_bad[flagged].sum(), (~is_bad[flagged]).sum(), len(seen), n_bad
    return np.array(counts), np.array(fits)


def main():
    command = parser(__doc__)
    command.add_argument("--repetitions", type=int, default=10)
    options = command.parse_args()
    limit_threads(options.threads)
    warnings.simplefilter("ignore")  # of outliers, and of few images
    repetitions, shares = options.repetitions, SHARES
    if options.small:
        repetitions, shares = 1, (0.0, 0.1)
    rows = []
    for title, name in SETS.items():
        parts = features_of(options, name)
        print(f"features of {title} are done", flush=True)
        for method, detector in DETECTORS.items():
            for share in shares:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of outliers, and of few images
                    results = [
                        one(detector, parts, share, r) for r in range(repetitions)
                    ]
                rows.append(_row(title, method, share, results))
                print(rows[-1], flush=True)
    publish(options, "contamination", rows, HEADER)


def _row(title, method, share, results):
    counts = np.mean([counts for counts, _ in results], axis=0)
    found, auroc = np.mean([fits for _, fits in results], axis=0).T
    n_bad = counts[3]
    of_bad = [f"{count:.1f} of {n_bad:.0f}" if n_bad else "" for count in counts[:3]]
    return (
        title,
        method,
        f"{share:.0%}",
        of_bad[0],
        f"{counts[1]:.1f}",
        of_bad[2],
        *(f"{value:.0%}" for value in found),
        *(f"{value:.3f}" for value in auroc),
    )


if __name__ == "__main__":
    main()

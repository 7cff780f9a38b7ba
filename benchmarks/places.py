"""Detectors on magnetic tiles of which they have, and have not, seen the place before.

    python benchmarks/places.py

A place was photographed at up to six exposures, told by the number in the file's name.
The split of the folder puts photographs of one place into both parts; the folds keep
places whole. The defects tested are all, in every row.
"""

import re
import time

import numpy as np
from harness import limit_threads, parser, publish, real_features, timing
from sklearn.base import clone
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold

from skad import PatchCoreDetector, SimpleNetDetector, SubspaceDetector
from skad.datasets import load_mvtec

# Scores are compared, no threshold is looked at, so none is paid for.
DETECTORS = {
    "PatchCore": PatchCoreDetector(calibration="train"),
    "SimpleNet": SimpleNetDetector(5, calibration="train"),
    "SimpleNet, whitened": SimpleNetDetector(
        40,
        hidden_dim=512,
        n_hidden_layers=3,
        whiten=True,
        noise_std=0.055,
        loss="cross_entropy",
        learning_rate=1e-3,
        schedule="cosine",
        train_batch_size=8,
        calibration="train",
    ),
    "Subspace": SubspaceDetector(calibration="train"),
}
# Numbers of one place lie close together, those of two places do not.
GAP = 200


def places(paths):
    """Number of the place of each photograph, in the order given."""
    names = [re.fullmatch(r"exp(\d)_num_(\d+)", path.stem) for path in paths]
    if None in names:
        raise SystemExit(f"{paths[names.index(None)]} is not named exp<N>_num_<N>.")
    numbers = np.array([int(name[2]) for name in names])
    order = np.argsort(numbers, kind="stable")
    starts = np.diff(numbers[order], prepend=numbers[order[0]]) > GAP
    result = np.empty(len(paths), int)
    result[order] = np.cumsum(starts)
    return result


def main():
    options = parser(__doc__).parse_args()
    data = load_mvtec(options.data, "magnetic_tile")
    test = np.asarray(data.test, object)
    normal = [*data.train, *test[data.y_test == 1]]
    bad = list(test[data.y_test == -1])
    trained = np.arange(len(normal)) < len(data.train)
    if options.small:
        some = np.r_[: len(normal) : len(normal) // 40]
        normal, trained = [normal[i] for i in some], trained[some]
        bad = bad[:: len(bad) // 6]
    limit_threads(options.threads)
    X = real_features(
        options,
        [*normal, *bad],
        embedding="concat",
        grid=7 if options.small else 14,
        pooled=True,
    )
    defects, X = X[len(normal) :], X[: len(normal)]
    groups = places(normal)
    folds = GroupKFold(5, shuffle=True, random_state=0).split(X, groups=groups)
    splits = {"of the folder": (np.flatnonzero(trained), np.flatnonzero(~trained))}
    splits |= {f"fold {i}": fold for i, fold in enumerate(folds, 1)}
    table = []
    for name, (train, test) in splits.items():
        y = np.repeat([0, 1], [len(test), len(defects)])
        found = []
        for label, detector in DETECTORS.items():
            if options.small and hasattr(detector, "max_epochs"):
                detector = clone(detector).set_params(max_epochs=1)
            start = time.perf_counter()
            detector.fit(X[train])
            scores = [detector.score_samples(part) for part in (X[test], defects)]
            found.append(roc_auc_score(y, -np.concatenate(scores)))
            seconds = timing(time.perf_counter() - start)
            print(f"{name}, {label}: {found[-1]:.3f} in {seconds}", flush=True)
        shared = np.isin(groups[test], groups[train]).sum()
        table.append((name, f"{shared} of {len(test)}", *found))
    means = np.mean([line[2:] for line in table[1:]], axis=0)
    table.append(("mean of the folds", "", *means))
    rows = [(*line[:2], *(f"{auc:.3f}" for auc in line[2:])) for line in table]
    header = ("split", "normal test images of a place seen", *DETECTORS)
    publish(options, "places", rows, header)


if __name__ == "__main__":
    main()

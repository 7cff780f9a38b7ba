"""Greedy coreset: the same rows as the plain loop, in a fraction of its time.

    python benchmarks/coreset.py

compares `skad.neighbors.greedy_coreset` with the plain loop, anomalib's
``KCenterGreedy``, and the approximate sampler of the official PatchCore code as its
paper's repository describes it (own implementation). ``--large`` adds a million rows.
"""

import numpy as np
from harness import (
    limit_threads,
    optional,
    parser,
    peak_memory,
    photographs,
    publish,
    race,
    real_features,
    row,
    timing,
)

from skad.neighbors import greedy_coreset


def plain(X, n_samples):
    """Farthest-first with one matrix-vector product per selected row."""
    norms = np.einsum("ij,ij->i", X, X)
    bound = np.full(len(X), np.inf, np.float32)
    picked = [0]
    while len(picked) < n_samples:
        last = picked[-1]
        np.minimum(bound, norms - 2 * (X @ X[last]) + norms[last], out=bound)
        bound[last] = 0
        picked.append(int(bound.argmax()))
    return np.array(picked)


def textbook(X, n_samples):
    """Farthest-first as it is written down: all differences, after every pick."""
    bound = np.full(len(X), np.inf, np.float32)
    picked = [0]
    while len(picked) < n_samples:
        np.minimum(bound, ((X - X[picked[-1]]) ** 2).sum(axis=1), out=bound)
        picked.append(int(bound.argmax()))
    return np.array(picked)


def approximate(X, n_samples, n_dims=128, n_starts=10):
    """Farthest-first in a random projection, from ten rows at once.

    The sampler that the official code uses: distances to ten random rows are averaged
    at the outset, and every pick costs one pass over the projected rows.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    weight = torch.empty(n_dims, X.shape[1])
    weight.uniform_(-(X.shape[1] ** -0.5), X.shape[1] ** -0.5, generator=generator)
    rows = torch.from_numpy(X) @ weight.T
    norms = (rows**2).sum(dim=1, keepdim=True)

    def distances(centres):
        squared = norms - 2 * rows @ centres.T + (centres**2).sum(dim=1)
        return squared.clamp_(min=0).sqrt_()

    starts = torch.randperm(len(rows), generator=generator)[:n_starts]
    nearest = distances(rows[starts]).mean(dim=1, keepdim=True)
    picked = []
    for _ in range(n_samples):
        picked.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, distances(rows[picked[-1:]]))
    return np.array(picked)


def contestants(X, n_samples, names):
    def k_centre_greedy():
        import torch
        from anomalib.models.components.sampling import KCenterGreedy

        rows = torch.from_numpy(X)
        return KCenterGreedy(rows, n_samples / len(X)).select_coreset_idxs()

    known = {
        "plain loop": lambda: plain(X, n_samples),
        "textbook loop": lambda: textbook(X, n_samples),
        "anomalib KCenterGreedy": k_centre_greedy,
        "patchcore-inspection's": lambda: approximate(X, n_samples),
    }
    if optional("anomalib") is None:
        del known["anomalib KCenterGreedy"]
    return {name: known[name] for name in names if name in known}


def compare(options, case, X, n_samples, targets):
    """Rows of the table for one case, and whether the plain loop agrees."""
    peers = contestants(X, n_samples, targets)
    racers = {"skad": lambda: greedy_coreset(X, n_samples), **peers}
    limit_threads(options.threads)
    seconds, results = race(racers, options.rounds)
    for name in {"plain loop", "textbook loop"} & set(results):
        same = np.mean(results["skad"] == results[name])
        print(f"{case}: {same:.2%} of the picks are the {name}'s", flush=True)
    return [
        row(case, seconds["skad"], name, seconds[name], targets[name]) for name in peers
    ]


def memory(n, d, n_samples):
    """Memory beside the input, as a share of it.

    Each BLAS, NumPy's and that of torch, keeps some megabytes from its first large
    products on, whoever asks for them: they are there before.
    """
    make = (
        "import numpy as np; from skad.neighbors import greedy_coreset\n"
        "some = np.ones((1000, 400), 'f'); some @ some.T\n"
        "from skad._matrices import product; product(some, some.T)\n"
        "some = some.astype('d'); some @ some.T; product(some, some.T); del some\n"
        "greedy_coreset(np.eye(3, dtype='f'), 2)\n"
        f"X = np.random.default_rng(0).standard_normal(({n}, {d}), np.float32)\n"
    )
    before = peak_memory(make)
    return (peak_memory(make + f"greedy_coreset(X, {n_samples})") - before) / (
        4 * n * d
    )


def main():
    arguments = parser(__doc__)
    arguments.add_argument(
        "--large", action="store_true", help="a million rows of 512, to one percent"
    )
    options = arguments.parse_args()
    size = 0.02 if options.small else 1
    rng = np.random.default_rng(0)
    rows = []
    images = photographs(options)[: 4 if options.small else 150]
    features = real_features(options, images, embedding="concat")
    X = np.ascontiguousarray(features.reshape(-1, features.shape[-1]))
    some = X[: int(50_000 * size)]
    case = f"real, {len(some):,} x {X.shape[1]} to 10 %"
    targets = {"plain loop": 40, "textbook loop": None}
    targets |= {"anomalib KCenterGreedy": 60, "patchcore-inspection's": None}
    rows += compare(options, case, some, len(some) // 10, targets)
    case = f"real, {len(X):,} x {X.shape[1]} to 10 %"
    rows += compare(options, case, X, len(X) // 10, {"plain loop": 40})
    for n, d in ((50_000, 384), (100_000, 1024)):
        X = rng.standard_normal((int(n * size), d), np.float32)
        targets = {"anomalib KCenterGreedy": 10, "patchcore-inspection's": 3}
        case = f"random, {len(X):,} x {d} to 1 %"
        rows += compare(options, case, X, len(X) // 100, targets)
        share = memory(*X.shape, len(X) // 100)
        rows.append(
            [case, f"{share:.1%}", "memory beside the input", "", "", "<= 15 %"]
        )
    if options.large:
        n = int(1_000_000 * size)
        X = rng.standard_normal((n, 512), np.float32)
        limit_threads(options.threads)
        seconds, _ = race(
            {"skad": lambda: greedy_coreset(X, n // 100, verbose=True)}, 1
        )
        case = f"random, {n:,} x 512 to 1 %"
        rows.append([case, timing(seconds["skad"]), "", "", "", "minutes"])
    publish(options, "coreset", rows)


if __name__ == "__main__":
    main()

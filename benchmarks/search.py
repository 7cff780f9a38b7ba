"""Exact nearest neighbours: the rows of a matrix product, without most of it.

    python benchmarks/search.py

looks up the 784 patches of a photograph in banks of 16,384 rows, as scoring an image
does, and compares with faiss, anomalib, and one blocked matrix product in NumPy. The
bank has been searched by 40 images before, as in a fitted detector; "prepared anew"
counts what a first search prepares as well.
"""

import numpy as np
from harness import (
    limit_threads,
    optional,
    parser,
    photographs,
    publish,
    race,
    real_features,
    row,
)

from skad.neighbors import nearest
from skad.neighbors._nearest import Bank


def blocked_product(queries, bank, norms, block=4096):
    """Nearest rows by products that stay in the cache; norms are known."""
    best = np.full(len(queries), np.inf, np.float32)
    index = np.zeros(len(queries), np.intp)
    for lo in range(0, len(bank), block):
        product = queries @ bank[lo : lo + block].T
        product *= -2
        product += norms[lo : lo + block]
        column = product.argmin(axis=1)
        value = product[np.arange(len(queries)), column]
        better = value < best
        best[better], index[better] = value[better], column[better] + lo
    return index


def contestants(queries, bank, k):
    ours = Bank(bank)
    for _ in range(40):  # more is prepared once more has been looked up
        ours.search(queries, k)
    racers = {"skad": lambda: ours.search(queries, k)[1][:, 0]}
    if k == 1:
        racers["skad, prepared anew"] = lambda: nearest(queries, bank)[1]
        norms = np.einsum("ij,ij->i", bank, bank)
        racers["blocked product"] = lambda: blocked_product(queries, bank, norms)
    faiss = optional("faiss")
    if faiss is not None:
        index = faiss.IndexFlatL2(bank.shape[1])
        index.add(bank)
        racers["faiss IndexFlatL2"] = lambda: index.search(queries, k)[1][:, 0]
    if optional("anomalib") is not None:
        import torch
        from anomalib.models.image.patchcore.torch_model import PatchcoreModel

        model = PatchcoreModel(
            layers=("layer1",), backbone="resnet18", pre_trained=False
        )
        model.memory_bank = torch.from_numpy(bank)
        asked = torch.from_numpy(queries)

        def anomalib_search():
            with torch.inference_mode():
                return model.nearest_neighbors(asked, k)[1].numpy().reshape(-1, k)[:, 0]

        racers["anomalib"] = anomalib_search
    return racers


def compare(options, case, queries, bank, targets, k=1):
    racers = contestants(queries, bank, k)
    limit_threads(options.threads)
    seconds, found = race(racers, 3 * options.rounds)
    for name in racers:
        same = np.mean(found[name] == found["skad"])
        print(f"{case}: {name} finds {same:.2%} of skad's rows", flush=True)
    return [
        row(case, seconds["skad"], name, seconds[name], targets.get(name))
        for name in racers
        if name != "skad"
    ]


def bank_and_queries(features, n_rows):
    """Rows spread over all images but the last, whose patches are the queries."""
    flat = features[:-1].reshape(-1, features.shape[-1])
    step = np.linspace(0, len(flat) - 1, n_rows).astype(np.intp)
    queries = features[-1].reshape(-1, features.shape[-1])
    return np.ascontiguousarray(queries), flat[step]


def main():
    options = parser(__doc__).parse_args()
    n_images, n_rows, side = (3, 256, 448) if options.small else (65, 16_384, 896)
    targets = {
        "blocked product": 1 / 1.05, "faiss IndexFlatL2": 1.5, "anomalib": 2.5
    }  # fmt: skip
    layers = {
        128: {"embedding": "concat"},
        1024: {},
        1280: {"embedding": "concat", "layers": ("bn2",), "image_size": side},
    }
    images, rows = photographs(options)[:n_images], []
    for d, parameters in layers.items():
        queries, bank = bank_and_queries(
            real_features(options, images, **parameters), n_rows
        )
        case = f"real, {len(queries)} x {len(bank):,} x {d}"
        rows += compare(options, case, queries, bank, targets)
        if d == 1024:
            rows += compare(options, f"{case}, k = 9", queries, bank, targets, k=9)
    rng = np.random.default_rng(0)
    for d in (128, 1024):
        bank = rng.standard_normal((n_rows, d), np.float32)
        queries = rng.standard_normal((784, d), np.float32)
        case = f"random, {len(queries)} x {len(bank):,} x {d}"
        some = {"blocked product": targets["blocked product"]}
        rows += compare(options, case, queries, bank, some)
    publish(options, "search", rows)


if __name__ == "__main__":
    main()

"""Cost against the size of the bank and the number of images, on log-log axes.

    python benchmarks/scaling.py

draws ``docs/_static/scaling.png`` and writes ``docs/scaling.csv``. Features are real
ones of 1,024 dimensions; the slope is that of the straight line through the points: 1
means twice the time for twice the size.

    python benchmarks/scaling.py --large

compares searches in banks of 1,000 to a million rows of 128 dimensions with the exact
and the HNSW index of faiss: time for 784 patches, memory beside the rows (faiss copies
them), the share of the nearest rows that are found, and the slopes. HNSW searches
widely enough to find 99 %. The command draws ``docs/_static/large_banks.png`` and
writes ``docs/large_banks.csv``. With ``--folder``, what was measured is kept there bank
by bank, and not measured again.
"""

import csv
from pathlib import Path

import numpy as np
from harness import (
    limit_threads,
    optional,
    parser,
    photographs,
    publish,
    race,
    real_features,
    timing,
)

from skad import PatchFeatures
from skad.metrics import pro_score
from skad.neighbors import greedy_coreset
from skad.neighbors._nearest import _PREPARED, Bank
from skad.neighbors._worst import search_worst

DOCS = Path(__file__).resolve().parents[1] / "docs"
LARGE_COLUMNS = ("Rows", "Search", "Seconds", "Bytes", "Found")


def search_times(options, features, sizes):
    """Seconds to search all patches of one image, by rows of the bank."""
    rows, queries = features[:-1], features[-1]
    rows = rows.reshape(-1, rows.shape[-1])
    queries = np.ascontiguousarray(queries.reshape(-1, rows.shape[-1]))
    racers = {}
    for size in sizes:
        step = np.linspace(0, len(rows) - 1, size).astype(np.intp)
        bank = Bank(rows[step])
        for _ in range(40):
            bank.search(queries)
        racers[size] = lambda bank=bank: bank.search(queries)
    return seconds_of(options, racers)


def coreset_times(options, features, sizes):
    """Seconds to keep a tenth of the patches, by number of images."""
    n = features[0].size // features.shape[-1]
    rows = features.reshape(-1, features.shape[-1])
    racers = {
        size: lambda size=size: greedy_coreset(rows[: size * n], size * n // 10)
        for size in sizes
    }
    return seconds_of(options, racers)


def pro_times(options, sizes, side=256):
    """Seconds of PRO, by number of images."""
    rng = np.random.default_rng(0)
    maps = rng.random((max(sizes), side, side), np.float32)
    masks = np.zeros(maps.shape, bool)
    masks[::2, 100:130, 50:90] = True
    racers = {
        size: lambda size=size: pro_score(masks[:size], maps[:size]) for size in sizes
    }
    return seconds_of(options, racers)


def seconds_of(options, racers):
    limit_threads(options.threads)
    return race(racers, options.rounds)[0]


def slope(seconds):
    """Of the straight line through the points, on log-log axes."""
    x, y = np.log(list(seconds)), np.log(list(seconds.values()))
    return float(np.polyfit(x, y, 1)[0])


def prepared_bytes(bank):
    """Memory of what a bank keeps beside its rows."""
    kept = {id(value): value for value in vars(_PREPARED[bank][2]).values()}
    return sum(getattr(value, "nbytes", 0) for value in kept.values())


def hnsw(faiss, rows, queries, nearest):
    """HNSW index of faiss that finds 99 % of the nearest rows, or searches 1,024."""
    index = faiss.IndexHNSWFlat(rows.shape[1], 16)
    index.add(rows)
    index.hnsw.efSearch = 16
    while index.hnsw.efSearch < 1024:
        if np.mean(index.search(queries, 1)[1][:, 0] == nearest) >= 0.99:
            break
        index.hnsw.efSearch *= 2
    return index


def index_bytes(index, rows):
    """Memory of an index of faiss: a copy of the rows, and the edges of a graph."""
    graph = getattr(index, "hnsw", None)
    if graph is None:
        return rows.nbytes
    return rows.nbytes + 4 * graph.neighbors.size() + 8 * graph.offsets.size()


def searches(rows, queries):
    """By name, a search that gives the nearest rows, and its memory in bytes."""
    bank, one_image = Bank(rows), np.zeros(len(queries), np.intp)
    for _ in range(10):
        nearest = bank.search(queries)[1][:, 0]
    prepared = prepared_bytes(bank)

    def worst():
        found = search_worst(
            bank, queries, one_image, np.ones(1, np.intp), 1, np.sqrt, in_order=False
        )
        return np.where(found[0] > 0, found[1], nearest[:, None])[:, 0]

    found = {
        "skad, all patches": (lambda: bank.search(queries)[1][:, 0], prepared),
        "skad, worst patch": (worst, prepared),
    }
    faiss = optional("faiss")
    if faiss is not None:
        flat = faiss.IndexFlatL2(rows.shape[1])
        flat.add(rows)
        graph = hnsw(faiss, rows, queries, nearest)
        for name, index in (("exact", flat), ("HNSW", graph)):
            found[f"faiss, {name}"] = (
                lambda index=index: index.search(queries, 1)[1][:, 0],
                index_bytes(index, rows),
            )
    return found, nearest


def large_bank(options, size, rows, queries):
    """Lines of `LARGE_COLUMNS` for a bank of so many rows."""
    step = np.linspace(0, len(rows) - 1, size).astype(np.intp)
    limit_threads(options.threads)
    found, nearest = searches(rows[step], queries)
    runs = {name: search for name, (search, _) in found.items()}
    seconds, results = race(runs, options.rounds)
    return [
        (size, name, seconds[name], memory, float(np.mean(results[name] == nearest)))
        for name, (_, memory) in found.items()
    ]


def large_banks(options):
    """The same for all sizes: those in the folder, and the others measured."""
    sizes = [2000, 4000] if options.small else [1000, 10_000, 100_000, 1_000_000]
    files = {}
    if options.folder is not None:
        options.folder.mkdir(parents=True, exist_ok=True)
        files = {size: options.folder / f"large_banks_{size}.csv" for size in sizes}
    lines, missing = [], [size for size in sizes if not is_file(files.get(size))]
    if missing:
        features = PatchFeatures("skad_small", embedding="concat", image_size=448)
        images = photographs(options)[: sizes[-1] // 3136 + 2]
        X = features.fit_transform(images)
        rows = X[:-1].reshape(-1, X.shape[-1])
        queries = np.ascontiguousarray(X[-1].reshape(-1, X.shape[-1])[::4])
    for size in sizes:
        if size not in missing:
            with files[size].open(newline="") as file:
                kinds = int, str, float, int, float
                _, *kept = csv.reader(file)
            lines += [
                tuple(kind(cell) for kind, cell in zip(kinds, line, strict=True))
                for line in kept
            ]
            continue
        print(f"{size:,} rows", flush=True)
        measured = large_bank(options, size, rows, queries)
        lines += measured
        if files:
            write_csv(files[size], LARGE_COLUMNS, measured)
    return lines


def is_file(path):
    return path is not None and path.is_file()


def curves_of(lines, column):
    """By search, the values of a column of `large_banks` by the number of rows."""
    curves = {}
    for line in lines:
        curves.setdefault(line[1], {})[line[0]] = line[column]
    return curves


def large_table(lines):
    """Cells of the record; the last lines hold the slopes."""
    seconds = curves_of(lines, 2)
    last = max(line[0] for line in lines)
    return [
        [
            f"{size:,}",
            name,
            timing(time),
            f"{memory / 1e6:.3g} MB",
            f"{share:.1%}",
            f"{slope(seconds[name]):.2f}" if size == last else "",
        ]
        for size, name, time, memory, share in lines
    ]


def draw_large(lines, path):
    """Time per image and memory by the rows of the bank, with slopes."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    scales = (2, 1e3, "milliseconds for 784 patches"), (3, 1e-6, "MB beside the rows")
    for axis, (column, scale, label) in zip(axes, scales, strict=True):
        for i, (name, curve) in enumerate(curves_of(lines, column).items()):
            if column == 3 and name == "skad, worst patch":
                continue  # it uses the same
            name = "skad" if column == 3 and i == 0 else name
            axis.loglog(
                list(curve),
                [scale * value for value in curve.values()],
                "o-",
                color=f"C{i}",
                ms=4,
                label=f"{name} (slope {slope(curve):.2f})",
            )
        axis.set(xlabel="rows of the bank", ylabel=label)
        axis.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def write_csv(path, header, lines):
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(header)
        writer.writerows(lines)


def main():
    arguments = parser(__doc__)
    arguments.add_argument("--large", action="store_true", help="banks of faiss's size")
    arguments.add_argument("--folder", type=Path, help="results of --large, to resume")
    options = arguments.parse_args()
    small = options.small
    if options.large:
        header = ("rows", "search", "784 patches", "memory", "found", "slope")
        lines = large_banks(options)
        table = large_table(lines)
        if not small:
            titles = ("Rows", "Search", "784 patches", "Memory", "Found", "Slope")
            write_csv(DOCS / "large_banks.csv", titles, table)
            draw_large(lines, DOCS / "_static" / "large_banks.png")
        elif options.folder is not None:
            draw_large(lines, options.folder / "large_banks.png")
        publish(options, "large banks", table, header)
        return
    sizes = [2, 4] if small else [8, 16, 32, 64, 128]
    banks = [256, 512] if small else [1024, 2048, 4096, 8192, 16_384, 32_768, 65_536]
    images = photographs(options)[: sizes[-1] + 1]
    features = real_features(options, images)
    curves = {
        ("all patches of an image", "rows of the bank"): search_times(
            options, features, banks
        ),
        ("coreset of a tenth", "images"): coreset_times(options, features, sizes),
        ("PRO", "images"): pro_times(options, [4, 8] if small else [16, 64, 256]),
    }
    lines = [
        (what, unit, size, f"{seconds:.4f}", f"{slope(curve):.2f}")
        for (what, unit), curve in curves.items()
        for size, seconds in curve.items()
    ]
    for line in lines:
        print("|", " | ".join(map(str, line)), "|")
    if small:
        return
    header = ("What", "Size in", "Size", "Seconds", "Slope")
    write_csv(DOCS / "scaling.csv", header, lines)
    draw(curves)


def draw(curves):
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(curves), figsize=(9, 3), layout="constrained")
    for axis, ((what, unit), curve) in zip(axes, curves.items(), strict=True):
        x = np.array(list(curve), float)
        fit = np.exp(np.polyval(np.polyfit(np.log(x), np.log(list(curve.values())), 1),
                                np.log(x)))  # fmt: skip
        axis.loglog(x, fit, color="0.75", lw=4, solid_capstyle="round")
        axis.loglog(x, list(curve.values()), "o", color="C0", ms=5)
        axis.set(title=what, xlabel=unit)
        axis.text(0.06, 0.9, f"slope {slope(curve):.2f}", transform=axis.transAxes)
        axis.minorticks_off()
        axis.set_xticks(
            x[:: 1 + len(x) // 4], [f"{v:,.0f}" for v in x[:: 1 + len(x) // 4]]
        )
    axes[0].set_ylabel("seconds")
    figure.savefig(DOCS / "_static" / "scaling.png", dpi=110)


if __name__ == "__main__":
    main()

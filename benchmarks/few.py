"""Few images: false alarms, defects found and AUROC, with and without augmented views.

    python benchmarks/few.py --write

Bottles and magnetic tiles of `--data`, and monocrystalline solar cells of the package
elpv-dataset where it is installed (extra `real`), with features of `skad_small` at
112 px. A draw takes n normal images to learn from; up to 100 others and up to 100
defects are tested. Then: bottles shifted by 8 px, one model for three products with one
threshold and with one of each product, and batches without any normal image. `--folder`
keeps what each draw gave, and goes on from there.
"""

import csv
import json
import warnings
from itertools import product
from pathlib import Path

import numpy as np
from harness import limit_threads, optional, parser, publish
from sklearn.base import clone
from sklearn.metrics import roc_auc_score

from skad import (
    PaDiMDetector,
    PatchCoreDetector,
    PatchFeatures,
    Pipeline,
    SubspaceDetector,
)
from skad.calibration import ThresholdPerGroup
from skad.datasets import load_elpv, load_mvtec
from skad.images import read_image
from skad.inspection import suspects
from skad.synthesis import AugmentedViews

SIZE, MOST = 112, 100  # pixels, images tested of each kind
SHIFT = 8  # pixels of 256
FEATURES = PatchFeatures("skad_small", embedding="concat", image_size=SIZE)
DETECTORS = {
    "PatchCore": PatchCoreDetector(bank_size=2000),
    "PaDiM": PaDiMDetector(calibration_size=1000),
    "Subspace": SubspaceDetector(),
}
SMALL = AugmentedViews()  # its defaults: 3 degrees, 3 % of the sides, 10 % brightness
# What does not matter on these images: the direction of a bottle, of a tile, of a cell.
CHOSEN = {
    "bottle": clone(SMALL).set_params(rotation=180),
    "magnetic tile": clone(SMALL).set_params(flip="both"),
    "solar cell": clone(SMALL).set_params(flip="both"),
}
SHOT_HEADER = ("set", "detector", "images", "views", "draws")
SHOT_HEADER += ("AUROC", "found", "false alarms")


class Product:
    """Images of one product and their features.

    Parameters
    ----------
    normal, bad : list of images
    """

    def __init__(self, name, normal, bad, small):
        rng = np.random.default_rng(0)
        n_normal, n_bad = (24, 6) if small else (400, MOST)
        self.name = name
        self.normal = [normal[i] for i in rng.permutation(len(normal))[:n_normal]]
        self.bad = [bad[i] for i in rng.permutation(len(bad))[:n_bad]]
        self.X = np.asarray(FEATURES.fit_transform([*self.normal, *self.bad]))

    def draw(self, n, seed):
        """Positions of n normal images to learn from, and of others to test."""
        order = np.random.default_rng([seed, n]).permutation(len(self.normal))
        return order[:n], order[n : n + MOST]

    @property
    def X_bad(self):
        return self.X[len(self.normal) :]


def products(options):
    """Each product of which there are images."""
    for name, category in (
        ("bottle", "mvtec_bottle_256"),
        ("magnetic tile", "magnetic_tile"),
    ):
        data = load_mvtec(options.data, category)
        normal = [data.test[i] for i in np.flatnonzero(data.y_test == 1)]
        bad = [data.test[i] for i in np.flatnonzero(data.y_test == -1)]
        yield Product(name, [*data.train, *normal], bad, options.small)
    if optional("elpv_dataset"):
        data = load_elpv("mono")
        normal = [data.test[i] for i in np.flatnonzero(data.y_test == 1)]
        bad = [data.test[i] for i in np.flatnonzero(data.y_test == -1)]
        yield Product("solar cell", [*data.train, *normal], bad, options.small)


def judged(model, normal, bad):
    """Image AUROC, share of defects found, and of false alarms."""
    scores = [model.score_samples(X) for X in (normal, bad)]
    labels = np.repeat([1, 0], [len(normal), len(bad)])
    auroc = roc_auc_score(labels, np.concatenate(scores))
    alarms, found = (np.mean(some < model.offset_) for some in scores)
    return [float(auroc), float(found), float(alarms)]


def quiet_fit(model, X, **params):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few images, and of outliers
        return model.fit(X, **params)


def shots(one, method, views, n, seed):
    """`judged` of one draw of n images."""
    augmentation = {"": None, "small": SMALL, "chosen": CHOSEN[one.name]}[views]
    learned, tested = one.draw(n, seed)
    model = Pipeline([FEATURES, clone(DETECTORS[method])], augmentation=augmentation)
    quiet_fit(model, [one.normal[i] for i in learned])
    return judged(model[-1], one.X[tested], one.X_bad)


def shifted(images, seed):
    """Images moved by 8 of 256 px in one of eight directions; edges are repeated."""
    rng = np.random.default_rng([seed, 8])
    directions = [(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1) if a or b]
    for image in images:
        pixels = read_image(image)
        down, right = np.array(directions[rng.integers(8)]) * SHIFT
        edge = np.pad(pixels, ((SHIFT,) * 2, (SHIFT,) * 2, (0, 0)), mode="edge")
        h, w = pixels.shape[:2]
        yield edge[SHIFT - down :, SHIFT - right :][:h, :w]


SHIFTED_HEADER = ("detector", "images", "shifted views", "draws")
SHIFTED_HEADER += ("AUROC", "found", "false alarms")
SHIFTED_VIEWS = {
    "none": None,
    "learned": AugmentedViews(rotation=0, brightness=0, shift=1.25 * SHIFT / 256),
}
SHIFTED_VIEWS["learned, and held out"] = clone(SHIFTED_VIEWS["learned"]).set_params(
    calibrate_on="views"
)


def shifts(bottle, method, views, n, seed):
    """`judged` on shifted bottles, of a model of bottles in their place."""
    learned, tested = bottle.draw(n, seed)
    model = Pipeline(
        [FEATURES, clone(DETECTORS[method])],
        augmentation=SHIFTED_VIEWS[views],
    )
    quiet_fit(model, [bottle.normal[i] for i in learned])
    normal = shifted([bottle.normal[i] for i in tested], seed)
    X = (FEATURES.transform(list(some)) for some in (normal, shifted(bottle.bad, seed)))
    return judged(model[-1], *X)


PRODUCT_HEADER = ("product", "detector", "images of each", "draws")
PRODUCT_HEADER += tuple(
    f"{threshold}: {what}"
    for threshold in ("one threshold", "per product", "own model")
    for what in ("false alarms", "found")
)
PRODUCT_HEADER += ("AUROC of one model", "AUROC of own model")


def together(some, method, n, seed):
    """For each product: a model of all with one threshold or more, and an own model."""
    parts = [(p, *p.draw(n, seed)) for p in some]
    X = np.concatenate([p.X[learned] for p, learned, _ in parts])
    groups = np.repeat([p.name for p in some], [len(one) for _, one, _ in parts])
    model = ThresholdPerGroup(clone(DETECTORS[method]))
    quiet_fit(model, X, groups=groups)
    found = {}
    for p, learned, tested in parts:
        sets = p.X[tested], p.X_bad
        own = quiet_fit(clone(DETECTORS[method]), p.X[learned])
        rows = [
            judged(one, *sets)
            for one in (model.estimator_, model.model_of(p.name), own)
        ]
        found[p.name] = [rate for row in rows for rate in (row[2], row[1])]
        found[p.name] += [rows[0][0], rows[2][0]]
    return found


BATCH_HEADER = ("product", "images in the batch", "defects", "draws", "AUROC")
BATCH_HEADER += ("flagged defects", "flagged normal", "AUROC after 16 normal images")
BATCH_DETECTOR = SubspaceDetector(0.95)


def batch(one, n, share, seed):
    """AUROC in a batch without labels, and the shares of it that are flagged."""
    rng = np.random.default_rng([seed, n])
    n_bad = max(1, round(share * n))
    normal = rng.permutation(len(one.normal))
    bad = rng.permutation(len(one.bad))[:n_bad]
    X = np.concatenate([one.X[normal[: n - n_bad]], one.X_bad[bad]])
    is_bad = np.arange(n) >= n - n_bad
    model = quiet_fit(clone(BATCH_DETECTOR), X)
    list_ = suspects(model, X)
    flagged = np.zeros(n, bool)
    flagged[list_.indices[list_.flagged]] = True
    scores = np.empty(n)
    scores[list_.indices] = list_.scores
    few = quiet_fit(clone(BATCH_DETECTOR), one.X[normal[-16:]])
    return [
        float(roc_auc_score(~is_bad, scores)),
        float(flagged[is_bad].mean()),
        float(flagged[~is_bad].mean()),
        float(roc_auc_score(~is_bad, few.score_samples(X))),
    ]


_RANKS = {name: k for k, name in enumerate([*CHOSEN, *DETECTORS])}


class Record:
    """Results of draws by their names, in a file that a later run goes on from."""

    def __init__(self, folder, only_known):
        self._path, self._only_known = folder and folder / "few.json", only_known
        self._known = {}
        if self._path and self._path.exists():
            self._known = json.loads(self._path.read_text())

    def get(self, names, function, *arguments):
        """What a draw gives, from the file if it is there."""
        key = "/".join(map(str, names))
        if self._only_known and key not in self._known:
            return None
        if key not in self._known:
            self._known[key] = function(*arguments)
            if self._path:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                partial = self._path.with_suffix(".partial")
                partial.write_text(json.dumps(self._known))
                partial.replace(self._path)
        return self._known[key]


def spread(values, digits):
    """Mean and standard deviation over the draws."""
    if digits:
        return f"{np.mean(values):.{digits}f} ± {np.std(values):.{digits}f}"
    return f"{np.mean(values):.0%} ± {100 * np.std(values):.0f}"


def rows_of_shots(record, some, sizes, draws):
    found = {}
    for n, seed in product(sizes, range(draws)):  # few images, which are fast, first
        for p, method, views in product(some, DETECTORS, ("", "small", "chosen")):
            case = p.name, method, n, views
            one = record.get(("shots", *case, seed), shots, p, method, views, n, seed)
            found.setdefault(case, []).extend([one] if one else [])
    for case in sorted(found, key=lambda case: (*map(_RANKS.get, case[:2]), case[2])):
        auroc, hits, alarms = np.transpose(found[case])
        cells = spread(auroc, 3), spread(hits, 0), spread(alarms, 0)
        yield *case[:3], case[3] or "none", len(found[case]), *cells


def rows_of_shifts(record, some, sizes, draws):
    bottle = next(p for p in some if p.name == "bottle")
    for method in DETECTORS:
        for n in sizes:
            for views in SHIFTED_VIEWS:
                case = method, n, views
                auroc, hits, alarms = np.transpose(
                    [
                        record.get(
                            ("shifts", *case, seed),
                            shifts,
                            bottle,
                            method,
                            views,
                            n,
                            seed,
                        )
                        for seed in range(draws)
                    ]
                )
                cells = spread(auroc, 3), spread(hits, 0), spread(alarms, 0)
                yield *case, draws, *cells


def rows_of_products(record, some, sizes, draws):
    (n,) = sizes
    for method in DETECTORS:
        results = [
            record.get(("products", method, n, seed), together, some, method, n, seed)
            for seed in range(draws)
        ]
        for p in some:
            *rates, one, own = np.transpose([result[p.name] for result in results])
            cells = [spread(rate, 0) for rate in rates]
            yield p.name, method, n, draws, *cells, spread(one, 3), spread(own, 3)


def rows_of_batches(record, some, sizes, draws):
    for p in some:
        for n in sizes:
            for share in (0.05, 0.1, 0.25):
                auroc, hits, alarms, few = np.transpose(
                    [
                        record.get(
                            ("batches", p.name, n, share, seed),
                            batch,
                            p,
                            n,
                            share,
                            seed,
                        )
                        for seed in range(draws)
                    ]
                )
                cells = spread(auroc, 3), spread(hits, 0), spread(alarms, 0)
                yield p.name, n, f"{share:.0%}", draws, *cells, spread(few, 3)


# By part: its rows, its header, numbers of images, draws; the last two also if small.
PARTS = {
    "products": (rows_of_products, PRODUCT_HEADER, (50,), 5, (8,), 1),
    "batches": (rows_of_batches, BATCH_HEADER, (100,), 5, (12,), 1),
    "shifts": (rows_of_shifts, SHIFTED_HEADER, (16, 100), 5, (4,), 1),
    "shots": (rows_of_shots, SHOT_HEADER, (1, 2, 4, 8, 16), 10, (1,), 1),
}


def draw(rows, path):
    """AUROC and false alarms over the number of images, one column per product."""
    import matplotlib.pyplot as plt

    names = list(dict.fromkeys(row[0] for row in rows))
    figure, axes = plt.subplots(
        2, len(names), figsize=(9, 5), sharex=True, sharey="row", layout="constrained"
    )
    for column, name in zip(axes.T, names, strict=True):
        for k, views in enumerate(("none", "small", "chosen")):
            some = [r for r in rows if (r[0], r[1], r[3]) == (name, "PatchCore", views)]
            n = np.array([row[2] for row in some]) * 1.04 ** (k - 1)
            for ax, cell, scale in zip(column, (5, 7), (1, 0.01), strict=True):
                pairs = [row[cell].replace("%", "").split(" ± ") for row in some]
                mean, std = scale * np.array(pairs, float).T
                ax.errorbar(n, mean, std, fmt="o-", capsize=3, label=views)
        column[0].set(title=name)
        column[1].axhline(0.05, color="0.5", linestyle="--")
        column[1].set(xscale="log", xlabel="images to learn from")
        column[1].set_xticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
        column[1].minorticks_off()
    axes[0, 0].set(ylabel="image AUROC")
    axes[1, 0].set(ylabel="false alarms", ylim=(-0.03, 1.05))
    axes[0, -1].legend(title="views", loc="lower right")
    figure.savefig(path, dpi=110)


def main():
    command = parser(__doc__)
    command.add_argument("--folder", type=Path, help="keep what each draw gave here")
    command.add_argument(
        "--known", action="store_true", help="no draws beyond those in --folder (shots)"
    )
    command.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    command.add_argument("--draws", type=int, help="random draws of each case")
    options = command.parse_args()
    limit_threads(options.threads)
    some = list(products(options))
    record = Record(options.folder, options.known)
    for part in options.parts:
        rows_of, header, *large, small_sizes, small_draws = PARTS[part]
        sizes, draws = (small_sizes, small_draws) if options.small else large
        draws = options.draws or draws
        rows = list(rows_of(record, some, sizes, draws))
        publish(options, f"few {part}", rows, header)
        if options.write:
            table = Path(__file__).parents[1] / "docs" / f"few_{part}.csv"
            with table.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows([header, *rows])
            if part == "shots":
                draw(rows, table.parent / "_static" / "few.png")


if __name__ == "__main__":
    main()

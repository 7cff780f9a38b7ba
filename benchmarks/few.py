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
from functools import partial
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
from skad.datasets import load_elpv, load_mvtec
from skad.images import read_image
from skad.synthesis import AugmentedViews

SIZE, SHOTS, MOST = 112, (1, 2, 4, 8, 16), 100
SHIFT = 8  # pixels of 256
FEATURES = PatchFeatures("skad_small", embedding="concat", image_size=SIZE)
DETECTORS = {
    "PatchCore": PatchCoreDetector(bank_size=2000),
    "PaDiM": PaDiMDetector(),
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
        n_normal, n_bad = (30, 10) if small else (400, MOST)
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


def shots(product, method, views, n, seed):
    """`judged` of one draw of n images."""
    augmentation = {"": None, "small": SMALL, "chosen": CHOSEN[product.name]}[views]
    learned, tested = product.draw(n, seed)
    model = Pipeline([FEATURES, clone(DETECTORS[method])], augmentation=augmentation)
    quiet_fit(model, [product.normal[i] for i in learned])
    return judged(model[-1], product.X[tested], product.X_bad)


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

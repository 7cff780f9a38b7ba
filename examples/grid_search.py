r"""
Choose layers, method and bank size by grid search
==================================================

Which layers of the network, which detector, how large a memory bank? One `GridSearchCV`
compares them all, by image labels and by masks of the defects. Without options, this
runs in less than a minute on generated images, with features that need no download::

    python examples/grid_search.py

On your own images, in the layout of MVTec AD, with layers of a network to compare::

    python examples/grid_search.py --data DIR --backbone mobilenetv2_100 \
        --layers blocks.2 blocks.4 blocks.2,blocks.4

"""

import argparse
import csv
import json
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib.pyplot as plt
import numpy as np
import sklearn
from sklearn.model_selection import GridSearchCV, train_test_split

from skad import (
    PaDiMDetector,
    PatchCoreDetector,
    PatchFeatures,
    PCANetFeatures,
    Pipeline,
    SubspaceDetector,
)
from skad.datasets import load_mvtec, make_textures
from skad.metrics import image_auroc_scorer, pro_scorer
from skad.model_selection import OneClassSplit

parser = argparse.ArgumentParser()
parser.add_argument("--data", type=Path, help="folder in the layout of MVTec AD")
parser.add_argument("--backbone", help="name of a timm model")
parser.add_argument("--layers", nargs="+", help="layers to compare, such as a b a,b")
parser.add_argument("--weights", type=Path, help=".safetensors or .pth file")
parser.add_argument(
    "--backbone-kwargs", type=json.loads, help='for timm, as JSON: {"pad_type": "same"}'
)
parser.add_argument("--output", default="grid_search.png", help="picture to write")
parser.add_argument("--table", default="grid_search.csv", help="results to write")
options = parser.parse_args()

# %%
# The images
# ----------
# All normal training images and half of the test images are for the search. The best
# candidate was chosen on these images, so it is evaluated on the other half.

if options.data is None:
    data = make_textures(24, 12, texture="metal", size=96, random_state=0)
else:
    folder = options.data.resolve()
    data = load_mvtec(folder.parent, folder.name)
indices = np.arange(len(data.test))
search_half, final_half = train_test_split(
    indices, test_size=0.5, stratify=data.y_test, random_state=0
)
X = list(data.train) + [data.test[i] for i in search_half]
y = np.concatenate([data.y_train, data.y_test[search_half]])
masks = [None] * len(data.train) + [data.masks[i] for i in search_half]
print(f"{np.sum(y == 1)} normal and {np.sum(y == -1)} defective images to search on")

# %%
# The candidates
# --------------
# Two steps with names, so that the grid can set the parameters of the first and replace
# the second. ``cache_dir`` keeps features on disk: each image goes through the network
# once per choice of layers, not once per candidate and fold. (`PCANetFeatures` learns
# from the images of each fold, so there is nothing to keep, and no layers to choose;
# here the size of the images takes their place.)

cache = TemporaryDirectory()
if options.backbone is None:
    features = PCANetFeatures()
    name, values = "image_size", [48, 96]
else:
    features = PatchFeatures(
        options.backbone,
        embedding="concat",
        weights=options.weights,
        backbone_kwargs=options.backbone_kwargs,
        cache_dir=cache.name,
    )
    name, values = "layers", [tuple(text.split(",")) for text in options.layers]
model = Pipeline([("features", features), ("detector", PatchCoreDetector())])
grid = [
    {
        f"features__{name}": values,
        "detector": [PatchCoreDetector()],
        "detector__coreset_ratio": [0.01, 0.1],
    },
    {
        f"features__{name}": values,
        "detector": [PaDiMDetector(), SubspaceDetector()],
    },
]

# %%
# The search
# ----------
# `OneClassSplit` trains on normal images only. Masks reach the scorer that needs them
# by scikit-learn's metadata routing, which has to be switched on.

search = GridSearchCV(
    model,
    grid,
    scoring={"image": image_auroc_scorer, "pro": pro_scorer},
    refit="pro",
    cv=OneClassSplit(n_splits=3, shuffle=True, random_state=0),
    error_score="raise",
)
start = time.perf_counter()
with sklearn.config_context(enable_metadata_routing=True):
    search.fit(X, y, masks=masks)
print(f"searched in {time.perf_counter() - start:.0f} s")

# %%
# Results
# -------
# Means over three folds, and standard deviations. A difference that is smaller than
# these is no reason to prefer a candidate.


def words(candidate):
    """Name a candidate by its method and its features."""
    detector = candidate["detector"]
    method = type(detector).__name__.removesuffix("Detector")
    if "detector__coreset_ratio" in candidate:
        method += f", {candidate['detector__coreset_ratio']:.0%}"
    value = candidate[f"features__{name}"]
    return method, " + ".join(value) if isinstance(value, tuple) else f"{value} px"


results = search.cv_results_
table = [("method", name, "image AUROC", "PRO", "fit, s")]
for i in np.argsort(-results["mean_test_pro"]):
    image, pro = (
        f"{results[f'mean_test_{key}'][i]:.3f} ± {results[f'std_test_{key}'][i]:.3f}"
        for key in ("image", "pro")
    )
    seconds = f"{results['mean_fit_time'][i]:.1f}"
    table.append((*words(results["params"][i]), image, pro, seconds))
for row in table:
    print("{:16s} {:20s} {:>15s} {:>15s} {:>8s}".format(*row))
with open(options.table, "w", newline="", encoding="utf-8") as file:
    csv.writer(file, lineterminator="\n").writerows(table)

# %%
# The same as a picture: one line per method, one colour per choice of features, and
# a bar from the worst to the best fold.

labels = [words(candidate) for candidate in results["params"]]
methods = list(dict.fromkeys(method for method, _ in labels))
colors = {value: f"C{i}" for i, value in enumerate(dict.fromkeys(v for _, v in labels))}
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), sharey=True, layout="constrained")
for ax, key, title in zip(axes, ("image", "pro"), ("image AUROC", "PRO"), strict=True):
    folds = np.array([results[f"split{k}_test_{key}"] for k in range(3)])
    for i, (method, value) in enumerate(labels):
        shift = (list(colors).index(value) - (len(colors) - 1) / 2) * 0.2
        height = methods.index(method) + shift
        ax.plot([folds[:, i].min(), folds[:, i].max()], [height] * 2, c=colors[value])
        ax.plot(folds[:, i].mean(), height, "o", c=colors[value])
    ax.set(title=title, yticks=range(len(methods)), yticklabels=methods)
    ax.grid(axis="x", alpha=0.3)
axes[0].invert_yaxis()
handles = [plt.Line2D([], [], marker="o", c=color) for color in colors.values()]
figure.legend(handles, colors, loc="outside right upper", title=name)
figure.savefig(options.output, dpi=110)
print(f"picture: {options.output}")

# %%
# The winner
# ----------
# The search is now itself a fitted model: the candidate with the best PRO. The images
# that took no part in the search say what to expect of it.

method, value = words(search.best_params_)
held_out = [data.test[i] for i in final_half]
image = image_auroc_scorer(search, held_out, data.y_test[final_half])
pro = pro_scorer(search, held_out, masks=[data.masks[i] for i in final_half])
print(f"best by PRO: {method} on {value}")
print(f"on images that the search has not seen: image AUROC {image:.3f}, PRO {pro:.3f}")
cache.cleanup()
plt.show()

"""
Learn from 50 new normal images
===============================

The camera was changed, normal parts look a little different, and many of them are now
rejected. Fifty normal images from the new camera are enough to update the model, in
seconds. Without options, this runs in less than a minute on generated images, with
features that need no download::

    python examples/update.py

On your own images, in the layout of MVTec AD, with a network of your choice::

    python examples/update.py --data DIR --backbone wide_resnet50_2

"""

import argparse
import json
import time
from copy import deepcopy
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from skad import (
    PaDiMDetector,
    PatchCoreDetector,
    PatchFeatures,
    PCANetFeatures,
    Pipeline,
    SubspaceDetector,
)
from skad.datasets import load_mvtec, make_textures
from skad.images import read_image

parser = argparse.ArgumentParser()
parser.add_argument("--data", type=Path, help="folder in the layout of MVTec AD")
parser.add_argument("--backbone", help="name of a timm model")
parser.add_argument("--weights", type=Path, help=".safetensors or .pth file")
parser.add_argument(
    "--backbone-kwargs", type=json.loads, help='for timm, as JSON: {"pad_type": "same"}'
)
parser.add_argument("--output", default="update.png", help="picture to write")
options = parser.parse_args()

# %%
# Old and new images
# ------------------
# The new camera is simulated: its pictures are brighter, warmer and noisier. Of the
# normal images, 50 come from the new camera only, and another 50 are for the test, in
# which every image comes from both cameras.

if options.data is None:
    data = make_textures(160, 20, texture="metal", size=128, random_state=0)
else:
    folder = options.data.resolve()
    data = load_mvtec(folder.parent, folder.name, require_masks=False)


def by_new_camera(images):
    """Images as the new camera would show them."""
    rng = np.random.default_rng(0)
    bright = [read_image(image) * [1.2, 1.1, 0.9] for image in images]
    noisy = [image + rng.normal(scale=4, size=image.shape) for image in bright]
    return [image.clip(0, 255).astype(np.uint8) for image in noisy]


order = np.random.default_rng(0).permutation(len(data.train))
shuffled = [data.train[i] for i in order]
n = min(50, len(shuffled) // 3)
old, new, held_out = (
    shuffled[: -2 * n],
    by_new_camera(shuffled[-2 * n : -n]),
    shuffled[-n:],
)
defects = [data.test[i] for i in np.flatnonzero(data.y_test == -1)]
tests = {
    "normal, old camera": held_out,
    "normal, new camera": by_new_camera(held_out),
    "defective, old camera": defects,
    "defective, new camera": by_new_camera(defects),
}
print(f"{len(old)} images to begin with, {len(new)} new ones")

# %%
# Before and after
# ----------------
# `Pipeline.partial_fit` passes the new images through the features, and the detector
# is updated. It keeps what it has learned before. The threshold takes the new images
# into account: each is scored as if it had not been used for training.

if options.backbone is None:
    features = PCANetFeatures(image_size=128)
else:
    features = PatchFeatures(
        options.backbone,
        layers="auto",
        embedding="concat",
        weights=options.weights,
        backbone_kwargs=options.backbone_kwargs,
    )
decisions = {}
print(f"\n{'':16s} {'fit':>6s} {'update':>7s}   called defective, before -> after")
print(f"{'':31s}", *(f"{kind:>20s}" for kind in tests))
for detector in (PatchCoreDetector(), PaDiMDetector(), SubspaceDetector()):
    model = Pipeline([features, detector])
    start = time.perf_counter()
    model.fit(old)
    fit_seconds = time.perf_counter() - start

    updated = deepcopy(model)
    start = time.perf_counter()
    updated.partial_fit(new)
    update_seconds = time.perf_counter() - start

    method = type(detector).__name__.removesuffix("Detector")
    decisions[method] = [
        {kind: m.decision_function(images) for kind, images in tests.items()}
        for m in (model, updated)
    ]
    before, after = (
        [np.mean(values < 0) for values in scores.values()]
        for scores in decisions[method]
    )
    changes = (f"{b:.0%} -> {a:.0%}" for b, a in zip(before, after, strict=True))
    print(
        f"{method:14s} {fit_seconds:6.1f} s {update_seconds:5.1f} s",
        *(f"{change:>20s}" for change in changes),
    )

# %%
# Every image is a dot. Images left of the line are rejected.

figure, axes = plt.subplots(
    len(decisions), 2, figsize=(9, 6), sharex="row", sharey=True, layout="constrained"
)
jitter = np.random.default_rng(0)
for row, (method, pair) in zip(axes, decisions.items(), strict=True):
    for ax, scores, when in zip(
        row, pair, ("before", f"after {n} images"), strict=True
    ):
        for height, (kind, values) in enumerate(scores.items()):
            color = "C0" if kind.startswith("normal") else "C3"
            heights = height + jitter.uniform(-0.2, 0.2, len(values))
            ax.plot(values, heights, ".", c=color, ms=4, alpha=0.7)
        ax.axvline(0, c="k", lw=1)
        ax.set(title=f"{method}, {when}", yticks=range(4), yticklabels=tests)
axes[0, 0].invert_yaxis()
figure.supxlabel("decision_function", fontsize="medium")
figure.savefig(options.output, dpi=110)
print(f"picture: {options.output}")
plt.show()

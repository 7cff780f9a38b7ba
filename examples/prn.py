"""
Learn from a few defects: PRN
=============================

Ten defects of two types are known, with masks. PRN is trained on them and on synthetic
anomalies, so that it finds the known types well, and others, too. Without options, this
runs in less than a minute on generated images, with a frozen network of random weights,
which need no download::

    python examples/prn.py

On your own images, in the layout of MVTec AD, with pretrained weights and more steps,
it finds more::

    python examples/prn.py --data DIR --backbone mobilenetv2_100 --steps 1000 --size 192

"""

import argparse
import json
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from skad import PRNDetector
from skad.datasets import load_mvtec, make_textures
from skad.images import read_image, read_mask
from skad.metrics import image_auroc, pixel_average_precision

parser = argparse.ArgumentParser()
parser.add_argument("--data", type=Path, help="folder in the layout of MVTec AD")
parser.add_argument("--backbone", help="name of a timm model")
parser.add_argument("--weights", type=Path, help=".safetensors or .pth file")
parser.add_argument(
    "--backbone-kwargs", type=json.loads, help='for timm, as JSON: {"pad_type": "same"}'
)
parser.add_argument("--steps", type=int, default=100)
parser.add_argument("--size", type=int, default=96, help="of the images")
parser.add_argument("--output", default="prn.png", help="picture to write")
options = parser.parse_args()

# %%
# Defects to learn from
# ---------------------
# Five of each of the first two types by name. They are removed from the test set: a
# detector must not be tested on its training images.

if options.data is None:
    data = make_textures(60, 40, texture="fabric", size=96, random_state=0)
else:
    folder = options.data.resolve()
    data = load_mvtec(folder.parent, folder.name)

defect_types = np.array(data.defect_types)
known = sorted(set(defect_types) - {"good"})[:2]
learned = np.concatenate([np.flatnonzero(defect_types == name)[:5] for name in known])
tested = np.setdiff1d(np.arange(len(defect_types)), learned)
print(f"{len(learned)} defects to learn from: {', '.join(known)}")

X = [*data.train, *(data.test[i] for i in learned)]
y = np.repeat([1, -1], [len(data.train), len(learned)])
masks = [None] * len(data.train) + [data.masks[i] for i in learned]

# %%
# Training
# --------
# The tiny model is the one for CPUs. With so few steps, the learning rate is larger
# than the paper's, and decreases to 0. Mirrored fabric is normal, too, so images are
# mirrored at random.

start = time.perf_counter()
model = PRNDetector(
    options.backbone or "resnet10t",
    weights=options.weights if options.backbone else False,
    backbone_kwargs=options.backbone_kwargs,
    model="tiny",
    image_size=options.size,
    train_batch_size=16,
    max_steps=options.steps,
    learning_rate=2e-3,
    schedule="cosine",
    flips=True,
).fit(X, y, masks=masks)
print(f"training: {time.perf_counter() - start:.0f} s")

# %%
# Types in training, and other types
# ----------------------------------
# Each group of defects is tested together with the normal test images.

test = [data.test[i] for i in tested]
scores, maps = model.score_samples(test), model.anomaly_map(test)
truth = [
    np.zeros(maps[k].shape, bool) if data.masks[i] is None else read_mask(data.masks[i])
    for k, i in enumerate(tested)
]
normal, seen = defect_types[tested] == "good", np.isin(defect_types[tested], known)
for name, group in (("seen", seen), ("unseen", ~normal & ~seen)):
    rows = np.flatnonzero(normal | group)
    ap = pixel_average_precision([truth[k] for k in rows], [maps[k] for k in rows])
    auroc = image_auroc(np.where(normal[rows], 1, -1), scores[rows])
    print(f"{name} types: pixel AP {ap:.3f}, image AUROC {auroc:.3f}")

# %%
# Maps
# ----
# From top to bottom: an image, its mask, and its map; one column for each type.

names = [*known, *sorted(set(defect_types) - {"good", *known})][:4]
columns = [np.flatnonzero(defect_types[tested] == name)[0] for name in names]
figure, axes = plt.subplots(
    3,
    len(columns),
    figsize=(2.1 * len(columns), 6.6),
    layout="constrained",
    squeeze=False,
)
brightest = max(maps[k].max() for k in columns)
for column, name, k in zip(axes.T, names, columns, strict=True):
    column[0].imshow(read_image(test[k]))
    column[0].set_title(f"{name}\n({'seen' if name in known else 'unseen'} type)")
    column[1].imshow(truth[k], cmap="gray")
    column[2].imshow(maps[k], cmap="inferno", vmin=0, vmax=brightest)
    for axis in column:
        axis.axis("off")
figure.savefig(options.output, dpi=110)

# %%
# The loss
# --------

losses = np.array(model.loss_curve_)
figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
axis.plot(np.arange(1, len(losses) + 1), losses, lw=0.8)
axis.set(xlabel="step", ylabel="loss", yscale="log")
output = Path(options.output)
figure.savefig(output.with_name(f"{output.stem}_loss{output.suffix}"), dpi=110)

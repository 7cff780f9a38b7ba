"""
DRAEM and CutPaste: trained on synthetic anomalies
==================================================

Both put synthetic anomalies into normal images, each in its own way, and train a
network to find them. No defective images and no pretrained network are needed. Without
options, this runs in less than a minute on generated images::

    python examples/synthetic_anomalies.py

On your own images, in the layout of MVTec AD, give both more time::

    python examples/synthetic_anomalies.py --data DIR --size 128 --epochs 96

"""

import argparse
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from skad import CutPasteDetector, DRAEMDetector
from skad.datasets import load_mvtec, make_textures
from skad.images import read_image
from skad.metrics import image_auroc, pixel_metrics
from skad.synthesis import cutpaste, cutpaste_scar, draem

parser = argparse.ArgumentParser()
parser.add_argument("--data", type=Path, help="folder in the layout of MVTec AD")
parser.add_argument("--size", type=int, default=64, help="of images, in pixels")
parser.add_argument("--epochs", type=int, default=38, help="of DRAEM")
parser.add_argument("--cutpaste-steps", type=int, default=60)
parser.add_argument("--seed", type=int, default=1, help="of the anomalies shown")
parser.add_argument(
    "--output", default="synthetic_anomalies.png", help="picture to write"
)
options = parser.parse_args()

if options.data is None:
    data = make_textures(40, 12, texture="metal", size=options.size, random_state=0)
else:
    folder = options.data.resolve()
    data = load_mvtec(folder.parent, folder.name)


def report(name, model, started):
    """Print how a model does on the test images."""
    seconds = time.perf_counter() - started
    image = image_auroc(data.y_test, model.score_samples(data.test))
    pixel = pixel_metrics(data.masks, model.anomaly_map(data.test))["pixel_auroc"]
    print(f"{name}: {seconds:.0f} s, image AUROC {image:.3f}, pixel AUROC {pixel:.3f}")


# %%
# DRAEM
# -----
# A first network restores images, a second one compares. The paper's networks need a
# GPU; "tiny" has an eighth of their channels, and a larger learning rate.

start = time.perf_counter()
by_draem = DRAEMDetector(
    "tiny",
    max_epochs=options.epochs,
    learning_rate=1e-3,
    image_size=options.size,
).fit(data.train)
report("DRAEM", by_draem, start)

# %%
# CutPaste
# --------
# A network is trained to classify three sorts of images: normal ones, ones with a
# pasted box, and ones with a pasted scar. A Gaussian describes its features of normal
# images.

start = time.perf_counter()
by_cutpaste = CutPasteDetector(
    backbone="resnet10t",
    max_steps=options.cutpaste_steps,
    train_batch_size=8,
    image_size=options.size,
).fit(data.train)
report("CutPaste", by_cutpaste, start)

# %%
# Training images and maps
# ------------------------
# At the top, a normal image with a synthetic anomaly of DRAEM; below that, a real
# defect; at the bottom, synthetic anomalies of CutPaste, and the losses of both.

normal = read_image(data.train[0])
rng = np.random.default_rng(options.seed)
made = draem(normal, rng)[0]
defective = np.flatnonzero(data.y_test == -1)
real = read_image(data.test[defective[len(defective) // 2]])
restored = by_draem.reconstruct([made, real])

figure, axes = plt.subplots(3, 4, figsize=(9, 7), layout="constrained")
for axis, (title, image) in zip(
    axes.flat,
    {
        "normal": normal,
        "anomaly of DRAEM": made,
        "restored": restored[0],
        "map of DRAEM": by_draem.anomaly_map([made])[0],
        "real defect": real,
        "restored ": restored[1],
        "map of DRAEM ": by_draem.anomaly_map([real])[0],
        "map of CutPaste": by_cutpaste.anomaly_map([real])[0],
        "box of CutPaste": cutpaste(normal, rng)[0],
        "scar of CutPaste": cutpaste_scar(normal, rng)[0],
    }.items(),
    strict=False,
):
    axis.imshow(image, cmap="inferno")
    axis.set_title(title, fontsize=9)
    axis.axis("off")
for axis, (name, model) in zip(
    axes[2, 2:], {"DRAEM": by_draem, "CutPaste": by_cutpaste}.items(), strict=True
):
    losses = np.array(model.loss_curve_)
    axis.plot(np.arange(1, len(losses) + 1), losses, lw=0.8)
    axis.set_title(f"loss of {name}, by step", fontsize=9)
figure.savefig(options.output, dpi=110)

"""
SimpleNet and EfficientAD: curves, maps, and a teacher of your own
==================================================================

SimpleNet trains a discriminator between normal features and features with noise,
EfficientAD a student that predicts a teacher on normal images only. Here, the teacher
is distilled first, from the images at hand. Without options, this runs in less than a
minute on generated images, with features that need no download::

    python examples/train.py

On your own images, in the layout of MVTec AD, with a network of your choice, and with
photographs of many other things to learn a better teacher from::

    python examples/train.py --data DIR --backbone mobilenetv2_100 --photographs DIR

"""

import argparse
import json
import time
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from skad import (
    EfficientADDetector,
    PatchFeatures,
    PCANetFeatures,
    Pipeline,
    SimpleNetDetector,
)
from skad.datasets import load_mvtec, make_textures
from skad.detectors import distill_teacher
from skad.images import read_image
from skad.metrics import image_auroc, pixel_metrics

parser = argparse.ArgumentParser()
parser.add_argument("--data", type=Path, help="folder in the layout of MVTec AD")
parser.add_argument("--photographs", type=Path, help="folder of images of anything")
parser.add_argument("--backbone", help="name of a timm model")
parser.add_argument("--weights", type=Path, help=".safetensors or .pth file")
parser.add_argument(
    "--backbone-kwargs", type=json.loads, help='for timm, as JSON: {"pad_type": "same"}'
)
parser.add_argument("--noise", type=float, default=0.1, help="of SimpleNet")
parser.add_argument("--epochs", type=int, default=20, help="of SimpleNet")
parser.add_argument("--steps", type=int, default=400, help="of EfficientAD")
parser.add_argument("--output", default="train.png", help="picture to write")
options = parser.parse_args()

# %%
# Images and features
# -------------------

if options.data is None:
    data = make_textures(40, 12, texture="fabric", size=128, random_state=0)
    size = 64
else:
    folder = options.data.resolve()
    data = load_mvtec(folder.parent, folder.name)
    size = 128


def features(side):
    """Patch features for images of a size."""
    if options.backbone is None:
        return PCANetFeatures(image_size=side, kernel_sizes=(5, 3), n_filters=(8, 8))
    return PatchFeatures(
        options.backbone,
        layers="auto",
        weights=options.weights,
        backbone_kwargs=options.backbone_kwargs,
        embedding="concat",
        n_components=64,
        image_size=side,
    )


def report(name, model, started):
    """Print how a model does on the test images."""
    seconds = time.perf_counter() - started
    image = image_auroc(data.y_test, model.score_samples(data.test))
    pro = pixel_metrics(data.masks, model.anomaly_map(data.test))["pro_score"]
    print(f"{name}: {seconds:.0f} s, image AUROC {image:.3f}, PRO {pro:.3f}")


# %%
# SimpleNet
# ---------
# It takes patch features, as PatchCore does. The loss starts at 1 and decreases as the
# discriminator learns to recognise noise. Features of a pretrained network have more
# dimensions, in which a smaller standard deviation of the noise suffices.

start = time.perf_counter()
simplenet = Pipeline(
    [
        features(128 if options.data is None else 224),
        SimpleNetDetector(
            options.epochs, noise_std=options.noise, hidden_dim=256, learning_rate=1e-3
        ),
    ]
).fit(data.train)
report("SimpleNet", simplenet, start)

# %%
# A teacher, then EfficientAD
# ---------------------------
# The teacher is trained to give the features at twice the resolution. Distil it once,
# from thousands of photographs of many things, and save it with ``path=``. Here there
# are only the normal images, and no penalty images, which costs accuracy.
# ``padding=True`` lets maps of so small an image reach its border.

start = time.perf_counter()
photographs = data.train
if options.photographs is not None:
    photographs = sorted(options.photographs.glob("*.jpg"))
teacher = distill_teacher(
    features(2 * size).fit(data.train),
    photographs,
    model="tiny",
    max_steps=options.steps // 4,
    image_size=size,
    learning_rate=1e-3,
    train_batch_size=8,
)
print(f"teacher: {time.perf_counter() - start:.0f} s")

start = time.perf_counter()
with warnings.catch_warnings():
    warnings.simplefilter("ignore", UserWarning)  # about penalty images
    efficientad = EfficientADDetector(
        "tiny",
        teacher,
        None if options.photographs is None else photographs,
        max_steps=options.steps,
        image_size=size,
        learning_rate=1e-3,
        padding=True,
    ).fit(data.train)
report("EfficientAD", efficientad, start)

# %%
# Curves and maps
# ---------------

curves = {
    "SimpleNet, by epoch": simplenet[-1].loss_curve_,
    "teacher, by step": teacher.loss_curve,
    "EfficientAD, by step": efficientad.loss_curve_,
}
figure, axes = plt.subplots(2, 3, figsize=(9, 5.6), layout="constrained")
for axis, (title, losses) in zip(axes[0], curves.items(), strict=True):
    axis.plot(np.arange(1, len(losses) + 1), losses, lw=0.8)
    axis.set(title=title, yscale="log", ylabel="loss")

defective = np.flatnonzero(data.y_test == -1)
shown = [data.test[i] for i in defective[:: max(1, len(defective) // 4)][1:2]]
axes[1, 0].imshow(read_image(shown[0]))
axes[1, 0].set_title("a defect")
for axis, (name, model) in zip(
    axes[1, 1:], (("SimpleNet", simplenet), ("EfficientAD", efficientad)), strict=True
):
    shape = read_image(shown[0]).shape[:2]
    axis.imshow(
        model.anomaly_map(shown)[0],
        cmap="inferno",
        vmax=model.pixel_threshold(shape) * 2,
    )
    axis.set_title(name)
for axis in axes[1]:
    axis.axis("off")
figure.savefig(options.output, dpi=110)

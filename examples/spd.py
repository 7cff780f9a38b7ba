"""
Fine-tune the network: views, loss and scores with SPD
======================================================

SPot-the-Difference fine-tunes a network so that the features of an image are near those
of its views with other colours and crops, and far from those of views in which a small
part was replaced. Without options, this runs in less than a minute on generated images,
with a network of random weights, which needs no download::

    python examples/spd.py

On your own images, in the layout of MVTec AD, with a pretrained network::

    python examples/spd.py --data DIR --backbone mobilenetv2_100 --rate 1e-4

"""

import argparse
import json
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from skad import PatchCoreDetector, PatchFeatures, Pipeline, SPDPatchFeatures
from skad.datasets import load_mvtec, make_textures
from skad.images import read_image
from skad.metrics import image_auroc, pixel_metrics
from skad.synthesis import smooth_blend, weak_view

parser = argparse.ArgumentParser()
parser.add_argument("--data", type=Path, help="folder in the layout of MVTec AD")
parser.add_argument("--backbone", default="resnet10t", help="name of a timm model")
parser.add_argument("--weights", type=Path, help=".safetensors or .pth file")
parser.add_argument(
    "--backbone-kwargs", type=json.loads, help='for timm, as JSON: {"pad_type": "same"}'
)
parser.add_argument("--steps", type=int, default=24, help="of training")
parser.add_argument("--rate", type=float, default=1e-2, help="of learning")
parser.add_argument("--output", default="spd.png", help="picture to write")
options = parser.parse_args()

# %%
# Images
# ------

if options.data is None:
    data = make_textures(30, 16, texture="fabric", size=64, random_state=0)
else:
    folder = options.data.resolve()
    data = load_mvtec(folder.parent, folder.name)

# %%
# Augmented views
# ---------------
# The image itself, a view with small changes of the whole image, and one in which a
# part was copied from elsewhere, with soft edges.

rng = np.random.default_rng(3)
image = read_image(data.train[0]).astype(np.float32) / 255
triples = [
    (image, weak_view(image, rng), smooth_blend(weak_view(image, rng), rng)[0])
    for _ in range(2)
]

# %%
# With and without fine-tuning
# ----------------------------
# The same network, layers and detector. Fine-tuning on so few images for so few steps
# need not help: compare on your own images first.

shared = {
    "backbone": options.backbone,
    "layers": "auto",
    "weights": options.weights if options.data is not None else False,
    "backbone_kwargs": options.backbone_kwargs,
    "embedding": "concat",
    "image_size": 64 if options.data is None else 160,
}
trained = SPDPatchFeatures(
    max_steps=options.steps, train_batch_size=8, learning_rate=options.rate, **shared
)
for name, features in (("without", PatchFeatures(**shared)), ("SPD", trained)):
    start = time.perf_counter()
    model = Pipeline([features, PatchCoreDetector()]).fit(data.train)
    seconds = time.perf_counter() - start
    image_score = image_auroc(data.y_test, model.score_samples(data.test))
    pro = pixel_metrics(data.masks, model.anomaly_map(data.test))["pro_score"]
    print(f"{name}: {seconds:.0f} s, image AUROC {image_score:.3f}, PRO {pro:.3f}")

# %%
# Views and the loss
# ------------------

figure, axes = plt.subplots(2, 4, figsize=(10, 5), layout="constrained")
titles = ("image", "weak changes: near", "a part replaced: far")
for row, views in zip(axes, triples, strict=True):
    for axis, view, title in zip(row, views, titles, strict=False):
        axis.imshow(view)
        axis.set_title(title)
        axis.axis("off")
    row[3].axis("off")
axes[0, 3].axis("on")
axes[0, 3].plot(np.arange(1, len(trained.loss_curve_) + 1), trained.loss_curve_)
axes[0, 3].set(title="loss, by step")
figure.savefig(options.output, dpi=110)

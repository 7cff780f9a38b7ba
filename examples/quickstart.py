"""
Normal images in, decisions and heat maps out
=============================================

Learn from images of normal parts, decide for each new image, and show where it is
anomalous. Without options, this runs in half a minute on generated images of woven
fabric, with features that need no download: those of the network that is part of skad,
and of filters learned from the normal images::

    python examples/quickstart.py

On your own images, in the layout of MVTec AD (``train/good``, ``test/DEFECT_TYPE``,
and ``ground_truth/DEFECT_TYPE`` if you have masks), with these features or those of a
network of your choice::

    python examples/quickstart.py --data DIR
    python examples/quickstart.py --data DIR --backbone wide_resnet50_2
    python examples/quickstart.py --data DIR --backbone NAME --weights FILE

"""

import argparse
import json
import time
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

from skad import (
    FusedFeatures,
    FusionDetector,
    PatchCoreDetector,
    PatchFeatures,
    Pipeline,
)
from skad.datasets import load_mvtec, make_textures
from skad.metrics import AnomalyMapDisplay, image_auroc, pixel_metrics

parser = argparse.ArgumentParser()
parser.add_argument("--data", type=Path, help="folder in the layout of MVTec AD")
parser.add_argument("--backbone", help="name of a timm model")
parser.add_argument("--weights", type=Path, help=".safetensors or .pth file")
parser.add_argument(
    "--backbone-kwargs", type=json.loads, help='for timm, as JSON: {"pad_type": "same"}'
)
parser.add_argument("--output", default="quickstart.png", help="picture to write")
options = parser.parse_args()
if options.backbone is None and (options.weights or options.backbone_kwargs):
    parser.error("--weights and --backbone-kwargs go with a --backbone")

# %%
# The images
# ----------
# A sequence of paths, PIL images or arrays. Only normal ones are needed to learn; the
# others are here to see what the model makes of them.

if options.data is None:
    data = make_textures(n_normal=100, n_anomalous=16, size=224, random_state=0)
    names = [f"test image {i}" for i in range(len(data.test))]
else:
    folder = options.data.resolve()
    data = load_mvtec(folder.parent, folder.name, require_masks=False)
    names = [str(path.relative_to(folder)) for path in data.test]
# Pixel metrics need the mask of every defect.
all_masks = None if data.get("unmasked") else data.masks
print(f"{len(data.train)} normal images to learn from, {len(data.test)} new ones")

# %%
# The model
# ---------
# Two steps: patch features of every image, and a memory bank of normal patches, or one
# for each type of features. The threshold comes from scoring every training image as
# if it were new, so that about 5 % of new normal images will be called defective
# (``contamination=0.05``).

if options.backbone is None:
    own = PatchFeatures("skad_small", embedding="concat", verbose=True)
    features = FusedFeatures(own)  # and PCANetFeatures beside it
    # A detector for each, their scores summed.
    detector = FusionDetector(PatchCoreDetector(), verbose=True)
else:
    features = PatchFeatures(
        options.backbone,
        layers="auto",
        embedding="concat",
        weights=options.weights,
        backbone_kwargs=options.backbone_kwargs,
        verbose=True,
    )
    detector = PatchCoreDetector(verbose=True)
model = Pipeline([features, detector])

start = time.perf_counter()
model.fit(data.train)
print(f"learned in {time.perf_counter() - start:.0f} s")

# %%
# Decisions
# ---------
# The decision, and the p-value: the share of normal images that look at least as
# anomalous.

start = time.perf_counter()
scores = model.decision_function(data.test)  # negative is defective
decisions = np.where(scores >= 0, 1, -1)  # what model.predict gives
milliseconds = (time.perf_counter() - start) / len(data.test) * 1000
p_values = model.p_value(data.test)
for name, kind, decision, p in zip(
    names, data.defect_types, decisions, p_values, strict=True
):
    verdict = "normal" if decision == 1 else "ANOMALOUS"
    print(f"{name:45s} {verdict:10s} p = {p:.3f}   (is: {kind})")
print(f"{milliseconds:.0f} ms per image")

# %%
# Where labels and masks are known, metrics say how good the model is.

if len(set(data.y_test)) == 2:
    print(f"image AUROC {image_auroc(data.y_test, scores):.3f}")
    normal = data.y_test == 1
    print(
        f"defects found {np.mean(decisions[~normal] == -1):.0%}, "
        f"false alarms {np.mean(decisions[normal] == -1):.0%}"
    )
    if all_masks is not None:
        maps = model.anomaly_map(data.test)
        quality = pixel_metrics(all_masks, maps, verbose=True)
        print(
            f"pixel AUROC {quality['pixel_auroc']:.3f}, PRO {quality['pro_score']:.3f}"
        )

# %%
# Heat maps
# ---------
# Image, heat map and ground truth side by side. The zero of the colour bar is the
# threshold: one normal image in twenty has a pixel above it.

defective = [i for i, label in enumerate(data.y_test) if label == -1]
chosen = [defective[i] for i in np.linspace(0, len(defective) - 1, 4).astype(int)]
chosen.append(int(np.flatnonzero(data.y_test == 1)[-1]))
masks = None if all_masks is None else [all_masks[i] for i in chosen]
display = AnomalyMapDisplay.from_estimator(
    model, [data.test[i] for i in chosen], masks=masks
)
display.figure_.savefig(options.output, dpi=110)
print(f"picture: {options.output}")
plt.show()

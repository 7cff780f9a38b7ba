"""What to take without a download: the alternatives, and PCANet with the network.

    python benchmarks/fusion.py
    python benchmarks/fusion.py --surfaces brick.png gravel.png grass.png

PatchCore on both, in one distance (`FusedFeatures`) or apart (`FusionDetector`): sets
of `--data`, by `--sets`, and the textures of `make_textures`. `--surfaces` takes
photographs of surfaces instead, at least 512 px each way: it learns from the upper part
of each, and pastes scars and pieces of the others into the lower. `--features` measures
some alternatives only.
"""

from pathlib import Path

import numpy as np
import torch
from harness import limit_threads, optional, parser, publish
from PIL import Image
from sklearn.utils import Bunch

from skad import (
    FusedFeatures,
    FusionDetector,
    PatchCoreDetector,
    PatchFeatures,
    PCANetFeatures,
    Pipeline,
)
from skad.datasets import load_mvtec, make_textures
from skad.metrics import image_auroc, pixel_metrics
from skad.synthesis import cutpaste_scar, draem

TEXTURES = ("fabric", "metal", "granite")
CROP, SIZE = 144, 224


def named(options, name):
    """One set; of generated textures, other pictures than the quickstart's."""
    if name in TEXTURES:
        counts = (8, 2) if options.small else (30, 40)
        return make_textures(*counts, texture=name, size=SIZE, random_state=1)
    return load_mvtec(options.data, name)


def surface(path, others):
    """From one photograph: 80 normal crops, then 20 normal and 40 defective ones."""
    rng = np.random.default_rng(0)
    photograph = _read(path)
    textures = [_read(other).mean(axis=2, keepdims=True) for other in others]
    textures = [np.repeat(texture, 3, axis=2).astype(np.uint8) for texture in textures]
    cut, height = int(len(photograph) * 0.6), len(photograph)
    train = [_enlarged(_crop(photograph, rng, 0, cut)) for _ in range(80)]
    test, masks = [], []
    for number in range(60):
        image = _enlarged(_crop(photograph, rng, cut, height))
        mask = np.zeros((SIZE, SIZE), bool)
        if number >= 20:
            if number % 2:
                image, mask = cutpaste_scar(image, rng, width=(4, 16), length=(15, 45))
            else:
                blob = _ellipse(rng)
                texture = textures[rng.integers(len(textures))]
                texture = _crop(texture, rng, 0, len(texture), SIZE)
                image, mask = draem(
                    image, rng, texture=texture, mask=blob, opacity=(0.4, 1)
                )
            image = np.round(image * 255).astype(np.uint8)
        test.append(image)
        masks.append(mask)
    labels = np.where(np.arange(60) < 20, 1, -1)
    return Bunch(train=train, test=test, masks=masks, y_test=labels)


def _read(path):
    return np.asarray(Image.open(path).convert("RGB"))


def _crop(image, rng, top, bottom, size=CROP):
    y = rng.integers(top, bottom - size + 1)
    x = rng.integers(0, image.shape[1] - size + 1)
    part = image[y : y + size, x : x + size]
    return part if rng.random() < 0.5 else part[:, ::-1]


def _enlarged(crop):
    image = Image.fromarray(np.ascontiguousarray(crop))
    return np.asarray(image.resize((SIZE, SIZE)))


def _ellipse(rng):
    rows, columns = np.mgrid[:SIZE, :SIZE]
    y, x = rng.uniform(30, SIZE - 30, 2)
    height, width = rng.uniform(6, 22, 2)
    return ((rows - y) / height) ** 2 + ((columns - x) / width) ** 2 < 1


def scattering():
    """Logarithms of scattering coefficients, at stride 8; None without kymatio."""
    if optional("kymatio") is None:
        return None
    # `kymatio.torch` also imports what newer SciPys lack.
    from kymatio.scattering2d.frontend.torch_frontend import ScatteringTorch2D

    class Scattering(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.transform = ScatteringTorch2D(J=3, shape=(SIZE, SIZE), L=8)
            self.level = torch.nn.Identity()

        def forward(self, x):
            coefficients = self.transform(x.contiguous()).flatten(1, 2)
            return self.level(torch.log(coefficients + 1e-3))

    return PatchFeatures(
        Scattering(), ["level"], embedding="concat", mean=[0.0], std=[1.0]
    )


def measured(options, name, data):
    """Rows of the table for one set."""
    network = PatchFeatures(
        "mobilenetv2_100",
        layers="auto",
        weights=options.weights,
        backbone_kwargs={"pad_type": "same"},
        embedding="concat",
    )
    # Few images take a larger part of them to make a bank.
    alone = PatchCoreDetector(0.1 if len(data.train) <= 100 else 0.01)
    contestants = {
        "skad_small": (PatchFeatures("skad_small", embedding="concat"), alone),
        "PCANet": (PCANetFeatures(), alone),
        "random network": (
            PatchFeatures("skad_small", embedding="concat", weights=False),
            alone,
        ),
        "scattering": (scattering(), alone),
        "one distance, a quarter PCANet": (FusedFeatures(), alone),
        "apart, a quarter PCANet": (
            FusedFeatures(),
            FusionDetector(alone, detector_weights=(3, 1)),
        ),
        "apart, half PCANet": (FusedFeatures(), FusionDetector(alone)),
        "MobileNetV2": (network, alone),
    }
    for label, steps in contestants.items():
        left_out = options.features and label not in options.features
        if left_out or steps[0] is None:
            continue
        model = Pipeline(list(steps)).fit(data.train)
        found = pixel_metrics(data.masks, model.anomaly_map(data.test))
        auroc = image_auroc(data.y_test, model.score_samples(data.test))
        values = (auroc, found["pixel_auroc"], found["pro_score"])
        row = [name, label, *(f"{value:.3f}" for value in values)]
        print(*row, flush=True)  # the whole table takes half an hour
        yield row


def main():
    arguments = parser(__doc__)
    arguments.add_argument(
        "--sets", nargs="+", default=[*TEXTURES, "mvtec_bottle_256", "magnetic_tile"]
    )
    arguments.add_argument(
        "--surfaces", nargs="+", type=Path, help="two photographs or more"
    )
    arguments.add_argument("--features", nargs="+", help="names in the table")
    options = arguments.parse_args()
    limit_threads(options.threads)
    rows = []
    names = options.surfaces or options.sets
    for name in names[:1] if options.small else names:
        if options.surfaces:
            others = [path for path in options.surfaces if path != name]
            data, name = surface(name, others), name.stem
        else:
            data = named(options, name)
        if options.small:
            kept = np.r_[0:2, len(data.test) - 2 : len(data.test)]
            data.train = data.train[:8]
            data.test = [data.test[i] for i in kept]
            data.masks = [data.masks[i] for i in kept]
            data.y_test = data.y_test[kept]
        rows += measured(options, name, data)
    header = ("set", "features", "image AUROC", "pixel AUROC", "PRO")
    table = "fusion on surfaces" if options.surfaces else "fusion"
    publish(options, table, rows, header)


if __name__ == "__main__":
    main()

"""The methods that `accuracy.py` compares, by name, and the networks that they take.

Each is built when it is its turn. "untrained" ones learn in one pass over the images;
"trained" ones train a network, here for so few steps that a processor does it in
minutes: less than their authors, and than skad's defaults.
"""

import json
from functools import cache

import numpy as np
import timm
from harness import lite0_weights
from sklearn.ensemble import IsolationForest
from sklearn.neighbors import LocalOutlierFactor

from skad import (
    CutPasteDetector,
    DRAEMDetector,
    EfficientADDetector,
    FusedFeatures,
    FusionDetector,
    PaDiMDetector,
    PatchCoreDetector,
    PatchFeatures,
    Patchwise,
    PatchwiseDetector,
    PCANetFeatures,
    Pipeline,
    PRNDetector,
    PUADDetector,
    SimpleNetDetector,
    SPADEDetector,
    SPDPatchFeatures,
    SubspaceDetector,
)
from skad.datasets import make_textures
from skad.detectors import distill_teacher

LITE0 = "tf_efficientnet_lite0"
RETRIEVAL = {"metric": "cosine", "position_radius": 1, "image_score": "max"}
# Images of 128 pixels, batches of 16, and a larger learning rate: for processors.
TRAINED_SIZE, TRAINED_BATCH, TRAINED_RATE = 128, 16, 1e-3


class Network:
    """A timm network by its options: weights, and modules of strides 4, 8 and 16."""

    def __init__(self, options, folder):
        self.name = options.backbone
        self.kwargs = json.loads(options.backbone_kwargs)
        if options.weights is not None:
            self.weights = options.weights or None  # an empty name: timm's own
        elif self.name == LITE0:
            self.weights = lite0_weights(folder)
        else:
            raise SystemExit(
                f'--backbone {self.name} needs --weights: a file, or "" for timm\'s.'
            )
        self.levels = options.levels

    def features(self, n_levels=2, transformer=PatchFeatures, **parameters):
        """Features of its last levels: strides 8 and 16, or 4 as well."""
        levels = self.levels or strided(self.name, json.dumps(self.kwargs))
        return transformer(
            self.name,
            layers=tuple(levels[-n_levels:]),
            weights=self.weights,
            backbone_kwargs=self.kwargs,
            **parameters,
        )


@cache
def strided(name, kwargs):
    """Modules of strides 4, 8 and 16 of a timm network."""
    info = timm.create_model(name, pretrained=False, **json.loads(kwargs)).feature_info
    modules = {level["reduction"]: level["module"] for level in info}
    if not {4, 8, 16} <= set(modules):
        raise SystemExit(f"--backbone {name}: name three modules with --levels.")
    return [modules[stride] for stride in (4, 8, 16)]


def builders(options, folder):
    """Functions that build each method, by name: the untrained and the trained.

    `folder` takes the file of weights that is made for the network.
    """
    size = {"image_size": options.image_size}

    @cache
    def network():
        return Network(options, folder)

    def deep(**parameters):
        return network().features(embedding="concat", **size, **parameters)

    def small(**parameters):
        return PatchFeatures("skad_small", embedding="concat", **size, **parameters)

    def pcanet():
        return PCANetFeatures(**size)

    def padim():
        three = network().features(3, embedding="replicate", n_components=100, **size)
        return Pipeline([three, PaDiMDetector()])

    def spade(**parameters):
        two = network().features(embedding="replicate", pooled=True, **size)
        return Pipeline([two, SPADEDetector(**parameters)])

    def fusion():
        return Pipeline([FusedFeatures(small(), pcanet()), FusionDetector()])

    def puad():
        return PUADDetector(PatchCoreDetector(0.01))

    def patchwise(features, estimator):
        return Pipeline([features, Patchwise(), PatchwiseDetector(estimator)])

    untrained = {
        "PatchCore": lambda: Pipeline([deep(), PatchCoreDetector()]),
        "PatchCore, 1 %": lambda: Pipeline([deep(), PatchCoreDetector(0.01)]),
        "PaDiM": padim,
        "SPADE": spade,
        "SPADE as RAD": lambda: spade(**RETRIEVAL),
        "Subspace": lambda: Pipeline([deep(), SubspaceDetector()]),
        "PUAD on PatchCore, 1 %": lambda: Pipeline([deep(), puad()]),
        "PatchCore, skad_small": lambda: Pipeline([small(), PatchCoreDetector()]),
        "PatchCore 1 %, skad_small": lambda: Pipeline(
            [small(), PatchCoreDetector(0.01)]
        ),
        "Subspace, skad_small": lambda: Pipeline([small(), SubspaceDetector()]),
        "PatchCore, random": lambda: Pipeline(
            [small(weights=False), PatchCoreDetector()]
        ),
        "PatchCore, PCANet": lambda: Pipeline([pcanet(), PatchCoreDetector()]),
        "Subspace, PCANet": lambda: Pipeline([pcanet(), SubspaceDetector()]),
        "Fusion of skad_small and PCANet": fusion,
        "IsolationForest, skad_small": lambda: patchwise(
            small(), IsolationForest(random_state=0)
        ),
        "LocalOutlierFactor, skad_small": lambda: patchwise(
            small(), LocalOutlierFactor(novelty=True)
        ),
    }
    return untrained, trained_builders(options, network, deep)


def trained_builders(options, network, deep):
    steps, size = options.steps, min(TRAINED_SIZE, options.image_size)
    few = {"image_size": size, "max_steps": steps}
    larger = {"train_batch_size": TRAINED_BATCH, "learning_rate": TRAINED_RATE}

    def efficientad():
        features = network().features(
            embedding="concat", n_components=64, image_size=2 * size
        )
        others = other_images(size)
        teacher = distill_teacher(
            features,
            others,
            model="tiny",
            max_steps=steps,
            image_size=size,
            learning_rate=TRAINED_RATE,
            train_batch_size=8,
        )
        return EfficientADDetector(
            "tiny", teacher, others, learning_rate=TRAINED_RATE, **few
        )

    def cutpaste():
        return CutPasteDetector(
            backbone=network().name,
            weights=network().weights,
            **few,
            **larger,
        )

    def draem():
        return DRAEMDetector(
            "tiny",
            max_epochs=max(
                1, steps // 40
            ),  # of 40 steps: 320 of 400 cells, 8 at a time
            image_size=size,
            learning_rate=TRAINED_RATE,
        )

    def spd():
        features = network().features(
            transformer=SPDPatchFeatures,
            embedding="concat",
            image_size=size,
            max_steps=max(1, steps // 8),  # of five views of each image
            learning_rate=TRAINED_RATE,
        )
        return Pipeline([features, PatchCoreDetector()])

    def prn():
        return PRNDetector(
            network().name,
            weights=network().weights,
            backbone_kwargs=network().kwargs,
            model="tiny",
            schedule="cosine",
            **few,
            **larger,
        )

    return {
        f"SimpleNet, {options.epochs} epochs": lambda: Pipeline(
            [deep(), SimpleNetDetector(options.epochs)]
        ),
        "EfficientAD tiny": efficientad,
        "DRAEM tiny": draem,
        "CutPaste": cutpaste,
        "PRN tiny": prn,
        "PatchCore on SPD, 128 pixels": spd,
    }


def other_images(size, n=60):
    """Images of other things: crops of scikit-learn's two photographs, and textures."""
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    crops = []
    for photograph in load_sample_images().images:
        for _ in range(n):
            side = int(rng.integers(size, min(photograph.shape[:2]) + 1))
            top = int(rng.integers(photograph.shape[0] - side + 1))
            left = int(rng.integers(photograph.shape[1] - side + 1))
            crops.append(photograph[top : top + side, left : left + side])
    for texture in ("fabric", "metal", "granite"):
        made = make_textures(n, 0, texture=texture, size=size, random_state=0)
        crops += list(made.train)
    return crops


def chosen(wanted, untrained, trained):
    """Names of the methods to run: some names, "untrained", "trained" or "all"."""
    groups = {"untrained": [*untrained], "trained": [*trained]}
    groups["all"] = groups["untrained"] + groups["trained"]
    names = []
    for name in wanted:
        if name not in groups and name not in groups["all"]:
            raise SystemExit(
                f"--methods {name!r} is not one of: {', '.join(groups)}; "
                f"{'; '.join(groups['all'])}."
            )
        names += groups.get(name, [name])
    return list(dict.fromkeys(names))


def has_fixed_features(model):
    """Whether its features learn nothing from the images of a split."""
    return isinstance(model, Pipeline) and type(model[0]) is PatchFeatures

"""Small fitted models of every kind, shared by the tests of this folder."""

import warnings

import pytest

import skad
from skad.datasets import make_textures
from skad.detectors import distill_teacher


@pytest.fixture(scope="session")
def textures():
    return make_textures(n_normal=16, n_anomalous=3, size=64, random_state=0)


def _features(**parameters):
    return skad.PatchFeatures(
        "skad_small", embedding="concat", image_size=64, **parameters
    )


@pytest.fixture(scope="session")
def features():
    """A builder of features that need no download."""
    return _features


def _teacher(images):
    return distill_teacher(
        _features(),
        images,
        model="tiny",
        max_steps=2,
        image_size=64,
        train_batch_size=2,
    )


def _small(name, images):
    """A pipeline or image detector by name; fitted, it takes a second at most."""
    options = {"max_steps": 1, "image_size": 64, "on_error": "skip"}
    network = {"backbone": "resnet10t", "weights": False}
    if name == "EfficientAD":
        return skad.EfficientADDetector("tiny", _teacher(images), images[:3], **options)
    if name == "ImagePUAD":
        return skad.ImagePUADDetector(_small("EfficientAD", images), _features())
    if name == "DRAEM":
        del options["max_steps"]
        return skad.DRAEMDetector("tiny", None, 1, train_batch_size=4, **options)
    if name == "CutPaste":
        return skad.CutPasteDetector(
            backbone="resnet10t", variant="scar", train_batch_size=2, **options
        )
    if name == "PRN":
        return skad.PRNDetector(**network, model="tiny", train_batch_size=4, **options)
    if name == "FusedFeatures":
        second = skad.PCANetFeatures(64, n_filters=(4, 4, 4), n_components=8)
        fused = skad.FusedFeatures(_features(on_error="skip"), second)
        return skad.Pipeline([fused, skad.FusionDetector(skad.SubspaceDetector())])
    detectors = {
        "PaDiM": skad.PaDiMDetector(),
        "PatchCore": skad.PatchCoreDetector(),
        "Subspace": skad.SubspaceDetector(),
        "SPADE": skad.SPADEDetector(gate=True),
        "SimpleNet": skad.SimpleNetDetector(max_epochs=1, hidden_dim=16),
        "Fusion": skad.FusionDetector(
            skad.SPADEDetector(gate=True), n_channels=(64, 64)
        ),
        "PUAD": skad.PUADDetector(),
    }
    return skad.Pipeline([_features(on_error="skip"), detectors[name]])


MODELS = [
    *("PaDiM", "PatchCore", "Subspace", "SPADE", "SimpleNet", "Fusion", "PUAD"),
    *("FusedFeatures", "EfficientAD", "ImagePUAD", "DRAEM", "CutPaste", "PRN"),
]


@pytest.fixture(scope="session", params=MODELS)
def model(request, textures):
    """Every detector of skad, fitted; tests leave it as it is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _small(request.param, textures.train).fit(textures.train)

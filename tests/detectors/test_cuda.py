"""What trains gives the same bits each time on a CUDA device too."""

import numpy as np
import pytest
import torch

from skad import (
    CutPasteDetector,
    DRAEMDetector,
    EfficientADDetector,
    PatchFeatures,
    PCANetFeatures,
    PRNDetector,
    SimpleNetDetector,
    SPDPatchFeatures,
)
from skad.datasets import make_textures

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore:.*cannot certify"),
]

DRAEM = {"max_epochs": 1, "image_size": 128, "learning_rate": 1e-3}
STEPS = {"max_steps": 10, "image_size": 128, "learning_rate": 1e-3}
ENCODER = {"backbone": "resnet10t", "weights": False}


@pytest.fixture(scope="module")
def data():
    return make_textures(n_normal=30, n_anomalous=10, size=128, random_state=0)


def features(device="cuda"):
    return PatchFeatures(
        **ENCODER, layers="auto", embedding="concat", image_size=128, device=device
    )


def simplenet(data):
    X = features().fit_transform([*data.train, *data.test])
    head = {"noise_mask": "perlin", "upscale": 2, "classification_head": True}
    detector = SimpleNetDetector(2, **head, calibration="train").fit(X[:30])
    return detector.score_samples(X[30:])


def efficientad(data):
    taught = PCANetFeatures(image_size=128, kernel_sizes=(5, 3), n_filters=(8, 8))
    detector = EfficientADDetector("tiny", "distill", data.train[:5], features=taught)
    return detector.set_params(**STEPS).fit(data.train).anomaly_map(data.test)


def draem(data):
    detector = DRAEMDetector("tiny", **DRAEM, train_batch_size=4, calibration="train")
    return detector.fit(data.train).anomaly_map(data.test)


def cutpaste(data):
    detector = CutPasteDetector(
        **ENCODER, **STEPS, train_batch_size=4, calibration="train"
    )
    return detector.fit(data.train).score_samples(data.test)


def prn(data):
    detector = PRNDetector(
        **ENCODER, **STEPS, model="tiny", train_batch_size=4, calibration="train"
    )
    X, masks = [*data.train, *data.test[-8:]], [None] * 30 + list(data.masks[-8:])
    return detector.fit(X, np.repeat([1, -1], [30, 8]), masks).anomaly_map(data.test)


def spd(data):
    fitted = SPDPatchFeatures(
        **ENCODER, **STEPS, layers="auto", embedding="concat", train_batch_size=8
    ).fit(data.train)
    return np.asarray(fitted.transform(data.test))


@pytest.mark.parametrize("run", [simplenet, efficientad, draem, cutpaste, prn, spd])
def test_same_seed_same_bits(data, run):
    before = torch.get_deterministic_debug_mode()
    np.testing.assert_array_equal(run(data), run(data))
    assert torch.get_deterministic_debug_mode() == before


def test_features_are_those_of_the_processor(data):
    there, here = (
        np.asarray(features(device).fit_transform(data.train))
        for device in ("cuda", "cpu")
    )
    assert np.abs(there - here).max() <= 2e-3 * np.abs(here).max()

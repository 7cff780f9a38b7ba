"""Combinations of two scores on fewer images than a covariance needs."""

import numpy as np
import pytest

from skad import (
    EfficientADDetector,
    FusedFeatures,
    ImagePUADDetector,
    PatchCoreDetector,
    PatchFeatures,
    PUADDetector,
    SubspaceDetector,
)
from skad.datasets import make_textures
from skad.detectors import Teacher
from skad.networks._modules import arrays, seeded
from skad.networks._pdn import pdn

pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings("ignore:.*cannot certify"),
    pytest.mark.filterwarnings("ignore:penalty_images=None"),
    pytest.mark.filterwarnings("ignore:one training image"),
]


@pytest.fixture(scope="module")
def images():
    return make_textures(n_normal=8, n_anomalous=1, size=64, random_state=0).train


@pytest.fixture(scope="module")
def detector():
    network = seeded(lambda: pdn("tiny", 8, padding=True), 0)
    teacher = Teacher("tiny", arrays(network))
    return EfficientADDetector("tiny", teacher, max_steps=1, image_size=64)


FEATURES = {
    "network": lambda: PatchFeatures("skad_small", embedding="concat", image_size=64),
    "both": lambda: FusedFeatures(
        PatchFeatures("skad_small", embedding="concat", image_size=64)
    ),
}


@pytest.mark.parametrize(
    ("n", "features"), [(1, "network"), (6, "network"), (7, "network"), (3, "both")]
)
def test_images_fit_however_few(images, detector, n, features):
    both = ImagePUADDetector(detector, FEATURES[features]())
    with pytest.warns(UserWarning, match="too few for the distribution"):
        both.fit(images[:n])
    alone = both.detector_.score_samples(images)
    np.testing.assert_allclose(both.score_samples(images), alone)
    assert both.location_.shape == both.precision_.shape[:1]
    assert both.predict_mask(images[:1]).shape == (1, 64, 64)


@pytest.mark.parametrize("calibration", ["kfold", "train", "split"])
def test_images_fit_by_every_way_to_hold_out(images, detector, calibration):
    both = ImagePUADDetector(detector, FEATURES["network"](), calibration=calibration)
    with pytest.warns(UserWarning, match="too few for the distribution"):
        both.fit(images[:4])
    assert np.isfinite(both.decision_function(images)).all()


@pytest.mark.parametrize("inner", [PatchCoreDetector(), SubspaceDetector()])
@pytest.mark.parametrize("n", [1, 2, 6])
def test_patch_features_fit_however_few(inner, n):
    X = np.random.default_rng(0).normal(size=(9, 4, 4, 3))
    both = PUADDetector(inner, calibration="train")
    with pytest.warns(UserWarning, match="too few for the distribution"):
        both.fit(X[:n])
    np.testing.assert_allclose(both.score_samples(X), both.detector_.score_samples(X))

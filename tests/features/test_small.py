"""The backbone that ships with skad."""

import json
import socket

import joblib
import numpy as np
import pytest
from safetensors import safe_open

from skad import PatchCoreDetector, PatchFeatures, Pipeline
from skad.datasets import make_textures
from skad.metrics import image_auroc, pixel_metrics
from skad.networks._small import WEIGHTS


def small(**parameters):
    return PatchFeatures("skad_small", embedding="concat", **parameters)


@pytest.fixture
def unplugged(monkeypatch):
    """No connection can be made."""

    def refuse(*_):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)


def test_no_download(unplugged, images):
    features = PatchFeatures(backbone="skad_small")
    assert features.fit_transform(images).shape == (5, 28, 28, 128)
    assert features.layers_ == ("layer2", "layer3")
    assert small(layers="auto").fit_transform(images).shape == (5, 28, 28, 128)


def test_file_is_small_and_says_where_it_comes_from():
    assert WEIGHTS.stat().st_size < 6e6
    with safe_open(str(WEIGHTS), "np") as file:
        known = json.loads(file.metadata()["provenance"])
    assert sum(known["steps"]) >= 1000
    assert "mobilenetv2_100" in known["imitates"]
    assert len(known["sha256_of_its_weights"]) == 64
    assert {"images", "seed", "learning_rate", "log"} <= set(known)


def test_weights_are_trained(images):
    trained = small().fit_transform(images)
    random = small(weights=False).fit_transform(images)
    again = small(weights=WEIGHTS).fit_transform(images)
    np.testing.assert_array_equal(trained, again)
    assert np.abs(trained - random).max() > 1


def test_other_images_and_sizes():
    rng = np.random.default_rng(0)
    grey = rng.integers(0, 256, (2, 64, 96), dtype=np.uint8)
    features = small(image_size=(64, 96), backbone_kwargs={"in_chans": 1})
    one = features.fit_transform(grey)
    assert one.shape == (2, 8, 12, 128)
    three = small(image_size=(64, 96)).fit_transform(grey)
    assert np.corrcoef(one.ravel(), three.ravel())[0, 1] > 0.9
    described = small(image_size=64, pooled=True).fit_transform(grey)
    assert described.pooled.shape == (2, 96)
    assert np.isfinite(described.pooled).all()


def test_positions_look_at_their_own_part_of_the_image():
    """A dot changes the features around it, and hardly more to the left."""
    plain = np.full((1, 256, 256, 3), 128, np.uint8)
    features = small(image_size=256, patch_size=1).fit(plain)
    base = features.transform(plain)[0]
    centres = []
    for row, column in ((96, 160), (128, 128), (150, 105)):
        dotted = plain.copy()
        dotted[0, row - 6 : row + 6, column - 6 : column + 6] = 250
        changed = np.square(features.transform(dotted)[0] - base).sum(axis=2)
        grid = np.arange(32) * 8 + 4  # pixels at the middle of each position
        at = np.array([changed.sum(axis=1) @ grid, changed.sum(axis=0) @ grid])
        centres.append(at / changed.sum() - (row, column))
    assert np.abs(np.mean(centres, axis=0)).max() < 4


def test_pickles_without_the_weights(images, tmp_path):
    model = Pipeline([small(image_size=64), PatchCoreDetector()]).fit(images)
    joblib.dump(model, tmp_path / "model.joblib")
    assert (tmp_path / "model.joblib").stat().st_size < WEIGHTS.stat().st_size / 4
    loaded = joblib.load(tmp_path / "model.joblib")
    np.testing.assert_array_equal(
        loaded.score_samples(images), model.score_samples(images)
    )


@pytest.mark.parametrize(
    ("texture", "auroc", "pro"),
    [pytest.param("fabric", 0.8, 0.78, marks=pytest.mark.slow), ("metal", 0.97, 0.95)],
)
def test_finds_rendered_defects(texture, auroc, pro):
    data = make_textures(30, 20, texture=texture, size=224, random_state=0)
    model = Pipeline([small(), PatchCoreDetector()]).fit(data.train)
    assert image_auroc(data.y_test, model.score_samples(data.test)) >= auroc
    found = pixel_metrics(data.masks, model.anomaly_map(data.test))
    assert found["pro_score"] >= pro

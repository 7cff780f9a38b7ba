"""The training patch nearest to the worst patch, by brute force."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator

import skad
from skad.datasets import make_textures
from skad.inspection import Explanation, explain

ALL = {"coreset_ratio": 1.0, "reweight": None}


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(12, 3, 5, 6)), rng.normal(size=(7, 3, 5, 6))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_nearest_patch_by_brute_force(metric, data):
    normal, new = data
    detector = skad.PatchCoreDetector(metric=metric, **ALL).fit(normal)
    distances = cdist(new.reshape(-1, 6), normal.reshape(-1, 6), metric)
    nearest = distances.argmin(axis=1).reshape(7, 15)
    distances = distances.min(axis=1).reshape(7, 15)
    for i, found in enumerate(explain(detector, new)):
        worst = distances[i].argmax()
        image, place = divmod(int(nearest[i, worst]), 15)
        assert found.index == i
        assert found.patch == divmod(worst, 5)
        assert (found.training_index, found.training_patch) == (image, divmod(place, 5))
        assert found.distance == pytest.approx(distances[i, worst])
        assert found.bbox is None


@pytest.mark.parametrize("parameters", [{}, {"n_neighbors": 3}, {"top_ratio": 0.1}])
def test_worst_patch_is_that_of_the_map(parameters, data):
    normal, new = data
    detector = skad.PatchCoreDetector(**parameters).fit(normal)
    for found, heat in zip(
        explain(detector, new), detector.anomaly_map(new), strict=True
    ):
        assert heat[found.patch] == heat.max()
        if not parameters:
            assert found.distance == pytest.approx(heat.max(), rel=1e-6)


def test_training_images_find_themselves(data):
    """In a whole bank, each patch is its own nearest one."""
    normal, _ = data
    detector = skad.PatchCoreDetector(**ALL).fit(normal[:5]).partial_fit(normal[5:9])
    detector.merge(skad.PatchCoreDetector(**ALL).fit(normal[9:]))
    for i, found in enumerate(explain(detector, normal)):
        assert (found.training_index, found.training_patch) == (i, found.patch)
        assert found.distance == pytest.approx(0, abs=1e-6)


def test_positions_count_what_was_learned_from(data):
    normal, _ = data
    normal = normal.copy()
    normal[4] = np.nan
    y = np.where(np.arange(12) == 1, -1, 1)
    learned = np.delete(np.arange(12), [1, 4])
    detector = skad.PatchCoreDetector(**ALL).fit(normal, y)
    found = explain(detector, normal)
    assert found[4] is None
    assert [found[i].training_index for i in learned] == list(range(10))


def test_patches_outside_of_the_region_do_not_count(data):
    normal, new = (X.copy() for X in data)
    normal[:, :, 0] = new[:, :, 0] = np.nan
    detector = skad.PatchCoreDetector(**ALL).fit(normal)
    for found in explain(detector, new):
        assert found.patch[1] > 0
        assert found.training_patch[1] > 0
    assert explain(detector, normal)[3].training_index == 3


@pytest.mark.filterwarnings("ignore:.*could not be read")
def test_boxes_are_in_the_pixels_of_the_images():
    data = make_textures(n_normal=8, n_anomalous=2, size=96, random_state=0)
    features = skad.PatchFeatures(
        "skad_small", embedding="concat", image_size=64, crop_size=48, on_error="skip"
    )
    model = skad.make_pipeline(features, skad.PatchCoreDetector()).fit(data.train)
    image = np.asarray(data.test[-1])
    small = image[:60, :]
    grid = model[-1].calibration_maps_.shape[1]
    whole, lost, other = explain(model, [image, "lost.png", small])
    assert lost is None
    assert isinstance(whole, Explanation)
    # The crop is the middle three quarters of 96 pixels.
    side = 72 / grid
    edges = [12 + side * (at + k) for k in (0, 1) for at in whole.patch]
    assert whole.bbox == tuple(np.floor(edges[:2])) + tuple(np.ceil(edges[2:]))
    edges = [12 + side * (at + k) for k in (0, 1) for at in whole.training_patch]
    np.testing.assert_allclose(whole.training_region, np.array(edges) / 96)
    assert other.index == 2
    assert 0 <= other.bbox[0] < other.bbox[2] <= 60


def test_box_has_a_pixel_in_tiny_images():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 255, (6, 4, 4, 3)).astype(np.uint8)
    features = skad.PCANetFeatures(64, n_filters=(8, 12, 12))
    model = skad.make_pipeline(features, skad.PatchCoreDetector()).fit(images)
    for found in explain(model, images):
        top, left, bottom, right = found.bbox
        assert images[0][top:bottom, left:right].size > 0


def test_any_model_will_do(data):
    normal, new = data
    detector = skad.PatchCoreDetector().fit(normal)
    expected = explain(detector, new)
    pipeline = skad.make_pipeline(skad.PatchCoreDetector()).fit(normal)
    for model in (pipeline, FrozenEstimator(detector)):
        assert explain(model, new) == expected


def test_model_must_be_a_fitted_bank(data):
    _, new = data
    with pytest.raises(NotFittedError):
        explain(skad.PatchCoreDetector(), new)
    for other in (skad.SubspaceDetector(), skad.SPADEDetector()):
        with pytest.raises(TypeError, match="explain needs a PatchCoreDetector"):
            explain(other, new)

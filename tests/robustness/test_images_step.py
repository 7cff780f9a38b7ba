"""Maps and regions are those of what the step that reads images gets."""

import numpy as np
import pytest
import sklearn.pipeline
from sklearn.frozen import FrozenEstimator
from sklearn.preprocessing import FunctionTransformer

import skad

pytestmark = pytest.mark.filterwarnings("ignore:.*cannot certify")


def lower_right(images):
    return [image[64:, 64:] for image in images]


def upright(images):
    return [np.rot90(image) for image in images]


def every_other(images):
    return [image[::2] for image in images]


@pytest.fixture(scope="module")
def wide():
    """Images of 128 x 128, and one of them with a defect around (104, 104)."""
    rng = np.random.default_rng(0)
    X = rng.integers(100, 130, (12, 128, 128, 3), dtype=np.uint8)
    defect = X[0].copy()
    defect[100:109, 100:109] = 250
    return X, defect


def cropped(features, build=skad.Pipeline, *, nested=False):
    crop, detector = FunctionTransformer(lower_right), skad.PatchCoreDetector()
    steps = [("crop", crop), ("features", features()), ("detector", detector)]
    if nested:
        inner = sklearn.pipeline.Pipeline(steps[1:])
        steps = [steps[0], ("inner", inner)]
    return build(steps)


@pytest.mark.parametrize("build", [skad.Pipeline, sklearn.pipeline.Pipeline])
@pytest.mark.parametrize("nested", [False, True])
def test_a_step_that_crops_moves_the_maps(features, wide, build, nested):
    X, defect = wide
    model = cropped(features, build, nested=nested).fit(X)
    (heat,) = skad.anomaly_map(model, [defect])
    assert heat.shape == (64, 64)
    peak = np.unravel_index(heat.argmax(), heat.shape)
    np.testing.assert_allclose(peak, (40, 40), atol=5)
    (found,) = skad.inspect(model, [defect])
    np.testing.assert_array_equal(found.anomaly_map, heat)
    assert found.source is defect
    assert found.label == -1
    largest = found.defects[0]
    assert largest.bbox[0] <= 40 < largest.bbox[2]
    assert largest.bbox[1] <= 40 < largest.bbox[3]
    if build is skad.Pipeline:
        (mask,) = model.predict_mask([defect])
        np.testing.assert_array_equal(found.mask, mask)


@pytest.mark.parametrize("step", [upright, every_other])
def test_other_steps_before_the_images_step(features, wide, step):
    X, defect = wide
    model = skad.make_pipeline(
        FunctionTransformer(step), features(), skad.PatchCoreDetector()
    )
    (heat,) = model.fit(X).anomaly_map([defect])
    (seen,) = step([np.arange(128 * 128).reshape(128, 128)])
    assert heat.shape == seen.shape
    row, column = np.unravel_index(heat.argmax(), heat.shape)
    place = np.unravel_index(seen[row, column], (128, 128))
    np.testing.assert_allclose(place, (104, 104), atol=12)


def test_a_frozen_step_that_crops(features, wide):
    X, defect = wide
    model = cropped(features).fit(X)
    expected = model.anomaly_map([defect])
    frozen = skad.Pipeline([FrozenEstimator(model[:2]), FrozenEstimator(model[-1])])
    np.testing.assert_array_equal(frozen.anomaly_map([defect]), expected)
    np.testing.assert_array_equal(
        skad.anomaly_map(FrozenEstimator(model), [defect]), expected
    )


def test_regions_are_those_of_the_cropped_image(features, wide):
    X, defect = wide
    model = cropped(features)
    region = np.zeros((64, 64), bool)
    region[:, 32:] = True
    model.fit(X, regions=[region] * len(X))
    (heat,) = model.anomaly_map([defect], regions=[region])
    assert np.unique(heat[:, :32]).tolist() == [heat.min()]
    assert np.unravel_index(heat.argmax(), heat.shape)[1] >= 32
    assert model.predict([defect], regions=[region]).tolist() == [-1]


@pytest.mark.parametrize("depth", [1, 2])
def test_regions_reach_an_images_step_inside_of_pipelines(features, wide, depth):
    X, defect = wide
    region = np.zeros((64, 64), bool)
    region[:, 32:] = True
    regions = [region] * len(X)
    flat = cropped(features).fit(X, regions=regions)
    inner = cropped(features)[:2]
    if depth == 2:
        inner = sklearn.pipeline.Pipeline([("inner", inner)])
    model = skad.Pipeline([("images", inner), ("detector", skad.PatchCoreDetector())])
    model.fit(X, regions=regions)
    np.testing.assert_array_equal(
        model.anomaly_map([defect], regions=[region]),
        flat.anomaly_map([defect], regions=[region]),
    )
    assert model[-1].offset_ == flat[-1].offset_

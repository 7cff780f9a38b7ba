"""Suspicious training images: ranked by held-out scores, flagged beyond a limit."""

import numpy as np
import pytest
from scipy.stats import median_abs_deviation
from sklearn.base import clone
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.preprocessing import FunctionTransformer

import skad
from skad.base import ImageDetector
from skad.datasets import make_textures
from skad.inspection import suspects

N, BAD = 40, (3, 17, 30)
DETECTORS = {
    "patchcore": skad.PatchCoreDetector(coreset_ratio=0.5),
    "patchcore, kfold": skad.PatchCoreDetector(calibration="kfold"),
    "padim": skad.PaDiMDetector(),
    "subspace": skad.SubspaceDetector(),
    "spade": skad.SPADEDetector(n_neighbors_image=5, image_score="max"),
    "fusion": skad.FusionDetector(skad.PatchCoreDetector()),
}


@pytest.fixture(scope="module")
def X():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N, 4, 4, 8)).astype(np.float32)
    X[..., 4:] *= 0.1
    # In different places and directions: defects that are alike hide each other.
    X[list(BAD), [0, 1, 3], [2, 3, 0]] += 10 * rng.choice([-1, 1], size=(3, 8))
    return X


@pytest.fixture(scope="module")
def detector(X):
    return skad.PatchCoreDetector().fit(X)


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.filterwarnings("ignore:.*scores far from")
def test_defects_come_first_and_are_flagged(name, X):
    found = suspects(clone(DETECTORS[name]).fit(X), X)
    assert set(found.indices[:3]) == set(BAD)
    assert found.flagged[:3].all()
    assert found.flagged.sum() < 8


def test_it_ranks_the_held_out_scores(detector, X):
    found = suspects(detector, X)
    np.testing.assert_array_equal(np.sort(found.indices), np.arange(N))
    np.testing.assert_array_equal(
        detector.calibration_scores_[found.indices], found.scores
    )
    assert np.all(np.diff(found.scores) >= 0)
    limit = np.median(found.scores) - 3 * median_abs_deviation(
        found.scores, scale="normal"
    )
    np.testing.assert_array_equal(found.flagged, found.scores < limit)


def test_labelled_images_are_not_in_the_list(X):
    y = np.where(np.isin(np.arange(N), [0, 3, 20]), -1, 1)
    found = suspects(skad.PatchCoreDetector().fit(X, y), X, y)
    np.testing.assert_array_equal(np.sort(found.indices), np.flatnonzero(y == 1))
    assert found.indices[0] in (17, 30)


@pytest.mark.filterwarnings("ignore:.*could not be read")
@pytest.mark.filterwarnings("ignore:.*scores far from")
def test_unreadable_images_are_not_in_the_list():
    data = make_textures(n_normal=20, n_anomalous=4, size=64, random_state=0)
    X = ["lost.png", *data.train[:8], "gone.png", data.test[-1], *data.train[8:16]]
    y = np.ones(len(X), int)
    y[2] = -1
    features = skad.PatchFeatures(
        "skad_small", embedding="concat", image_size=64, on_error="skip"
    )
    model = skad.make_pipeline(features, skad.PatchCoreDetector()).fit(X, y)
    found = suspects(model, X, y)
    assert found.indices[0] == 10
    np.testing.assert_array_equal(
        np.sort(found.indices), [1, *range(3, 9), *range(10, 19)]
    )


def test_skipped_features_are_not_in_the_list(X):
    X = X.copy()
    X[[0, 9]] = np.nan
    found = suspects(skad.PatchCoreDetector().fit(X), X)
    np.testing.assert_array_equal(
        np.sort(found.indices), np.delete(np.arange(N), [0, 9])
    )


def test_any_model_will_do(detector, X):
    expected = suspects(detector, X).indices
    same = FunctionTransformer()
    pipeline = skad.make_pipeline(same, skad.PatchCoreDetector()).fit(X)
    for model in (pipeline, FrozenEstimator(detector), FrozenEstimator(pipeline)):
        np.testing.assert_array_equal(suspects(model, X).indices, expected)


def test_update_keeps_the_order(X):
    model = skad.PatchCoreDetector().fit(X[:25]).partial_fit(X[25:])
    assert set(suspects(model, X).indices[:3]) == set(BAD)


class MeanDetector(ImageDetector):
    """Distance of each pixel from its mean."""

    def __init__(
        self,
        *,
        image_size=16,
        crop_size=None,
        batch_size=8,
        contamination=0.1,
        calibration="kfold",
        sigma=0.0,
        on_error="skip",
        n_jobs=1,
        random_state=0,
        verbose=False,
    ):
        self.image_size = image_size
        self.crop_size = crop_size
        self.batch_size = batch_size
        self.contamination = contamination
        self.calibration = calibration
        self.sigma = sigma
        self.on_error = on_error
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    def _fit(self, reader):
        batch = np.concatenate(list(reader.batches(self.batch_size)))
        self.mean_ = batch.mean(axis=0)

    def _score_batch(self, batch):
        maps = np.abs(batch - self.mean_).mean(axis=3)
        return maps.max(axis=(1, 2)), maps


@pytest.mark.filterwarnings("ignore:.*could not be read")
@pytest.mark.filterwarnings("ignore:.*scores far from")
def test_image_detectors():
    rng = np.random.default_rng(0)
    images = [*rng.integers(100, 120, (24, 16, 16, 3)).astype(np.uint8)]
    images[5] = images[5].copy()
    images[5][3:6, 3:6] = 255
    images.insert(2, "lost.png")
    y = np.ones(25, int)
    y[0] = -1
    model = MeanDetector().fit(images, y)
    found = suspects(model, images, y)
    assert found.indices[0] == 6
    np.testing.assert_array_equal(np.sort(found.indices), [1, *range(3, 25)])


@pytest.mark.parametrize("way", ["split", "train"])
def test_images_must_be_held_out(way, X):
    model = skad.PatchCoreDetector(calibration=way).fit(X)
    with pytest.raises(ValueError, match=rf"calibration='{way}'.*calibration='kfold'"):
        suspects(model, X)


def test_images_must_be_those_of_the_fit(detector, X):
    with pytest.raises(ValueError, match="learned from 40 images, but X has 39"):
        suspects(detector, X[1:])
    y = np.ones(N)
    y[0] = -1
    with pytest.raises(ValueError, match="39 that are not labelled -1; pass X and y"):
        suspects(detector, X, y)
    with pytest.raises(ValueError, match="learned from 40 images, but X has 80"):
        suspects(detector, np.concatenate([X, X]))


def test_held_out_scores_must_be_of_the_fit(X):
    model = skad.PatchCoreDetector().fit(X).calibrate(X[:20])
    with pytest.raises(ValueError, match=r"keeps 20 scores .* after calibrate"):
        suspects(model, X)
    model = skad.PaDiMDetector(calibration_size=10).fit(X)
    with pytest.raises(ValueError, match="Raise calibration_size=10"):
        suspects(model, X)


def test_model_must_be_a_fitted_detector(X):
    with pytest.raises(NotFittedError):
        suspects(skad.PatchCoreDetector(), X)
    with pytest.raises(TypeError, match="IsolationForest; suspects needs"):
        suspects(IsolationForest(), X)
    fitted = skad.SubspaceDetector(n_components=2).fit(X)
    for y in (None, np.ones(len(X))):
        with pytest.raises(TypeError, match=r"X is a single path, .*list_images"):
            suspects(fitted, "parts/good", y)


def test_equal_scores_flag_none():
    X = np.tile(np.random.default_rng(0).normal(size=(1, 3, 3, 4)), (12, 1, 1, 1))
    with pytest.warns(UserWarning, match="do not differ"):
        model = skad.PatchCoreDetector().fit(X)
    assert not suspects(model, X).flagged.any()

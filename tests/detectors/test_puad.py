import pickle
import warnings

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.covariance import LedoitWolf
from sklearn.model_selection import GridSearchCV

from skad import (
    EfficientADDetector,
    ImagePUADDetector,
    PaDiMDetector,
    PatchCoreDetector,
    PCANetFeatures,
    Pipeline,
    PUADDetector,
    SimpleNetDetector,
    SPADEDetector,
    SubspaceDetector,
)
from skad.datasets import make_textures
from skad.detectors._puad import mean_patches
from skad.features import PatchArray
from skad.metrics import image_auroc
from skad.model_selection import OneClassSplit

SHAPE = (6, 6)


def mixed(n, seed=0, n_first=24, d=5):
    """Images of two kinds of patches in a fixed proportion, at any position."""
    rng = np.random.default_rng(seed)
    kinds = np.repeat([0.0, 4.0], [n_first, 36 - n_first])
    patches = kinds[:, None] + rng.normal(size=(n, 36, d))
    return rng.permuted(patches, axis=1).reshape(n, *SHAPE, d)


def auroc(detector, good, bad):
    scores = detector.score_samples(np.concatenate([good, bad]))
    return image_auroc(np.repeat([1, -1], [len(good), len(bad)]), scores)


class Spy(SubspaceDetector):
    """Tells which images it has learned from, and which it has then scored."""

    def _fit(self, X):
        super()._fit(X)
        self.learned_, self.scored_ = X, []

    def _score(self, X):
        if hasattr(self, "scored_"):
            self.scored_.append(X)
        return super()._score(X)


def ids(X):
    """Identity of each image, by its first entry."""
    return set(X.reshape(len(X), -1)[:, 0].tolist())


# -- what it finds ---------------------------------------------------------------------


def test_another_proportion_of_normal_patches():
    X, good, bad = mixed(80), mixed(60, seed=1), mixed(60, seed=2, n_first=18)
    assert 0.3 < auroc(PatchCoreDetector().fit(X), good, bad) < 0.7
    detector = PUADDetector().fit(X)
    assert auroc(detector, good, bad) > 0.97
    assert np.mean(detector.predict(bad) == -1) > 0.8


def test_an_anomalous_patch_in_its_place():
    X, good, bad = mixed(80), mixed(60, seed=1), mixed(60, seed=2)
    bad[:, 2, 3] += 6
    detector = PUADDetector().fit(X)
    assert auroc(detector, good, bad) > 0.97
    heat = detector.anomaly_map(bad)
    assert (heat.reshape(60, -1).argmax(axis=1) == 2 * 6 + 3).mean() > 0.95


@pytest.mark.parametrize(
    ("calibration", "n"), [("split", 100), ("kfold", 60), ("kfold", 25)]
)
def test_false_alarms_stay_within_the_promise(calibration, n):
    alarms = [
        PUADDetector(SubspaceDetector(0.5), contamination=0.1, calibration=calibration)
        .fit(mixed(n, seed=seed))
        .predict(mixed(200, seed=100 + seed))
        == -1
        for seed in range(20)
    ]
    assert np.mean(alarms) < 0.14


# -- what it computes ------------------------------------------------------------------


def test_sum_of_z_scores():
    X, new = mixed(60), mixed(5, seed=1)
    detector = PUADDetector(SubspaceDetector(0.5)).fit(X)
    centred = new.mean(axis=(1, 2)) - detector.location_
    distances = [np.sqrt(row @ detector.precision_ @ row) for row in centred]
    both = np.stack([-detector.detector_.score_samples(new), distances], axis=1)
    z = (both - detector.score_means_) / detector.score_stds_
    np.testing.assert_allclose(
        -detector.score_samples(new), z.sum(axis=1), rtol=1e-9, atol=1e-9
    )


@pytest.mark.parametrize("d", [5, 200])
def test_mahalanobis_distance_of_pooled_features(d):
    X, new = mixed(60, d=d), mixed(5, seed=1, d=d)
    detector = PUADDetector(Spy(0.5)).fit(X)
    expected = LedoitWolf().fit(detector.detector_.learned_.mean(axis=(1, 2)))
    np.testing.assert_allclose(detector.location_, expected.location_, rtol=1e-8)
    distances = detector._both(new, np.zeros(5))[:, 1]
    np.testing.assert_allclose(
        distances, np.sqrt(expected.mahalanobis(new.mean(axis=(1, 2)))), rtol=1e-8
    )


def test_three_parts_of_the_images_for_three_purposes():
    X = mixed(60)
    detector = PUADDetector(Spy(0.5)).fit(X)
    learned = ids(detector.detector_.learned_)
    # Scored: its own images, as it has no other threshold; constants; threshold.
    own, constants, threshold = detector.detector_.scored_
    assert ids(own) == learned
    assert (len(learned), len(constants), len(threshold)) == (39, 9, 12)
    assert learned | ids(constants) | ids(threshold) == ids(X)
    both = detector._both(constants, detector.detector_._image_scores(constants))
    np.testing.assert_allclose(detector.score_means_, both.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(detector.score_stds_, both.std(axis=0), rtol=1e-12)
    np.testing.assert_allclose(
        detector.calibration_scores_, detector.score_samples(threshold), rtol=1e-9
    )


def test_scoring_does_not_change_the_constants():
    detector = PUADDetector(SubspaceDetector(0.5)).fit(mixed(60))
    before = pickle.dumps(detector)
    detector.score_samples(mixed(30, seed=1, n_first=2))
    detector.anomaly_map(mixed(3, seed=1), size=(32, 32))
    assert pickle.dumps(detector) == before


def test_a_constant_score_adds_nothing():
    X = np.ones((30, 2, 2, 3))
    detector = PUADDetector().fit(X)
    np.testing.assert_array_equal(detector.score_stds_, 1)
    np.testing.assert_allclose(detector.score_samples(X), 0, atol=1e-9)
    assert np.isfinite(detector.score_samples(X + 1)).all()


def test_patches_outside_a_region_are_left_out_of_the_mean():
    X, new = mixed(60), mixed(4, seed=1)
    X[:, :2], new[:, :2] = np.nan, np.nan
    X[3, 4, 4] = np.nan
    detector = PUADDetector().fit(X)
    smaller = PUADDetector().fit(X[:, 2:])
    np.testing.assert_allclose(detector.location_, smaller.location_)
    np.testing.assert_allclose(
        detector.score_samples(new), smaller.score_samples(new[:, 2:]), rtol=1e-9
    )


# -- the detector inside ---------------------------------------------------------------


@pytest.mark.parametrize(
    "inner",
    [
        PatchCoreDetector(0.5, calibration="loo", contamination=0.2),
        PaDiMDetector(),
        SPADEDetector(10),
        SimpleNetDetector(max_epochs=2, hidden_dim=8),
        PUADDetector(SubspaceDetector(0.5)),
    ],
    ids=lambda inner: type(inner).__name__,
)
@pytest.mark.usefixtures("one_torch_thread")
def test_any_detector_of_features(inner):
    before = inner.get_params()
    X, new = mixed(60), mixed(3, seed=1)
    detector = PUADDetector(inner, contamination=0.1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", "the discriminator does not tell")
        detector.fit(X)
    assert inner.get_params().keys() == before.keys()
    assert inner.get_params()["calibration"] == before["calibration"]
    assert not hasattr(inner, "offset_")
    np.testing.assert_array_equal(
        detector.anomaly_map(new), detector.detector_.anomaly_map(new)
    )
    loaded = pickle.loads(pickle.dumps(detector))
    np.testing.assert_array_equal(
        loaded.score_samples(new), detector.score_samples(new)
    )


def test_descriptors_of_images_reach_the_detector():
    rng = np.random.default_rng(0)
    X = PatchArray(mixed(60), pooled=rng.normal(size=(60, 3)))
    new = PatchArray(mixed(4, seed=1), pooled=rng.normal(size=(4, 3)))
    detector = PUADDetector(SPADEDetector(10)).fit(X)
    assert detector.detector_.descriptors_.shape == (39, 3)
    other = PatchArray(new, pooled=new.pooled + 5)
    assert (detector.score_samples(other) < detector.score_samples(new)).all()


def test_maps_are_smoothed_as_the_detector_does():
    X, new = mixed(60), mixed(3, seed=1)
    for sigma in (0.0, 4.0):
        detector = PUADDetector(SubspaceDetector(0.5, sigma=sigma)).fit(X)
        drawn = detector.anomaly_map(new, size=(24, 24))
        np.testing.assert_array_equal(
            drawn, detector.detector_.anomaly_map(new, size=(24, 24))
        )
        assert detector.predict_mask(new, size=(24, 24)).shape == (3, 24, 24)


def test_a_detector_of_images_is_refused():
    with pytest.raises(ValueError, match=r"'detector' .* instance of .*PatchDetector"):
        PUADDetector(EfficientADDetector()).fit(mixed(20))
    with pytest.raises(ValueError, match="'detector' parameter"):
        PUADDetector("patchcore").fit(mixed(20))


@pytest.mark.usefixtures("one_torch_thread")
def test_pipeline_and_search():
    data = make_textures(n_normal=24, n_anomalous=2, size=32, random_state=0)
    model = Pipeline(
        [
            ("features", PCANetFeatures(32, kernel_sizes=(3, 3), n_filters=(4, 4))),
            ("puad", PUADDetector(PatchCoreDetector(), contamination=0.2)),
        ]
    )
    X = list(data.train) + list(data.test)
    y = np.concatenate([np.ones(len(data.train)), data.y_test])
    search = GridSearchCV(
        model,
        {"puad__detector__coreset_ratio": [0.05, 0.2]},
        scoring="roc_auc",
        cv=OneClassSplit(2),
        error_score="raise",
    ).fit(X, y)
    best = search.best_estimator_
    ratio = search.best_params_["puad__detector__coreset_ratio"]
    assert best["puad"].detector_.coreset_ratio == ratio
    assert best.anomaly_map(data.test[:2]).shape == (2, 32, 32)
    assert clone(best).get_params()["puad__detector__coreset_ratio"] == ratio


# -- few images ------------------------------------------------------------------------


@pytest.mark.parametrize("calibration", ["auto", "kfold", "train"])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 6])
def test_few_images_leave_the_detector_alone(n, calibration):
    X, new = mixed(n), mixed(5, seed=1)
    with pytest.warns(UserWarning, match=r"too few.*at least 10 normal images"):
        detector = PUADDetector(calibration=calibration).fit(X)
    np.testing.assert_array_equal(
        detector.score_samples(new), detector.detector_.score_samples(new)
    )
    assert np.isfinite(detector.decision_function(new)).all()


@pytest.mark.parametrize(
    ("calibration", "n"), [("auto", 9), ("kfold", 7), ("kfold", 8), ("train", 7)]
)
def test_a_few_more_images_do(n, calibration):
    detector = PUADDetector(calibration=calibration, contamination=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detector.fit(mixed(n))
    assert (detector.score_means_ > 0).all()
    assert detector.precision_.any()


# -- on images ---------------------------------------------------------------------


@pytest.mark.usefixtures("one_torch_thread")
@pytest.mark.filterwarnings("ignore:.*cannot certify")
@pytest.mark.filterwarnings("ignore:penalty_images")
def test_a_detector_of_images_and_features_beside_it(tmp_path):
    data = make_textures(n_normal=40, n_anomalous=8, size=64, random_state=0)
    pca = PCANetFeatures(image_size=64, kernel_sizes=(5, 3), n_filters=(4, 4))
    inner = EfficientADDetector(
        "tiny", "distill", features=pca, max_steps=4, image_size=64
    )
    detector = ImagePUADDetector(inner, pca).fit(data.train)
    assert not hasattr(inner, "offset_")
    scores = detector.score_samples(data.test)
    assert np.isfinite(scores).all()
    assert set(detector.predict(data.test)) <= {1, -1}
    # The sum of two z-scores, one of which is the inner detector's.
    own = -detector.detector_.score_samples(data.test)
    means = mean_patches(detector.features_.transform(data.test))
    centred = means - detector.location_
    distance = np.sqrt(np.einsum("ij,jk,ik->i", centred, detector.precision_, centred))
    both = np.column_stack([own, distance])
    both = (both - detector.score_means_) / detector.score_stds_
    np.testing.assert_allclose(-scores, both.sum(axis=1), rtol=1e-5)
    maps = detector.anomaly_map(data.test)
    np.testing.assert_array_equal(maps, detector.detector_.anomaly_map(data.test))
    joblib.dump(detector, tmp_path / "model.joblib")
    loaded = joblib.load(tmp_path / "model.joblib")
    np.testing.assert_array_equal(loaded.score_samples(data.test), scores)
    # A texture of other colours is one that every patch of it tells.
    inverted = [255 - np.asarray(image) for image in data.train[:4]]
    assert detector.score_samples(inverted).max() < scores[data.y_test == 1].min()


def test_an_image_combinator_needs_both():
    with pytest.raises(ValueError, match="detector"):
        ImagePUADDetector().fit([np.zeros((64, 64, 3), np.uint8)])

import sys

import numpy as np
import pytest
from sklearn.covariance import EllipticEnvelope
from sklearn.ensemble import IsolationForest
from sklearn.linear_model import LinearRegression
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity, LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM

from skad import Patchwise, PatchwiseDetector, PCANetFeatures, Pipeline
from skad.datasets import make_textures
from skad.metrics import image_auroc

ESTIMATORS = [
    LocalOutlierFactor(novelty=True),
    IsolationForest(n_estimators=20, random_state=0),
    OneClassSVM(),
    EllipticEnvelope(random_state=0),
    GaussianMixture(2, random_state=0),
    KernelDensity(),
    make_pipeline(StandardScaler(), OneClassSVM()),
]


def grids(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 4, 4, 6))


def with_a_defect(n, seed=1):
    X = grids(n, seed)
    X[:, 3, 1] += 5
    return X


def class_name(estimator):
    return type(estimator).__name__


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=class_name)
def test_defects_are_found_and_located(estimator):
    detector = PatchwiseDetector(estimator).fit(grids(40))
    new = with_a_defect(5)
    assert (detector.predict(new) == -1).all()
    assert (detector.predict(grids(20, seed=2)) == 1).sum() > 15
    assert (detector.anomaly_map(new).reshape(5, -1).argmax(axis=1) == 13).all()
    assert not hasattr(estimator, "n_features_in_")  # the user's own stays as it is


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=class_name)
def test_patch_scores_are_those_of_the_estimator(estimator):
    detector = PatchwiseDetector(estimator, calibration="split").fit(grids(40))
    new = with_a_defect(3)
    expected = -detector.estimator_.score_samples(new.reshape(-1, 6)).reshape(3, 4, 4)
    np.testing.assert_allclose(detector.anomaly_map(new), expected, rtol=1e-6)
    highest = expected.reshape(3, -1).max(axis=1)
    np.testing.assert_allclose(-detector.score_samples(new), highest, rtol=1e-12)


def test_patches_are_sampled():
    class Counting(KernelDensity):
        def fit(self, X, y=None):
            self.rows_ = X
            return super().fit(X)

    X = grids(40)
    few = PatchwiseDetector(Counting(), 50, calibration="split").fit(X)
    rows = {row.tobytes() for row in few.estimator_.rows_}
    assert len(rows) == 50
    assert rows < {row.tobytes() for row in X.reshape(-1, 6)}
    again = PatchwiseDetector(Counting(), 50, calibration="split").fit(X)
    np.testing.assert_array_equal(again.estimator_.rows_, few.estimator_.rows_)
    all_of_them = PatchwiseDetector(Counting(), None, calibration="split").fit(X)
    assert len(all_of_them.estimator_.rows_) == 32 * 16


def test_in_a_pipeline():
    data = make_textures(20, 8, size=64, texture="metal", random_state=0)
    lof = PatchwiseDetector(LocalOutlierFactor())
    model = Pipeline([PCANetFeatures(image_size=64), Patchwise(), lof])
    model.set_params(patchwisedetector__estimator__novelty=True)
    model.fit(data.train)
    assert image_auroc(data.y_test, model.decision_function(data.test)) > 0.9
    assert model.anomaly_map(data.test[:2]).shape == (2, 64, 64)


def test_a_decision_function_will_do():
    class Distance:
        def get_params(self, deep=True):
            return {}

        def fit(self, X):
            self.n_features_in_ = X.shape[1]

        def decision_function(self, X):
            return -np.linalg.norm(X, axis=1)

    detector = PatchwiseDetector(Distance()).fit(grids(40))
    assert (detector.predict(with_a_defect(3)) == -1).all()


@pytest.mark.parametrize(
    ("estimator", "error", "message"),
    [
        (LocalOutlierFactor(), TypeError, r"Use LocalOutlierFactor\(novelty=True\)"),
        (LinearRegression(), TypeError, "neither score_samples nor decision_function"),
        (3, ValueError, "'estimator' parameter"),
    ],
)
def test_what_cannot_score_new_patches_is_refused(estimator, error, message):
    with pytest.raises(error, match=message):
        PatchwiseDetector(estimator).fit(grids(10))


def test_scores_per_class_are_refused():
    class Columns(KernelDensity):
        def score_samples(self, X):
            return np.zeros((len(X), 3))

    with pytest.raises(ValueError, match="one score per row"):
        PatchwiseDetector(Columns()).fit(grids(10))


@pytest.mark.parametrize("name", ["KNN", "ECOD", "HBOS", "pipeline"])
def test_detectors_of_pyod(name):
    """Their decision_function is larger for outliers, unlike scikit-learn's."""
    pytest.importorskip("pyod")
    from pyod.models.ecod import ECOD
    from pyod.models.hbos import HBOS
    from pyod.models.knn import KNN

    made = {
        "KNN": KNN(),
        "ECOD": ECOD(),
        "HBOS": HBOS(),
        "pipeline": make_pipeline(StandardScaler(), KNN()),
    }
    detector = PatchwiseDetector(made[name]).fit(grids(40))
    new = with_a_defect(5)
    assert (detector.predict(new) == -1).all()
    assert (detector.predict(grids(20, seed=2)) == 1).sum() > 15
    expected = detector.estimator_.decision_function(new.reshape(-1, 6))
    np.testing.assert_allclose(detector.anomaly_map(new).ravel(), expected, rtol=1e-6)


def test_a_class_of_the_name_of_pyods_base_is_not_taken_for_it():
    class BaseDetector(KernelDensity):
        pass

    detector = PatchwiseDetector(BaseDetector()).fit(grids(40))
    assert (detector.predict(with_a_defect(3)) == -1).all()
    assert "pyod" not in sys.modules or detector.estimator_.__module__ != "pyod"

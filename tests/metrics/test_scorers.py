import numpy as np
import pytest
import sklearn
from sklearn.base import BaseEstimator, clone
from sklearn.model_selection import GridSearchCV, cross_validate

from skad import PatchCoreDetector, PatchFeatures, Pipeline, anomaly_map
from skad.datasets import make_textures
from skad.metrics import (
    aupimo_score,
    aupimo_scorer,
    image_auroc,
    image_auroc_scorer,
    image_average_precision,
    image_average_precision_scorer,
    image_f1_max,
    image_f1_max_scorer,
    pixel_auroc,
    pixel_auroc_scorer,
    pixel_average_precision,
    pixel_average_precision_scorer,
    pixel_f1_max,
    pixel_f1_max_scorer,
    pro_score,
    pro_scorer,
    spro_score,
    spro_scorer,
)
from skad.model_selection import OneClassSplit


@pytest.fixture(scope="module")
def data():
    return make_textures(
        n_normal=16, n_anomalous=8, size=64, texture="metal", random_state=0
    )


@pytest.fixture(scope="module")
def model():
    return Pipeline(
        [
            PatchFeatures(
                "resnet10t", "auto", weights=False, image_size=64, embedding="concat"
            ),
            PatchCoreDetector(contamination=0.2),
        ]
    )


@pytest.fixture
def routing():
    with sklearn.config_context(enable_metadata_routing=True):
        yield


def everything(data):
    """Training and test images together, as a search takes them."""
    X = np.concatenate([data.train, data.test])
    y = np.r_[data.y_train, data.y_test]
    masks = np.concatenate([np.zeros(data.train.shape[:3], bool), data.masks])
    return X, y, masks


def test_scorers_equal_their_metrics(model, data):
    model = clone(model).fit(data.train)
    scores = model.decision_function(data.test)
    for scorer, metric in (
        (image_auroc_scorer, image_auroc),
        (image_average_precision_scorer, image_average_precision),
        (image_f1_max_scorer, image_f1_max),
    ):
        expected = metric(data.y_test, scores)
        assert scorer(model, data.test, data.y_test) == pytest.approx(expected)
    maps = model.anomaly_map(data.test)
    for scorer, metric in (
        (pixel_auroc_scorer, pixel_auroc),
        (pixel_average_precision_scorer, pixel_average_precision),
        (pixel_f1_max_scorer, pixel_f1_max),
        (pro_scorer, pro_score),
        (spro_scorer, spro_score),
        (aupimo_scorer, aupimo_score),
    ):
        expected = metric(data.masks, maps)
        assert scorer(model, data.test, masks=data.masks) == pytest.approx(expected)
        assert scorer(model, data.test, data.masks) == pytest.approx(expected)
        assert scorer(model, data.test, data.y_test, data.masks) == expected
    paths = [m if m.any() else None for m in data.masks]
    assert pro_scorer(model, data.test, masks=paths) == pytest.approx(
        pro_score(data.masks, maps)
    )


def test_maps_are_drawn_at_the_size_of_the_masks(model, data):
    model = clone(model).fit(data.train)
    coarse = data.masks[:, ::2, ::2]
    maps = anomaly_map(model, data.test, size=(32, 32))
    assert pro_scorer(model, data.test, masks=coarse) == pytest.approx(
        pro_score(coarse, maps)
    )


@pytest.mark.usefixtures("routing")
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_search_by_image_and_by_pixels_at_once(model, data, n_jobs):
    X, y, masks = everything(data)
    search = GridSearchCV(
        model,
        {"patchcoredetector__coreset_ratio": [0.02, 0.3]},
        scoring={"image": "roc_auc", "pro": pro_scorer},
        refit="pro",
        cv=OneClassSplit(2),
        n_jobs=n_jobs,
    ).fit(X, y, masks=masks)
    for name in ("image", "pro"):
        values = search.cv_results_[f"mean_test_{name}"]
        assert ((values > 0) & (values <= 1)).all()
    detector = search.best_estimator_[-1]
    assert len(detector.calibration_scores_) == (y == 1).sum()  # refit on good only
    assert anomaly_map(search, data.test).shape == data.masks.shape
    assert 0 < pro_scorer(search, data.test, masks=data.masks) <= 1


@pytest.mark.usefixtures("routing")
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_nested_search(model, data, n_jobs):
    X, y, masks = everything(data)
    search = GridSearchCV(
        model,
        {"patchcoredetector__coreset_ratio": [0.1]},
        scoring=pro_scorer,
        cv=OneClassSplit(2),
    )
    result = cross_validate(
        search,
        X,
        y,
        scoring=pro_scorer,
        cv=OneClassSplit(2),
        params={"masks": masks},
        n_jobs=n_jobs,
    )
    assert (result["test_score"] > 0).all()


def test_masks_as_y_without_routing(model, data):
    X, _, masks = everything(data)
    good = np.arange(16)
    splits = [(good[:8], np.arange(8, len(X))), (good[8:], np.r_[0:8, 16 : len(X)])]

    class Unlabelled(BaseEstimator):
        """A detector that leaves y alone, as y holds masks here."""

        def fit(self, X, y=None):
            self.model_ = clone(model).fit(X)
            return self

        def anomaly_map(self, X, size=None):
            return self.model_.anomaly_map(X, size)

    result = cross_validate(Unlabelled(), X, masks, scoring=pro_scorer, cv=splits)
    assert (result["test_score"] > 0).all()


def test_scorers_clone_and_print():
    assert clone(pro_scorer).metric is pro_score
    assert "pixel_auroc" in repr(pixel_auroc_scorer)


def test_an_estimator_without_maps_is_refused(data):
    from sklearn.dummy import DummyClassifier

    dummy = DummyClassifier().fit(data.train.reshape(16, -1), np.arange(16) % 2)
    with pytest.raises(TypeError, match="no method anomaly_map"):
        pro_scorer(dummy, data.test, masks=data.masks)

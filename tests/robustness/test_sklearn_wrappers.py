"""scikit-learn's own methods and wrappers do to a model what skad's methods do."""

import joblib
import numpy as np
import pytest
import sklearn.pipeline
from sklearn import config_context
from sklearn.base import clone
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    StratifiedKFold,
    TunedThresholdClassifierCV,
    cross_val_predict,
    cross_validate,
)

import skad
from skad.base import ImageDetector
from skad.datasets import make_textures
from skad.inspection import recall_report
from skad.metrics import image_auroc_scorer, pro_scorer
from skad.model_selection import OneClassSplit

pytestmark = pytest.mark.filterwarnings("ignore:.*cannot certify")


@pytest.fixture(scope="module")
def labelled():
    """38 normal images and 8 anomalous ones, their labels and masks."""
    data = make_textures(n_normal=38, n_anomalous=8, size=64, random_state=0)
    X = np.concatenate([data.train, data.test[-8:]])
    masks = [None] * 38 + list(data.masks[-8:])
    return X, np.r_[np.ones(38, int), -np.ones(8, int)], masks


def rows(n=60, n_anomalous=8, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 3, 3, 4))
    X[n - n_anomalous :, 1, 1] += 8
    return X, np.r_[np.ones(n - n_anomalous, int), -np.ones(n_anomalous, int)]


# -- fit_predict ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "detector",
    [skad.PatchCoreDetector(), skad.PaDiMDetector(), skad.SubspaceDetector()],
    ids=lambda detector: type(detector).__name__,
)
def test_fit_predict_of_a_pipeline_leaves_anomalous_images_out(
    features, labelled, detector
):
    X, y, _ = labelled
    model = skad.Pipeline([features(), detector])
    found = model.fit_predict(X, y)
    learned = clone(model).fit(X, y)
    np.testing.assert_array_equal(found[y == -1], learned.predict(X[y == -1]))
    held_out = learned[-1].calibration_scores_ >= learned[-1].offset_
    np.testing.assert_array_equal(found[y == 1] == 1, held_out)
    assert model[-1].n_samples_seen_ == (y == 1).sum()
    plain = sklearn.pipeline.Pipeline(clone(model).steps)
    np.testing.assert_array_equal(plain.fit_predict(X, y), found)


@pytest.mark.parametrize("calibration", ["loo", "kfold", "train"])
def test_fit_predict_of_features_is_held_out(calibration):
    X, y = rows()
    detector = skad.PatchCoreDetector(calibration=calibration, contamination=0.1)
    found = detector.fit_predict(X, y)
    assert (found[y == -1] == -1).all()
    if calibration == "train":
        np.testing.assert_array_equal(found, clone(detector).fit(X, y).predict(X))
    else:
        held_out = detector.calibration_scores_ - detector.offset_
        np.testing.assert_array_equal(found[y == 1] == 1, held_out >= 0)
        assert 0 < (found[y == 1] == -1).sum() <= 6
    unlabelled = detector.fit_predict(X)
    assert unlabelled.shape == y.shape


def test_fit_predict_leaves_out_absent_images():
    X, y = rows()
    X[[3, 55]] = np.nan
    found = skad.PatchCoreDetector().fit_predict(X, y)
    assert found[[3, 55]].tolist() == [0, 0]
    assert np.flatnonzero(found == 0).tolist() == [3, 55]


def test_fit_predict_needs_a_score_of_each_image():
    X, y = rows()
    with pytest.raises(ValueError, match=r"holds out a part.*calibration='kfold'"):
        skad.PatchCoreDetector(calibration="split").fit_predict(X, y)
    with pytest.raises(ValueError, match="calibration='auto' of SimpleNetDetector"):
        skad.SimpleNetDetector().fit_predict(X, y)
    with pytest.raises(ValueError, match=r"keeps 20.*calibration_size"):
        skad.PaDiMDetector(calibration_size=20).fit_predict(X, y)


def test_fit_predict_of_an_image_detector(model, textures):
    if not isinstance(model, ImageDetector):
        pytest.skip("takes features")
    with pytest.raises(ValueError, match="calibration='kfold'"):
        clone(model).fit_predict(textures.train)


def test_fit_predict_with_regions_and_in_a_stream(features, labelled):
    X, y, _ = labelled
    region = np.zeros((64, 64), bool)
    region[:, 16:] = True
    regions = [region] * len(X)
    for detector in (skad.PaDiMDetector(), skad.PatchCoreDetector()):
        model = skad.Pipeline([features(), detector])
        found = model.fit_predict(X, y, regions=regions)
        learned = clone(model).fit(X, y, regions=regions)
        np.testing.assert_array_equal(
            found[y == -1], learned.predict(X[y == -1], regions=regions[:8])
        )
        held_out = learned[-1].calibration_scores_ >= learned[-1].offset_
        np.testing.assert_array_equal(found[y == 1] == 1, held_out)


# -- frozen estimators ---------------------------------------------------------------


@pytest.fixture(scope="module")
def padim(features, labelled):
    X, y, _ = labelled
    return skad.Pipeline([features(), skad.PaDiMDetector()]).fit(X, y)


def wrapped(model, where, build=skad.Pipeline):
    images, detector = model.steps
    steps = {
        "features": [(images[0], FrozenEstimator(images[1])), detector],
        "detector": [images, (detector[0], FrozenEstimator(detector[1]))],
        "both": [(name, FrozenEstimator(step)) for name, step in model.steps],
        "pipeline": [("whole", FrozenEstimator(model))],
    }
    return build(steps[where])


@pytest.mark.parametrize("build", [skad.Pipeline, sklearn.pipeline.Pipeline])
@pytest.mark.parametrize("where", ["features", "detector", "both", "pipeline"])
def test_frozen_parts_answer_as_before(padim, labelled, where, build):
    X = labelled[0][-3:]
    model = wrapped(padim, where, build)
    for method in ("score_samples", "predict", "decision_function"):
        np.testing.assert_array_equal(
            getattr(model, method)(X), getattr(padim, method)(X)
        )
    np.testing.assert_array_equal(skad.anomaly_map(model, X), padim.anomaly_map(X))
    found = list(skad.inspect(model, X))
    assert [one.p_value for one in found] == padim.p_value(X).tolist()
    if build is skad.Pipeline:
        np.testing.assert_array_equal(model.predict_mask(X), padim.predict_mask(X))
        np.testing.assert_array_equal(model.p_value(X), padim.p_value(X))
        assert model.pixel_threshold((64, 64)) == padim.pixel_threshold((64, 64))


@pytest.mark.parametrize("where", ["detector", "both", "pipeline"])
def test_a_frozen_detector_does_not_learn(padim, labelled, where):
    X, y, _ = labelled
    model = wrapped(padim, where)
    before = joblib.hash(padim[-1].mean_), padim[-1].offset_
    model.fit(X[:10], y[:10])
    model.partial_fit(X[:10], y[:10])
    clone(model).fit(X[:10])
    assert (joblib.hash(padim[-1].mean_), padim[-1].offset_) == before
    assert padim[-1].n_samples_seen_ == 38
    with pytest.raises((ValueError, AttributeError), match=r"frozen|fit_predict"):
        model.fit_predict(X)


@pytest.mark.parametrize(
    "detector", [skad.PaDiMDetector(), skad.PatchCoreDetector()], ids=["PaDiM", "bank"]
)
def test_frozen_features_are_not_fitted_again(labelled, detector):
    X, y, _ = labelled
    filters = skad.PCANetFeatures(64, n_filters=(4, 4, 4), n_components=8)
    filters.fit(X[:6])
    before = joblib.hash(vars(filters))
    model = skad.Pipeline([FrozenEstimator(filters), detector])
    model.fit(X[6:20], y[6:20]).partial_fit(X[20:30])
    assert joblib.hash(vars(filters)) == before
    assert model[-1].n_samples_seen_ == 24


@pytest.mark.parametrize("routing", [False, True])
@pytest.mark.parametrize(
    "detector", [skad.PaDiMDetector(), skad.PatchCoreDetector()], ids=["PaDiM", "bank"]
)
def test_regions_reach_frozen_features(features, labelled, detector, routing):
    X, y, _ = labelled
    region = np.zeros((64, 64), bool)
    region[:, 32:] = True
    regions = [region] * len(X)
    images = features().fit(X[:2])
    expected = skad.Pipeline([images, clone(detector)]).fit(X, y, regions=regions)
    model = skad.Pipeline([FrozenEstimator(images), clone(detector)])
    with config_context(enable_metadata_routing=routing):
        model.fit(X, y, regions=regions)
    assert model[-1].offset_ == pytest.approx(expected[-1].offset_, rel=1e-6)
    assert np.isfinite(model.score_samples(X[:2], regions=regions[:2])).all()


def test_a_frozen_model_can_be_calibrated(padim, labelled):
    X = labelled[0][:20]
    inner = joblib.load(dumped(padim))
    frozen = FrozenEstimator(inner)
    mean = inner[-1].mean_.copy()
    frozen.calibrate(X)
    assert len(inner[-1].calibration_scores_) == 20
    model = wrapped(joblib.load(dumped(padim)), "both")
    model.calibrate(X)
    assert model[-1].offset_ == inner[-1].offset_
    np.testing.assert_array_equal(model[-1].mean_, mean)


def dumped(model):
    import io

    file = io.BytesIO()
    joblib.dump(model, file)
    file.seek(0)
    return file


# -- searches and cross-validation -----------------------------------------------------


def test_searches(features, labelled):
    X, y, _ = labelled
    model = skad.Pipeline([features(), skad.PatchCoreDetector()])
    grid = {"patchcoredetector__n_neighbors": [1, 2]}
    searches = [
        GridSearchCV(model, grid, cv=OneClassSplit(2), scoring="roc_auc"),
        HalvingGridSearchCV(
            model,
            grid,
            cv=OneClassSplit(2),
            scoring=image_auroc_scorer,
            min_resources=len(X),
            max_resources=len(X),
        ),
    ]
    for search in searches:
        search.fit(X, y)
        best = search.best_estimator_
        assert best[-1].n_samples_seen_ == 38
        np.testing.assert_array_equal(
            search.score_samples(X[-2:]), best.score_samples(X[-2:])
        )
        np.testing.assert_array_equal(
            skad.anomaly_map(search, X[-2:]), best.anomaly_map(X[-2:])
        )
        assert [one.label for one in skad.inspect(search, X[-2:])] == [
            *search.predict(X[-2:])
        ]


def test_a_classifier_threshold_is_refused(features, labelled):
    X, y, _ = labelled
    model = skad.Pipeline([features(), skad.PatchCoreDetector()])
    tuned = TunedThresholdClassifierCV(model, cv=OneClassSplit(2))
    with pytest.raises(AttributeError, match="set by contamination and calibrate"):
        tuned.fit(X, y)
    assert not hasattr(model[-1], "classes_")


def test_decisions_by_cross_validation(features, labelled):
    X, y, _ = labelled
    model = skad.Pipeline([features(), skad.SubspaceDetector()])
    options = {"cv": OneClassSplit(2, outliers="partition")}
    for cv in (options["cv"], StratifiedKFold(2)):
        with pytest.raises((ValueError, AttributeError), match="pass it y=None"):
            cross_val_predict(model, X, y, method="decision_function", cv=cv)
    # What the message advises:
    folds = list(OneClassSplit(2, outliers="partition").split(X, y))
    decisions = cross_val_predict(model, X, cv=folds, method="decision_function")
    labels = cross_val_predict(model, X, y, **options)
    np.testing.assert_array_equal(labels, np.where(decisions >= 0, 1, -1))


def test_masks_reach_pixel_scorers_by_routing_alone(features, labelled):
    X, y, masks = labelled
    model = skad.Pipeline([features(), skad.PatchCoreDetector()])
    cv = OneClassSplit(2)
    stacked = np.stack([np.zeros((64, 64), bool) if m is None else m for m in masks])
    folds = list(cv.split(X, y))
    with pytest.raises(ValueError, match="y has shape"):
        cross_validate(
            model, X, stacked, scoring=pro_scorer, cv=folds, error_score="raise"
        )
    with pytest.raises(ValueError, match="enable_metadata_routing") as caught:
        cross_validate(model, X, y, scoring=pro_scorer, cv=cv, error_score="raise")
    assert "params={'masks': masks}" in str(caught.value)
    with config_context(enable_metadata_routing=True):
        found = cross_validate(
            model,
            X,
            y,
            scoring=pro_scorer,
            cv=cv,
            params={"masks": masks},
            error_score="raise",
        )
    assert (found["test_score"] > 0.3).all()
    model.fit(X, y)
    assert pro_scorer(model, X, stacked) == pro_scorer(model, X, masks=masks)


# -- what a pipeline is asked beside fit -----------------------------------------------


def test_reports_of_any_wrapper(features, labelled):
    X, y, _ = labelled
    model = skad.Pipeline([features(), skad.PatchCoreDetector()]).fit(X, y)
    region = np.zeros((64, 64), bool)
    region[:, 16:] = True
    options = {"regions": [region] * 8}
    expected = recall_report(model, X[-8:], **options).p_values
    for wrapped in (FrozenEstimator(model), sklearn.pipeline.Pipeline(model.steps)):
        found = recall_report(wrapped, X[-8:], **options).p_values
        np.testing.assert_array_equal(found, expected)


def test_slices_copies_and_caches(features, labelled, tmp_path, capsys):
    X, y, _ = labelled
    model = skad.Pipeline([features(), skad.PaDiMDetector()]).fit(X, y)
    expected = model.score_samples(X[-3:])
    np.testing.assert_array_equal(
        model[-1].score_samples(model[:1].transform(X[-3:])), expected
    )
    assert model[:1].fit_transform(X[:3]).shape == (3, 8, 8, 128)
    kept = clone(model).set_params(memory=str(tmp_path / "memory")).fit(X, y)
    np.testing.assert_allclose(kept.score_samples(X[-3:]), expected, rtol=1e-6)
    capsys.readouterr()
    clone(model).set_params(verbose=True).fit(X, y)
    assert "(steps 1 and 2 of 2) Processing patchfeatures" in capsys.readouterr().out
    with pytest.raises(ValueError, match="transform_input"):
        clone(model).set_params(transform_input=["masks"]).fit(X, y)
    with pytest.raises(ValueError, match="set_output"):
        clone(model).set_output(transform="pandas")


def test_a_nested_pipeline_is_one_pipeline(features, labelled):
    X, y, _ = labelled
    flat = skad.Pipeline([features(), skad.PatchCoreDetector()]).fit(X, y)
    inner = skad.Pipeline([features(), skad.PatchCoreDetector()])
    outer = skad.Pipeline([("skipped", "passthrough"), ("inner", inner)]).fit(X, y)
    for method in ("score_samples", "p_value", "anomaly_map", "predict_mask"):
        np.testing.assert_array_equal(
            getattr(outer, method)(X[-2:]), getattr(flat, method)(X[-2:])
        )
    before = flat[-1].n_samples_seen_
    outer.partial_fit(X[:5])
    outer.calibrate(X[:10])
    assert inner[-1].n_samples_seen_ == before + 5
    assert len(inner[-1].calibration_scores_) == 10
    np.testing.assert_array_equal(outer.fit_predict(X, y), flat.fit_predict(X, y))

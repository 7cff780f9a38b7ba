import copy
import pickle

import joblib
import numpy as np
import pytest
import sklearn.pipeline
from sklearn import config_context
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.preprocessing import StandardScaler
from sklearn.utils import estimator_html_repr

from skad import (
    PaDiMDetector,
    PatchCoreDetector,
    PatchFeatures,
    PCANetFeatures,
    Pipeline,
    SPADEDetector,
    SubspaceDetector,
    anomaly_map,
    make_pipeline,
)
from skad._maps import render
from skad.datasets import make_textures
from skad.detectors._gaussians import Gaussians
from skad.features import SkippedImageWarning
from skad.images import ImageError
from skad.metrics import pro_scorer
from skad.model_selection import OneClassSplit
from skad.synthesis import AugmentedViews

NETWORK = {"backbone": "resnet10t", "weights": False, "layers": "auto"}


@pytest.fixture(scope="module")
def data():
    return make_textures(n_normal=24, n_anomalous=4, size=64, random_state=0)


def new_pipeline(cls=Pipeline, **parameters):
    return cls(
        [
            ("features", PatchFeatures(**NETWORK, image_size=64, embedding="concat")),
            ("detector", PatchCoreDetector()),
        ]
    ).set_params(**parameters)


@pytest.fixture(scope="module")
def model(data):
    return new_pipeline().fit(data.train)


# -- steps ---------------------------------------------------------------------


def names(pipeline):
    return [name for name, _ in pipeline.steps]


def test_bare_steps_are_named():
    assert names(Pipeline([PatchFeatures(), PatchCoreDetector()])) == [
        "patchfeatures",
        "patchcoredetector",
    ]
    assert names(
        Pipeline([("a", StandardScaler()), StandardScaler(), "passthrough"])
    ) == ["a", "standardscaler", "passthrough"]
    assert names(
        Pipeline([StandardScaler(), StandardScaler(), PatchCoreDetector()])
    ) == [
        "standardscaler-1",
        "standardscaler-2",
        "patchcoredetector",
    ]
    clash = Pipeline([("standardscaler", StandardScaler()), StandardScaler()])
    assert len(set(names(clash))) == 2
    assert names(make_pipeline(StandardScaler(), PatchCoreDetector())) == [
        "standardscaler",
        "patchcoredetector",
    ]


def test_the_contract_of_scikit_learn_holds():
    steps = [("scale", StandardScaler()), ("detect", PatchCoreDetector())]
    pipeline = Pipeline(steps)
    assert pipeline.steps is steps
    assert pipeline.get_params()["steps"] is steps
    for copied in (
        clone(pipeline),
        clone(clone(Pipeline([StandardScaler(), PatchCoreDetector()]))),
        copy.deepcopy(pipeline),
        pickle.loads(pickle.dumps(pipeline)),
    ):
        assert isinstance(copied, Pipeline)
        assert len(copied.steps) == 2
    pipeline.set_params(detect__n_neighbors=2)
    assert pipeline["detect"].n_neighbors == 2
    pipeline.set_params(scale="passthrough")
    pipeline.set_params(steps=[StandardScaler(), PatchCoreDetector()])
    assert names(pipeline) == ["standardscaler", "patchcoredetector"]
    assert len(pipeline[:1]) == 1
    assert "PatchCoreDetector" in estimator_html_repr(pipeline)


@pytest.mark.parametrize("steps", [[], None, [("a", 3)], [object()]])
def test_bad_steps_keep_scikit_learns_errors(steps):
    with pytest.raises((TypeError, ValueError, AttributeError)):
        Pipeline(steps).fit(np.eye(3))


def test_a_slice_keeps_the_parameters():
    model = Pipeline(
        [StandardScaler(), *new_pipeline().steps],
        memory="folder",
        verbose=True,
        transform_input=["X_val"],
        augmentation=AugmentedViews(2),
    )
    expected = model.get_params(deep=False)
    for start in (0, 1):
        found = model[start:].get_params(deep=False)
        assert found == {**expected, "steps": model.steps[start:]}
    found = model[-1:].get_params(deep=False)  # no step reads images
    assert found == {**expected, "steps": model.steps[-1:], "augmentation": None}
    for stop in (-1, 1, 0):  # without the detector, nothing learns from views
        found = model[:stop].get_params(deep=False)
        left_out = {"steps": model.steps[:stop], "augmentation": None}
        assert found == {**expected, **left_out}
    assert model["features"] is model[1]


def test_methods_are_there_when_the_last_step_has_them():
    assert hasattr(new_pipeline(), "anomaly_map")
    for method in ("anomaly_map", "predict_mask", "p_value", "calibrate"):
        assert not hasattr(Pipeline([StandardScaler()]), method)


# -- images in, decisions and maps out -------------------------------------------


def test_maps_have_the_size_of_their_images(model, data):
    maps = model.anomaly_map(data.test)
    assert maps.shape == np.shape(data.test)[:3]
    assert maps.dtype == np.float32
    grids = model["detector"].anomaly_map(model["features"].transform(data.test))
    np.testing.assert_array_equal(maps, render(grids, maps.shape[1:]))
    assert model.anomaly_map(data.test, size=(30, 40)).shape[1:] == (30, 40)


def test_maps_are_a_list_where_sizes_differ(model, data):
    mixed = [data.test[0], np.repeat(data.test[1], 2, axis=0)]
    maps = model.anomaly_map(mixed)
    assert isinstance(maps, list)
    assert [m.shape for m in maps] == [(64, 64), (128, 64)]
    np.testing.assert_array_equal(maps[0], model.anomaly_map(data.test[:1])[0])
    masks = model.predict_mask(mixed)
    assert [m.shape for m in masks] == [(64, 64), (128, 64)]
    np.testing.assert_array_equal(masks[1], maps[1] > model.pixel_threshold((128, 64)))


def test_a_crop_is_undone(data):
    model = new_pipeline(features__image_size=64, features__crop_size=32)
    maps = model.fit(data.train).anomaly_map(data.test)
    grids = model["detector"].anomaly_map(model["features"].transform(data.test))
    np.testing.assert_allclose(
        maps[:, 16:48, 16:48], render(grids, (32, 32)), atol=1e-5
    )
    np.testing.assert_allclose(maps[:, 0, 0], grids.min((1, 2)), rtol=1e-6)
    good = make_textures(n_normal=40, n_anomalous=0, size=64, random_state=1).train
    assert model.predict_mask(good).any(axis=(1, 2)).mean() < 0.3


def test_scikit_learns_own_pipeline_and_searches_make_maps(model, data):
    plain = new_pipeline(sklearn.pipeline.Pipeline).fit(data.train)
    expected = model.anomaly_map(data.test)
    np.testing.assert_array_equal(anomaly_map(plain, data.test), expected)
    np.testing.assert_array_equal(anomaly_map(model, data.test), expected)
    X = [*data.train, *data.test]
    y = np.r_[np.ones(len(data.train), int), data.y_test]
    search = GridSearchCV(
        new_pipeline(),
        {"detector__coreset_ratio": [0.1]},
        scoring="roc_auc",
        cv=StratifiedKFold(2),
    ).fit(X, y)
    assert len(anomaly_map(search, data.test)) == len(data.test)
    features = model["features"].transform(data.test)
    assert anomaly_map(model["detector"], features).shape == (len(features), 8, 8)
    with pytest.raises(TypeError, match="StandardScaler has no method anomaly_map"):
        anomaly_map(StandardScaler(), features)


def test_p_values_and_calibration_on_images(data):
    model = new_pipeline().fit(data.train)
    p = model.p_value(data.test)
    assert ((p > 0) & (p <= 1)).all()
    before = model["detector"].offset_
    good = make_textures(n_normal=20, n_anomalous=0, size=64, random_state=1).train
    assert model.calibrate(good) is model
    assert model["detector"].offset_ != before
    assert len(model["detector"].calibration_scores_) == 20


def test_one_bad_image_never_stops_a_long_run(data, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"")
    model = new_pipeline(features__on_error="skip")
    with pytest.warns(SkippedImageWarning, match="bad.png"):
        model.fit([*data.train, bad])
    assert model["features"].skipped_[0][0] == len(data.train)
    assert len(model["detector"].calibration_scores_) == len(data.train)
    X = [data.test[0], bad, data.test[1]]
    with pytest.warns(SkippedImageWarning, match=r"X\[1\]"):
        decision = model.decision_function(X)
    np.testing.assert_array_equal(np.isnan(decision), [False, True, False])
    with pytest.warns(SkippedImageWarning):
        assert model.predict(X)[1] == 0
    with pytest.warns(SkippedImageWarning):
        maps = model.anomaly_map(X)
    assert maps.shape == (3, 64, 64)
    assert np.isnan(maps[1]).all()


def test_round_trip_through_joblib(model, data, tmp_path):
    joblib.dump(model, tmp_path / "model.joblib")
    loaded = joblib.load(tmp_path / "model.joblib")
    np.testing.assert_array_equal(
        loaded.score_samples(data.test), model.score_samples(data.test)
    )
    np.testing.assert_array_equal(
        loaded.anomaly_map(data.test), model.anomaly_map(data.test)
    )


@pytest.mark.slow
def test_grid_search_gives_the_same_bits_on_one_and_two_processes(data):
    X = np.concatenate([data.train, data.test])
    y = np.r_[np.ones(len(data.train), int), data.y_test]
    results = []
    for n_jobs in (1, 2):
        search = GridSearchCV(
            new_pipeline(),
            {"detector__coreset_ratio": [0.05, 0.2], "detector__n_neighbors": [1, 2]},
            scoring="roc_auc",
            cv=StratifiedKFold(2),
            n_jobs=n_jobs,
        ).fit(X, y)
        results.append(
            (
                search.cv_results_["mean_test_score"],
                search.best_estimator_.score_samples(data.test),
            )
        )
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_array_equal(results[0][1], results[1][1])


def test_feature_pipelines_without_images():
    X = np.random.default_rng(0).normal(size=(40, 5))
    model = make_pipeline(StandardScaler(), PatchCoreDetector()).fit(X)
    assert model.anomaly_map(X).shape == (40, 1, 1)
    assert model.predict(X).shape == (40,)
    assert isinstance(model.pixel_threshold((4, 4)), float)


# -- learning on, and batch by batch ---------------------------------------------


@pytest.mark.parametrize(
    "features", [PatchFeatures(**NETWORK), PCANetFeatures(n_filters=(8, 12, 12))]
)
def test_padim_learns_from_a_stream(data, features, monkeypatch):
    features.set_params(image_size=64, batch_size=7)
    X = [*data.train, *data.test]
    y = np.r_[np.ones(len(data.train), int), data.y_test]
    whole = PaDiMDetector().fit(clone(features).fit_transform(X, y), y)
    seen = []
    add = Gaussians.add
    monkeypatch.setattr(
        Gaussians, "add", lambda self, X, *at: seen.append(len(X)) or add(self, X, *at)
    )
    model = Pipeline([features, PaDiMDetector()]).fit(X, y)
    assert max(seen) <= 7
    np.testing.assert_allclose(model[-1].mean_, whole.mean_, atol=1e-12)
    assert model[-1].offset_ == pytest.approx(whole.offset_, rel=1e-6)
    assert model[-1].n_samples_seen_ == (y == 1).sum()


@pytest.mark.parametrize(
    "detector", [PatchCoreDetector(), PaDiMDetector(), SubspaceDetector()]
)
def test_partial_fit(data, detector):
    features = PatchFeatures(**NETWORK, image_size=64, embedding="concat")
    model = Pipeline([features, detector])
    assert model.partial_fit(data.train[:12]) is model
    model.partial_fit([*data.train[12:], *data.test[:3]], [1] * 12 + [-1] * 3)
    assert model[-1].n_samples_seen_ == 24
    parts = clone(detector)
    X = features.transform(data.train)
    parts.partial_fit(X[:12]).partial_fit(X[12:])
    np.testing.assert_allclose(
        model.score_samples(data.test),
        parts.score_samples(features.transform(data.test)),
        rtol=1e-6,
    )
    assert not hasattr(Pipeline([features, SPADEDetector()]), "partial_fit")


def test_a_stream_of_bad_images_is_explained(data, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"")
    features = PatchFeatures(**NETWORK, image_size=64, on_error="skip")
    model = Pipeline([features, PaDiMDetector()])
    with pytest.warns(SkippedImageWarning, match="bad.png"):
        model.fit([*data.train, bad])
    assert model[0].skipped_[0][0] == len(data.train)
    assert model[-1].n_samples_seen_ == len(data.train)
    with pytest.raises(ImageError, match="none of the 1 images"):
        clone(model).partial_fit([bad])
    with pytest.raises(ValueError, match="every label is -1"):
        model.partial_fit(data.train[:2], [-1, -1])


def test_one_image_in_a_stream(data):
    features = PatchFeatures(**NETWORK, image_size=64)
    with pytest.warns(UserWarning, match="one training image"):
        model = Pipeline([features, PaDiMDetector()]).fit(data.train[:1])
    assert np.isfinite(model.decision_function(data.test)).all()


def test_batches_of_which_nothing_lies_inside_a_region(data):
    features = PatchFeatures(**NETWORK, image_size=64, batch_size=1)
    model = Pipeline([features, PaDiMDetector(contamination=0.2)])
    regions = [np.ones((64, 64), bool)] * 10
    for i in (0, 4, 9):
        regions[i] = np.zeros((64, 64), bool)
    kept = np.delete(np.arange(10), (0, 4, 9))
    images = list(data.train[:10])
    fitted = clone(model).fit(images, regions=regions)
    alone = clone(model).fit([images[i] for i in kept])
    assert fitted[-1].n_samples_seen_ == 7
    np.testing.assert_allclose(
        fitted.score_samples(data.test), alone.score_samples(data.test)
    )
    with pytest.warns(UserWarning, match="one training image"):
        one = clone(model).fit(images[:2], regions=regions[:2])
    assert one[-1].n_samples_seen_ == 1


def test_scores_part_by_part(model, data, monkeypatch):
    whole = model["features"].transform(data.test)
    seen = []
    blocks = PatchFeatures._scoring_parts

    def small(self, reader, regions=None):
        for index, block in blocks(self, reader, regions, n_images=1):
            seen.append(len(block))
            yield index, block

    monkeypatch.setattr(PatchFeatures, "_scoring_parts", small)
    monkeypatch.setattr(model["features"], "batch_size", 3)
    for method in ("score_samples", "decision_function", "predict", "p_value"):
        np.testing.assert_allclose(
            getattr(model, method)(data.test),
            getattr(model["detector"], method)(whole),
            rtol=1e-6,
        )
    maps = model["detector"].anomaly_map(whole)
    np.testing.assert_allclose(
        model.anomaly_map(data.test), render(maps, (64, 64)), rtol=1e-5, atol=1e-5
    )
    assert max(seen) == 3


# -- searches ------------------------------------------------------------------------


def test_a_search_runs_the_network_once_per_image(data, tmp_path):
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 8, 8, stride=8))
    passed = []

    def count(module, inputs, output):
        images = inputs[0][:, 0].flatten(1)
        # A black image probes the shapes; it is constant.
        passed.append(int((images.std(dim=1) > 1e-3).sum()))

    network[0].register_forward_hook(count)
    X = [*data.train, *data.test]
    y = np.r_[np.ones(len(data.train), int), data.y_test]
    masks = [None] * len(data.train) + list(data.masks)
    features = PatchFeatures(
        network, ("0",), image_size=64, embedding="concat", cache_dir=tmp_path
    )
    methods = [
        {"detector__coreset_ratio": [0.02, 0.2], "detector__n_neighbors": [1, 3]},
        {"detector": [PaDiMDetector(), SubspaceDetector(), SPADEDetector(5)]},
    ]
    search = GridSearchCV(
        Pipeline([("features", features), ("detector", PatchCoreDetector())]),
        methods,
        scoring={"image": "roc_auc", "pro": pro_scorer},
        refit="pro",
        cv=OneClassSplit(3),
        error_score="raise",
    )
    with config_context(enable_metadata_routing=True):
        search.fit(X, y, masks=masks)
        assert sum(passed) == len(X)
        search.fit(X, y, masks=masks)
    assert sum(passed) == len(X)
    assert len(search.cv_results_["mean_test_pro"]) == 7
    assert np.isfinite(search.cv_results_["mean_test_pro"]).all()

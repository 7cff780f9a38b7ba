import pickle

import numpy as np
import pytest
from sklearn.model_selection import GridSearchCV

from skad import PatchFeatures, Pipeline, SPADEDetector
from skad.datasets import make_textures
from skad.features import PatchArray
from skad.model_selection import OneClassSplit

TIMM = {"backbone": "resnet10t", "weights": False, "image_size": 64}
LAYERS = ("layer1", "layer2", "layer3")


@pytest.fixture(scope="module")
def data():
    return make_textures(n_normal=20, n_anomalous=6, size=64, random_state=0)


def test_the_pooled_output_of_a_timm_model(data):
    import torch

    features = PatchFeatures(**TIMM, layers="auto", embedding="concat", pooled=True)
    X = features.fit_transform(data.train[:3])
    module = features._backbone().module
    batch = features._as_input(
        data.train[:3].astype(np.float32) / 255, features._backbone()
    )
    with torch.inference_mode():
        pooled = module.forward_head(module.forward_features(batch), pre_logits=True)
    np.testing.assert_allclose(X.pooled, pooled.numpy(), atol=1e-4)
    plain = PatchFeatures(**TIMM, layers="auto", embedding="concat")
    np.testing.assert_allclose(X, plain.fit_transform(data.train[:3]), atol=1e-5)


def test_a_transformer_has_one_too(data):
    features = PatchFeatures(
        "vit_tiny_patch16_224",
        weights=False,
        layers="auto",
        image_size=64,
        embedding="concat",
        pooled=True,
    )
    X = features.fit_transform(data.train[:2])
    assert X.pooled.shape == (2, 192)
    assert X.shape == (2, 4, 4, 384)


@pytest.mark.parametrize("pooled", ["late", "head", "early"])
def test_a_module_of_ones_own_network(tiny_network, images, pooled):
    features = PatchFeatures(
        tiny_network, layers=("early", "late"), image_size=32, pooled=pooled
    )
    X = features.fit_transform(images)
    level = PatchFeatures(
        tiny_network,
        layers=("late" if pooled == "head" else pooled,),
        image_size=32,
        embedding="concat",
        patch_size=1,
    ).fit_transform(images)
    if pooled != "early":  # a ReLU works on that in place
        np.testing.assert_allclose(X.pooled, level.mean(axis=(1, 2)), atol=1e-5)
    assert X.pooled.shape == (5, level.shape[3])


@pytest.mark.parametrize("n_components", [None, 40])
def test_levels_are_told_apart(data, n_components):
    parameters = {"embedding": "replicate", "n_components": n_components}
    features = PatchFeatures(**TIMM, layers=LAYERS, pooled=True, **parameters)
    X = features.fit_transform(data.train[:4])
    counts, grids = zip(*X.levels, strict=True)
    assert grids == ((16, 16), (8, 8), (4, 4))
    assert sum(counts) == X.shape[3]
    if n_components is None:
        assert counts == (64, 128, 256)
    detector = SPADEDetector(2, contamination=0.4).fit(X)
    assert [g.shape[1:] for g in detector.galleries_] == [
        (side, side, count) for count, (side, _) in X.levels
    ]
    # Cells of a coarse level that are repeated are taken once, and none is lost.
    again = np.repeat(np.repeat(detector.galleries_[1], 2, axis=1), 2, axis=2)
    np.testing.assert_array_equal(
        again, np.asarray(X)[..., counts[0] : sum(counts[:2])]
    )


def test_the_descriptor_reaches_the_detector_through_a_pipeline(data):
    features = PatchFeatures(**TIMM, layers=LAYERS, embedding="replicate", pooled=True)
    model = Pipeline([features, SPADEDetector(5)]).fit(data.train)
    X = features.transform(data.train)
    detector = model[-1]
    np.testing.assert_allclose(detector.descriptors_, X.pooled, rtol=1e-5)
    assert model.anomaly_map(data.test).shape == data.masks.shape
    loaded = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(
        loaded.score_samples(data.test), model.score_samples(data.test)
    )


def test_the_cache_holds_descriptors(data, tmp_path):
    parameters = {**TIMM, "layers": LAYERS, "embedding": "replicate", "pooled": True}
    plain = PatchFeatures(**parameters).fit_transform(data.train[:4])
    features = PatchFeatures(**parameters, cache_dir=tmp_path)
    first = features.fit_transform(data.train[:4])
    second = features.transform(data.train[:5])
    for X in (first, second[:4]):
        np.testing.assert_array_equal(X, plain)
        np.testing.assert_array_equal(X.pooled, plain.pooled)
        assert X.levels == plain.levels
    assert type(np.load(next(tmp_path.rglob("*.npy")))) is np.ndarray


def test_search_over_features_with_descriptors(data):
    features = PatchFeatures(**TIMM, layers=LAYERS, embedding="replicate", pooled=True)
    X = features.fit_transform([*data.train, *data.test])
    assert isinstance(X, PatchArray)
    y = np.r_[np.ones(20, int), data.y_test]
    search = GridSearchCV(
        SPADEDetector(),
        {"n_neighbors_image": [2, 5]},
        scoring="roc_auc",
        cv=OneClassSplit(2),
        error_score="raise",
    ).fit(X, y)
    assert search.best_estimator_.descriptors_.shape[1] == X.pooled.shape[1]


@pytest.mark.parametrize(
    ("pooled", "message"),
    [(True, "pooled=True needs a timm model"), ("neck", "pooled='neck' is no module")],
)
def test_a_bad_choice_is_explained(tiny_network, images, pooled, message):
    features = PatchFeatures(
        tiny_network, layers=("early",), image_size=32, pooled=pooled
    )
    with pytest.raises(ValueError, match=message):
        features.fit(images)

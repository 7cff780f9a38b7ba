"""Scoring leaves a fitted estimator as it is, down to the hash of its attributes."""

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV

import skad
from skad.features import PatchFeatureTransformer
from skad.model_selection import OneClassSplit

pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings("ignore:.*cannot certify"),
]

CALLS = {
    name: lambda model, X, name=name: getattr(model, name)(X)
    for name in (
        *("score_samples", "decision_function", "predict", "p_value"),
        *("anomaly_map", "predict_mask"),
    )
}
CALLS["pixel_threshold"] = lambda model, X: model.pixel_threshold((33, 41))
CALLS["inspect"] = lambda model, X: list(skad.inspect(model, X))


def hashes(model):
    steps = [step for _, step in model.steps] if hasattr(model, "steps") else [model]
    return [joblib.hash(vars(part)) for part in [model, *steps]]


def test_scoring_leaves_the_estimator_unchanged(model, textures):
    X = list(textures.test)
    before = hashes(model)
    for name, call in CALLS.items():
        call(model, X)
        assert hashes(model) == before, name


@pytest.mark.parametrize(
    "build",
    [
        lambda features: features(),
        lambda features: skad.PCANetFeatures(64, n_filters=(4, 4, 4)),
        lambda features: skad.SPDPatchFeatures(
            "resnet10t", weights=False, layers="auto", image_size=64, max_steps=1
        ),
    ],
    ids=["PatchFeatures", "PCANetFeatures", "SPDPatchFeatures"],
)
def test_transforming_leaves_the_transformer_unchanged(build, features, textures):
    transformer = build(features)
    assert isinstance(transformer, PatchFeatureTransformer)
    transformer.fit(textures.train[:4])
    before = joblib.hash(vars(transformer))
    transformer.transform(textures.test)
    assert joblib.hash(vars(transformer)) == before


def test_a_search_and_a_frozen_model_stay_too(features, textures):
    X = np.concatenate([textures.train, textures.test[-3:]])
    y = np.r_[np.ones(16, int), -np.ones(3, int)]
    model = skad.Pipeline([features(), skad.PatchCoreDetector()])
    search = GridSearchCV(
        model, {"patchcoredetector__n_neighbors": [1]}, cv=OneClassSplit(2)
    )
    search.set_params(scoring="roc_auc").fit(X, y)
    frozen = FrozenEstimator(clone(model).fit(X, y))
    for outer, inner in ((search, search.best_estimator_), (frozen, frozen.estimator)):
        before = hashes(inner)
        outer.predict(X)
        outer.decision_function(X)
        skad.anomaly_map(outer, X)
        list(skad.inspect(outer, X))
        assert hashes(inner) == before

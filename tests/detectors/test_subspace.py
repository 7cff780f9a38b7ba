import pickle

import numpy as np
import pytest
from sklearn.decomposition import PCA

from skad import SubspaceDetector


def patches(n, seed=0, rank=4, d=12, shape=(4, 4)):
    rng = np.random.default_rng(7)
    mixing = rng.normal(size=(rank, d))
    rng = np.random.default_rng(seed)
    signal = rng.normal(size=(n, *shape, rank)) @ mixing
    return signal + 0.1 * rng.normal(size=signal.shape)


@pytest.mark.parametrize("n_components", [1, 3, 5, 9, 11])
def test_residual_of_a_principal_component_analysis(n_components):
    X, new = patches(20), patches(5, seed=1)
    detector = SubspaceDetector(n_components, top_ratio=None).fit(X)
    pca = PCA(n_components).fit(X.reshape(-1, 12))
    rows = new.reshape(-1, 12)
    residual = rows - pca.inverse_transform(pca.transform(rows))
    expected = np.linalg.norm(residual, axis=1).reshape(5, 4, 4)
    np.testing.assert_allclose(detector.anomaly_map(new), expected, rtol=1e-5)
    np.testing.assert_allclose(
        -detector.score_samples(new), expected.max((1, 2)), rtol=1e-9
    )


def test_share_of_the_variance():
    X = patches(20)
    for share in (0.5, 0.9, 0.99, 0.9999):
        detector = SubspaceDetector(share).fit(X)
        pca = PCA(share).fit(X.reshape(-1, 12))
        assert detector.n_components_ == min(pca.n_components_, 11)
    np.testing.assert_allclose(
        detector.explained_variance_ratio_,
        PCA().fit(X.reshape(-1, 12)).explained_variance_ratio_,
        rtol=1e-9,
    )


def test_something_is_always_left_over():
    X = patches(20)
    assert SubspaceDetector(50).fit(X).n_components_ == 11
    assert SubspaceDetector(0.9).fit(X[..., :1]).n_components_ == 0
    assert SubspaceDetector().fit(np.ones((30, 2, 2, 3))).n_components_ < 3


def test_held_out_scores_equal_models_of_the_other_folds():
    X = patches(23)
    detector = SubspaceDetector().fit(X)
    for fold in detector._folds(23):
        other = SubspaceDetector(calibration="train").fit(np.delete(X, fold, axis=0))
        np.testing.assert_allclose(
            detector.calibration_scores_[fold], other.score_samples(X[fold]), rtol=1e-9
        )


def test_state_is_small():
    X = np.random.default_rng(0).normal(size=(20, 4, 4, 384)).astype(np.float32)
    for share in (0.2, 0.5, 0.99):
        detector = SubspaceDetector(share).fit(X)
        assert len(pickle.dumps(detector)) < 1_000_000


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_components": 0}, "n_components"),
        ({"n_components": 1.0}, "n_components"),
        ({"top_ratio": 0}, "top_ratio"),
        ({"calibration": "loo"}, "calibration='loo' is not offered"),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        SubspaceDetector(**parameters).fit(np.zeros((4, 2, 2, 3)))

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.preprocessing import MaxAbsScaler, QuantileTransformer, StandardScaler

from skad import Patchwise


def grids(n=12, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 3, 4, 6))


@pytest.mark.parametrize(
    "transformer", [StandardScaler(), PCA(2), QuantileTransformer(n_quantiles=9)]
)
def test_every_patch_is_transformed(transformer):
    X = grids()
    step = Patchwise(transformer).fit(X)
    expected = step.transformer_.fit(X.reshape(-1, 6)).transform(X.reshape(-1, 6))
    found = step.transform(X)
    assert found.shape == (12, 3, 4, step.n_features_out_)
    np.testing.assert_allclose(found.reshape(expected.shape), expected)
    np.testing.assert_allclose(step.transform(X.reshape(-1, 6)), expected)


def test_values_too_large_for_a_detector_can_be_scaled():
    found = Patchwise(MaxAbsScaler()).fit_transform(1e200 * grids())
    assert np.abs(found).max() == 1


def test_the_default_standardises_the_channels():
    found = Patchwise().fit_transform(3 * grids() + 2)
    np.testing.assert_allclose(found.mean(axis=(0, 1, 2)), 0, atol=1e-12)
    np.testing.assert_allclose(found.std(axis=(0, 1, 2)), 1)


def test_patches_outside_a_region_stay_nan_and_change_nothing():
    X = grids()
    X[:, 0] = np.nan
    step = Patchwise(PCA(2)).fit(X)
    found = step.transform(X)
    assert np.isnan(found[:, 0]).all()
    np.testing.assert_allclose(
        found[:, 1:], Patchwise(PCA(2)).fit_transform(X[:, 1:]), rtol=1e-9
    )
    assert np.isnan(step.transform(X[:, :1])).all()


def test_anomalous_images_are_not_learned_from():
    X, y = grids(), np.repeat([1, -1], 6)
    X[6:] += 50
    step = Patchwise().fit(X, y)
    np.testing.assert_allclose(step.transformer_.mean_, X[:6].mean(axis=(0, 1, 2)))
    with pytest.raises(ValueError, match="every label is -1"):
        Patchwise().fit(X, -np.ones(12))


def test_float32_stays():
    assert Patchwise().fit_transform(grids().astype(np.float32)).dtype == np.float32


def test_bad_input():
    step = Patchwise().fit(grids())
    with pytest.raises(ValueError, match="6 features"):
        step.transform(grids()[..., :5])
    with pytest.raises(ValueError, match="dim 3"):
        step.transform(grids()[0])
    broken = grids()
    broken[1, 2, 3, 4] = np.nan
    with pytest.raises(ValueError, match=r"X\[1\] contains NaN"):
        step.transform(broken)

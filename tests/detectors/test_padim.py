import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis

from skad import PaDiMDetector
from skad._maps import render
from skad.networks._embedding import replicate


def grids(golden_layers, dtype=np.float64):
    """PaDiM's features (n, h, w, d) from the layers of a golden file."""
    import torch

    levels = [torch.from_numpy(layer.astype(dtype)) for layer in golden_layers]
    return replicate(levels, levels[0].shape[2:]).permute(0, 2, 3, 1).numpy()


@pytest.fixture(scope="module")
def main(golden):
    g = golden("padim_main")
    X = grids([g["layer1"], g["layer2"], g["layer3"]])[..., g["idx"]]
    n = int(g["n_train"])
    detector = PaDiMDetector(eps=float(g["eps"])).fit(X[:n])
    return g, detector, X[n:]


def covariances(detector):
    h, w, _ = detector.mean_.shape
    found = [detector.covariance(i, j) for i in range(h) for j in range(w)]
    return np.stack(found, axis=-1)


def test_golden_fewer_images_than_channels(main):
    g, detector, new = main
    np.testing.assert_allclose(
        detector.mean_.reshape(-1, 100).T, g["mean"], rtol=0, atol=3e-7
    )
    np.testing.assert_allclose(covariances(detector), g["cov"], rtol=0, atol=1e-6)
    maps = detector._score(new)[1]
    np.testing.assert_allclose(maps, g["dist_f64"], rtol=1e-8)
    np.testing.assert_allclose(maps, g["dist_reference"], rtol=1e-4, atol=2e-3)
    np.testing.assert_allclose(
        -detector.score_samples(new), g["image_score_max_unsmoothed"], rtol=1e-8
    )


def test_golden_maps(main):
    g, detector, new = main
    size = (int(g["image_size"]),) * 2
    raw = render(detector.anomaly_map(new), size, sigma=0)
    np.testing.assert_allclose(raw, g["map_upsampled_bilinear"], rtol=1e-4, atol=2e-3)
    smooth = detector.anomaly_map(new, size)
    np.testing.assert_allclose(smooth, g["map_smoothed"], rtol=1e-4, atol=2e-3)


def test_golden_bicubic_maps(main):
    g, detector, new = main
    size = (int(g["image_size"]),) * 2
    cubic = PaDiMDetector(interpolation="bicubic", sigma=0)
    cubic.__dict__.update(
        {k: v for k, v in vars(detector).items() if k not in cubic.get_params()}
    )
    # The reference stores float32; distances here reach several hundred.
    tolerance = {"rtol": 2e-6, "atol": 1e-5}
    np.testing.assert_allclose(
        cubic.anomaly_map(new, size), g["map_bicubic"], **tolerance
    )
    cubic.sigma = float(g["sigma"])
    np.testing.assert_allclose(
        cubic.anomaly_map(new, size), g["map_bicubic_smoothed"], **tolerance
    )


def test_golden_more_images_than_channels(golden):
    g = golden("padim_small")
    X = grids([g["layer1"], g["layer2"], g["layer3"]])
    np.testing.assert_array_equal(X.transpose(0, 3, 1, 2), g["concat_nearest"])
    X, n = X[..., g["sel"]], int(g["n_train"])
    detector = PaDiMDetector().fit(X[:n])
    np.testing.assert_allclose(
        detector.mean_.reshape(-1, 12).T, g["mean"], rtol=0, atol=1e-10
    )
    np.testing.assert_allclose(covariances(detector), g["cov"], rtol=0, atol=1e-10)
    np.testing.assert_allclose(detector._score(X[n:])[1], g["dist"], rtol=1e-8)


@pytest.mark.parametrize("n", [2, 3, 5, 9, 10, 30])
def test_held_out_scores_equal_models_without_the_image(n):
    X = np.random.default_rng(0).normal(size=(n, 2, 3, 9))
    detector = PaDiMDetector(contamination=0.5).fit(X)
    for i in range(n):
        rest = np.delete(X, i, axis=0)
        without = PaDiMDetector(calibration="train").fit(rest)
        np.testing.assert_allclose(
            detector.calibration_maps_[i], without.anomaly_map(X[[i]])[0], rtol=1e-5
        )
        np.testing.assert_allclose(
            detector.calibration_scores_[i], without.score_samples(X[[i]])[0], rtol=1e-8
        )


@pytest.mark.parametrize("n", [6, 40])
def test_is_the_mahalanobis_distance(n):
    rng = np.random.default_rng(0)
    X, new = rng.normal(size=(n, 2, 2, 8)), rng.normal(size=(3, 2, 2, 8))
    maps = PaDiMDetector(eps=0.1).fit(X).anomaly_map(new)
    for i, j in np.ndindex(2, 2):
        patches = X[:, i, j]
        inverse = np.linalg.inv(np.cov(patches.T) + 0.1 * np.eye(8))
        expected = [mahalanobis(z, patches.mean(0), inverse) for z in new[:, i, j]]
        np.testing.assert_allclose(maps[:, i, j], expected, rtol=1e-5)


def test_one_training_image_scores_by_euclidean_distance():
    rng = np.random.default_rng(0)
    X, new = rng.normal(size=(1, 2, 2, 5)), rng.normal(size=(4, 2, 2, 5))
    with pytest.warns(UserWarning, match="one training image has no covariance"):
        detector = PaDiMDetector(eps=0.04).fit(X)
    expected = np.linalg.norm(new - X, axis=-1) / 0.2
    np.testing.assert_allclose(detector.anomaly_map(new), expected, rtol=1e-6)
    np.testing.assert_allclose(detector.covariance(1, 1), 0.04 * np.eye(5))


def test_identical_training_images_score_by_euclidean_distance():
    rng = np.random.default_rng(0)
    X = np.repeat(rng.normal(size=(1, 2, 2, 5)), 30, axis=0)
    new = rng.normal(size=(4, 2, 2, 5))
    maps = PaDiMDetector().fit(X).anomaly_map(new)
    np.testing.assert_allclose(
        maps, 10 * np.linalg.norm(new - X[0], axis=-1), rtol=1e-6
    )


def test_images_kept_depend_on_their_contents_alone():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(50, 2, 2, 4)).astype(np.float32)
    one = PaDiMDetector(calibration_size=20).fit(X)
    order = rng.permutation(50)
    parts = PaDiMDetector(calibration_size=20)
    for lo in range(0, 50, 7):
        parts.partial_fit(X[order[lo : lo + 7]])
    assert len(one.calibration_scores_) == 20
    np.testing.assert_allclose(
        np.sort(parts.calibration_scores_), np.sort(one.calibration_scores_), rtol=1e-6
    )
    assert parts.offset_ == pytest.approx(one.offset_, rel=1e-6)


def test_an_update_leaves_a_copy_as_it_was():
    import copy

    X = np.random.default_rng(0).normal(size=(60, 2, 2, 4))
    detector = PaDiMDetector().fit(X[:30])
    before = copy.copy(detector)
    expected = before.score_samples(X[30:])
    detector.partial_fit(X[30:])
    np.testing.assert_array_equal(before.score_samples(X[30:]), expected)


def test_another_grid_is_refused():
    rng = np.random.default_rng(0)
    detector = PaDiMDetector().fit(rng.normal(size=(30, 3, 3, 4)))
    for method in (detector.predict, detector.partial_fit, detector.calibrate):
        with pytest.raises(ValueError, match=r"4 x 3.*3 x 3"):
            method(rng.normal(size=(2, 4, 3, 4)))


def test_eps_that_is_lost_is_explained():
    X = 1e12 * np.random.default_rng(0).normal(size=(5, 1, 1, 8))
    with pytest.raises(ValueError, match="eps"):
        PaDiMDetector(eps=1e-30).fit(np.repeat(X, 4, axis=0))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"eps": 0}, "eps"),
        ({"calibration_size": 0}, "calibration_size"),
        ({"interpolation": "nearest"}, "interpolation"),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        PaDiMDetector(**parameters).fit(np.zeros((4, 2, 2, 3)))


def test_a_position_outside_the_grid_is_named():
    detector = PaDiMDetector().fit(np.zeros((30, 2, 2, 3)))
    with pytest.raises(ValueError, match=r"\(2, 0\).*2 x 2"):
        detector.covariance(2, 0)

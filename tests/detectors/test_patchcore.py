import numpy as np
import pytest

from skad import PatchCoreDetector, PatchFeatures
from skad.neighbors import greedy_coreset, nearest


def bank_of(rows, **parameters):
    """A detector whose bank is exactly the given rows."""
    rows = np.asarray(rows)
    parameters = {"coreset_ratio": 1.0, "calibration": "train", **parameters}
    return PatchCoreDetector(**parameters).fit(rows[None, :, None, :])


def images_of(query, n=2):
    return query.reshape(n, 14, 14, -1)


@pytest.fixture
def g(golden):
    return golden("patchcore_score")


@pytest.mark.parametrize(("b", "key"), [(9, "reweighted_b9"), (3, "reweighted_b3")])
def test_golden_reweighted_score(g, b, key):
    detector = bank_of(g["bank"].astype(np.float64), reweight=b)
    scores = -detector.score_samples(images_of(g["query"].astype(np.float64)))
    np.testing.assert_allclose(scores, g[key], rtol=1e-9)
    single = -bank_of(g["bank"], reweight=b).score_samples(images_of(g["query"]))
    np.testing.assert_allclose(single, g[key], rtol=2e-5)


@pytest.mark.parametrize("reweight", [None, 1])
def test_golden_plain_maximum(g, reweight):
    detector = bank_of(g["bank"], reweight=reweight)
    X = images_of(g["query"])
    np.testing.assert_allclose(
        -detector.score_samples(X), g["image_score_max_l2"], rtol=1e-9
    )
    maps = detector.anomaly_map(X)
    np.testing.assert_allclose(maps.reshape(-1), g["nn_l2_f64"], rtol=1e-5)
    assert maps.dtype == np.float32


def test_golden_small_banks(g):
    X = images_of(g["query"].astype(np.float64))
    bank = g["bank"].astype(np.float64)
    np.testing.assert_allclose(
        -bank_of(bank[:5]).score_samples(X), g["reweighted_b9_bank5"], rtol=1e-9
    )
    alone = bank_of(bank[:1])
    np.testing.assert_allclose(
        -alone.score_samples(X), alone.anomaly_map(X).max((1, 2)), rtol=1e-6
    )


@pytest.mark.parametrize("name", ["overflow", "scale8"])
def test_golden_large_distances_do_not_overflow(g, name):
    key = "overflow_reweighted_b9" if name == "overflow" else "scale8_reweighted_b9"
    scale = float(g["overflow_scale"] if name == "overflow" else g["scale8"])
    detector = bank_of(g["bank"].astype(np.float64) * scale)
    scores = -detector.score_samples(images_of(g["query"].astype(np.float64) * scale))
    np.testing.assert_allclose(scores, g[key], rtol=1e-9)


def test_mean_of_several_neighbours(g):
    X = images_of(g["query"].astype(np.float64))
    detector = bank_of(g["bank"].astype(np.float64), n_neighbors=3, reweight=None)
    gaps = g["query"][:, None].astype(np.float64) - g["bank"].astype(np.float64)
    expected = np.sort(np.sqrt((gaps**2).sum(-1)))[:, :3].mean(axis=1)
    np.testing.assert_allclose(detector.anomaly_map(X).reshape(-1), expected, rtol=1e-6)


def test_bank_holds_the_rows_of_the_coreset():
    X = np.random.default_rng(0).normal(size=(30, 4, 4, 6)).astype(np.float32)
    rows = X.reshape(-1, 6)
    detector = PatchCoreDetector(coreset_ratio=0.2).fit(X)
    np.testing.assert_array_equal(detector.bank_, rows[detector.coreset_indices_])
    assert len(detector.bank_) == 96
    np.testing.assert_array_equal(
        detector.coreset_indices_,
        greedy_coreset(rows, 96, start=detector.coreset_indices_[0]),
    )
    whole = PatchCoreDetector(coreset_ratio=1.0).fit(X)
    np.testing.assert_array_equal(whole.bank_, rows)


def test_projection_selects_almost_as_well(few_photographs):
    """The radius within which its bank covers photographs of tiles, and updates."""
    files = sorted((few_photographs / "magnetic_tile/train/good").iterdir())[:20]
    X = PatchFeatures("skad_small", "auto", image_size=64).fit_transform(files)
    rows = X.reshape(-1, X.shape[-1])
    exact = PatchCoreDetector(0.1).fit(X)
    start = exact.coreset_indices_[0]
    projected = PatchCoreDetector(0.1, projection_dim=24).fit(X)
    np.testing.assert_array_equal(
        projected.coreset_indices_,
        greedy_coreset(rows, len(exact.bank_), start=start, projection_dim=24),
    )
    np.testing.assert_array_equal(projected.bank_, rows[projected.coreset_indices_])
    assert set(projected.coreset_indices_) != set(exact.coreset_indices_)
    radii = [nearest(rows, bank)[0].max() for bank in (exact.bank_, projected.bank_)]
    assert radii[0] < radii[1] < 1.6 * radii[0]
    parts = PatchCoreDetector(0.1, projection_dim=24, bank_size=100)
    parts.fit(X[:10]).partial_fit(X[10:])
    assert len(parts.bank_) == 100
    radius = nearest(rows, parts.bank_)[0].max()
    assert radius < 1.6 * nearest(rows, rows[greedy_coreset(rows, 100)])[0].max()


def test_training_images_are_at_distance_zero_of_a_whole_bank():
    X = np.random.default_rng(0).normal(size=(5, 4, 4, 6)).astype(np.float32)
    detector = PatchCoreDetector(coreset_ratio=1.0, calibration="train").fit(X)
    np.testing.assert_array_equal(detector.anomaly_map(X), 0)


def test_cosine_ignores_length():
    rng = np.random.default_rng(0)
    good, new = rng.random((10, 3, 3, 8)), rng.random((4, 3, 3, 8))
    detector = PatchCoreDetector(metric="cosine", coreset_ratio=1.0).fit(good)
    np.testing.assert_allclose(
        detector.score_samples(new * 7), detector.score_samples(new), rtol=1e-9
    )
    a, b = new.reshape(-1, 8), good.reshape(-1, 8)
    similarity = (
        a @ b.T / np.linalg.norm(a, axis=1)[:, None] / np.linalg.norm(b, axis=1)
    )
    np.testing.assert_allclose(
        detector.anomaly_map(new).reshape(-1), 1 - similarity.max(axis=1), atol=1e-6
    )


def test_top_ratio_is_the_mean_of_the_worst_patches():
    rng = np.random.default_rng(0)
    good, new = rng.random((10, 10, 10, 4)), rng.random((3, 10, 10, 4))
    detector = PatchCoreDetector(top_ratio=0.05).fit(good)
    patches = np.sort(detector.anomaly_map(new).reshape(3, -1), axis=1)
    np.testing.assert_allclose(
        -detector.score_samples(new), patches[:, -5:].mean(axis=1), rtol=1e-6
    )


def test_held_out_scores_equal_models_without_the_image():
    X = np.random.default_rng(0).normal(size=(6, 3, 3, 5))
    detector = PatchCoreDetector(coreset_ratio=1.0).fit(X)
    for i in range(len(X)):
        rest = np.delete(X, i, axis=0)
        without = PatchCoreDetector(coreset_ratio=1.0, calibration="train").fit(rest)
        np.testing.assert_allclose(
            detector.calibration_scores_[i], without.score_samples(X[[i]])[0], rtol=1e-9
        )
        np.testing.assert_array_equal(
            detector.calibration_maps_[i], without.anomaly_map(X[[i]])[0]
        )


def test_one_training_image_warns_and_works():
    X = np.random.default_rng(0).normal(size=(3, 6, 6, 5))
    with pytest.warns(UserWarning, match="one training image cannot be held out"):
        detector = PatchCoreDetector().fit(X[:1])
    assert np.isfinite(detector.decision_function(X)).all()
    assert set(detector.predict(X)) <= {1, -1}


def test_identical_training_images_stop_the_coreset():
    X = np.tile(np.random.default_rng(0).normal(size=(1, 3, 3, 4)), (20, 1, 1, 1))
    detector = PatchCoreDetector(coreset_ratio=0.9).fit(X)
    assert len(detector.bank_) == 9


def test_more_neighbours_than_rows_are_clamped_with_a_warning():
    X = np.random.default_rng(0).normal(size=(20, 1, 1, 4))
    detector = PatchCoreDetector(coreset_ratio=0.1, n_neighbors=5).fit(X)
    with pytest.warns(UserWarning, match="n_neighbors=5 exceeds the 2 rows"):
        detector.predict(X)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"coreset_ratio": 0}, "coreset_ratio"),
        ({"coreset_ratio": 1.5}, "coreset_ratio"),
        ({"reweight": 0}, "reweight"),
        ({"n_neighbors": 0}, "n_neighbors"),
        ({"metric": "manhattan"}, "metric"),
        ({"contamination": 0.6}, "contamination"),
        ({"calibration": "test"}, "calibration"),
        ({"sigma": -1}, "sigma"),
        ({"top_ratio": 2}, "top_ratio"),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        PatchCoreDetector(**parameters).fit(np.zeros((4, 2, 2, 3)))

"""The worst patches of images, found without searching all of them."""

import numpy as np
import pytest

import skad
from skad.datasets import load_mvtec
from skad.neighbors._coreset import greedy_coreset
from skad.neighbors._nearest import Bank
from skad.neighbors._worst import search_worst


@pytest.fixture(autouse=True)
def small_searches_too(monkeypatch):
    """Few queries and rows, which would be searched at once."""
    monkeypatch.setattr("skad.neighbors._worst._MIN_WORK", 0)


def clustered(n, d, rng):
    """Rows about some centres, some of them equal."""
    centres = rng.normal(size=(12, d)).astype(np.float32) * 3
    rows = centres[rng.integers(12, size=n)] + rng.normal(size=(n, d))
    rows[: n // 50] = rows[n // 50]
    return rows.astype(np.float32)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("n_worst", [1, 5])
@pytest.mark.parametrize("in_order", [True, False])
def test_worst_queries_are_those_of_a_full_search(k, n_worst, in_order):
    rng = np.random.default_rng(0)
    rows = clustered(9000, 12, rng)
    if in_order:
        rows = rows[greedy_coreset(rows, 5000)]
    bank, queries = Bank(rows), clustered(600, 12, rng)
    queries[400:500] = queries[400]  # equal distances
    images = np.sort(rng.integers(5, size=600))
    full, full_indices = bank.search(queries, k)
    found, indices = search_worst(
        bank, queries, images, np.full(5, n_worst), k, np.sqrt, in_order=in_order
    )
    known = found[:, -1] > 0
    np.testing.assert_array_equal(found[known], full[known])
    np.testing.assert_array_equal(indices[known], full_indices[known])
    assert 5 * n_worst <= known.sum() < 600
    for image in range(5):
        values = np.sqrt(full[images == image]).mean(axis=1)
        values_found = np.sqrt(found[images == image]).mean(axis=1)
        np.testing.assert_array_equal(
            np.sort(values)[-n_worst:], np.sort(values_found)[-n_worst:]
        )
        assert values.argmax() == values_found.argmax()


def test_equal_distances_are_all_searched():
    rng = np.random.default_rng(0)
    bank = Bank(rng.normal(size=(3000, 8)))
    queries = np.zeros((50, 8))
    found, indices = search_worst(
        bank, queries, np.zeros(50, int), np.array([1]), 1, np.sqrt, in_order=False
    )
    full, full_indices = bank.search(queries, 1)
    np.testing.assert_array_equal(found, full)
    np.testing.assert_array_equal(indices, full_indices)


def sizes_of_calls(monkeypatch, name):
    """Numbers of queries that a method of `Bank` is called with from now on."""
    sizes, method = [], getattr(Bank, name)

    def noted(self, queries, *rest):
        sizes.append(len(queries))
        return method(self, queries, *rest)

    monkeypatch.setattr(Bank, name, noted)
    return sizes


def test_where_nothing_prunes_the_rest_is_searched_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    bank = Bank(rng.normal(size=(9000, 32)).astype(np.float32))
    queries = rng.normal(size=(600, 32)).astype(np.float32)
    one_image = np.zeros(600, np.intp)

    def worst(queries, n_worst):
        n_worst = np.array([n_worst])
        return search_worst(
            bank, queries, one_image, n_worst, 1, np.sqrt, in_order=True
        )

    full = bank.search(queries)
    searched = sizes_of_calls(monkeypatch, "search")
    bounded = sizes_of_calls(monkeypatch, "upper_bounds")
    known = bank.rows[8000:8600]  # all at a distance of 0
    np.testing.assert_array_equal(worst(known, 1)[0], np.zeros((600, 1)))
    assert (searched, bounded) == ([8, 592], [600])
    np.testing.assert_array_equal(worst(queries, 60), full)
    assert (searched[2:], bounded[1:]) == ([600], [])
    found = worst(queries, 7)
    np.testing.assert_array_equal(
        np.sort(found[0][:, 0])[-7:], np.sort(full[0][:, 0])[-7:]
    )
    assert sum(searched[3:]) < 300


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"coreset_ratio": 1.0},
        {"metric": "cosine"},
        {"n_neighbors": 3, "reweight": None},
        {"top_ratio": 0.02},
        {"bank_size": 3000},
    ],
    ids=str,
)
def test_scores_of_patchcore_are_those_of_its_maps(parameters):
    rng = np.random.default_rng(0)
    X = clustered(30 * 256, 12, rng).reshape(30, 16, 16, 12)
    X[3, :2] = np.nan  # a region
    parameters = {"coreset_ratio": 0.6, "calibration": "train"} | parameters
    detector = skad.PatchCoreDetector(**parameters).fit(X)
    test = clustered(9 * 256, 12, rng).reshape(9, 16, 16, 12)
    test[0, 2:5], test[4] = np.nan, np.nan
    present = np.arange(9) != 4
    scores = detector.score_samples(test)
    assert np.isnan(scores[4])
    expected = -detector._score(test[present])[0]
    np.testing.assert_array_equal(scores[present], expected)
    for i in np.flatnonzero(present):
        assert detector.score_samples(test[i : i + 1]) == scores[i]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mvtec_bottle_256", "magnetic_tile"])
def test_few_patches_of_photographs_are_searched(name, shared):
    data = load_mvtec(shared / "data", name)
    features = skad.PatchFeatures("skad_small", embedding="concat", image_size=224)
    X = features.fit_transform(data.train[:100])
    detector = skad.PatchCoreDetector(calibration="split").fit(X)
    test = features.transform(data.test[::5])
    np.testing.assert_array_equal(
        detector.score_samples(test), -detector._score(test)[0]
    )
    n_patches = test.shape[1] * test.shape[2]
    n_searched = []
    for image in test:
        found, _ = search_worst(
            detector._searched,
            image.reshape(n_patches, -1),
            np.zeros(n_patches, np.intp),
            np.ones(1, np.intp),
            1,
            np.sqrt,
            in_order=True,
        )
        n_searched.append((found > 0).sum())
    assert np.median(n_searched) < 0.1 * n_patches

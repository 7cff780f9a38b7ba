"""The approximate search: its threshold is of the search that scores."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.base import clone

from skad import PatchCoreDetector

pytestmark = pytest.mark.filterwarnings("ignore:.*cannot certify")


class Forgetful:
    """An index that never finds every second row of its bank."""

    made: list = []

    def __init__(self, data, *, n_neighbors, diversify_prob, random_state, leaf_size=1):
        self.rows, self.kept = data, np.arange(0, len(data), 2)
        self.asked = []
        Forgetful.made.append((n_neighbors, leaf_size))

    def prepare(self):
        pass

    def query(self, queries, k, epsilon):
        self.asked.append((k, epsilon))
        given = self.rows[self.kept]
        distances = np.linalg.norm(queries[:, None] - given, axis=2)
        order = distances.argsort(axis=1, kind="stable")[:, :k]
        found = np.take_along_axis(distances, order, axis=1)
        missing = k - order.shape[1]  # as pynndescent says that it found too few
        indices = np.pad(self.kept[order], ((0, 0), (0, missing)), constant_values=-1)
        found = np.pad(found, ((0, 0), (0, missing)), constant_values=np.inf)
        return indices.astype(np.int32), found.astype(np.float32)


@pytest.fixture
def forgetful(monkeypatch):
    monkeypatch.setattr(Forgetful, "made", [])
    module = SimpleNamespace(NNDescent=Forgetful)
    monkeypatch.setitem(sys.modules, "pynndescent", module)


def fitted(X, **given):
    return PatchCoreDetector(algorithm="nndescent", **given).fit(X)


@pytest.mark.parametrize(
    "given",
    [
        {"reweight": None},
        {"reweight": 3},
        {"reweight": None, "metric": "cosine"},
        {"reweight": None, "n_neighbors": 3},
    ],
)
@pytest.mark.usefixtures("forgetful")
def test_false_alarms_keep_the_promise(given):
    X = np.random.default_rng(0).normal(size=(700, 2, 2, 6))
    detector = fitted(X[:300], coreset_ratio=1.0, contamination=0.1, **given)
    exact = PatchCoreDetector(1.0, contamination=0.1, **given).fit(X[:300])
    alarms = np.mean(detector.predict(X[300:]) == -1)
    assert 0.05 < alarms < 0.15
    assert detector.offset_ < exact.offset_  # a worse search: scores are lower


@pytest.mark.usefixtures("forgetful")
def test_held_out_scores_are_those_of_the_same_search_without_own_rows():
    X = np.random.default_rng(0).normal(size=(12, 3, 3, 4))
    detector = fitted(X, coreset_ratio=1.0, reweight=None)
    rows = X.reshape(-1, 4)
    seen = np.arange(0, len(rows), 2)
    distances = np.linalg.norm(rows[:, None] - rows[seen], axis=2)
    distances[np.arange(len(rows))[:, None] // 9 == seen // 9] = np.inf
    nearest = np.sort(distances, axis=1)[:, 0].reshape(12, 9).max(axis=1)
    np.testing.assert_allclose(-detector.calibration_scores_, nearest, rtol=1e-6)


@pytest.mark.usefixtures("forgetful")
def test_patches_whose_candidates_are_all_their_own_are_searched_exactly():
    rng = np.random.default_rng(0)
    # Every image is a tight cluster: its ten candidates are its own rows.
    X = rng.normal(size=(6, 1, 1, 3)) * 100 + rng.normal(size=(6, 5, 5, 3)) / 100
    detector = fitted(X, coreset_ratio=1.0, reweight=None)
    exact = PatchCoreDetector(1.0, reweight=None).fit(X)
    np.testing.assert_allclose(
        detector.calibration_scores_, exact.calibration_scores_, rtol=1e-6
    )


@pytest.mark.filterwarnings("ignore:one training image")
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.usefixtures("forgetful")
def test_few_images(n):
    X = np.random.default_rng(0).normal(size=(n, 2, 2, 3))
    detector = fitted(X, coreset_ratio=1.0).partial_fit(X + 1)
    assert np.isfinite(detector.decision_function(X)).all()
    assert (detector._index[0].asked[-1][0]) == min(10, len(detector.bank_))


@pytest.mark.usefixtures("forgetful")
def test_parameters_reach_the_index_and_its_search():
    X = np.random.default_rng(0).normal(size=(20, 2, 2, 3))
    given = {"n_neighbors": 5, "leaf_size": 9, "n_candidates": 4, "epsilon": 0.05}
    detector = fitted(X, coreset_ratio=1.0, nndescent_params=given)
    assert Forgetful.made == [(5, 9)]
    assert set(detector._index[0].asked) == {(4, 0.05)}
    # They belong to the fit.
    before = detector.score_samples(X)
    detector.set_params(nndescent_params={"n_candidates": 1})
    np.testing.assert_array_equal(detector.score_samples(X), before)
    assert given == {
        "n_neighbors": 5,
        "leaf_size": 9,
        "n_candidates": 4,
        "epsilon": 0.05,
    }
    assert clone(detector).nndescent_params == {"n_candidates": 1}


@pytest.mark.usefixtures("forgetful")
@pytest.mark.parametrize("given", [{"n_neighbours": 5}, {"n_trees_": 3}])
def test_unknown_parameters_are_named(given):
    X = np.random.default_rng(0).normal(size=(20, 2, 2, 3))
    with pytest.raises(ValueError, match=r"nndescent_params=.*unexpected keyword"):
        fitted(X, nndescent_params=given)


# The two are here together, as a process compiles the index for a minute.


@pytest.mark.slow
def test_the_real_index_keeps_the_promise():
    X = np.random.default_rng(0).normal(size=(500, 4, 4, 16)).astype(np.float32)
    poor = {"n_candidates": 1, "epsilon": 0.0, "n_neighbors": 5}
    for params, calibration in ((None, "loo"), (poor, "split")):
        detector = fitted(
            X[:200],
            coreset_ratio=1.0,
            reweight=None,
            contamination=0.1,
            calibration=calibration,
            nndescent_params=params,
        )
        assert np.mean(detector.predict(X[200:]) == -1) < 0.15


@pytest.mark.slow
def test_the_real_index_finds_most_neighbours():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 8, 8, 6)).astype(np.float32)
    parameters = {"coreset_ratio": 0.5, "reweight": None}
    exact = PatchCoreDetector(**parameters).fit(X[:40])
    near = PatchCoreDetector(**parameters, algorithm="nndescent").fit(X[:40])
    a, b = exact.anomaly_map(X[40:]), near.anomaly_map(X[40:])
    assert (b >= a - 1e-5).all()
    assert np.mean(np.isclose(a, b, rtol=1e-4)) > 0.8
    assert near.offset_ == pytest.approx(exact.offset_, rel=0.05)

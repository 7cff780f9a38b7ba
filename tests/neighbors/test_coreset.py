import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.random_projection import GaussianRandomProjection

from skad import PatchCoreDetector
from skad.neighbors import greedy_coreset
from skad.neighbors._coreset import _Traversal, far_apart


def plain(X, n_samples, start=0):
    """Farthest-first by the textbook loop, in float64."""
    X = X.astype(np.float64)
    picked = [start]
    distance = ((X - X[start]) ** 2).sum(axis=1)
    while len(picked) < n_samples and distance.max() > 0:
        picked.append(int(distance.argmax()))
        distance = np.minimum(distance, ((X - X[picked[-1]]) ** 2).sum(axis=1))
    return np.array(picked), np.sqrt(distance)


def test_golden(golden):
    g = golden("patchcore_coreset")
    n, start = int(g["n_select"]), int(g["start"])
    indices = greedy_coreset(g["X"], n, start=start)
    np.testing.assert_array_equal(indices, g["idx_farthest_first"])
    gaps = g["X"][:, None].astype(float) - g["X"][indices].astype(float)
    nearest = np.sqrt((gaps**2).sum(-1)).min(axis=1)
    np.testing.assert_allclose(nearest, g["min_dist_after"], atol=1e-9)
    assert nearest.max() == pytest.approx(float(g["radius_farthest_first"]), rel=1e-9)
    projected = g["X"] @ g["projection_weight"].T
    np.testing.assert_array_equal(
        greedy_coreset(projected, n, start=start), g["idx_farthest_first_projected"]
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("n", "d", "k"), [(3000, 8, 600), (5000, 32, 2000), (2500, 3, 2500), (40, 200, 7)]
)
def test_same_rows_as_the_plain_loop(n, d, k, dtype):
    X = np.random.default_rng(n).normal(size=(n, d)).astype(dtype)
    np.testing.assert_array_equal(greedy_coreset(X, k, start=3), plain(X, k, 3)[0])


def test_far_from_the_origin():
    rng = np.random.default_rng(0)
    X = (rng.normal(size=(2000, 16)) + 300).astype(np.float32)
    np.testing.assert_array_equal(greedy_coreset(X, 500), plain(X, 500)[0])


@given(st.integers(0, 10**6), st.integers(1, 60), st.integers(1, 5))
def test_stops_when_everything_is_covered(seed, n_distinct, n_copies):
    rng = np.random.default_rng(seed)
    distinct = (rng.integers(0, 10**6, (n_distinct, 4)) * 0.37).astype(np.float32)
    n_distinct = len(np.unique(distinct, axis=0))
    X = np.repeat(distinct, n_copies, axis=0)[rng.permutation(len(distinct) * n_copies)]
    indices = greedy_coreset(X, len(X))
    assert len(indices) == n_distinct
    assert len(np.unique(X[indices], axis=0)) == n_distinct


def test_clustered_features_prune_to_the_same_rows():
    rng = np.random.default_rng(1)
    centres = rng.normal(size=(30, 24)) * 5
    X = centres[rng.integers(30, size=8000)] + rng.normal(size=(8000, 24))
    X = X.astype(np.float32)
    indices = greedy_coreset(X, 800)
    reference, distance = plain(X, 800)
    np.testing.assert_array_equal(indices, reference)
    assert distance.max() > 0


def test_selection_after_a_projection():
    """The rows of the plain loop in the projected space; exact where that is larger."""
    X = np.random.default_rng(0).normal(size=(400, 30)).astype(np.float32)
    projected = GaussianRandomProjection(12, random_state=5).fit_transform(X)
    found = greedy_coreset(X, 60, start=3, projection_dim=12, random_state=5)
    np.testing.assert_array_equal(found, plain(projected, 60, 3)[0])
    again = greedy_coreset(X, 60, start=3, projection_dim=30)
    np.testing.assert_array_equal(again, plain(X, 60, 3)[0])


@pytest.mark.parametrize(
    ("dtype", "exponent"),
    [
        *((np.float32, exponent) for exponent in (30, 40, 83, 125, -83)),
        *((np.float64, exponent) for exponent in (700, 1020, -700)),
    ],
)
def test_squares_beyond_the_range_of_the_dtype(dtype, exponent):
    """Rows times a power of two have the same distances, times its square."""
    X = np.random.default_rng(0).normal(size=(3000, 8)).astype(dtype)
    scaled = np.ldexp(X, exponent)
    assert np.isfinite(scaled).all()
    with np.errstate(over="raise"):
        for dim in (None, 5):
            np.testing.assert_array_equal(
                greedy_coreset(scaled, 100, projection_dim=dim),
                greedy_coreset(X, 100, projection_dim=dim),
            )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n_samples": 0}, "n_samples=0 is out of range"),
        ({"n_samples": 11}, "between 1 and 10"),
        ({"n_samples": 2.5}, "n_samples must be an integer"),
        ({"n_samples": 2, "start": 10}, "start=10 is out of range"),
        ({"n_samples": 2, "start": -1}, "start=-1 is out of range"),
        ({"n_samples": 2, "projection_dim": 0}, "projection_dim=0 must be a positive"),
        ({"n_samples": 2, "on_interrupt": "stop"}, "on_interrupt='stop' must be"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        greedy_coreset(np.eye(10), **arguments)


def test_input_is_left_alone():
    X = np.random.default_rng(0).normal(size=(200, 5))
    X.flags.writeable = False
    greedy_coreset(X, 20)


@pytest.fixture
def interrupted(monkeypatch):
    """Ctrl-C in the middle of the third round of a selection."""
    settle, rounds = _Traversal._settle, []

    def stop(self, *arguments):
        rounds.append(self)
        if len(rounds) == 3:
            raise KeyboardInterrupt
        settle(self, *arguments)

    monkeypatch.setattr(_Traversal, "_settle", stop)


@pytest.fixture
def rows():
    return np.random.default_rng(7).normal(size=(4000, 8)).astype(np.float32)


def test_interrupt_raises(rows, interrupted):
    with pytest.raises(KeyboardInterrupt):
        greedy_coreset(rows, 900)


def test_interrupt_keeps_what_is_selected(rows, interrupted):
    with pytest.warns(UserWarning, match="interrupted after .* of 900 rows"):
        indices = greedy_coreset(rows, 900, on_interrupt="keep")
    assert 1 < len(indices) < 900
    np.testing.assert_array_equal(indices, plain(rows, len(indices))[0])


def test_interrupted_detector_has_a_smaller_bank(rows, interrupted):
    images = rows.reshape(40, 10, 10, 8)
    detector = PatchCoreDetector(0.25, on_interrupt="keep")
    with pytest.warns(UserWarning, match="interrupted after .* of 1000 rows"):
        detector.fit(images)
    assert 1 < len(detector.bank_) < 1000
    assert np.isfinite(detector.score_samples(images)).all()


@pytest.mark.parametrize("radius", [0.0, 1.0, 2.5])
def test_rows_far_apart_are_those_of_the_textbook_loop(radius):
    X = np.random.default_rng(0).normal(size=(700, 4)).astype(np.float32)
    X[600:650] = X[:50]
    for known in (X[:0], X[-9:] + 1):
        taken, near = [], list(known.astype(np.float64))
        for i, row in enumerate(X.astype(np.float64)):
            gaps = row - np.reshape(near, (-1, 4))
            if np.einsum("ij,ij->i", gaps, gaps).min(initial=np.inf) > radius**2:
                taken.append(i)
                near.append(row)
        np.testing.assert_array_equal(far_apart(X, radius**2, known), taken)

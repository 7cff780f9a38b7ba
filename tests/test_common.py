"""One suite for every estimator: what scikit-learn and skad ask of all of them."""

import pickle

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

import skad.detectors

DETECTORS = [getattr(skad.detectors, name) for name in skad.detectors.__all__]

# The default threshold comes from held-out scores; these checks demand that the
# training rows are flagged at the contamination rate, which for a memory bank
# means that nearly every new good image is rejected.
IN_SAMPLE = "the threshold is a percentile of held-out scores, not of training scores"
HELD_OUT = {"check_outliers_train": IN_SAMPLE, "check_outliers_fit_predict": IN_SAMPLE}


@parametrize_with_checks(
    [cls(calibration="train") for cls in DETECTORS] + [cls() for cls in DETECTORS],
    expected_failed_checks=lambda e: {} if e.calibration == "train" else HELD_OUT,
)
@pytest.mark.usefixtures("one_torch_thread")
def test_estimator(estimator, check):
    check(estimator)


@pytest.fixture(params=DETECTORS, ids=lambda cls: cls.__name__)
def detector(request):
    return request.param()


def features(n, seed=0, shape=(5, 4, 6)):
    return np.random.default_rng(seed).normal(size=(n, *shape))


def test_rows_are_maps_of_one_patch(detector):
    X, new = features(60, shape=(7,)), features(8, seed=1, shape=(7,))
    rows = clone(detector).fit(X)
    grids = clone(detector).fit(X[:, None, None])
    np.testing.assert_array_equal(
        rows.score_samples(new), grids.score_samples(new[:, None, None])
    )
    assert rows.anomaly_map(new).shape == (8, 1, 1)


def test_map_points_at_the_odd_patch(detector):
    new = features(1, seed=1)
    new[0, 3, 1] += 10
    heat = detector.fit(features(60)).anomaly_map(new)[0]
    assert np.unravel_index(heat.argmax(), heat.shape) == (3, 1)


def test_memory_layout_does_not_matter(detector):
    X, new = features(40), features(5, seed=1)
    expected = detector.fit(X).score_samples(new)
    for layout in (np.asfortranarray, lambda a: a.transpose(0, 3, 1, 2).copy()):
        other = layout(new)
        other = other if other.shape == new.shape else other.transpose(0, 2, 3, 1)
        other.flags.writeable = False
        np.testing.assert_allclose(detector.score_samples(other), expected, rtol=1e-9)


def test_batches_do_not_matter(detector):
    detector.fit(features(40))
    new = features(6, seed=1)
    one_by_one = [detector.score_samples(new[[i]])[0] for i in range(6)]
    np.testing.assert_allclose(one_by_one, detector.score_samples(new), rtol=1e-9)


def test_float_dtype_is_kept(detector):
    X = features(40)
    single = clone(detector).fit(X.astype(np.float32))
    double = clone(detector).fit(X)
    new = features(5, seed=1)
    np.testing.assert_allclose(
        single.score_samples(new.astype(np.float32)),
        double.score_samples(new),
        rtol=1e-4,
    )


def test_same_seed_same_bits(detector):
    X, new = features(40), features(5, seed=1)
    first = clone(detector).set_params(random_state=3).fit(X)
    again = clone(detector).set_params(random_state=3).fit(X)
    np.testing.assert_array_equal(first.score_samples(new), again.score_samples(new))
    assert first.offset_ == again.offset_


@pytest.mark.usefixtures("numpy_state_untouched")
def test_global_random_state_is_left_alone(detector):
    detector.fit(features(30)).predict(features(2))


def test_pickles_score_alike_and_hold_numpy_only(detector, tmp_path):
    detector.fit(features(40))
    new = features(5, seed=1)
    joblib.dump(detector, tmp_path / "detector.joblib")
    loaded = joblib.load(tmp_path / "detector.joblib")
    np.testing.assert_array_equal(
        loaded.score_samples(new), detector.score_samples(new)
    )
    np.testing.assert_array_equal(loaded.anomaly_map(new), detector.anomaly_map(new))
    assert b"torch" not in pickle.dumps(detector)


def test_there_is_no_score_method(detector):
    assert not hasattr(detector, "score")

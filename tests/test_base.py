import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from skad import PatchCoreDetector
from skad.base import PatchDetector
from skad.base._threshold import certifies, threshold_of


def features(n, seed=0, shape=(4, 4, 6)):
    return np.random.default_rng(seed).normal(size=(n, *shape)).astype(np.float32)


@pytest.fixture(scope="module")
def detector():
    return PatchCoreDetector().fit(features(40))


def test_scores_have_scikit_learns_signs(detector):
    new = features(10, seed=1)
    new[0, 1, 1] += 9
    scores, decision = detector.score_samples(new), detector.decision_function(new)
    np.testing.assert_allclose(decision, scores - detector.offset_)
    np.testing.assert_array_equal(detector.predict(new), np.where(decision >= 0, 1, -1))
    assert scores.dtype == decision.dtype == np.float64
    assert scores.argmin() == 0
    assert detector.predict(new)[0] == -1
    assert detector.anomaly_map(new)[0].argmax() == 5  # row 1, column 1


def test_scores_of_a_maximum_are_the_maximum_of_the_map():
    detector = PatchCoreDetector(reweight=None).fit(features(40))
    new = features(5, seed=1)
    maps = detector.anomaly_map(new)
    np.testing.assert_allclose(
        detector.score_samples(new), -maps.max((1, 2)), rtol=1e-6
    )


def test_maps_at_pixel_size(detector):
    new = features(3, seed=1)
    assert detector.anomaly_map(new).shape == (3, 4, 4)
    maps = detector.anomaly_map(new, size=(30, 20))
    assert maps.shape == (3, 30, 20)
    assert maps.dtype == np.float32


@pytest.mark.parametrize("size", [5, (4,), (0, 3), (3.0, 4), "ab"])
def test_bad_size_is_named(detector, size):
    with pytest.raises(ValueError, match="size="):
        detector.anomaly_map(features(1), size=size)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.zeros((0, 2, 2, 3)), "minimum of 1 is required|every axis"),
        (np.zeros((3, 2, 2, 0)), "every axis needs an entry"),
        (np.zeros((3, 2, 2)), r"shape \(3, 2, 2\)"),
        (np.zeros((1, 1, 1, 1, 1)), "expected patch features"),
        (np.array([[["a"]]]), "expected patch features"),
        (np.full((2, 2, 2, 3), np.inf), r"X\[0\] contains NaN or infinity"),
        (np.full((2, 2, 2, 3), 1e25, np.float32), r"X\[0\] holds values up to 1e\+25"),
        (np.diag([1, 1e19]).astype(np.float32), r"X\[1\] .* the range of float32"),
        (np.full((2, 3), -1e160), r"up to 1e\+160: .* the range of float64. Scale"),
        ("folder", "X is a single path, as images are; PatchCoreDetector takes patch"),
        (Path("folder"), "Put PatchFeatures before it"),
        (np.full((2, 2, 2, 3), "a"), "could not convert string"),
    ],
)
def test_bad_features_are_explained(X, message):
    with pytest.raises(ValueError, match=message):
        PatchCoreDetector().fit(X)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (None, "X is None; pass patch features"),
        ({"a": 1}, "X is a dict; pass one of its values"),
        (iter([np.zeros((2, 2, 3))]), "which can be read only once"),
    ],
)
def test_what_is_no_sequence_is_explained(X, message):
    with pytest.raises(TypeError, match=message):
        PatchCoreDetector().fit(X)


def test_another_number_of_channels_is_refused(detector):
    with pytest.raises(ValueError, match="expecting 6 features"):
        detector.predict(features(2, shape=(4, 4, 5)))


def test_one_nan_is_an_error_with_its_position(detector):
    new = features(3)
    new[2, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"X\[2\] contains NaN"):
        detector.predict(new)


def test_a_skipped_image_is_never_scored(detector):
    new = features(3, seed=1)
    expected = detector.score_samples(new)
    new[1] = np.nan
    scores = detector.score_samples(new)
    np.testing.assert_array_equal(np.isnan(scores), [False, True, False])
    np.testing.assert_array_equal(scores[[0, 2]], expected[[0, 2]])
    assert detector.predict(new)[1] == 0
    assert np.isnan(detector.p_value(new)[1])
    assert np.isnan(detector.anomaly_map(new)[1]).all()
    assert np.isnan(detector.anomaly_map(new, size=(8, 8))[1]).all()
    assert not detector.predict_mask(new)[1].any()


def test_a_skipped_image_is_never_learned_from(detector):
    X = np.concatenate([features(40), np.full((1, 4, 4, 6), np.nan, np.float32)])
    other = PatchCoreDetector().fit(X)
    np.testing.assert_array_equal(other.bank_, detector.bank_)
    assert len(other.calibration_scores_) == 40


def test_anomalous_images_are_never_learned_from(detector):
    X = np.concatenate([features(40), features(5, seed=3) + 9])
    y = np.repeat([1, -1], [40, 5])
    other = PatchCoreDetector().fit(X, y)
    np.testing.assert_array_equal(other.bank_, detector.bank_)
    assert other.offset_ == detector.offset_


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([0, 1, 0], "to_outlier_labels"),
        (["good", "bad", "good"], "to_outlier_labels"),
        ([1, 1], "inconsistent numbers of samples"),
        ([-1, -1, -1], "no normal image is left"),
        ([[1], [1], [1]], "one label per image"),
    ],
)
def test_bad_labels_are_explained(y, message):
    with pytest.raises(ValueError, match=message):
        PatchCoreDetector().fit(features(3), y)


def test_rows_may_come_with_any_labels():
    X = np.random.default_rng(0).normal(size=(60, 3))
    plain = PatchCoreDetector().fit(X)
    for y in (np.arange(60) % 3, np.array(["a", "b"] * 30), np.linspace(0, 1, 60)):
        assert PatchCoreDetector().fit(X, y).offset_ == plain.offset_


# -- threshold -----------------------------------------------------------------


@given(st.integers(1, 300), st.sampled_from([0.01, 0.05, 0.1, 0.2, 0.5]))
def test_threshold_is_the_conformal_rank(n, contamination):
    scores = np.random.default_rng(n).gamma(5, size=n)
    threshold = threshold_of(scores, contamination, "rank")
    certified = certifies(n, contamination)
    assert certified == (n + 1 >= 1 / contamination - 1e-6)
    if certified:
        exceeding = (scores > threshold).sum()
        # One more exceedance than the rank allows would break the promise.
        assert (exceeding + 1) / (n + 1) <= contamination + 1e-9
        assert (exceeding + 2) / (n + 1) > contamination


def test_few_scores_have_no_rank_and_take_the_tail():
    scores = np.exp(np.random.default_rng(0).normal(size=10))
    assert not certifies(10, 0.05)
    assert threshold_of(scores, 0.05, "rank") == threshold_of(scores, 0.05, "tail")


def test_few_images_warn_with_the_rate_that_they_certify():
    with pytest.warns(
        UserWarning, match=r"smallest rate that they can certify is 0.1\b"
    ):
        PatchCoreDetector().fit(features(9))


@pytest.mark.parametrize("calibration", ["loo", "kfold", "split", "train", "auto"])
def test_every_calibration(calibration):
    detector = PatchCoreDetector(
        calibration=calibration, contamination=0.1, coreset_ratio=0.5
    ).fit(features(100))
    false_alarms = np.mean(detector.predict(features(400, seed=1)) == -1)
    if calibration == "train":
        assert false_alarms > 0.9  # a bank has seen its training images
    else:
        assert false_alarms < 0.25
    assert len(detector.calibration_scores_) == (20 if calibration == "split" else 100)


def test_false_alarm_rate_over_many_splits():
    X = features(400)
    rng = np.random.default_rng(0)
    rates = []
    for _ in range(60):
        order = rng.permutation(400)
        detector = PatchCoreDetector(coreset_ratio=0.5).fit(X[order[:50]])
        rates.append(np.mean(detector.predict(X[order[50:]]) == -1))
    assert 0.01 < np.mean(rates) < 0.08


def test_p_values_count_held_out_images(detector):
    new = features(20, seed=1)
    p, scores = detector.p_value(new), detector.score_samples(new)
    expected = [(1 + (detector.calibration_scores_ <= s).sum()) / 41 for s in scores]
    np.testing.assert_allclose(p, expected)
    by_rank = PatchCoreDetector(threshold="rank").fit(features(40))
    flagged = by_rank.predict(new) == -1
    np.testing.assert_array_equal(p <= by_rank.contamination, flagged)


def test_calibrate_moves_the_threshold_only(detector):
    moved = PatchCoreDetector().fit(features(40))
    brighter = features(60, seed=2) * 1.3
    assert moved.calibrate(brighter) is moved
    np.testing.assert_array_equal(moved.bank_, detector.bank_)
    assert moved.offset_ < detector.offset_
    assert np.mean(moved.predict(features(200, seed=4) * 1.3) == -1) < 0.15
    assert len(moved.calibration_scores_) == 60


def test_no_pixel_of_a_good_image_fires_with_the_promised_rate():
    detector = PatchCoreDetector(contamination=0.1, coreset_ratio=0.5, sigma=2)
    detector.fit(features(200, shape=(6, 6, 4)))
    new = features(500, seed=1, shape=(6, 6, 4))
    for size in (None, (40, 30)):
        fires = detector.predict_mask(new, size).any(axis=(1, 2)).mean()
        assert 0.03 < fires < 0.18
        masks = detector.predict_mask(new[:5], size)
        assert masks.dtype == bool
        np.testing.assert_array_equal(
            masks, detector.anomaly_map(new[:5], size) > detector.pixel_threshold(size)
        )


def test_calibration_that_a_detector_cannot_offer_is_refused():
    class Constant(PatchDetector):
        def __init__(self, calibration="auto", contamination=0.1):
            self.calibration = calibration
            self.contamination = contamination
            self.sigma, self.random_state, self.verbose = 4.0, 0, False

        def _fit(self, X):
            self.mean_ = X.mean()

        def _score(self, X):
            maps = np.abs(X - self.mean_).sum(axis=-1)
            return maps.max(axis=(1, 2)).astype(float), maps

    assert Constant().fit(features(30)).offset_ < 0
    with pytest.raises(ValueError, match="calibration='loo' is not offered"):
        Constant("loo").fit(features(30))
    with pytest.warns(UserWarning, match="leaves none to hold out"):
        Constant().fit(features(1))


def test_predicting_writes_nothing(detector):
    before = dict(vars(detector))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        detector.predict(features(2))
        detector.anomaly_map(features(2), size=(9, 9))
        detector.predict_mask(features(2))
        detector.p_value(features(2))
    assert vars(detector).keys() == before.keys()
    assert all(vars(detector)[name] is value for name, value in before.items())

"""Thresholds: what they promise, what they rest on, and who may move them."""

import warnings
from inspect import signature

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV

import skad.detectors
from skad import (
    CutPasteDetector,
    FusionDetector,
    PaDiMDetector,
    PatchCoreDetector,
    PatchFeatures,
    Pipeline,
    PUADDetector,
    SPADEDetector,
    SubspaceDetector,
    _peaks,
)
from skad._maps import render
from skad.base import ImageDetector
from skad.base._threshold import outlier, threshold_of
from skad.datasets import load_mvtec
from skad.inspection import recall_report

DETECTORS = [
    PatchCoreDetector(),
    PatchCoreDetector(calibration="kfold"),
    PaDiMDetector(),
    SubspaceDetector(),
    SPADEDetector(n_neighbors_image=5),
    PUADDetector(SubspaceDetector(), calibration="kfold"),
    FusionDetector(SubspaceDetector(), n_channels=(2, 4)),
]


def features(n, seed=0, shape=(4, 4, 6)):
    return np.random.default_rng(seed).normal(size=(n, *shape)).astype(np.float32)


def alike(n, seed):
    """Images that resemble each other closely, as pictures of one part do."""
    base = np.random.default_rng(99).normal(size=(1, 6, 6, 8))
    return base + 0.05 * np.random.default_rng(seed).normal(size=(n, 6, 6, 8))


def fitted(detector, X, y=None):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return clone(detector).fit(X, y)


def names(detectors):
    return [type(detector).__name__ for detector in detectors]


each_detector = pytest.mark.parametrize("detector", DETECTORS, ids=names(DETECTORS))


# -- the rule ----------------------------------------------------------------------


@pytest.mark.parametrize("draw", ["normal", "lognormal", "exponential", "gumbel"])
@pytest.mark.parametrize("n", [10, 20, 31, 60, 200])
def test_the_rate_holds_on_average_for_any_common_shape(draw, n):
    rng = np.random.default_rng(n)
    sample = getattr(rng, draw)
    new = np.sort(sample(size=20_000))
    thresholds = [threshold_of(sample(size=n), 0.05) for _ in range(150)]
    rates = 1 - np.searchsorted(new, thresholds) / len(new)
    assert 0.03 < rates.mean() < 0.085


@pytest.mark.parametrize("n", [3, 10, 31, 100])
@pytest.mark.parametrize("rule", ["tail", "rank"])
def test_thresholds_move_and_stretch_with_the_scores(n, rule):
    scores = np.random.default_rng(n).gamma(3, size=n)
    expected = threshold_of(scores, 0.05, rule)
    for scale, shift in ((2.0, 0.0), (1e-9, 0.0), (1e6, -3e6), (1.0, -50.0)):
        found = threshold_of(scale * scores + shift, 0.05, rule)
        assert found == pytest.approx(scale * expected + shift, rel=1e-6)


@pytest.mark.parametrize("n", [1, 2, 3, 7, 20, 100])
def test_equal_scores_are_their_own_threshold(n):
    for value in (0.0, -3.5, 1e-300, 1e200):
        for rule in ("tail", "rank"):
            found = threshold_of(np.full(n, value), 0.05, rule)
            assert value <= found == pytest.approx(value, rel=2e-5, abs=0)


def test_few_and_tied_scores_have_a_threshold():
    assert threshold_of(np.empty(0), 0.05) == np.inf
    assert threshold_of(np.array([1.0, 2.0]), 0.05) > 2
    assert 3 < threshold_of(np.array([1.0, 2.0, 3.0]), 0.05) < 20
    assert threshold_of(np.repeat([1.0, 2.0], [35, 5]), 0.05) <= 2
    assert np.isfinite(threshold_of(np.array([1e200, 2e200, 3e200]), 0.05))


@pytest.mark.parametrize("n", [20, 31, 38])
def test_one_score_does_not_decide_alone(n):
    scores = np.random.default_rng(n).gamma(9, size=n)
    clean = threshold_of(scores, 0.05)
    scores[3] = 1000.0
    assert threshold_of(scores, 0.05) < clean + 1.2 * scores[:3].std() + 2
    assert threshold_of(scores, 0.05) < np.inf
    assert threshold_of(scores, 0.05, "rank") == 1000.0


def test_an_outlier_is_one_score_far_from_all_others():
    scores = np.random.default_rng(0).normal(size=31)
    assert outlier(scores) is None
    assert outlier(np.r_[scores, 100.0])[0] == 31
    assert outlier(np.r_[scores, 100.0, 101.0]) is None
    assert outlier(np.r_[scores, -100.0]) is None
    assert outlier(np.r_[scores, np.nan, 100.0])[0] == 32
    assert outlier(np.full(31, 2.0)) is None


@pytest.mark.parametrize("name", skad.detectors.__all__)
def test_every_detector_takes_the_rule(name):
    kind = getattr(skad.detectors, name)
    if not hasattr(kind, "calibrate"):
        pytest.skip("not a detector")
    assert signature(kind).parameters["threshold"].default == "tail"
    assert "threshold : {" in kind.__doc__
    assert "contamination_ : float" in kind.__doc__
    assert "threshold" in kind._parameter_constraints


def test_the_rank_is_an_option():
    X = features(40)
    ranked = PatchCoreDetector(threshold="rank").fit(X)
    assert ranked.offset_ == np.sort(ranked.calibration_scores_)[1]
    assert ranked.offset_ != PatchCoreDetector().fit(X).offset_
    with pytest.raises(ValueError, match="'threshold' parameter"):
        PatchCoreDetector(threshold="best").fit(X)


# -- held-out scores -----------------------------------------------------------------


@pytest.mark.parametrize("n", [12, 31, 60])
@pytest.mark.parametrize("parameters", [{}, {"reweight": None}, {"n_neighbors": 3}])
def test_p_values_of_images_that_are_alike_are_calibrated(n, parameters):
    means, reference = [], []
    for seed in range(6):
        X = alike(n, seed)
        detector = fitted(PatchCoreDetector(**parameters), X)
        means.append(detector.p_value(alike(100, 1000 + seed)).mean())
        owner = detector.coreset_indices_ // 36
        images = np.repeat(np.arange(n), 36)
        rows = X.reshape(-1, 8)
        bare = detector._searched.search(rows, 1, groups=(images, owner))[0]
        bare = np.sqrt(bare.reshape(n, -1).max(1))
        new = np.sqrt(
            detector._searched.search(alike(100, 1000 + seed).reshape(-1, 8))[0]
        )
        reference.append(np.mean(bare >= new.reshape(100, -1).max(1)[:, None]))
    assert 0.45 < np.mean(means) < 0.68
    assert np.mean(reference) > np.mean(means) + 0.05  # without the rows that return


def test_the_whole_bank_needs_no_rows_back():
    X = features(20)
    detector = fitted(PatchCoreDetector(coreset_ratio=1.0, reweight=None), X)
    for i in (0, 7, 19):
        rest = fitted(clone(detector), np.delete(X, i, axis=0))
        assert detector.calibration_scores_[i] == pytest.approx(
            rest.score_samples(X[i : i + 1])[0], rel=1e-6
        )


def test_left_out_scores_are_near_those_of_a_refit():
    X = alike(24, 0)
    detector = fitted(PatchCoreDetector(), X)
    refits = [
        fitted(detector, np.delete(X, i, axis=0)).score_samples(X[i : i + 1])[0]
        for i in range(24)
    ]
    ratio = np.median(detector.calibration_scores_) / np.median(refits)
    assert 0.93 < ratio < 1.07


@pytest.mark.parametrize(
    "detector",
    [SubspaceDetector(), PatchCoreDetector(), PatchCoreDetector(calibration="kfold")],
)
def test_the_order_of_files_does_not_matter(detector):
    """Four batches of material, file by file, then the same images shuffled."""
    rng = np.random.default_rng(0)
    batch = 2 * np.repeat(rng.normal(size=(4, 1, 1, 6)), 20, axis=0)
    X = features(80) + batch
    order = rng.permutation(80)
    one, other = fitted(detector, X), fitted(detector, X[order])
    levels = [0.05, 0.25, 0.5, 0.75]
    one_at, other_at = (
        np.quantile(m.calibration_scores_, levels) for m in (one, other)
    )
    np.testing.assert_allclose(one_at, other_at, rtol=0.12)
    assert one.offset_ == pytest.approx(other.offset_, rel=0.15)
    alarms = np.mean(
        one.predict(features(200, 5) + np.tile(batch[::20], (50, 1, 1, 1))) < 0
    )
    assert alarms < 0.15


def test_folds_are_sampled_by_random_state():
    X = features(40)
    first = SubspaceDetector(random_state=1).fit(X).calibration_scores_
    again = SubspaceDetector(random_state=1).fit(X).calibration_scores_
    other = SubspaceDetector(random_state=2).fit(X).calibration_scores_
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert SubspaceDetector(random_state=np.random.RandomState(0)).fit(X).offset_ < 0


@each_detector
def test_held_out_scores_stand_in_the_order_of_the_images(detector):
    X = features(30)
    X[17] *= 6
    y = np.ones(30)
    y[[2, 9]] = -1
    model = fitted(detector, X, y)
    assert len(model.calibration_scores_) == len(model.calibration_maps_) == 28
    assert model.calibration_scores_.argmin() == 15
    assert model.calibration_maps_.max((1, 2)).argmax() == 15


def test_held_out_scores_of_a_stream_stand_in_order(images):
    X = [*images]
    X[13] = np.random.default_rng(0).integers(0, 256, X[13].shape).astype(np.uint8)
    model = Pipeline([small(), PaDiMDetector()])
    with pytest.warns(UserWarning, match=r"^X\[13\] scores far"):
        model.fit(X, [1] * 4 + [-1] + [1] * (len(X) - 5))
    assert model[-1].calibration_scores_.argmin() == 12


# -- the rate belongs to the fit -------------------------------------------------------


@each_detector
def test_another_rate_from_the_scores_at_hand(detector):
    X, new = features(40), features(30, 3)
    model = fitted(detector, X)
    expected = fitted(clone(detector).set_params(contamination=0.2), X)
    assert model.contamination_ == 0.05
    assert model.set_contamination(0.2) is model
    assert model.contamination_ == 0.2
    assert model.contamination == 0.05
    assert model.offset_ == expected.offset_
    assert model.pixel_threshold((9, 9)) == expected.pixel_threshold((9, 9))
    np.testing.assert_array_equal(model.predict(new), expected.predict(new))
    np.testing.assert_array_equal(
        model.predict_mask(new, (9, 9)), expected.predict_mask(new, (9, 9))
    )


@each_detector
def test_a_parameter_set_after_the_fit_waits_for_the_next(detector):
    X, new = features(40), features(30, 3)
    model = fitted(detector, X)
    labels, masks = model.predict(new), model.predict_mask(new, (9, 9))
    for value in (0.3, 7):
        model.set_params(contamination=value, threshold="rank")
        np.testing.assert_array_equal(model.predict(new), labels)
        np.testing.assert_array_equal(model.predict_mask(new, (9, 9)), masks)
    assert recall_report(model, new).false_alarm_rate == 0.05
    with pytest.raises(ValueError, match="'contamination' parameter"):
        model.fit(X)
    model = fitted(model.set_params(contamination=0.3), X)
    assert model.contamination_ == 0.3
    assert (model.predict(new) != labels).any()


def test_a_rate_of_the_method_stays_while_it_learns_on():
    model = PatchCoreDetector().fit(features(40)).set_contamination(0.25)
    model.partial_fit(features(20, 1))
    assert model.contamination_ == 0.25
    assert model.offset_ == -threshold_of(-model.calibration_scores_, 0.25)
    model.calibrate(features(40, 2))
    assert model.contamination_ == 0.25
    assert clone(model).fit(features(40)).contamination_ == 0.05


def test_training_scores_follow_the_rate_as_a_percentile():
    model = PatchCoreDetector(calibration="train").fit(features(50))
    model.set_contamination(0.2)
    assert model.offset_ == np.percentile(model.calibration_scores_, 20)


@pytest.mark.parametrize("rate", [0, 0.6, -0.1, "much", None, np.nan])
def test_a_rate_out_of_range_is_named(rate):
    model = PatchCoreDetector().fit(features(30))
    with pytest.raises(ValueError, match="'contamination' parameter"):
        model.set_contamination(rate)
    assert model.contamination_ == 0.05


def test_a_rate_needs_a_fit():
    with pytest.raises(NotFittedError):
        PatchCoreDetector().set_contamination(0.1)


def test_calibrate_can_add():
    model = PatchCoreDetector().fit(features(40))
    before = model.calibration_scores_
    model.calibrate(features(25, 1), add=True)
    assert len(model.calibration_scores_) == len(model.calibration_maps_) == 65
    np.testing.assert_array_equal(model.calibration_scores_[:40], before)
    assert model.offset_ == -threshold_of(-model.calibration_scores_, 0.05)
    assert model.p_value(features(1, 2) + 9)[0] == pytest.approx(1 / 66)
    assert len(model.calibrate(features(25, 1)).calibration_scores_) == 25
    trained = PatchCoreDetector(calibration="train").fit(features(40))
    trained.calibrate(features(25, 1), add=True)
    assert len(trained.calibration_scores_) == 25


# -- pixels -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "detector", [PatchCoreDetector(sigma=1.5), PaDiMDetector(interpolation="bicubic")]
)
def test_the_pixel_threshold_is_that_of_the_largest_pixels(detector):
    model = detector.fit(features(35))
    for size in ((20, 31), (4, 4), (3, 2)):
        maps = model._render(model.calibration_maps_, size).max((1, 2)).astype(float)
        expected = threshold_of(maps, 0.05)
        assert model.pixel_threshold(size) == pytest.approx(expected, rel=1e-6)
    maps = model.calibration_maps_.max((1, 2)).astype(float)
    assert model.pixel_threshold() == threshold_of(maps, 0.05)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("window", [((0, 1), (0, 1)), ((0.2, 0.7), (0.1, 1))])
def test_peaks_are_those_of_the_rendered_maps(interpolation, window):
    grids = np.random.default_rng(0).normal(size=(12, 7, 9)).astype(np.float32)
    grids[0], grids[1] = 2.0, -1.0
    for size, sigma in (((64, 50), 3.0), ((5, 6), 0.0), ((200, 90), 0.0)):
        options = {"sigma": sigma, "window": window, "interpolation": interpolation}
        expected = render(grids, size, **options).max((1, 2))
        found = _peaks.peaks(grids, size, **options)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_peaks_are_rendered_once_per_size_and_kept_within_bounds(monkeypatch):
    model = PatchCoreDetector().fit(features(30))
    calls = []
    found = _peaks._peaks
    monkeypatch.setattr(
        _peaks, "_peaks", lambda *options: calls.append(1) or found(*options)
    )
    before = joblib.hash(vars(model))
    for _ in range(3):
        model.predict_mask(features(2, 1), (40, 50))
    assert len(calls) == 1
    assert joblib.hash(vars(model)) == before
    model.set_contamination(0.2).pixel_threshold((40, 50))
    assert len(calls) == 1
    model.set_params(sigma=1.0).predict_mask(features(2, 1), (40, 50))
    assert len(calls) == 2
    monkeypatch.setattr(_peaks._known, "limit", 3 * 30 * 4)
    for width in range(10, 30):
        model.pixel_threshold((10, width))
    assert _peaks._known.n_bytes <= 360


def test_another_model_of_the_same_size_has_its_own_peaks():
    one = PatchCoreDetector().fit(features(30))
    other = PatchCoreDetector().fit(3 * features(30))
    thresholds = [m.pixel_threshold((21, 20)) for m in (one, other, one)]
    assert thresholds[0] == thresholds[2]
    assert thresholds[1] == pytest.approx(3 * thresholds[0], rel=1e-3)


# -- warnings -------------------------------------------------------------------------


@each_detector
def test_an_image_far_from_all_others_is_named(detector):
    X = features(31)
    X[19] += 60
    X[4] = np.nan  # skipped
    y = np.ones(31)
    y[[0, 11]] = -1
    with pytest.warns(UserWarning, match=r"^X\[19\] scores far .*leave it out") as told:
        clone(detector).fit(X, y)
    assert all(warning.filename == __file__ for warning in told)
    far = [w for w in told if "scores far" in str(w.message)]
    assert len(far) == 1


def test_an_image_held_out_by_a_split_is_named():
    X = features(100)
    detector = SubspaceDetector(calibration="split", contamination=0.2)
    order = np.random.RandomState(0).permutation(100)
    X[order[5]] += 60
    with pytest.warns(UserWarning, match=rf"^X\[{order[5]}\] scores far"):
        detector.fit(X)


def test_an_image_to_calibrate_with_is_named():
    model = PatchCoreDetector().fit(features(40))
    X = features(25, 1)
    X[8] += 60
    with pytest.warns(UserWarning, match=r"^X\[8\] scores far") as told:
        model.calibrate(X, [-1] + [1] * 24, add=True)
    assert told[0].filename == __file__


def test_like_images_are_not_named():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for detector in DETECTORS:
            clone(detector).fit(features(40))


def test_one_anomalous_image_does_not_hide_the_anomalies():
    """Thirty-one images with perfect ranking, one of them of another kind."""
    X, new = features(31), features(200, 1)
    bad = features(60, 2)
    bad[:, 2, 2] += 3.5
    clean = fitted(PatchCoreDetector(), X).predict(bad)
    X[5] += 8
    with pytest.warns(UserWarning, match=r"^X\[5\] scores far"):
        model = PatchCoreDetector().fit(X)
    assert np.mean(model.predict(bad) < 0) > 0.75 * np.mean(clean < 0)
    assert np.mean(model.predict(new) < 0) < 0.1


def test_warnings_point_at_the_caller():
    few, new = features(8), features(6, 1)
    for call in (
        lambda: PatchCoreDetector().fit(few),
        lambda: Pipeline([SubspaceDetector()]).fit(few),
        lambda: PatchCoreDetector(contamination=0.5).fit(few).set_contamination(0.01),
        lambda: (
            PatchCoreDetector(contamination=0.5)
            .fit(few)
            .set_contamination(0.1)
            .calibrate(new)
        ),
        lambda: GridSearchCV(SubspaceDetector(), {}, scoring=lambda *_: 0.0, cv=2).fit(
            few
        ),
    ):
        with pytest.warns(UserWarning, match="cannot certify") as told:
            call()
        assert {warning.filename for warning in told} == {__file__}


# -- photographs -------------------------------------------------------------------


@pytest.mark.slow
def test_bottles_from_few_images(shared):
    """Learn from 31 of 229 normal bottles, 10 times; then with one anomaly more."""
    data = load_mvtec(shared / "data", "mvtec_bottle_256")
    test = np.asarray(data.test, object)
    normal = [*data.train, *test[data.y_test == 1]]
    X = small().fit_transform([*normal, *test[data.y_test == -1]])
    X, bad = np.asarray(X[: len(normal)]), np.asarray(X[len(normal) :])
    for detector in (PatchCoreDetector(), PaDiMDetector(), SubspaceDetector()):
        found, possible, alarms, p, with_anomalous = [], [], [], [], []
        for split in range(10):
            order = np.random.default_rng(split).permutation(len(X))
            train, new = X[order[:31]], X[order[31:]]
            model = fitted(detector, train)
            alarms.append(np.mean(model.predict(new) < 0))
            found.append(np.mean(model.predict(bad) < 0))
            best = np.quantile(model.score_samples(new), 0.05)
            possible.append(np.mean(model.score_samples(bad) < best))
            p.append(model.p_value(new).mean())
            train[7] = train[7][::-1] * 1.5  # on another tray
            with_anomalous.append(np.mean(fitted(detector, train).predict(bad) < 0))
        assert 0.02 < np.mean(alarms) < 0.09
        assert 0.45 < np.mean(p) < 0.65
        assert np.mean(found) > 0.85 * np.mean(possible)
        assert np.mean(with_anomalous) > 0.75 * np.mean(possible)


# -- images -------------------------------------------------------------------------


class Brightness(ImageDetector):
    """The brightest pixel is the score."""

    def __init__(self):
        vars(self).update(vars(CutPasteDetector()))
        self.image_size, self.contamination, self.sigma = 16, 0.2, 0.0

    _parameter_constraints = {}

    def _fit(self, reader):
        pass

    def _score_batch(self, batch):
        grey = batch.mean(axis=3)
        return grey.max(axis=(1, 2)).astype(float), grey


def small():
    return PatchFeatures("skad_small", embedding="concat", image_size=64)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    coarse = rng.integers(60, 200, (1, 16, 16, 3)) + rng.integers(
        -9, 9, (40, 16, 16, 3)
    )
    return np.repeat(np.repeat(coarse.astype(np.uint8), 4, axis=1), 4, axis=2)


def test_detectors_of_images_follow(images):
    dark = images // 2
    model = fitted(Brightness(), dark)
    assert len(model.calibration_scores_) == 8
    model.calibrate(dark[:30], add=True)
    assert len(model.calibration_scores_) == 38
    offset = model.offset_
    assert model.set_contamination(0.05).offset_ < offset
    bright = [*dark[:30]]
    bright[21] = np.full((64, 64, 3), 255, np.uint8)
    with pytest.warns(UserWarning, match=r"^X\[21\] scores far") as told:
        model.calibrate(bright, [-1] + [1] * 29)
    assert told[0].filename == __file__


def test_pipelines_follow(images):
    model = Pipeline([small(), PatchCoreDetector()]).fit(images[:30])
    before = model.pixel_threshold((64, 64))
    model.set_params(patchcoredetector__contamination=0.3)
    assert model.pixel_threshold((64, 64)) == before
    assert model.set_contamination(0.3) is model
    assert model.pixel_threshold((64, 64)) < before
    assert model[-1].contamination_ == 0.3
    model.calibrate(images[30:], add=True)
    assert len(model[-1].calibration_scores_) == 40
    assert not hasattr(Pipeline([small()]), "set_contamination")

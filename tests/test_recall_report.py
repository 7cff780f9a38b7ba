import pickle

import numpy as np
import pytest
import sklearn.pipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.preprocessing import FunctionTransformer

from skad import (
    CutPasteDetector,
    PaDiMDetector,
    PatchCoreDetector,
    PatchFeatures,
    PCANetFeatures,
    Pipeline,
    PUADDetector,
    SubspaceDetector,
)
from skad.base import ImageDetector, PatchDetector
from skad.datasets import load_mvtec, make_textures
from skad.inspection import recall_report


class Numbers(PatchDetector):
    """Images of one pixel, whose value is the anomaly score: any scores at will."""

    def __init__(
        self,
        contamination=0.05,
        calibration="auto",
        sigma=0.0,
        random_state=0,
        threshold="rank",
    ):
        self.contamination = contamination
        self.calibration = calibration
        self.threshold = threshold
        self.sigma = sigma
        self.random_state = random_state

    _parameter_constraints = {
        name: constraint
        for name, constraint in PatchDetector._parameter_constraints.items()
        if name != "verbose"
    }

    def _fit(self, X):
        pass

    def _update(self, X):
        pass

    def _merge(self, other):
        pass

    def _score(self, X):
        return X[:, 0, 0, 0].astype(float), X[..., 0].astype(np.float32)


def of_numbers(normal, contamination=0.05, **parameters):
    return Numbers(contamination, **parameters).fit(np.reshape(normal, (-1, 1)))


def report_on(normal, defective, contamination=0.05, **arguments):
    model = of_numbers(normal, contamination)
    return recall_report(model, np.reshape(defective, (-1, 1)), **arguments)


# -- numbers known beforehand --------------------------------------------------------


def test_counts_by_hand():
    """19 normal scores 1..19: at 5 % the threshold is 19, at 10 % it is 18."""
    kinds = ["hole", "stain", "hole", "stain"]
    report = report_on(np.arange(1, 20), [25, 18.5, 19, 3], kinds=kinds)
    assert report.false_alarm_rate == 0.05
    assert report.certified
    assert report.threshold == -19
    assert (report.n_good, report.n_defects, report.n_found) == (19, 4, 1)
    assert report.recall == 0.25
    np.testing.assert_array_equal(report.missed, [3, 1, 2])  # the most usual first
    np.testing.assert_allclose(report.p_values, [0.05, 0.1, 0.1, 0.9])
    assert [(row.kind, row.n_found, row.n_defects) for row in report.by_kind] == [
        ("hole", 1, 2),
        ("stain", 0, 2),
    ]
    assert [(row.false_alarm_rate, row.n_found) for row in report.by_rate] == [
        (0.1, 3),
        (0.2, 3),
    ]
    assert report.by_rate[0].threshold == -18
    assert report.rate_for(0.25) == 0.05
    assert report.rate_for(0.75) == 0.1
    assert report.rate_for(1.0) == pytest.approx(0.9)


def test_prints_a_table():
    kinds = [3, 3, 12, 12]
    text = str(report_on(np.arange(1, 20), [25, 18.5, 19, 3], kinds=kinds))
    assert text == (
        "4 defects, threshold from 19 normal images\n"
        "\n"
        "false alarms      found  recall  95 % interval\n"
        "model: 5.00%     1 of 4   25.0%  0.6% to 80.6%\n"
        "10.00%           3 of 4   75.0%  19.4% to 99.4%\n"
        "20.00%           3 of 4   75.0%  19.4% to 99.4%\n"
        "\n"
        "kind, by the model      found  recall  95 % interval\n"
        "3                      1 of 2   50.0%  1.3% to 98.7%\n"
        "12                     0 of 2    0.0%  0.0% to 84.2%"
    )


def test_interval_is_clopper_and_pearsons():
    report = report_on(np.arange(1, 60), [100] * 17 + [0] * 3, confidence=0.9)
    low, high = beta.ppf(0.05, 17, 4), beta.ppf(0.95, 18, 3)
    assert report.interval == pytest.approx((low, high), rel=1e-6)
    assert report_on(np.arange(1, 60), [100] * 5).interval[1] == 1
    assert report_on(np.arange(1, 60), [0] * 5).interval[0] == 0


def test_interval_covers():
    """95 % intervals hold the true recall at least so often, whatever it is."""
    rng = np.random.default_rng(0)
    normal = np.arange(1, 60)
    for share in (0.5, 0.9):
        held = 0
        for _ in range(200):
            low, high = report_on(normal, 100.0 * (rng.random(15) < share)).interval
            held += low <= share <= high
        assert held >= 0.92 * 200  # 0.95 less three standard errors


def test_few_good_images():
    with pytest.warns(UserWarning, match="cannot certify"):
        model = of_numbers(np.arange(1, 10))
    report = recall_report(model, [[100.0], [1.0]])
    assert not report.certified
    assert report.threshold == model.offset_
    assert "model: 5.00%, estimated" in str(report)
    assert [row.false_alarm_rate for row in report.by_rate] == [0.1, 0.2]
    with pytest.raises(ValueError, match=r"9 held-out normal images certify .* 1 / 10"):
        recall_report(model, [[100.0]], false_alarm_rates=[0.05])


# -- properties ----------------------------------------------------------------------

# Few distinct values, so that ties are common.
scores = st.lists(st.integers(0, 30).map(float), min_size=1, max_size=30)
good_scores = st.lists(st.integers(0, 30).map(float), min_size=20, max_size=60)


@settings(max_examples=60)
@given(normal=good_scores, defective=scores, contamination=st.floats(0.05, 0.5))
def test_agrees_with_predict(normal, defective, contamination):
    model = of_numbers(normal, contamination)
    defective = np.reshape(defective, (-1, 1))
    report = recall_report(model, defective)
    labels = model.predict(defective)
    assert report.n_found == np.sum(labels == -1)
    assert set(report.missed) == set(np.flatnonzero(labels == 1))
    np.testing.assert_array_equal(report.p_values, model.p_value(defective))
    low, high = report.interval
    assert 0 <= low <= report.recall <= high <= 1


@settings(max_examples=60)
@given(
    normal=good_scores,
    defective=scores,
    rates=st.lists(st.floats(0.05, 0.5), min_size=1),
)
def test_recall_grows_with_the_rate(normal, defective, rates):
    report = report_on(normal, defective, false_alarm_rates=rates)
    assert [row.false_alarm_rate for row in report.by_rate] == sorted(set(rates))
    found = [row.n_found for row in report.by_rate]
    assert found == sorted(found)
    for row in report.by_rate:  # a model of this rate finds as many
        model = of_numbers(normal, row.false_alarm_rate)
        assert row.threshold == model.offset_
        assert row.n_found == np.sum(
            model.predict(np.reshape(defective, (-1, 1))) == -1
        )
        assert row.n_found == np.sum(report.p_values <= row.false_alarm_rate + 1e-12)


@settings(max_examples=60)
@given(normal=good_scores, defective=scores, recall=st.floats(0.01, 1))
def test_rate_for_is_the_smallest(normal, defective, recall):
    report = report_on(normal, defective)
    rate, step = report.rate_for(recall), 1 / (report.n_good + 1)
    needed = recall * len(defective) - 1e-6
    assert np.sum(report.p_values <= rate + 1e-12) >= needed
    assert np.sum(report.p_values <= rate - step + 1e-12) < needed
    if rate <= 0.5:
        (row,) = report_on(normal, defective, false_alarm_rates=[rate]).by_rate
        assert row.n_found >= needed
    if step < rate <= 0.5:
        (row,) = report_on(normal, defective, false_alarm_rates=[rate - step]).by_rate
        assert row.n_found < needed


# -- models ----------------------------------------------------------------------------


def maps(n, seed, shift=0.0):
    X = np.random.default_rng(seed).normal(size=(n, 5, 4, 6))
    X[:, 2, 2] += shift
    return X


@pytest.mark.parametrize(
    "detector",
    [
        PatchCoreDetector(),
        PaDiMDetector(),
        SubspaceDetector(),
        PUADDetector(PaDiMDetector(), contamination=0.2),
    ],
    ids=lambda detector: type(detector).__name__,
)
def test_detectors_of_features(detector):
    detector.fit(maps(40, 0))
    before = pickle.dumps(detector)
    defective = np.concatenate([maps(8, 1, 8.0), maps(8, 2)])
    report = recall_report(detector, defective, kinds=np.repeat(["spot", "none"], 8))
    assert report.n_found == np.sum(detector.predict(defective) == -1)
    assert [row.kind for row in report.by_kind] == ["none", "spot"]
    assert report.by_kind[1].recall > report.by_kind[0].recall
    assert pickle.dumps(detector) == before


def small_features():
    return PCANetFeatures(image_size=64, kernel_sizes=(3,), n_filters=(4,))


@pytest.fixture(scope="module")
def textures():
    return make_textures(24, 6, texture="metal", size=64, random_state=0)


def test_pipelines_and_searches(textures):
    defective = textures.test[textures.y_test == -1]
    steps = small_features(), SubspaceDetector(contamination=0.1)
    model = Pipeline(list(steps)).fit(textures.train)
    report = recall_report(model, defective, kinds=textures.defect_types[-6:])
    assert report.n_good == 24
    assert report.n_found == np.sum(model.predict(defective) == -1)
    search = GridSearchCV(Pipeline(list(steps)), {}, scoring=lambda *_: 0.0, cv=2)
    for other in (
        sklearn.pipeline.Pipeline(model.steps),
        Pipeline([FunctionTransformer().fit(defective), model]),
        search.fit(textures.train),
    ):
        found = recall_report(other, defective)
        np.testing.assert_array_equal(found.p_values, report.p_values)
    found = recall_report(FrozenEstimator(model), defective)
    assert found.n_found == report.n_found


def test_regions_reach_the_features(textures):
    defective = textures.test[textures.y_test == -1]
    model = Pipeline([small_features(), SubspaceDetector()]).fit(textures.train)
    half = np.zeros((64, 64), bool)
    half[:, :32] = True
    report = recall_report(model, defective, regions=[half] * 6)
    np.testing.assert_array_equal(
        report.p_values, model.p_value(defective, regions=[half] * 6)
    )
    with pytest.raises(ValueError, match=r"no score \(NaN\) at the positions \[1\]"):
        recall_report(model, defective[:2], regions=[half, np.zeros((64, 64), bool)])


@pytest.mark.usefixtures("one_torch_thread")
def test_detectors_of_images(textures):
    """Any detector that takes images: here the brightness of a pixel is the score."""

    class Brightest(ImageDetector):
        def __init__(self):
            vars(self).update(vars(CutPasteDetector()))
            self.image_size, self.contamination, self.sigma = 32, 0.2, 0.0

        _parameter_constraints = {}

        def _fit(self, reader):
            pass

        def _score_batch(self, batch):
            grey = batch.mean(axis=3)
            return grey.max(axis=(1, 2)).astype(float), grey

    model = Brightest().fit(textures.train)
    defective = [
        *textures.test[textures.y_test == -1],
        np.full((64, 64, 3), 255, np.uint8),
    ]
    report = recall_report(model, defective)
    assert report.n_good == 4  # a fifth is held out
    assert report.n_found == np.sum(model.predict(defective) == -1)
    assert 6 not in report.missed


# -- errors ----------------------------------------------------------------------------


def test_models_without_held_out_scores():
    with pytest.raises(NotFittedError):
        recall_report(PatchCoreDetector(), maps(3, 0))
    with pytest.raises(NotFittedError):
        recall_report(Pipeline([PCANetFeatures(), PatchCoreDetector()]), maps(3, 0))
    forest = IsolationForest(n_estimators=2).fit(np.zeros((5, 2)))
    with pytest.raises(TypeError, match="IsolationForest keeps no scores"):
        recall_report(forest, np.zeros((1, 2)))


def test_scores_of_training_images_are_refused():
    in_sample = of_numbers(np.arange(30), calibration="train")
    defective = [[99.0]]
    with pytest.raises(ValueError, match="images it learned from"):
        recall_report(in_sample, defective)
    learned_on = of_numbers(np.arange(30), calibration="train")
    with pytest.raises(ValueError, match="images it learned from"):
        recall_report(learned_on.partial_fit(np.zeros((9, 1))), defective)
    merged = of_numbers(np.arange(30)).merge(in_sample)
    with pytest.raises(ValueError, match="images it learned from"):
        recall_report(merged, defective)
    calibrated = in_sample.calibrate(np.arange(30.0)[:, None])
    assert recall_report(calibrated, defective).recall == 1
    assert (
        recall_report(
            learned_on.set_params(calibration="auto").fit(np.arange(30.0)[:, None]),
            defective,
        ).recall
        == 1
    )
    with pytest.warns(UserWarning, match="one training image"):
        single = of_numbers([1.0], contamination=0.5)
    with pytest.raises(ValueError, match="a single image"):
        recall_report(single, defective)


def test_thresholds_set_by_hand_are_refused():
    model = of_numbers(np.arange(1, 30)).set_contamination(0.2)
    assert recall_report(model, [[99.0]]).threshold == -24
    model.offset_ = -29.0
    with pytest.raises(ValueError, match=r"offset_=-29 is not .*=0\.2, which is -24"):
        recall_report(model, [[99.0]])
    model.set_contamination(0.2)
    assert recall_report(model, [[99.0]]).threshold == -24


def test_rates_follow_the_rule_of_the_model():
    normal = np.random.default_rng(0).gamma(9, size=31)
    model = of_numbers(normal, threshold="tail")
    report = recall_report(model, [[99.0], [10.0]], false_alarm_rates=[0.1, 0.2])
    assert not report.certified
    assert "model: 5.00%, estimated" in str(report)
    assert report.threshold == model.offset_
    for row in report.by_rate:
        assert row.threshold == model.set_contamination(row.false_alarm_rate).offset_


def test_bad_arguments():
    model, defective = of_numbers(np.arange(1, 30)), [[1.0], [50.0]]
    with pytest.raises(ValueError, match="X_defects is empty"):
        recall_report(model, np.empty((0, 1)))
    with pytest.raises(ValueError, match="NaN"):
        recall_report(model, [[np.nan]])
    with pytest.raises(TypeError, match=r"X_defects is a single path, .*list_images"):
        recall_report(model, "defects", kinds=["hole"])
    with pytest.raises(ValueError, match="inconsistent numbers"):
        recall_report(model, defective, kinds=["hole"])
    for confidence in (0, 1, "95 %"):
        with pytest.raises(ValueError, match="confidence="):
            recall_report(model, defective, confidence=confidence)
    for rate in (0.01, 0.6, np.nan):
        with pytest.raises(ValueError, match="false_alarm_rates has"):
            recall_report(model, defective, false_alarm_rates=[rate])
    for recall in (0, 1.5, "all", np.nan):
        with pytest.raises(ValueError, match="recall="):
            recall_report(model, defective).rate_for(recall)


# -- photographs -----------------------------------------------------------------------


@pytest.mark.slow
def test_on_bottles(shared):
    data = load_mvtec(shared / "data", "mvtec_bottle_256")
    features = PatchFeatures(
        "mobilenetv2_100",
        layers="auto",
        weights=shared / "weights" / "mobilenetv2_100_imagenet.safetensors",
        backbone_kwargs={"pad_type": "same"},
        image_size=128,
    )
    model = Pipeline([features, SubspaceDetector()]).fit(data.train)
    places = np.flatnonzero(data.y_test == -1)
    defective = [data.test[i] for i in places]
    kinds = [data.defect_types[i] for i in places]
    report = recall_report(model, defective, kinds=kinds)
    assert report.n_good == len(data.train)
    assert report.n_found == np.sum(model.predict(defective) == -1)
    assert {row.kind for row in report.by_kind} == set(kinds)
    assert sum(row.n_found for row in report.by_kind) == report.n_found
    assert report.recall > 0.8
    assert report.interval[0] > 0.7
    assert report.rate_for(0.5) == pytest.approx(1 / (len(data.train) + 1))

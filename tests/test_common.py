"""One suite for every estimator: what scikit-learn and skad ask of all of them."""

import inspect
import pickle
import re

import joblib
import numpy as np
import pytest
from sklearn.base import BaseEstimator, TransformerMixin, clone
from sklearn.ensemble import IsolationForest
from sklearn.utils import estimator_checks, estimator_html_repr
from sklearn.utils.estimator_checks import parametrize_with_checks

import skad
from skad.base import BaseDetector, PatchDetector


def all_estimators():
    """Every estimator that skad exports, save the Pipeline that holds them."""
    exported = [getattr(skad, name) for name in skad.__all__]
    return [
        cls
        for cls in exported
        if inspect.isclass(cls)
        and issubclass(cls, BaseEstimator)
        and cls is not skad.Pipeline
    ]


def documented(cls, section):
    """Names in a section of a numpydoc docstring."""
    text = re.split(rf"^{section}\n-+\n", inspect.getdoc(cls), flags=re.M)[1]
    text = re.split(r"^\w[\w ]+\n-+\n", text, flags=re.M)[0]
    entries = re.findall(r"^(\w[\w, ]*) :", text, flags=re.M)
    return [name.strip() for entry in entries for name in entry.split(",")]


# Those that take features; images are no input that scikit-learn's checks know.
DETECTORS = [cls for cls in all_estimators() if issubclass(cls, PatchDetector)]


def quick(cls, **parameters):
    """An estimator that is fitted in a moment."""
    if cls is skad.SimpleNetDetector:
        parameters |= {"max_epochs": 40, "hidden_dim": 128, "noise_std": 1.5}
        parameters |= {"learning_rate": 5e-3, "adaptor_learning_rate": 5e-3}
    if cls is skad.PatchwiseDetector:
        parameters |= {"estimator": IsolationForest(n_estimators=10, random_state=0)}
    return cls(**parameters)


# The default threshold comes from held-out scores; these checks demand that the
# training rows are flagged at the contamination rate, which for a memory bank
# means that nearly every new good image is rejected.
IN_SAMPLE = "the threshold is a percentile of held-out scores, not of training scores"
HELD_OUT = {"check_outliers_train": IN_SAMPLE, "check_outliers_fit_predict": IN_SAMPLE}


@parametrize_with_checks(
    [quick(cls) for cls in DETECTORS], expected_failed_checks=lambda _: HELD_OUT
)
@pytest.mark.usefixtures("one_torch_thread")
def test_estimator(estimator, check):
    check(estimator)


@pytest.mark.parametrize("check", HELD_OUT)
@pytest.mark.parametrize("cls", DETECTORS, ids=lambda cls: cls.__name__)
@pytest.mark.usefixtures("one_torch_thread")
def test_training_scores_are_flagged_where_they_set_the_threshold(cls, check):
    check = getattr(estimator_checks, check)
    check(cls.__name__, quick(cls, calibration="train"))


@pytest.mark.slow
@parametrize_with_checks([quick(cls, calibration="train") for cls in DETECTORS])
@pytest.mark.usefixtures("one_torch_thread")
def test_estimator_with_a_threshold_from_training_scores(estimator, check):
    check(estimator)


@parametrize_with_checks([skad.Patchwise()])
def test_transformer_of_features(estimator, check):
    check(estimator)


@pytest.mark.parametrize("cls", all_estimators(), ids=lambda cls: cls.__name__)
class TestEveryEstimator:
    def test_is_a_detector_or_a_transformer(self, cls):
        assert issubclass(cls, (BaseDetector, TransformerMixin))

    def test_constructor_only_stores(self, cls):
        estimator = cls()
        expected = {
            name: parameter.default
            for name, parameter in inspect.signature(cls).parameters.items()
        }
        assert estimator.get_params() == expected
        assert vars(estimator) == expected
        copied = clone(estimator)
        assert copied.get_params() == expected

    def test_every_parameter_is_checked_and_documented(self, cls):
        names = list(inspect.signature(cls).parameters)
        assert documented(cls, "Parameters") == names
        unchecked = {"layers", "weights"}  # told by errors of their own
        assert set(names) - unchecked <= set(cls._parameter_constraints)

    def test_prints(self, cls):
        assert cls.__name__ in repr(cls())
        assert cls.__name__ in estimator_html_repr(cls())


@pytest.fixture(params=DETECTORS, ids=lambda cls: cls.__name__)
def detector(request):
    return quick(request.param)


@pytest.fixture(
    params=[cls for cls in DETECTORS if hasattr(cls(), "partial_fit")],
    ids=lambda cls: cls.__name__,
)
def learner(request):
    """A detector that learns on."""
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


def test_map_points_at_the_anomalous_patch(detector):
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


def test_every_fitted_attribute_is_documented(detector):
    fitted = {name for name in vars(detector.fit(features(40))) if name.endswith("_")}
    assert fitted == set(documented(type(detector), "Attributes"))


def test_there_is_no_score_method(detector):
    assert not hasattr(detector, "score")


# -- patches outside the region of interest --------------------------------------


def test_patches_outside_neither_train_nor_fire(detector):
    X, new = features(60), features(4, seed=1)
    new[0, 3, 1] += 10
    X[:, 0], new[:, 0] = 1e6 * features(1)[0, 0], -1e6
    X[:, 0] = new[:, 0] = np.nan
    detector.fit(X)
    maps = detector.anomaly_map(new)
    assert np.isfinite(maps).all()
    assert np.unravel_index(maps[0].argmax(), (5, 4)) == (3, 1)
    np.testing.assert_array_equal(maps[:, 0].max(axis=1), maps.min(axis=(1, 2)))
    inside = clone(detector).fit(X[:, 1:])
    np.testing.assert_allclose(
        detector.score_samples(new), inside.score_samples(new[:, 1:]), rtol=1e-9
    )
    assert detector.offset_ == pytest.approx(inside.offset_, rel=1e-9)


def test_every_image_may_have_a_region_of_its_own(detector):
    rng = np.random.default_rng(2)
    X, new = features(60), features(6, seed=1)
    X[rng.random(X.shape[:3]) < 0.3] = np.nan
    outside = rng.random(new.shape[:3]) < 0.3
    new[outside] = np.nan
    detector.fit(X)
    held_out = 12 if detector._resolved_calibration() == "split" else 60
    assert len(detector.calibration_scores_) == held_out
    scores, maps = detector.score_samples(new), detector.anomaly_map(new)
    assert np.isfinite(scores).all()
    assert np.isfinite(maps).all()
    # What lies outside one image changes nothing for another.
    np.testing.assert_allclose(
        detector.score_samples(new[[3]])[0], scores[3], rtol=1e-9
    )


def test_a_patch_that_is_partly_nan_is_an_error(detector):
    X = features(30)
    X[4, 1, 1, 2] = np.nan
    with pytest.raises(ValueError, match=r"X\[4\] contains NaN"):
        detector.fit(X)


# -- learning on ---------------------------------------------------------------------


def learns_exactly(learner):
    """Whether parts equal the whole; FusionDetector is of PatchCore by default."""
    return type(learner).__name__ not in ("PatchCoreDetector", "FusionDetector")


def test_parts_equal_the_whole(learner):
    X, new = features(60), features(8, seed=1)
    whole = clone(learner).fit(X)
    for lo in range(0, 60, 20):
        assert learner.partial_fit(X[lo : lo + 20]) is learner
    assert learner.n_samples_seen_ == 60
    if learns_exactly(learner):
        np.testing.assert_allclose(
            learner.score_samples(new), whole.score_samples(new), rtol=1e-6
        )
    assert learner.offset_ == pytest.approx(whole.offset_, rel=0.1)


def test_merged_parts_equal_the_whole(learner):
    X, new = features(75), features(8, seed=1)
    whole = clone(learner).fit(X)
    parts = [clone(learner).fit(X[lo : lo + 25]) for lo in range(0, 75, 25)]
    second = parts[1].score_samples(new)
    assert parts[0].merge(parts[1]) is parts[0]
    parts[0].merge(parts[2])
    np.testing.assert_array_equal(parts[1].score_samples(new), second)
    assert parts[0].n_samples_seen_ == 75
    if learns_exactly(learner):
        np.testing.assert_allclose(
            parts[0].score_samples(new), whole.score_samples(new), rtol=1e-6
        )
    # Held-out scores of the parts stay: a bank three times as large would find
    # nearer neighbours, so the threshold errs on the side of fewer false alarms.
    assert 1.5 * whole.offset_ < parts[0].offset_ < 0.9 * whole.offset_


def test_the_threshold_follows(learner):
    learner.set_params(contamination=0.1).fit(features(60))
    brighter = 3 * features(240, seed=1)
    learner.partial_fit(brighter[:120])
    false_alarms = np.mean(learner.predict(brighter[120:]) == -1)
    assert false_alarms < 0.25


@pytest.mark.parametrize("calibration", ["auto", "kfold", "split", "train"])
def test_parts_of_any_size_with_every_calibration(learner, calibration):
    X = features(60)
    learner.set_params(calibration=calibration).fit(X[:40])
    held_out = len(learner.calibration_scores_)
    learner.partial_fit(X[40:41]).partial_fit(X[41:])
    assert len(learner.calibration_scores_) > held_out
    assert np.isfinite(learner.decision_function(X)).all()


def test_fit_forgets(learner):
    X, new = features(80), features(4, seed=1)
    fresh = clone(learner).fit(X[40:]).score_samples(new)
    learner.partial_fit(X[:40]).partial_fit(X[:40]).fit(X[40:])
    np.testing.assert_array_equal(learner.score_samples(new), fresh)
    assert learner.n_samples_seen_ == 40


def test_a_loaded_model_learns_on(learner):
    X, new = features(60), features(4, seed=1)
    learner.fit(X[:30])
    loaded = pickle.loads(pickle.dumps(learner)).partial_fit(X[30:])
    learner.partial_fit(X[30:])
    np.testing.assert_array_equal(loaded.score_samples(new), learner.score_samples(new))


def test_what_does_not_fit_together_is_refused(learner):
    learner.fit(features(30))
    with pytest.raises(ValueError, match="6 features"):
        learner.partial_fit(features(3, shape=(5, 4, 7)))
    with pytest.raises(ValueError, match=r"4 x 4.*5 x 4"):
        learner.partial_fit(features(3, shape=(4, 4, 6)))
    with pytest.raises(ValueError, match="no normal image"):
        learner.partial_fit(features(3), [-1, -1, -1])
    with pytest.raises(TypeError, match="merges only with its like"):
        learner.merge(object())
    with pytest.raises(ValueError, match="7 channels"):
        learner.merge(clone(learner).fit(features(30, shape=(5, 4, 7))))
    with pytest.raises(ValueError, match=r"4 x 4.*5 x 4"):
        learner.merge(clone(learner).fit(features(30, shape=(4, 4, 6))))

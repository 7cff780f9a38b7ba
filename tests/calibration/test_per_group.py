"""A threshold for each of several products that one model has learned."""

from pathlib import Path

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.preprocessing import FunctionTransformer

import skad
from skad import (
    FusionDetector,
    PaDiMDetector,
    PatchCoreDetector,
    PatchFeatures,
    PCANetFeatures,
    Pipeline,
    SPADEDetector,
    SubspaceDetector,
)
from skad.base._threshold import threshold_of
from skad.calibration import ThresholdPerGroup
from skad.datasets import make_textures
from skad.parallel import fit_parts
from skad.synthesis import AugmentedViews

DETECTORS = [
    PatchCoreDetector(),
    PaDiMDetector(),
    SPADEDetector(image_score="max"),
    SubspaceDetector(n_components=2),
    SubspaceDetector(calibration="kfold"),
    FusionDetector(PatchCoreDetector()),
]


@pytest.fixture(scope="module")
def X():
    """Thirty images of a rough product and of a smooth one, in turns."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(60, 4, 4, 8))
    X[1::2] = 0.1 * X[1::2] + 20
    return X


@pytest.fixture(scope="module")
def groups():
    return np.tile(["rough", "smooth"], 30)


@pytest.mark.parametrize("detector", DETECTORS, ids=str)
def test_each_group_has_the_threshold_of_its_own_scores(detector, X, groups):
    model = ThresholdPerGroup(detector).fit(X, groups=groups)
    plain = clone(detector).fit(X)
    np.testing.assert_array_equal(model.score_samples(X), plain.score_samples(X))
    held_out = plain.calibration_scores_
    for k, group in enumerate(["rough", "smooth"]):
        own = held_out[groups == group]
        assert model.offsets_[k] == -threshold_of(-own, 0.05)
        assert model.model_of(group).offset_ == model.offsets_[k]
        p = model.p_value(X[:1], groups=[group])
        at_least = np.sum(own <= plain.score_samples(X[:1]))
        assert p == (1 + at_least) / 31
    assert model.n_held_out_.tolist() == [30, 30]
    decisions = model.decision_function(X[:2], groups=groups[:2])
    np.testing.assert_array_equal(
        decisions, model.score_samples(X[:2]) - model.offsets_
    )
    np.testing.assert_array_equal(
        ThresholdPerGroup(detector).fit_predict(X, groups=groups),
        np.where(held_out >= model.offsets_[np.tile([0, 1], 30)], 1, -1),
    )


def test_false_alarms_of_each_group_keep_the_rate_and_pooled_ones_do_not(X, groups):
    rng = np.random.default_rng(1)
    new = rng.normal(size=(400, 4, 4, 8))
    new[1::2] = 0.1 * new[1::2] + 20
    of_new = np.tile(["rough", "smooth"], 200)
    model = ThresholdPerGroup(PatchCoreDetector()).fit(X, groups=groups)
    alarms = model.predict(new, groups=of_new) == -1
    pooled = model.estimator_.predict(new) == -1
    for group in ("rough", "smooth"):
        assert 0.01 < alarms[of_new == group].mean() < 0.1
    assert pooled[of_new == "smooth"].mean() == 0
    scratched = new[1:2].copy()
    scratched[0, 2, 1] += 1
    assert model.predict(scratched, groups=["smooth"]) == -1
    assert model.estimator_.predict(scratched) == 1
    masks = model.predict_mask(new, groups=of_new)
    for group in ("rough", "smooth"):
        assert masks[of_new == group].any(axis=(1, 2)).mean() < 0.12
    mask = model.predict_mask(scratched, groups=["smooth"])[0]
    assert mask[2, 1]
    assert mask.sum() == 1
    drawn = model.predict_mask(scratched, size=(32, 32), groups=["smooth"])[0]
    expected = model.model_of("smooth").predict_mask(scratched, size=(32, 32))[0]
    np.testing.assert_array_equal(drawn, expected)


def test_rate_and_new_images(X, groups):
    model = ThresholdPerGroup(SubspaceDetector(n_components=2)).fit(X, groups=groups)
    before = model.offsets_.copy()
    model.set_contamination(0.2)
    assert (model.offsets_ > before).all()
    assert model.estimator_.offset_ == clone(model.estimator).fit(X).offset_
    model.set_contamination(0.05)
    np.testing.assert_array_equal(model.offsets_, before)
    model.calibrate(X[1:40:2], groups=groups[1:40:2])
    assert model.n_held_out_.tolist() == [30, 20]
    assert model.offsets_[0] == before[0]
    own = model.score_samples(X[1:40:2])
    assert model.offsets_[1] == -threshold_of(-own, 0.05)
    model.calibrate(X[:4], [1, 1, 1, -1], groups=groups[:4], add=True)
    assert model.n_held_out_.tolist() == [32, 21]
    with_outlier = X[:20].copy()
    with_outlier[7] += 100
    with pytest.warns(UserWarning, match=r"X\[7\] scores far from all other"):
        model.calibrate(with_outlier, groups=groups[:20])


def test_images_masks_files_and_skipped_images(tmp_path):
    pytest.importorskip("skops")
    data = make_textures(n_normal=16, n_anomalous=2, size=64, random_state=0)
    images = [*data.train[:10], *(image[:48] // 3 for image in data.train[:10])]
    (tmp_path / "bad.png").write_bytes(b"no image")
    images.insert(3, str(tmp_path / "bad.png"))
    groups = np.array([0] * 11 + [1] * 10)
    features = PatchFeatures(
        "skad_small", embedding="concat", image_size=64, on_error="skip"
    )
    inner = Pipeline([features, PatchCoreDetector()])
    with pytest.warns(
        UserWarning, match=r"^group 1: 10 held-out images cannot certify"
    ):
        model = ThresholdPerGroup(inner).fit(images, groups=groups)
    assert model.n_held_out_.tolist() == [10, 10]
    labels = model.predict(images, groups=groups)
    assert labels[3] == 0
    masks = model.predict_mask(images, groups=groups)
    assert [mask.shape for mask in masks[9:12]] == [(64, 64), (64, 64), (48, 64)]
    of_one = model.model_of(1)
    assert of_one.predict(images[11:]).tolist() == labels[11:].tolist()
    np.testing.assert_array_equal(of_one.predict_mask(images[11:])[0], masks[11])
    skad.save(model, tmp_path / "model.skad")
    for twin in (skad.load(tmp_path / "model.skad"), _pickled(model, tmp_path)):
        np.testing.assert_array_equal(
            twin.decision_function(images, groups),
            model.decision_function(images, groups),
        )
        assert twin.predict_mask(images[:1], groups=[0])[0].shape == (64, 64)
    frozen = ThresholdPerGroup(FrozenEstimator(model.estimator_))
    frozen.fit(images, groups=groups)
    np.testing.assert_array_equal(frozen.offsets_, model.offsets_)
    assert frozen.model_of(1).predict(images[11:13]).shape == (2,)


def _pickled(model, folder):
    joblib.dump(model, folder / "model.joblib")
    return joblib.load(folder / "model.joblib")


def test_refusals(X, groups):
    model = ThresholdPerGroup(PatchCoreDetector())
    with pytest.raises(NotFittedError):
        model.predict(X, groups=groups)
    with pytest.raises(ValueError, match="groups is missing"):
        model.fit(X)
    with pytest.raises(ValueError, match="groups has 59 entries, but X has 60 images"):
        model.fit(X, groups=groups[:-1])
    with pytest.raises(ValueError, match="string or integer per image"):
        model.fit(X, groups=np.linspace(0, 1, len(X)))
    with pytest.raises(ValueError, match="string or integer per image"):
        model.fit(X, groups=[None, *groups[1:]])


@pytest.mark.parametrize("folder", ["parts/good", Path("parts")])
def test_a_folder_is_no_sequence_of_images(folder, X, groups):
    model = ThresholdPerGroup(SubspaceDetector(n_components=2)).fit(X, groups=groups)
    for call in (model.fit, model.predict, model.calibrate):
        with pytest.raises(TypeError, match=r"X is a single path, .*list_images"):
            call(folder, groups=groups[:10])


def test_the_model_of_a_group_can_be_fitted_again_by_itself():
    images = make_textures(n_normal=12, n_anomalous=0, size=64, random_state=0).train
    groups = ["a", "b"] * 6
    features = PCANetFeatures(64, kernel_sizes=(3, 3), n_filters=(4, 4))
    inner = Pipeline(
        [features, PatchCoreDetector(random_state=np.random.RandomState(0))],
        augmentation=AugmentedViews(1),
    )
    model = ThresholdPerGroup(inner).fit(images, groups=groups)
    expected = joblib.hash(model)
    alone = model.model_of("a")
    assert alone[-1].bank_ is model.estimator_[-1].bank_  # not copied
    assert alone[0].whitening_ is model.estimator_[0].whitening_
    alone.partial_fit(images[:2])
    alone.set_params(augmentation__n_views=2, pcanetfeatures__n_components=3)
    alone.fit(images[::2])
    assert alone[0].n_features_out_ == 3
    assert joblib.hash(model) == expected


def test_more_refusals(X, groups):
    y = np.where(groups == "smooth", -1, 1)
    with pytest.raises(ValueError, match="group 'smooth': it has no normal image"):
        ThresholdPerGroup(PatchCoreDetector()).fit(X, y, groups=groups)
    for way in ("split", "train"):
        detector = PatchCoreDetector(calibration=way)
        with pytest.raises(ValueError, match="ThresholdPerGroup judges each image"):
            ThresholdPerGroup(detector).fit(X, groups=groups)
    for other in (IsolationForest(), FunctionTransformer()):
        with pytest.raises(TypeError, match="ThresholdPerGroup needs a detector"):
            ThresholdPerGroup(other).fit(X, groups=groups)
    with pytest.raises(ValueError, match="Raise calibration_size=20"):
        ThresholdPerGroup(PaDiMDetector(calibration_size=20)).fit(X, groups=groups)
    model = ThresholdPerGroup(PatchCoreDetector()).fit(X, groups=groups)
    with pytest.raises(
        ValueError, match="groups holds 'glossy', of which fit has seen no"
    ):
        model.predict(X[:2], groups=["rough", "glossy"])
    with pytest.raises(ValueError, match="'glossy'"):
        model.model_of("glossy")
    with pytest.raises(ValueError, match="groups is missing"):
        model.predict(X[:2])


def test_scores_of_updated_gaussians_are_those_of_their_images(X):
    """Of images that are not the first ones of the last call."""
    order = np.concatenate([np.arange(0, 60, 2), np.arange(1, 60, 2)])
    groups = np.repeat(["rough", "smooth"], 30)
    updated = PaDiMDetector().fit(X[order[:30]]).partial_fit(X[order[30:]])
    model = ThresholdPerGroup(FrozenEstimator(updated)).fit(X[order], groups=groups)
    held_out = updated.calibration_scores_
    for k in range(2):
        own = held_out[30 * k : 30 * (k + 1)]
        assert model.offsets_[k] == -threshold_of(-own, 0.05)


def test_streamed_gaussians_leave_out_labelled_images():
    data = make_textures(n_normal=12, n_anomalous=0, size=64, random_state=0).train
    features = PatchFeatures("skad_small", embedding="concat", image_size=64)
    y = np.r_[1, -1, np.ones(10)]
    pipeline = Pipeline([features, PaDiMDetector()])
    model = ThresholdPerGroup(pipeline).fit(data, y, groups=["a", "b"] * 6)
    assert model.n_held_out_.tolist() == [6, 5]


def test_images_that_were_dealt_out_to_parts_have_no_order(X, groups):
    model = fit_parts(SubspaceDetector(n_components=2), X, part_size=20)
    with pytest.raises(ValueError, match=r"deals images out .* at random"):
        ThresholdPerGroup(FrozenEstimator(model)).fit(X, groups=groups)


def test_a_fit_that_fails_leaves_what_was_fitted(X, groups):
    model = ThresholdPerGroup(SubspaceDetector(n_components=2))
    y = np.where(groups == "rough", -1, 1)
    with pytest.raises(ValueError, match="rough"):
        model.fit(X, y, groups=groups)
    with pytest.raises(NotFittedError):
        model.predict(X, groups=groups)
    before = model.fit(X, groups=groups).offsets_
    with pytest.raises(ValueError, match="rough"):
        model.fit(X, y, groups=groups)
    assert model.predict(X, groups=groups).shape == (60,)
    np.testing.assert_array_equal(model.offsets_, before)


@pytest.mark.parametrize("groups", [["a", "b", float("nan")], ["a", 1, 2]])
def test_lists_of_mixed_groups_are_refused(X, groups):
    with pytest.raises(ValueError, match="one string or integer per image"):
        ThresholdPerGroup(SubspaceDetector()).fit(X[:3], groups=groups)

"""What is promised of one image holds whatever else is in the batch."""

import itertools
import warnings

import numpy as np
import pytest
from sklearn.model_selection import cross_val_score

import skad
from skad.features import SkippedImageWarning
from skad.images import ImageError
from skad.metrics import image_auroc_scorer, pro_scorer
from skad.model_selection import OneClassSplit

pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings("ignore:.*cannot certify"),
]

SCORES = ("score_samples", "decision_function", "p_value")


@pytest.fixture
def damaged(tmp_path):
    path = tmp_path / "damaged.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    return path


# -- images that cannot be read ----------------------------------------------------


@pytest.mark.filterwarnings("ignore::skad.features.SkippedImageWarning")
def test_an_unreadable_image_is_answered_alike_in_any_batch(model, textures, damaged):
    image = textures.test[0]
    for X in ([damaged], ["missing.png"], [damaged, "missing.png"]):
        check_unreadable(model, X, range(len(X)))
    check_unreadable(model, [image, damaged, image], [1])
    check_unreadable(model, ["missing.png", image], [0])


def check_unreadable(model, X, bad):
    bad = np.isin(np.arange(len(X)), list(bad))
    for method in SCORES:
        np.testing.assert_array_equal(np.isnan(getattr(model, method)(X)), bad)
    np.testing.assert_array_equal(model.predict(X) == 0, bad)
    maps, masks = model.anomaly_map(X), model.predict_mask(X)
    # 64 x 64 is the size of the other images, and image_size where there are none.
    assert maps.shape == masks.shape == (len(X), 64, 64)
    assert maps.dtype == np.float32
    np.testing.assert_array_equal(np.isnan(maps).all(axis=(1, 2)), bad)
    assert not masks[bad].any()
    assert model.anomaly_map(X, size=(10, 12)).shape == (len(X), 10, 12)
    found = list(skad.inspect(model, X))
    assert [one.error is not None for one in found] == bad.tolist()
    assert [one.label == 0 for one in found] == bad.tolist()


def test_a_warning_names_each_unreadable_image(features, textures, damaged):
    model = skad.Pipeline([features(on_error="skip"), skad.SubspaceDetector()])
    model.fit(textures.train)
    with pytest.warns(SkippedImageWarning, match=r"1 of 1 .*X\[0\].*damaged"):
        assert model.predict([damaged]).tolist() == [0]
    with pytest.warns(SkippedImageWarning, match=r"1 of 1 .*X\[0\]"):
        assert np.isnan(model[0].transform([damaged])).all()


@pytest.mark.filterwarnings("ignore::skad.features.SkippedImageWarning")
def test_to_learn_one_image_has_to_be_readable(features, textures, damaged):
    build = features(on_error="skip")
    for call in (build.fit_transform, skad.Pipeline([build, skad.PaDiMDetector()]).fit):
        with pytest.raises(ImageError, match="none of the 2 images could be read"):
            call([damaged, damaged])
    model = skad.Pipeline([build, skad.PatchCoreDetector()]).fit(textures.train)
    for call in (model.partial_fit, model.calibrate):
        with pytest.raises(ValueError, match=r"no normal image is left|could be read"):
            call([damaged])


@pytest.mark.filterwarnings("ignore::skad.features.SkippedImageWarning")
def test_descriptors_of_unreadable_images(textures, features, damaged):
    build = features(on_error="skip", pooled=True)
    model = skad.Pipeline([build, skad.SPADEDetector()]).fit(textures.train)
    assert model.predict([damaged]).tolist() == [0]
    alone, among = (
        model.score_samples([damaged]),
        model.score_samples([damaged, textures.test[0]]),
    )
    assert np.isnan(alone[0])
    assert np.isnan(among[0])
    assert np.isfinite(among[1])


def test_maps_of_nothing_have_the_grid_of_others():
    X = np.random.default_rng(0).normal(size=(12, 4, 4, 3))
    model = skad.SimpleNetDetector(max_epochs=1, hidden_dim=8, upscale=2).fit(X)
    X[0] = np.nan
    assert model.anomaly_map(X[:1]).shape == (1, 8, 8)
    assert model.anomaly_map(X[:2]).shape == (2, 8, 8)
    found = list(skad.inspect(model, X[:2]))
    assert [one.label == 0 for one in found] == [True, False]
    assert found[1].anomaly_map.shape == (8, 8)


@pytest.mark.filterwarnings("ignore::skad.features.SkippedImageWarning")
def test_scorers_leave_out_what_was_skipped(features, textures, damaged):
    model = skad.Pipeline([features(on_error="skip"), skad.SubspaceDetector()])
    model.fit(textures.train)
    X = list(textures.test)
    expected = image_auroc_scorer(model, X, textures.y_test)
    found = image_auroc_scorer(model, [damaged, *X], [1, *textures.y_test])
    assert found == expected
    masks = [None, *textures.masks]
    assert pro_scorer(model, [damaged, *X], masks=masks) == pytest.approx(
        pro_scorer(model, X, masks=list(textures.masks))
    )
    X = [*textures.train, damaged, *X]
    y = np.r_[np.ones(17, int), textures.y_test]
    scores = cross_val_score(
        model, X, y, cv=OneClassSplit(2), scoring=image_auroc_scorer
    )
    assert np.isfinite(scores).all()


def test_an_image_without_region_is_alike_in_any_batch(model, textures):
    if not isinstance(model, skad.Pipeline):
        pytest.skip("takes whole images")
    image, nothing = textures.test[0], np.zeros((64, 64), bool)
    alone = model.predict([image], regions=[nothing])
    among = model.predict([image, image], regions=[nothing, None])
    assert alone.tolist() == [0]
    assert among[0] == 0
    assert among[1] != 0
    assert np.isnan(model.anomaly_map([image], regions=[nothing])).all()
    assert not model.predict_mask([image], regions=[nothing]).any()


# -- batches, their order and their container ----------------------------------------


def test_scores_do_not_depend_on_the_batch(model, textures):
    X = list(textures.test)
    expected = model.score_samples(X)
    one_by_one = [model.score_samples([x])[0] for x in X]
    order = np.random.default_rng(0).permutation(len(X))
    shuffled = model.score_samples([X[i] for i in order])
    # Networks and matrix products round by the number of rows at once: float32.
    np.testing.assert_allclose(one_by_one, expected, rtol=1e-5)
    np.testing.assert_allclose(shuffled, expected[order], rtol=1e-5)
    for container in (np.stack(X), tuple(X)):
        np.testing.assert_array_equal(model.score_samples(container), expected)
    np.testing.assert_array_equal(model.score_samples(X), expected)
    np.testing.assert_allclose(
        model.anomaly_map(X[:1])[0], model.anomaly_map(X)[0], rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    "detector",
    [skad.PaDiMDetector(), skad.PatchCoreDetector(), skad.SubspaceDetector()],
    ids=lambda detector: type(detector).__name__,
)
def test_lists_of_features_are_arrays(detector):
    X = np.random.default_rng(0).normal(size=(30, 4, 3, 5))
    y = np.r_[np.ones(25, int), -np.ones(5, int)]
    expected = detector.fit(X, y).score_samples(X)
    np.testing.assert_array_equal(detector.fit(list(X), y).score_samples(X), expected)
    for container in (list(X), tuple(X), X.tolist()):
        np.testing.assert_array_equal(detector.score_samples(container), expected)
    with pytest.raises(ValueError, match="y must be"):
        detector.fit(list(X), np.arange(30) % 2)


def test_inspections_equal_the_methods(model, textures):
    X = list(textures.test)
    with warnings.catch_warnings():
        warnings.simplefilter("error", SkippedImageWarning)
        found = list(skad.inspect(model, X))
    assert [one.index for one in found] == list(range(len(X)))
    for name, method in {
        "score": "score_samples",
        "decision": "decision_function",
        "label": "predict",
        "p_value": "p_value",
        "anomaly_map": "anomaly_map",
        "mask": "predict_mask",
    }.items():
        values = [getattr(one, name) for one in found]
        np.testing.assert_array_equal(values, getattr(model, method)(X), err_msg=name)
    endless = skad.inspect(model, itertools.cycle(X[:2]), maps=False)
    streamed = [one.score for one in itertools.islice(endless, 3)]
    expected = [found[i].score for i in (0, 1, 0)]
    np.testing.assert_allclose(streamed, expected, rtol=1e-5)
    rejected = list(skad.inspect(model, X, maps="rejected"))
    assert [one.score for one in rejected] == [one.score for one in found]
    for one, whole in zip(rejected, found, strict=True):
        assert (one.anomaly_map is None) == (one.label == 1)
        if one.label == -1:
            np.testing.assert_allclose(
                one.anomaly_map, whole.anomaly_map, rtol=1e-4, atol=1e-5
            )

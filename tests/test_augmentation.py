"""Pipelines that learn from augmented views, and leave these out with their image."""

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.preprocessing import StandardScaler

import skad
from skad import (
    EfficientADDetector,
    FusionDetector,
    PaDiMDetector,
    PatchCoreDetector,
    PatchFeatures,
    Patchwise,
    Pipeline,
    SPADEDetector,
    SubspaceDetector,
)
from skad.base import PatchDetector
from skad.datasets import make_textures
from skad.images import read_image
from skad.inspection import explain, suspects
from skad.parallel import fit_parts
from skad.synthesis import AugmentedViews
from skad.synthesis._augmented import WithViews

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # of few images

VIEWS = AugmentedViews(n_views=3, flip="horizontal", rotation=10, shift=0.1)
DETECTORS = {
    "PatchCore": PatchCoreDetector(coreset_ratio=1.0),
    "PaDiM": PaDiMDetector(),
    "SPADE": SPADEDetector(),
    "Subspace": SubspaceDetector(n_components=20),
}


@pytest.fixture(scope="module")
def images():
    data = make_textures(n_normal=14, n_anomalous=1, size=64, random_state=0)
    return np.stack([*data.train, *data.test])[:12]


@pytest.fixture(scope="module")
def features(images):
    return PatchFeatures("skad_small", embedding="concat", image_size=64).fit(images)


@pytest.fixture(scope="module")
def of_views(images, features):
    """Features of six images, each followed by its views, as a fit makes them."""
    return features._features_of_views(images[:6], None, None, VIEWS, fit=False)[0]


@pytest.mark.parametrize("name", DETECTORS)
def test_an_image_and_its_views_are_left_out_together(name, images, features, of_views):
    detector = DETECTORS[name]
    model = Pipeline([features, clone(detector)], augmentation=VIEWS).fit(images[:6])
    found = model[-1].calibration_scores_
    assert found.shape == (6,)
    assert len(model[-1].calibration_maps_) == 6
    assert model[-1].n_samples_seen_ == 6
    expected = [_left_out(detector, of_views, i) for i in range(6)]
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    # What it is all about: with the views still there, scores would be too high.
    rest = np.delete(of_views, 0, axis=0)
    leaked = clone(detector).fit(rest).score_samples(of_views[:1])[0]
    assert leaked > expected[0]


def _left_out(detector, of_views, i, sample=0):
    """Score of image i, or of a view, by a detector of the other images and views."""
    owner = np.arange(len(of_views)) // 4
    fitted = clone(detector).fit(of_views[owner != i])
    return fitted.score_samples(of_views[[4 * i + sample]])[0]


@pytest.mark.parametrize("name", DETECTORS)
def test_held_out_scores_of_views(name, images, features, of_views):
    on_views = clone(VIEWS).set_params(calibrate_on="views")
    model = Pipeline([features, clone(DETECTORS[name])], augmentation=on_views)
    found = model.fit(images[:6])[-1].calibration_scores_
    expected = [_left_out(DETECTORS[name], of_views, i, sample=1) for i in range(6)]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("calibration", ["split", "train"])
def test_scores_of_views_that_the_model_gives(calibration, images, features, of_views):
    on_views = clone(VIEWS).set_params(calibrate_on="views")
    detector = SubspaceDetector(calibration=calibration)
    model = Pipeline([features, detector], augmentation=on_views).fit(images[:6])
    found = model[-1].calibration_scores_
    known = model[-1].score_samples(of_views[1::4])
    nearest = np.abs(known[:, None] - found).argmin(axis=0)
    np.testing.assert_allclose(found, known[nearest], rtol=1e-9)
    assert len(set(nearest)) == (6 if calibration == "train" else 1)


@pytest.mark.parametrize("n_channels", [8, 40])
def test_padim_keeps_a_sample_of_images_with_their_views(n_channels, of_views):
    X = of_views[..., :n_channels].copy()
    X[5, :2] = np.nan  # outside of the region, in one view only
    detector = PaDiMDetector(calibration_size=4)
    first = clone(detector)._learn_views(X[:8], np.arange(2), 4)
    first._learn_views(X[8:], np.arange(4), 4, update=True)
    detector._learn_views(X, np.arange(6), 4)
    kept = detector._left_out_images(6)
    assert len(kept) == (4 if n_channels < 24 else 6)
    expected = [_left_out(detector, X, i) for i in kept]
    for one in (detector, first):
        np.testing.assert_allclose(one.calibration_scores_, expected, rtol=1e-9)


def test_a_coreset_leaves_them_out_together(images, features, of_views):
    model = Pipeline(
        [features, PatchCoreDetector(coreset_ratio=0.2, reweight=None)],
        augmentation=VIEWS,
    ).fit(images[:6])
    detector = model[-1]
    owner = detector.coreset_indices_ // (64 * 4)
    assert set(owner) == set(range(6))
    for i in range(6):
        bank, rows = detector.bank_[owner != i], of_views[4 * i].reshape(-1, 128)
        squared = ((rows[:, None].astype(float) - bank) ** 2).sum(axis=2).min(axis=1)
        score = -np.sqrt(squared.max())
        # Rows of other images that replace those left out bring it closer.
        assert score <= detector.calibration_scores_[i] <= 0.7 * score


@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("name", ["PatchCore", "PaDiM", "Subspace"])
def test_update_with_views(name, n, images, features):
    model = Pipeline([features, clone(DETECTORS[name])], augmentation=VIEWS)
    model.fit(images[:n]).partial_fit(images[3:5]).partial_fit(images[5:6])
    assert model[-1].n_samples_seen_ == n + 3
    assert len(model[-1].calibration_scores_) >= 3
    with pytest.raises(ValueError, match="cannot go on with 0: keep"):
        model.set_params(augmentation=None).partial_fit(images[:2])
    with pytest.raises(ValueError, match="go on with 5"):
        model.set_params(augmentation=AugmentedViews(5)).partial_fit(images[:2])
    on_views = clone(VIEWS).set_params(calibrate_on="views")
    with pytest.raises(ValueError, match=r"of images, .* calibrate_on='views': keep"):
        model.set_params(augmentation=on_views).partial_fit(images[:2])
    model.set_params(augmentation=None).fit(images[:4])
    assert model[-1].calibration_scores_.shape == (4,)
    plain = Pipeline([features, clone(DETECTORS[name])]).fit(images[:4])
    np.testing.assert_array_equal(
        plain.score_samples(images), model.score_samples(images)
    )


def test_update_counts_images_and_views(images, features):
    steps = [features, PatchCoreDetector(coreset_ratio=1.0)]
    model = Pipeline(steps, augmentation=VIEWS).fit(images[:2])
    model.partial_fit(images[2:4])
    assert set(model[-1].coreset_indices_ // (64 * 4)) == set(range(4))
    found = explain(model, images[3:4])[0]
    assert (found.training_index, found.training_view) == (3, 0)


@pytest.mark.parametrize("name", ["PatchCore", "PaDiM", "SPADE", "Subspace"])
def test_views_of_one_image_are_held_out_from_each_other(name, images, features):
    model = Pipeline([features, clone(DETECTORS[name])], augmentation=VIEWS)
    with pytest.warns(UserWarning, match="views are held out from each other"):
        model.fit(images[:1])
    assert model[-1].calibration_scores_.shape == (4,)
    assert model[-1].n_samples_seen_ == 1


@pytest.mark.parametrize("calibration", ["kfold", "split", "train"])
def test_every_calibration(calibration, images, features):
    detector = SubspaceDetector(calibration=calibration)
    model = Pipeline([features, detector], augmentation=VIEWS).fit(images[:6])
    n = {"kfold": 6, "split": 1, "train": 6}[calibration]
    assert model[-1].calibration_scores_.shape == (n,)


def test_labels_regions_and_bad_files(images, features, tmp_path):
    paths = []
    for i, image in enumerate(images[:5]):
        np.save(tmp_path / f"{i}.npy", image)
        paths.append(tmp_path / f"{i}.npy")
    paths[2].write_bytes(b"no image")
    left = np.arange(64) < 32
    model = Pipeline([clone(features), PatchCoreDetector()], augmentation=VIEWS)
    with pytest.raises(skad.images.ImageError, match=r"X\[2\]"):
        model.fit(paths)
    model.set_params(patchfeatures__on_error="skip")
    with pytest.warns(UserWarning, match="1 of 4 images could not be read"):
        model.fit(paths, [-1, 1, 1, 1, 1], regions=[np.tile(left, (64, 1))] * 5)
    assert [position for position, _ in model[0].skipped_] == [2]
    assert model[-1].n_samples_seen_ == 3
    # No patch of the right side was learned from, but for those that views moved there.
    columns = model[-1].coreset_indices_ % 8
    assert columns.min() == 0
    y = np.ones(5)
    assert model.fit_predict(paths, y).tolist()[2] == 0
    assert suspects(model, paths, y).indices.shape == (4,)


def test_regions_move_with_the_views(images, features):
    mask = np.zeros((64, 64), bool)
    mask[16:48, 8:40] = True
    views = WithViews(features._checked_reader(images[:1]), VIEWS)
    masks = views.regions([mask])
    moved = WithViews(
        features._checked_reader([np.where(mask[..., None], 255, 0).astype(np.uint8)]),
        clone(VIEWS).set_params(brightness=0.0),
    )
    for k in range(4):
        assert np.mean(masks[k] == (read_image(moved[k])[..., 0] > 0.5)) > 0.99
    whole = views.regions(None)
    assert whole[0] is None
    assert 0.5 < whole[1].mean() < 1


def test_other_steps_around_the_images(images):
    features = PatchFeatures("skad_small", embedding="concat", image_size=64)
    steps = [features, Patchwise(StandardScaler()), SubspaceDetector()]
    model = Pipeline(steps, augmentation=VIEWS).fit(images[:4])
    model.partial_fit(images[4:6])
    assert model[-1].n_samples_seen_ == 6
    assert model.predict(images).shape == (12,)
    again = Pipeline(
        [FrozenEstimator(model[0]), PatchCoreDetector()], augmentation=VIEWS
    ).fit(images[:4])
    assert again[-1].calibration_scores_.shape == (4,)


def test_parameters_files_and_same_bits(images, features, tmp_path):
    pytest.importorskip("skops")
    model = Pipeline([features, PatchCoreDetector()], augmentation=VIEWS)
    twin = clone(model).set_params(augmentation__n_views=2)
    assert twin.get_params()["augmentation__n_views"] == 2
    assert VIEWS.n_views == 3
    scores = model.fit(images[:4]).score_samples(images)
    np.testing.assert_array_equal(
        clone(model).fit(images[:4])[-1].bank_, model[-1].bank_
    )
    skad.save(model, tmp_path / "model.skad")
    loaded = skad.load(tmp_path / "model.skad")
    np.testing.assert_array_equal(loaded.score_samples(images), scores)
    assert loaded.augmentation.get_params() == VIEWS.get_params()


class _OwnDetector(PatchDetector):
    def __init__(self, contamination=0.1, calibration="loo", sigma=0, random_state=0):
        self.contamination, self.calibration = contamination, calibration
        self.sigma, self.random_state = sigma, random_state

    def _fit(self, X):
        self.mean_ = np.nanmean(X)

    def _score(self, X):
        maps = np.abs(X.mean(axis=3) - self.mean_)
        return np.nanmax(maps, axis=(1, 2)), maps

    def _score_left_out(self, X):
        return self._score(X)


@pytest.mark.parametrize(
    ("steps", "augmentation", "error", "words"),
    [
        (["features", PatchCoreDetector()], 8, TypeError, "augmentation=8 must be"),
        (["features", FusionDetector()], VIEWS, ValueError, "FusionDetector cannot"),
        ([EfficientADDetector()], VIEWS, ValueError, "learns from images"),
        ([PatchCoreDetector()], VIEWS, ValueError, "needs a step .* reads images"),
        (["features", _OwnDetector()], VIEWS, ValueError, "calibration='kfold'"),
        (
            ["features", PatchCoreDetector()],
            AugmentedViews(rotation=0, shift=0, brightness=0),
            ValueError,
            "all 0 or None",
        ),
        (
            ["features", PatchCoreDetector()],
            AugmentedViews(shift=0.9),
            ValueError,
            "'shift' parameter of AugmentedViews",
        ),
    ],
)
def test_refusals(steps, augmentation, error, words, images, features):
    steps = [features if step == "features" else clone(step) for step in steps]
    with pytest.raises(error, match=words):
        Pipeline(steps, augmentation=augmentation).fit(images[:3])


def test_further_refusals(images, features):
    model = Pipeline([features, PatchCoreDetector()], augmentation=VIEWS)
    with pytest.raises(ValueError, match="augmentation=None"):
        fit_parts(model, images)
    with pytest.raises(ValueError, match="only y and regions"):
        model.fit(images, patchcoredetector__y=None)
    own = Pipeline([features, _OwnDetector(calibration="kfold")], augmentation=VIEWS)
    assert own.fit(images[:3])[-1].calibration_scores_.shape == (3,)


def test_views_turn_in_the_proportions_of_the_image():
    image = np.zeros((80, 160, 3), np.uint8)
    image[40:60, 70:110] = 255  # 20 high, 40 wide: 45 degrees keep its area and sides
    turned = AugmentedViews(1, rotation=180, shift=0, brightness=0, random_state=3)
    view = turned.views(image)[0]
    reader = PatchFeatures("skad_small", image_size=64)._checked_reader([image])
    small = np.asarray(WithViews(reader, turned)[1])
    assert view.shape == (80, 160, 3)
    assert small.shape == (64, 64, 3)
    size = np.array([64, 64]) / [80, 160]
    for one in (view, small):
        assert 0 <= one.min() < one.max() <= 1
    place = np.argwhere(view[..., 0] > 0.5).mean(axis=0)
    np.testing.assert_allclose(
        np.argwhere(small[..., 0] > 0.5).mean(axis=0), (place + 0.5) * size, atol=1
    )
    moved = AugmentedViews(1, rotation=0, shift=0.1, brightness=0).views(image)[0]
    assert set(np.unique(moved)) == {0, 1}  # a shift alone blurs nothing
    assert moved.sum() == 20 * 40 * 3


def test_images_that_come_later_have_views_of_their_own():
    augmentation = AugmentedViews(n_views=2)
    first, later = augmentation._changes(3), augmentation._changes(2, first=1)
    assert later == first[1:]


def test_scores_of_images_replace_those_of_views_of_one_image():
    data = make_textures(n_normal=4, n_anomalous=0, size=64, random_state=0).train
    features = PatchFeatures("skad_small", embedding="concat", image_size=64)
    for detector in (PatchCoreDetector(), SubspaceDetector(), PaDiMDetector()):
        model = Pipeline([features, detector], augmentation=AugmentedViews(n_views=2))
        with pytest.warns(UserWarning, match="one training image"):
            model.fit(data[:1])
        model.partial_fit(data[1:])
        assert len(model[-1].calibration_scores_) <= 4


@pytest.mark.parametrize("calibration", ["kfold", "split"])
@pytest.mark.filterwarnings("ignore:one training image")
def test_views_of_one_image_are_folds_of_their_own(calibration):
    data = make_textures(n_normal=1, n_anomalous=0, size=64, random_state=0).train
    features = PatchFeatures("skad_small", embedding="concat", image_size=64)
    steps = [features, PaDiMDetector(calibration=calibration)]
    model = Pipeline(steps, augmentation=AugmentedViews(n_views=8)).fit(data)
    assert np.isfinite(model[-1].calibration_scores_).all()
    assert np.isfinite(model[-1].offset_)


def test_the_class_is_no_augmentation():
    with pytest.raises(TypeError, match=r"must be an object of .*AugmentedViews"):
        Pipeline(
            [PatchFeatures("skad_small"), PatchCoreDetector()],
            augmentation=AugmentedViews,
        ).fit([np.zeros((64, 64), np.uint8)] * 2)


def test_scores_of_views_are_not_those_of_images(images, features):
    on_views = clone(VIEWS).set_params(calibrate_on="views")
    model = Pipeline([features, PaDiMDetector()], augmentation=on_views)
    with pytest.raises(ValueError, match=r"fit_predict judges .* of views"):
        model.fit_predict(images[:4])
    with pytest.raises(AttributeError, match=r"suspects judges .* of views"):
        suspects(model.fit(images[:4]), images[:4])


def test_views_saved_before_they_could_calibrate(images, features):
    old = clone(VIEWS)
    del old.calibrate_on
    model = Pipeline([features, PaDiMDetector()], augmentation=old).fit(images[:4])
    assert clone(model).augmentation.calibrate_on == "images"

"""Images that do not differ, and other data that nothing can be learned from."""

import warnings

import numpy as np
import pytest
from sklearn.base import clone

from skad import (
    CutPasteDetector,
    FusionDetector,
    PaDiMDetector,
    PatchCoreDetector,
    PatchFeatures,
    PCANetFeatures,
    Pipeline,
    PUADDetector,
    SimpleNetDetector,
    SPADEDetector,
    SubspaceDetector,
)
from skad.base import ImageDetector

DO_NOT_DIFFER = "do not differ"
DETECTORS = [
    PatchCoreDetector(),
    PatchCoreDetector(coreset_ratio=1.0),
    PatchCoreDetector(metric="cosine"),
    PatchCoreDetector(calibration="kfold"),
    PaDiMDetector(),
    PaDiMDetector(calibration="kfold"),
    SubspaceDetector(),
    SubspaceDetector(n_components=5),
    SPADEDetector(n_neighbors_image=5),
    PUADDetector(),
    FusionDetector(n_channels=(4, 4)),
]
names = [type(detector).__name__ for detector in DETECTORS]


def patches(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 4, 4, 8)).astype(np.float32)


@pytest.mark.parametrize("kind", ["equal", "black", "constant"])
@pytest.mark.parametrize("detector", DETECTORS, ids=names)
def test_only_what_is_like_equal_images_is_normal(detector, kind):
    image = {
        "equal": patches(1),
        "black": np.zeros((1, 4, 4, 8), np.float32),
        "constant": np.full((1, 4, 4, 8), 3.3, np.float32),
    }[kind]
    with pytest.warns(UserWarning, match=f"20 images to learn from {DO_NOT_DIFFER}"):
        model = clone(detector).fit(np.repeat(image, 20, axis=0))
    other = np.concatenate([patches(5, 1), 4 + patches(1, 2), 9 * patches(1, 3)])
    assert (model.predict(other) == -1).all()
    assert (model.decision_function(other) < 0).all()
    assert (model.p_value(other) < 0.3).all()
    assert model.predict_mask(other).any(axis=(1, 2)).all()
    assert (model.predict(np.repeat(image, 3, axis=0)) == 1).all()
    assert not model.predict_mask(image).any()
    assert not model.predict_mask(image, (17, 12)).any()


@pytest.mark.parametrize("calibration", ["auto", "split", "kfold"])
def test_equal_rows_of_a_table(calibration):
    X = np.tile([1.0, 2.0, 3.0], (40, 1))
    detector = PatchCoreDetector(calibration=calibration, contamination=0.2)
    with pytest.warns(UserWarning, match=DO_NOT_DIFFER):
        model = detector.fit(X)
    np.testing.assert_array_equal(model.predict([[1, 2, 3], [1, 2, 3.1]]), [1, -1])


def test_equality_is_up_to_rounding_and_knows_patches_left_out():
    X = np.repeat(patches(1), 10, axis=0)
    X[:, 0] = np.nan
    X[3, 2, 2, 1] += 1e-7
    with pytest.warns(UserWarning, match=DO_NOT_DIFFER):
        PatchCoreDetector(contamination=0.2).fit(X)
    X[7, 2, 2, 1] += 0.05
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        PatchCoreDetector(contamination=0.2).fit(X)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize(
    "detector", [PatchCoreDetector(), PaDiMDetector(), SubspaceDetector()]
)
def test_one_to_three_images(detector, n):
    with pytest.warns(UserWarning, match="training image|cannot certify"):
        model = clone(detector).fit(patches(n))
    assert np.isfinite(model.offset_)
    assert model.predict(9 * patches(2, 5)).tolist() == [-1, -1]
    assert np.isfinite(model.pixel_threshold((9, 9)))


@pytest.mark.parametrize("detector", DETECTORS, ids=names)
def test_images_without_a_patch_to_look_at_are_refused(detector):
    with pytest.raises(ValueError, match="no normal image is left"):
        clone(detector).fit(np.full((5, 4, 4, 8), np.nan))


@pytest.mark.parametrize("detector", DETECTORS, ids=names)
def test_channels_that_never_vary_are_looked_at(detector):
    X = patches(40)
    X[..., 5:] = 2.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model = clone(detector).set_params(contamination=0.2).fit(X)
    other = X[:6].copy()
    other[:, 1, 1, 6] += 6.0
    if model.__class__ is not SPADEDetector:  # it looks at whole images first
        assert (model.predict(other) == -1).all()


def test_a_subspace_has_no_direction_in_which_nothing_varies():
    X = patches(40)
    X[..., 2:] = 0
    model = SubspaceDetector(n_components=6).fit(X)
    assert model.n_components_ == 2
    other = X[:1].copy()
    other[0, 0, 0, 4] = 1.0
    assert model.predict(other) == [-1]


@pytest.mark.parametrize("n_epochs", [2])
def test_a_network_trains_on_equal_images(n_epochs):
    with pytest.warns(UserWarning, match=DO_NOT_DIFFER):
        model = SimpleNetDetector(n_epochs).fit(np.zeros((20, 4, 4, 8), np.float32))
    assert model.predict(np.zeros((2, 4, 4, 8))).tolist() == [1, 1]


# -- images ---------------------------------------------------------------------------

BLACK = np.zeros((64, 64, 3), np.uint8)


def others():
    dot = BLACK.copy()
    dot[28:36, 28:36] = 255
    noise = np.random.default_rng(0).integers(0, 256, BLACK.shape).astype(np.uint8)
    return [BLACK + 255, noise, dot]


@pytest.mark.parametrize(
    "detector", [PatchCoreDetector(), PaDiMDetector(), SubspaceDetector()]
)
@pytest.mark.parametrize(
    "features",
    [
        PCANetFeatures(image_size=64),
        PatchFeatures("skad_small", embedding="concat", image_size=64),
    ],
    ids=["pcanet", "network"],
)
def test_noise_is_not_normal_after_black_images(features, detector):
    model = Pipeline([clone(features), clone(detector)])
    with pytest.warns(UserWarning, match=DO_NOT_DIFFER):
        model.fit([BLACK] * 20)
    assert model.predict(others()).tolist() == [-1, -1, -1]
    assert model.predict_mask(others()).any(axis=(1, 2)).all()
    assert model.predict([BLACK]).tolist() == [1]
    assert not model.predict_mask([BLACK]).any()


def test_one_photograph_again_and_again():
    photograph = np.random.default_rng(1).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    photograph = np.kron(photograph, np.ones((8, 8, 1), np.uint8))
    model = Pipeline([PCANetFeatures(image_size=64), PatchCoreDetector()])
    with pytest.warns(UserWarning, match=DO_NOT_DIFFER):
        model.fit([photograph] * 20)
    assert model.predict(others()).tolist() == [-1, -1, -1]
    assert model.predict([photograph]).tolist() == [1]


class Brightness(ImageDetector):
    """How far the brightest pixel is from that of the images learned from."""

    def __init__(self):
        vars(self).update(vars(CutPasteDetector()))
        self.image_size, self.contamination, self.sigma = 16, 0.2, 0.0

    _parameter_constraints = {}

    def _fit(self, reader):
        self.mean_ = np.mean([reader.read(i).max() for i in range(len(reader))])

    def _score_batch(self, batch):
        grey = np.abs(batch.mean(axis=3) - self.mean_)
        return grey.max(axis=(1, 2)).astype(float), grey


def test_detectors_of_images_tell_of_equal_ones_too():
    with pytest.warns(UserWarning, match=DO_NOT_DIFFER) as told:
        model = Brightness().fit([BLACK] * 20)
    assert told[0].filename == __file__
    assert model.predict(others()).tolist() == [-1, -1, -1]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Brightness().fit([BLACK, BLACK + 9] * 10)


class OneScore(SimpleNetDetector):
    """Gives every image the same score, as a network does whose training collapsed."""

    def _score(self, X):
        return np.full(len(X), 0.25), np.full(X.shape[:3], 0.25)


def test_training_that_collapsed():
    message = r"OneScore has collapsed: all 4 .* \(-0.25\), .* smaller .* than 0.5"
    with pytest.warns(UserWarning, match=message):
        OneScore(1, learning_rate=0.5).fit(patches(20))
    with pytest.warns(UserWarning, match=DO_NOT_DIFFER) as found:
        OneScore(1).fit(np.repeat(patches(1), 20, axis=0))
    assert not any("collapsed" in str(one.message) for one in found)


class OneFoldFails(SimpleNetDetector):
    """Gives the images of a fold one score if it has not learned from image 0."""

    def _fit(self, X):
        self.knows_first_ = bool((patches(20)[0] == X).all(axis=(1, 2, 3)).any())

    def _score(self, X):
        scores = X.mean(axis=(1, 2, 3)) if self.knows_first_ else np.full(len(X), 0.25)
        return scores, np.full(X.shape[:3], 0.25)


def test_training_that_collapsed_in_a_fold():
    message = r"collapsed in 1 of 5 folds: all 4 .* of a fold .* \(-0.25\)"
    with pytest.warns(UserWarning, match=message):
        OneFoldFails(1, calibration="kfold").fit(patches(20))

"""Wrong input is refused by an error that says what to pass instead."""

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone
from sklearn.metrics import roc_auc_score

import skad
from skad.base import ImageDetector, PatchDetector
from skad.features import PatchFeatureTransformer

pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings("ignore:.*cannot certify"),
]


# -- images where features are expected ----------------------------------------------

IMAGES = np.random.default_rng(0).integers(0, 256, (12, 16, 16, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    "X",
    [
        IMAGES,
        IMAGES[..., :1],
        IMAGES.astype(np.uint16) * 257,
        IMAGES > 128,
        IMAGES.transpose(0, 3, 1, 2),
        torch.from_numpy(IMAGES.transpose(0, 3, 1, 2).copy()),
        list(IMAGES),
        list(IMAGES[..., 0]),
        IMAGES[..., 0],
        ["a.png", "b.png"],
        np.array(["a.png", "b.png"]),
        [Image.fromarray(image) for image in IMAGES],
        [IMAGES[0], IMAGES[1, :8]],
    ],
    ids=range(13),
)
def test_images_are_no_features(X):
    for detector in (skad.PatchCoreDetector(), skad.SPADEDetector()):
        for call in (
            (detector.fit, detector.partial_fit)
            if hasattr(detector, "partial_fit")
            else (detector.fit,)
        ):
            with pytest.raises(ValueError, match="PatchFeatures"):
                call(X)
    fitted = skad.SubspaceDetector().fit(np.random.default_rng(0).random((9, 2, 2, 3)))
    for call in (fitted.predict, fitted.anomaly_map, fitted.calibrate):
        with pytest.raises(ValueError, match="PatchFeatures"):
            call(X)


def test_integers_and_few_channels_can_be_features():
    rng = np.random.default_rng(0)
    detector = skad.PatchCoreDetector()
    detector.fit(rng.integers(0, 256, (20, 4, 4, 6), dtype=np.uint8))
    detector.fit(rng.integers(0, 9, (20, 4, 4, 3)))
    detector.fit(rng.random((20, 4, 4, 3)).astype(np.float32))
    detector.fit(rng.integers(0, 256, (20, 4), dtype=np.uint8))


# -- features where images are expected ------------------------------------------------


def test_image_detectors_say_that_they_take_images(model, features, textures):
    if isinstance(model, skad.Pipeline):
        X = model[0].transform(textures.train[:3])
        twice = skad.Pipeline([features(), features(), skad.PatchCoreDetector()])
        with pytest.raises(ValueError, match="PatchFeatures takes images"):
            twice.fit(textures.train)
        for call in (model.predict, model.anomaly_map, model.fit, model[0].transform):
            with pytest.raises(ValueError, match="takes images"):
                call(X)
        return
    X = features().fit_transform(textures.train[:3])
    name = type(model).__name__
    for call in (clone(model).fit, model.predict, model.anomaly_map, model.calibrate):
        with pytest.raises(ValueError, match=f"{name} takes images"):
            call(X)
    with pytest.raises(ValueError, match=f"{name} takes images.*Leave out the step"):
        skad.Pipeline([features(), clone(model)]).fit(textures.train)
    with pytest.raises(ValueError, match=f"{name} takes images"):
        skad.inspect(model, X)


def test_detectors_of_the_other_kind_inside_of_a_detector(model, features, textures):
    if isinstance(model, skad.Pipeline):
        detector = skad.ImagePUADDetector(model[-1], features())
        with pytest.raises(ValueError, match=r"instance of .*ImageDetector"):
            detector.fit(textures.train)
    else:
        X = features().fit_transform(textures.train)
        for detector in (skad.PUADDetector(model), skad.FusionDetector(model)):
            with pytest.raises(ValueError, match=r"instance of .*PatchDetector"):
                detector.fit(X)


# -- detectors and features of one's own -----------------------------------------------


class Own(PatchDetector):
    def __init__(self, contamination=0.1, calibration="kfold", random_state=0, sigma=0):
        self.contamination = contamination
        self.calibration = calibration
        self.random_state = random_state
        self.sigma = sigma

    def _fit(self, X):
        self.mean_ = X.mean(axis=0)

    def _score(self, X):
        maps = np.abs(X - self.mean_).sum(axis=-1)
        return maps.max(axis=(1, 2)), maps


class OwnImages(ImageDetector):
    _auto_calibration = "kfold"

    def __init__(self, contamination=0.1, calibration="kfold", random_state=0, sigma=0):
        self.contamination = contamination
        self.calibration = calibration
        self.random_state = random_state
        self.sigma = sigma
        self.image_size, self.crop_size, self.batch_size = 16, None, 4
        self.on_error, self.n_jobs, self.verbose = "raise", None, False

    def _fit(self, reader):
        self.mean_ = np.concatenate(list(reader.batches(4))).mean(axis=0)

    def _score_batch(self, batch):
        maps = np.abs(batch - self.mean_).sum(axis=-1)
        return maps.max(axis=(1, 2)), maps


class OwnFeatures(PatchFeatureTransformer):
    def __init__(self, image_size=16):
        self.image_size, self.crop_size, self.batch_size = image_size, None, 4
        self.on_error, self.n_jobs, self.verbose = "raise", None, False
        self.region = None

    def _fit(self, images):
        self.grid_shape_, self.n_features_out_ = (4, 4), 3

    def _extract(self, batch):
        return batch.reshape(len(batch), 4, 4, 4, 4, 3).mean(axis=(2, 4))


X = np.random.default_rng(0).normal(size=(30, 3, 4, 5))


def test_own_ones_work():
    assert Own().fit(X).predict_mask(X).shape == (30, 3, 4)
    assert OwnImages().fit(IMAGES).anomaly_map(IMAGES).shape == (12, 16, 16)
    assert OwnFeatures().fit_transform(IMAGES).shape == (12, 4, 4, 3)


def scores_only(self, X):
    return np.zeros(len(X))


def transposed(self, X):
    return Own._score(self, X)[::-1]


def flat_maps(self, X):
    scores, maps = Own._score(self, X)
    return scores, maps.reshape(len(X), -1)


def column(self, X):
    scores, maps = Own._score(self, X)
    return scores[:, None], maps


def one_less(self, X):
    scores, maps = Own._score(self, X)
    return scores[1:], maps[1:]


def nothing(self, X):
    return None


@pytest.mark.parametrize(
    "score",
    [scores_only, transposed, flat_maps, column, one_less, nothing],
)
def test_what_own_scores_have_to_be(score):
    Wrong = type("Wrong", (Own,), {"_score": score})
    wanted = r"Wrong\._score returned .*one anomaly score per image.*one map per image"
    with pytest.raises((TypeError, ValueError), match=wanted):
        Wrong().fit(X)
    wrong = Own().fit(X)
    wrong.__class__ = Wrong
    for call in (wrong.predict, wrong.anomaly_map, wrong.calibrate):
        with pytest.raises((TypeError, ValueError), match=wanted):
            call(X)


@pytest.mark.parametrize(
    "score",
    [
        lambda self, batch: np.zeros(len(batch)),
        lambda self, batch: (np.zeros((len(batch), 1)), np.zeros((len(batch), 4, 4))),
        lambda self, batch: (np.zeros(len(batch)), np.zeros((len(batch), 4, 4, 1))),
        lambda self, batch: (np.zeros(1), np.zeros((1, 4, 4))),
    ],
)
def test_what_own_scores_of_images_have_to_be(score):
    Wrong = type("Wrong", (OwnImages,), {"_score_batch": score})
    with pytest.raises((TypeError, ValueError), match=r"Wrong\._score_batch returned"):
        Wrong().fit(IMAGES)


def test_missing_hooks_are_named():
    def with_init(base, own):
        return type("Mine", (base,), {"__init__": own.__init__})

    detector = with_init(PatchDetector, Own)()
    with pytest.raises(NotImplementedError, match=r"Mine defines no _fit\(X\)"):
        detector.fit(X)
    Fitting = type("Mine", (type(detector),), {"_fit": Own._fit})
    with pytest.raises(NotImplementedError, match=r"Mine defines no _score\(X\).*\(n,"):
        Fitting().fit(X)
    images = with_init(ImageDetector, OwnImages)()
    with pytest.raises(NotImplementedError, match=r"defines no _fit\(reader\)"):
        images.fit(IMAGES)
    Fitting = type("Mine", (type(images),), {"_fit": OwnImages._fit})
    with pytest.raises(NotImplementedError, match=r"defines no _score_batch\(batch\)"):
        Fitting().fit(IMAGES)
    features = with_init(PatchFeatureTransformer, OwnFeatures)()
    with pytest.raises(NotImplementedError, match=r"defines no _fit\(images\)"):
        features.fit(IMAGES)
    Fitting = type("Mine", (type(features),), {"_fit": lambda self, X: None})
    with pytest.raises(TypeError, match=r"n_features_out_: _fit\(images\) sets"):
        Fitting().fit(IMAGES)
    with_grid = {"_fit": OwnFeatures._fit}
    with pytest.raises(NotImplementedError, match=r"defines no _extract\(batch\)"):
        type("Mine", (type(features),), with_grid)().fit_transform(IMAGES)


def test_what_own_features_have_to_be():
    Wrong = type("Wrong", (OwnFeatures,), {"_extract": lambda self, batch: batch})
    with pytest.raises(ValueError, match=r"Wrong\._extract returned the shape .*4, 4"):
        Wrong().fit_transform(IMAGES)


@pytest.mark.parametrize(
    "missing", ["contamination", "calibration", "random_state", "sigma"]
)
def test_a_constructor_has_to_store_what_every_detector_has(missing):
    class Mine(Own):
        def __init__(self):
            super().__init__()
            delattr(self, missing)

    with pytest.raises(TypeError, match=f"Mine has no {missing}: the constructor"):
        Mine().fit(X)


@pytest.mark.parametrize("missing", ["image_size", "batch_size", "on_error"])
@pytest.mark.parametrize("own", [OwnImages, OwnFeatures])
def test_a_constructor_has_to_store_how_images_are_read(own, missing):
    class Mine(own):
        def __init__(self):
            super().__init__()
            delattr(self, missing)

    with pytest.raises(TypeError, match=f"Mine has no {missing}: the constructor"):
        Mine().fit(IMAGES)


# -- positions and rows ----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["network", "filters", "both", "fine-tuned", "tiles"])
def test_errors_name_positions_in_what_was_passed(kind, features, textures):
    filters = skad.PCANetFeatures(64, n_filters=(4, 4, 4), n_components=8)
    options = {"weights": False, "layers": "auto", "image_size": 64, "max_steps": 1}
    transformer = {
        "network": features(),
        "filters": filters,
        "both": skad.FusedFeatures(features(), filters),
        "fine-tuned": skad.SPDPatchFeatures("resnet10t", **options),
        "tiles": skad.TiledFeatures(filters, 128),
    }[kind]
    X, y = list(textures.train[:8]), np.ones(8, int)
    y[[0, 1]], X[3] = -1, "missing.png"
    calls = [transformer.fit_transform, skad.Pipeline([transformer, Own()]).fit]
    if kind != "network":  # which fits without a look at the images
        calls.append(transformer.fit)
    for call in calls:
        with pytest.raises(ValueError, match=r"X\[3\] \('missing.png'\)"):
            call(X, y)


def test_a_network_that_guesses_is_named():
    rng = np.random.default_rng(0)
    mixing = rng.normal(size=(6, 6))
    rows = rng.normal(size=(200, 6)) @ mixing
    new = np.r_[rng.normal(size=(50, 6)), 2 * rng.normal(size=(50, 6)) + 3] @ mixing
    y = np.repeat([1, -1], 50)
    with pytest.warns(UserWarning, match=r"about that of a guess.*noise_std=0\.015"):
        skad.SimpleNetDetector(max_epochs=3, hidden_dim=32).fit(rows)
    # What the warning advises:
    learned = skad.SimpleNetDetector(
        max_epochs=40, hidden_dim=64, noise_std=1.5, learning_rate=5e-3
    ).fit(rows)
    assert roc_auc_score(y, learned.score_samples(new)) > 0.9

import numpy as np
import pytest
from sklearn.base import clone

from skad import (
    EfficientADDetector,
    FusedFeatures,
    FusionDetector,
    PaDiMDetector,
    PatchCoreDetector,
    PatchFeatures,
    PCANetFeatures,
    Pipeline,
    SPADEDetector,
    SubspaceDetector,
)
from skad.datasets import load_mvtec, make_textures
from skad.metrics import image_auroc, pixel_auroc, pro_score

INNER = [PatchCoreDetector(), PaDiMDetector(), SubspaceDetector(), SPADEDetector()]


def grids(n, seed=0, n_channels=6):
    return np.random.default_rng(seed).normal(size=(n, 5, 4, n_channels))


def standardised(values, held_out):
    return (values - held_out.mean()) / held_out.std()


@pytest.mark.parametrize("inner", INNER, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("weights", [None, (3, 1)])
def test_sums_what_the_detectors_give_apart(inner, weights):
    X, new = grids(40), grids(7, seed=1)
    fused = FusionDetector(inner, n_channels=(4, 2), detector_weights=weights).fit(X)
    scores, maps, held_out = 0.0, 0.0, 0.0
    shares = (0.5, 0.5) if weights is None else (0.75, 0.25)
    for share, part in zip(shares, (slice(0, 4), slice(4, 6)), strict=True):
        alone = clone(inner).fit(X[..., part])
        good, good_maps = -alone.calibration_scores_, alone.calibration_maps_
        scores += share * standardised(-alone.score_samples(new[..., part]), good)
        maps += share * standardised(alone.anomaly_map(new[..., part]), good_maps)
        held_out += share * standardised(good, good)
    np.testing.assert_allclose(-fused.score_samples(new), scores, rtol=1e-6)
    np.testing.assert_allclose(fused.anomaly_map(new), maps, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(-fused.calibration_scores_, held_out, rtol=1e-6)


def test_one_feature_type_ranks_as_its_detector_does():
    X, new = grids(40), grids(9, seed=1)
    fused, alone = FusionDetector().fit(X), PatchCoreDetector().fit(X)
    assert fused.n_channels_ == (6,)
    np.testing.assert_array_equal(fused.predict(new), alone.predict(new))
    np.testing.assert_array_equal(
        np.argsort(fused.score_samples(new)), np.argsort(alone.score_samples(new))
    )


def test_a_detector_without_leave_one_out_is_held_out_by_folds():
    class Folds(SubspaceDetector):
        _score_left_out = property()  # as if there were none

    fused = FusionDetector(Folds(), n_channels=(3, 3)).fit(grids(20))
    assert [one.calibration for one in fused.detectors_] == ["kfold", "kfold"]
    assert len(fused.calibration_scores_) == 20


@pytest.mark.parametrize("calibration", ["loo", "kfold", "split", "train"])
def test_keeps_the_promised_rate(calibration):
    fused = FusionDetector(
        SubspaceDetector(),
        n_channels=(3, 3),
        calibration=calibration,
        contamination=0.1,
    ).fit(grids(100))
    rate = np.mean(fused.predict(grids(400, seed=1)) == -1)
    assert rate < 0.2 if calibration != "train" else rate > 0


def test_patches_outside_a_region_are_left_out():
    X, new = grids(30), grids(3, seed=1)
    X[:, :2], new[:, :2] = np.nan, np.nan
    fused = FusionDetector(n_channels=(4, 2)).fit(X)
    inside = FusionDetector(n_channels=(4, 2)).fit(X[:, 2:])
    np.testing.assert_allclose(
        fused.score_samples(new), inside.score_samples(new[:, 2:]), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_channels": (4, 3)}, r"n_channels=\(4, 3\) must .* 6 channels"),
        ({"n_channels": (6.0,)}, "n_channels="),
        ({"n_channels": (7, -1)}, "n_channels="),
        (
            {"n_channels": (4, 2), "detector_weights": (1,)},
            r"detector_weights=\(1,\) must be 2 numbers",
        ),
        ({"n_channels": (4, 2), "detector_weights": (1, -1)}, "none negative"),
        ({"n_channels": (4, 2), "detector_weights": (0, 0)}, "not all zero"),
        ({"n_channels": (4, 2), "detector_weights": (1, np.nan)}, "detector_weights="),
        ({"detector": PCANetFeatures()}, "detector"),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        FusionDetector(**parameters).fit(grids(10))


def test_a_detector_of_images_is_refused():
    with pytest.raises(ValueError, match=r"'detector' .* instance of .*PatchDetector"):
        FusionDetector(EfficientADDetector("tiny", "t.pth")).fit(grids(10))


def test_takes_the_feature_types_that_the_features_bring_along():
    data = make_textures(n_normal=20, n_anomalous=4, size=64, random_state=0)
    features = FusedFeatures(
        PatchFeatures("skad_small", embedding="concat", image_size=64),
        PCANetFeatures(64, n_filters=(8, 12, 12), n_components=16),
    )
    model = Pipeline([features, FusionDetector(SubspaceDetector())])
    model.fit(data.train)
    assert model[-1].n_channels_ == (128, 16)
    other = clone(features).set_params(share=0.9).fit_transform(data.train)
    np.testing.assert_allclose(  # how long the features are does not matter
        FusionDetector(SubspaceDetector()).fit(other).calibration_scores_,
        model[-1].calibration_scores_,
        rtol=1e-3,
    )


@pytest.fixture(scope="module")
def pro_on_fabric():
    """PRO of a detector on the default of `FusedFeatures`, or on its network alone."""
    data = make_textures(30, 40, texture="fabric", size=224, random_state=1)
    features = FusedFeatures()
    good, new = features.fit_transform(data.train), features.transform(data.test)

    def pro(detector, network_alone=False):
        parts = good, new
        if network_alone:
            parts = (np.asarray(X)[..., :128] for X in parts)
        X, X_new = parts
        maps = detector.fit(X).anomaly_map(X_new, size=(224, 224))
        return pro_score(data.masks, maps)

    return pro


@pytest.mark.slow
def test_is_better_than_the_network_alone_on_fabric(pro_on_fabric):
    alone = pro_on_fabric(PatchCoreDetector(), network_alone=True)
    assert pro_on_fabric(FusionDetector()) > alone + 0.025


@pytest.mark.slow
def test_so_is_one_distance_of_both(pro_on_fabric):
    alone = pro_on_fabric(PatchCoreDetector(0.1), network_alone=True)
    assert pro_on_fabric(PatchCoreDetector(0.1)) > alone + 0.02


@pytest.mark.slow
def test_finds_defects_in_real_bottles(shared):
    data = load_mvtec(shared / "data", "mvtec_bottle_256")
    features = FusedFeatures()
    good, new = features.fit_transform(data.train[::3]), features.transform(data.test)

    def auroc(detector, channels=slice(None)):
        detector.fit(np.asarray(good)[..., channels])
        scores = detector.score_samples(np.asarray(new)[..., channels])
        return image_auroc(data.y_test, scores)

    bank = PatchCoreDetector(0.03)
    fusion = FusionDetector(bank).fit(good)
    assert image_auroc(data.y_test, fusion.score_samples(new)) >= 0.99
    assert auroc(bank) >= 0.98  # both types in one distance
    assert auroc(bank, slice(128, None)) >= 0.95  # PCANet alone
    maps = bank.anomaly_map(np.asarray(new)[..., 128:], size=(256, 256))
    assert pixel_auroc(data.masks, maps) >= 0.93

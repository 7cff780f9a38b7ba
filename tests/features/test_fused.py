import pickle

import numpy as np
import pytest
from sklearn.base import clone

from skad import (
    FusedFeatures,
    PatchCoreDetector,
    PatchFeatures,
    PCANetFeatures,
    Pipeline,
)
from skad.datasets import make_textures

SIDE = 64


@pytest.fixture(scope="module")
def data():
    return make_textures(n_normal=20, n_anomalous=4, size=SIDE, random_state=0)


def network(**parameters):
    return PatchFeatures(
        "skad_small", embedding="concat", **{"image_size": SIDE, **parameters}
    )


def filters(**parameters):
    """As few as give the 64 channels of the default: hardly any time to learn."""
    return PCANetFeatures(SIDE, n_filters=(8, 12, 12), **parameters)


def fused(share=0.25, **parameters):
    return FusedFeatures(network(**parameters), filters(), share=share)


def blocks(features):
    return features[..., :128], features[..., 128:]


def total_variance(features):
    return features.reshape(-1, features.shape[-1]).var(axis=0).sum()


@pytest.mark.parametrize("share", [0.0, 0.25, 0.7, 1.0])
def test_each_kind_has_its_share_of_the_variance(data, share):
    features = fused(share).fit_transform(data.train)
    assert features.shape == (20, 8, 8, 192)
    assert features.dtype == np.float32
    first, second = blocks(features)
    assert total_variance(first) == pytest.approx(1 - share, abs=1e-3)
    assert total_variance(second) == pytest.approx(share, abs=1e-3)


@pytest.mark.parametrize("method", ["transform", "fit_transform"])
def test_the_blocks_are_what_the_two_give_alone(data, method):
    both = fused()
    if method == "transform":
        both.fit(data.train)
    first, second = blocks(getattr(both, method)(data.train))
    alone = network().fit(data.train).transform(data.train)
    other = (
        filters().fit_transform(data.train)
        if method == "fit_transform"
        else filters().fit(data.train).transform(data.train)
    )
    variances = both.variances_
    np.testing.assert_allclose(first, alone * (0.75 / variances[0]) ** 0.5, atol=1e-5)
    np.testing.assert_allclose(second, other * (0.25 / variances[1]) ** 0.5, atol=1e-5)


def test_pipeline_streams_what_fit_transform_gives(data):
    model = Pipeline([fused(), PatchCoreDetector()]).fit(data.train)
    features = fused()
    detector = PatchCoreDetector().fit(features.fit_transform(data.train))
    np.testing.assert_allclose(
        model.score_samples(data.test),
        detector.score_samples(features.transform(data.test)),
        rtol=1e-6,
    )
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(
        again.score_samples(data.test), model.score_samples(data.test)
    )
    assert model.anomaly_map(data.test)[0].shape == (SIDE, SIDE)


def test_labelled_defects_take_no_part(data):
    X = np.concatenate([data.train, data.test[-2:]])
    y = np.r_[data.y_train, -1, -1]
    alone, labelled = fused().fit(data.train), fused().fit(X, y)
    assert labelled.variances_ == pytest.approx(alone.variances_, rel=1e-4)
    np.testing.assert_allclose(
        labelled.transform(data.test), alone.transform(data.test), atol=1e-5
    )


def test_parameters_reach_both(data):
    tuned = clone(fused()).set_params(share=0.5, second__n_components=8)
    assert tuned.fit(data.train).n_features_out_ == 136
    assert FusedFeatures(PatchFeatures(image_size=96))._members()[1].image_size == 96
    members = FusedFeatures(second=PCANetFeatures(96, crop_size=64))._members()
    assert (members[0].image_size, members[0].crop_size) == (96, 64)


def test_a_region_and_broken_images_are_cut_out_of_both(data, tmp_path):
    left = np.zeros((SIDE, SIDE), bool)
    left[:, : SIDE // 2] = True
    features = fused(region=left).fit_transform(data.train)
    assert np.isnan(features[:, :, 4:]).all()
    assert np.isfinite(features[:, :, :4]).all()

    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    both = FusedFeatures(network(on_error="skip"), filters(on_error="skip"))
    with pytest.warns(UserWarning, match="broken.png"):
        features = both.fit_transform([*data.train, broken])
    assert np.isnan(features[-1]).all()
    assert np.isfinite(features[:-1]).all()
    assert [index for index, _ in both.skipped_] == [len(data.train)]


def test_constant_images_work(data):
    flat = np.full((3, SIDE, SIDE, 3), 128, np.uint8)
    assert np.isfinite(fused().fit(flat).transform(data.test)).all()


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"image_size": 96}, {}, "first has image_size=96.* second 64"),
        ({"crop_size": 32}, {}, "set them alike"),
        ({"grid": 4}, {}, r"grid of \(4, 4\), second of \(8, 8\)"),
        ({"backbone_kwargs": {"in_chans": 5}}, {}, "5 channels, second of 3"),
        ({}, {"region": np.ones((8, 8), bool)}, "second has a region"),
    ],
)
def test_two_that_do_not_go_together_are_told(data, first, second, message):
    features = FusedFeatures(network(**first), PCANetFeatures(SIDE, **second))
    with pytest.raises(ValueError, match=message):
        features.fit(data.train)


@pytest.mark.parametrize(
    "parameters", [{"share": 1.5}, {"share": None}, {"first": PatchCoreDetector()}]
)
def test_bad_parameters_are_named(data, parameters):
    with pytest.raises(ValueError, match=next(iter(parameters))):
        FusedFeatures(**parameters).fit(data.train)

import numpy as np
import pytest
from PIL import Image
from sklearn import config_context
from sklearn.model_selection import GridSearchCV, cross_validate

from skad import (
    PaDiMDetector,
    PatchCoreDetector,
    PatchFeatures,
    PCANetFeatures,
    Pipeline,
    anomaly_map,
)
from skad.images import ImageError
from skad.metrics import pro_scorer
from skad.model_selection import OneClassSplit

SIDE = 64


@pytest.fixture
def network():
    """A network whose patches see nothing but their own 8 x 8 pixels."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 12, 8, stride=8))


@pytest.fixture
def parts():
    """Parts on the left; on the right a serial number that always differs."""
    rng = np.random.default_rng(0)
    images = 0.5 + 0.05 * rng.random((40, SIDE, SIDE, 3))
    images[:, :, 32:] = rng.random((40, SIDE, 32, 3))
    return images


@pytest.fixture
def region():
    return np.arange(SIDE)[None, :] < 32 + np.zeros((SIDE, 1))


def model(network, detector=None, **parameters):
    features = PatchFeatures(
        network,
        layers=("0",),
        image_size=SIDE,
        embedding="concat",
        patch_size=1,
        **parameters,
    )
    return Pipeline([features, detector or PatchCoreDetector()])


def test_patches_outside_are_nan(network, parts, region):
    features = model(network, region=region)[0].fit_transform(parts[:3])
    assert np.isnan(features[:, :, 4:]).all()
    everywhere = model(network)[0].fit_transform(parts[:3])
    np.testing.assert_array_equal(features[:, :, :4], everywhere[:, :, :4])


@pytest.mark.parametrize(("columns", "inside"), [(35, 4), (37, 5), (64, 8)])
def test_a_patch_is_inside_if_half_of_it_is(network, parts, columns, inside):
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[:, :columns] = 255
    features = model(network, region=mask)[0].fit_transform(parts[:1])
    assert (~np.isnan(features[0, 0, :, 0])).sum() == inside


def test_a_region_follows_the_crop(network, parts, region):
    pipeline = model(network, region=region, crop_size=48)
    features = pipeline[0].fit_transform(parts[:1])
    assert features.shape[1:3] == (6, 6)
    np.testing.assert_array_equal(np.isnan(features[0, 0, :, 0]), [0, 0, 0, 1, 1, 1])


@pytest.mark.parametrize("detector", [PatchCoreDetector(), PaDiMDetector()])
def test_what_lies_outside_neither_trains_nor_fires(network, parts, region, detector):
    pipeline = model(network, detector, region=region).fit(parts[:30])
    new = parts[30:].copy()
    expected = pipeline.score_samples(new)
    new[:, :, 32:] = np.random.default_rng(1).random((10, SIDE, 32, 3)) > 0.5
    np.testing.assert_array_equal(pipeline.score_samples(new), expected)
    maps = pipeline.anomaly_map(new)
    grids = pipeline[-1].anomaly_map(pipeline[0].transform(new))
    np.testing.assert_array_equal(
        maps[:, :, 32:], np.broadcast_to(grids.min((1, 2))[:, None, None], (10, 64, 32))
    )
    assert not pipeline.predict_mask(new)[:, :, 32:].any()
    new[0, 16:32, 8:24] = 0
    assert pipeline.predict(new)[0] == -1
    assert pipeline.predict_mask(new)[0, 16:32, 8:24].any()


@pytest.mark.parametrize("routing", [True, False])
def test_one_region_for_each_image(routing, network, parts, region, tmp_path):
    path = tmp_path / "region.png"
    Image.fromarray(region.astype(np.uint8) * 255).save(path)
    common = model(network, region=region).fit(parts[:30])
    each = model(network)
    regions = [region, path, Image.open(path), region.astype(np.uint8)] * 10
    with config_context(enable_metadata_routing=routing):
        each.fit(parts[:30], regions=regions[:30])
        for name in (
            *("score_samples", "decision_function", "predict", "p_value"),
            *("anomaly_map", "predict_mask"),
        ):
            np.testing.assert_array_equal(
                getattr(each, name)(parts[30:], regions=regions[30:]),
                getattr(common, name)(parts[30:]),
            )
    np.testing.assert_array_equal(
        anomaly_map(each, parts[30:], regions=regions[30:]),
        common.anomaly_map(parts[30:]),
    )
    offset = each[-1].offset_
    each.calibrate(parts[30:], regions=regions[30:])
    assert each[-1].offset_ != offset
    again = model(network).partial_fit(parts[:20], regions=regions[:20])
    again.partial_fit(parts[20:30], regions=regions[20:30])
    assert again[-1].n_samples_seen_ == 30
    assert again.score_samples(parts[:1]) < again[-1].offset_  # looked at everywhere


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_regions_travel_as_masks_do(network, parts, region, n_jobs):
    X = np.concatenate([parts, parts[:6]])
    X[40:, 16:32, 8:24] = 0
    y = np.repeat([1, -1], [40, 6])
    masks = np.zeros((46, SIDE, SIDE), bool)
    masks[40:, 16:32, 8:24] = True
    regions = [region] * 46
    with config_context(enable_metadata_routing=True):
        search = GridSearchCV(
            model(network),
            {"patchcoredetector__coreset_ratio": [0.05, 0.2]},
            scoring=pro_scorer,
            cv=OneClassSplit(2),
            n_jobs=n_jobs,
            error_score="raise",
        ).fit(X, y, masks=masks, regions=regions)
        nested = cross_validate(
            search,
            X,
            y,
            scoring=pro_scorer,
            cv=OneClassSplit(2),
            params={"masks": masks, "regions": regions},
            error_score="raise",
        )
    assert search.best_score_ > 0.9
    assert (nested["test_score"] > 0.9).all()


def test_the_cache_serves_every_region(network, parts, region, tmp_path):
    pipeline = model(network, cache_dir=tmp_path)
    everywhere = pipeline[0].fit_transform(parts[:4])
    files = sorted(tmp_path.rglob("*.npy"))
    cut = model(network, cache_dir=tmp_path, region=region)[0].fit_transform(parts[:4])
    assert sorted(tmp_path.rglob("*.npy")) == files
    np.testing.assert_array_equal(cut[:, :, :4], everywhere[:, :, :4])
    assert np.isnan(cut[:, :, 4:]).all()


def test_learned_features_take_regions(parts, region):
    learned = PCANetFeatures(SIDE, n_filters=(8, 12, 12), region=region)
    features = learned.fit_transform(parts)
    np.testing.assert_array_equal(
        np.isnan(features).all(axis=(0, 1, 3)), np.arange(8) >= 4
    )


def test_an_image_without_region_is_not_judged(network, parts, region):
    pipeline = model(network).fit(parts[:30])
    maps = pipeline.anomaly_map(parts[:2], regions=[region, np.zeros_like(region)])
    assert np.isfinite(maps[0]).all()
    assert np.isnan(maps[1]).all()


@pytest.mark.parametrize(
    ("parameters", "regions", "message"),
    [
        ({"region": np.zeros((8, 8))}, None, "region is empty"),
        ({"region": np.full((8, 8), 0.5)}, None, "no whole numbers"),
        ({"region": "nowhere.png"}, None, "region.*nowhere.png"),
        ({}, np.ones((64, 64), bool), "regions is one mask"),
        ({}, [None, None], "2 entries for 3 images"),
        ({}, [None, "nowhere.png", None], r"regions\[1\].*nowhere.png"),
    ],
)
def test_bad_regions_are_explained(network, parts, parameters, regions, message):
    features = model(network, **parameters)[0]
    with pytest.raises((ValueError, ImageError), match=message):
        features.fit_transform(parts[:3], regions=regions)


def test_regions_without_images_are_refused():
    detector = PatchCoreDetector().fit(np.random.default_rng(0).random((30, 4)))
    with pytest.raises(ValueError, match="regions is for pipelines"):
        anomaly_map(detector, np.zeros((2, 4)), regions=[None, None])
    with pytest.raises(ValueError, match="needs a step that reads images"):
        Pipeline([detector]).anomaly_map(np.zeros((2, 4)), regions=[None, None])

"""A fitted model holds its region: no file is read when it scores."""

import pickle

import joblib
import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from skad import (
    FusedFeatures,
    PaDiMDetector,
    PatchCoreDetector,
    PatchFeatures,
    PCANetFeatures,
    Pipeline,
    SPDPatchFeatures,
    TiledFeatures,
)

SIDE = 64


def small(**parameters):
    return PatchFeatures(
        "skad_small", embedding="concat", image_size=SIDE, **parameters
    )


def filters(region=None):
    return PCANetFeatures(SIDE, n_filters=(8, 12, 12), region=region)


def fused(region=None):
    return FusedFeatures(small(region=region), filters())


def tiled(region=None):
    return TiledFeatures(small(region=region), tile=SIDE // 2)


def spd(region=None):
    return SPDPatchFeatures(
        "skad_small",
        embedding="concat",
        image_size=SIDE,
        max_steps=1,
        train_batch_size=2,
        region=region,
    )


@pytest.fixture(scope="module")
def X():
    return np.random.default_rng(0).integers(0, 256, (12, SIDE, SIDE, 3), np.uint8)


@pytest.fixture
def file(tmp_path):
    mask = np.zeros((SIDE, SIDE), np.uint8)
    mask[:, :32] = 255
    path = tmp_path / "roi.png"
    Image.fromarray(mask).save(path)
    return path


def change(path, how):
    if how == "removed":
        path.unlink()
    elif how == "damaged":
        path.write_bytes(b"no picture")
    else:
        Image.fromarray(np.full((SIDE, SIDE), 255, np.uint8)).save(path)


@pytest.mark.parametrize("how", ["edited", "removed", "damaged"])
@pytest.mark.parametrize("detector", [PatchCoreDetector(), PaDiMDetector()])
def test_scores_stay_when_the_file_changes(X, file, how, detector):
    model = Pipeline([small(region=file), detector]).fit(X)
    scores, maps = model.score_samples(X[:2]), model.anomaly_map(X[:2])
    change(file, how)
    joblib.dump(model, file.parent / "model.joblib")
    for fitted in (model, joblib.load(file.parent / "model.joblib")):
        np.testing.assert_array_equal(fitted.score_samples(X[:2]), scores)
        np.testing.assert_array_equal(fitted.anomaly_map(X[:2]), maps)
        assert not fitted.predict_mask(X[:2])[:, :, 32:].any()
        fitted.partial_fit(X[:3])
        fitted.calibrate(X)


@pytest.mark.parametrize(
    "make",
    [small, filters, fused, tiled, spd],
)
def test_every_transformer_keeps_its_region(X, file, make):
    features = make(region=str(file))
    first = features.fit(X).transform(X[:2])
    assert np.isnan(first[:, :, 4:]).all()
    assert features.region_.dtype == bool
    assert not features.region_[:, 32:].any()
    file.unlink()
    again = pickle.loads(pickle.dumps(features))
    np.testing.assert_array_equal(again.transform(X[:2]), first)
    assert not hasattr(clone(features), "region_")


def test_a_region_set_after_fit_waits_for_the_next_fit(X, file):
    features = small(region=file).fit(X)
    first = features.transform(X[:1])
    features.set_params(region=None)
    np.testing.assert_array_equal(features.transform(X[:1]), first)
    assert not np.isnan(features.fit_transform(X[:1])).any()
    assert features.region_ is None


def test_an_array_that_is_written_to_later_changes_nothing(X):
    region = np.zeros((SIDE, SIDE), bool)
    region[:, :32] = True
    features = small(region=region).fit(X)
    first = features.transform(X[:1])
    region[:] = True
    np.testing.assert_array_equal(features.transform(X[:1]), first)


def test_regions_of_single_images_may_be_files(X, file):
    model = Pipeline([small(), PatchCoreDetector()]).fit(X, regions=[file] * 12)
    scores = model.score_samples(X[:2], regions=[str(file), None])
    assert np.isfinite(scores).all()


def test_regions_of_a_table_keep_their_order(X, file):
    pandas = pytest.importorskip("pandas")
    features = small().fit(X)
    regions = [file, None, np.zeros((8, 8), bool)]
    expected = features.transform(X[:3], regions=regions)
    series = pandas.Series(regions, index=[2, 0, 1])
    np.testing.assert_array_equal(features.transform(X[:3], regions=series), expected)


def test_before_fit(X, file):
    features = small(region=file)
    for call in (
        lambda: features.transform(X),
        lambda: features.regions(None, 2),
        lambda: Pipeline([features, PatchCoreDetector()]).predict(X),
    ):
        with pytest.raises(NotFittedError):
            call()


def test_what_regions_cannot_be(X, file):
    features = small().fit(X)
    with pytest.raises(ValueError, match=r"regions=.*no sequence of masks"):
        features.transform(X, regions=file)
    with pytest.raises(ValueError, match=r"regions\[1\].*missing\.png"):
        features.transform(X[:2], regions=[file, "missing.png"])

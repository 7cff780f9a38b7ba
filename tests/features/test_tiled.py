import pickle

import numpy as np
import pytest
from PIL import Image
from sklearn import config_context
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV

import skad
from skad import (
    FusedFeatures,
    PatchCoreDetector,
    PatchFeatures,
    PCANetFeatures,
    Pipeline,
    SPADEDetector,
    SPDPatchFeatures,
    SubspaceDetector,
    TiledFeatures,
)
from skad.datasets import make_textures
from skad.features import PatchFeatureTransformer, SkippedImageWarning
from skad.features._tiled import Tiling
from skad.images import ImageError
from skad.metrics import pro_scorer
from skad.model_selection import OneClassSplit

pytestmark = pytest.mark.filterwarnings("ignore:.*cannot certify")

TILE = 32


def convolution(kernel):
    """A network of stride 8 whose patches see `kernel` pixels."""
    import torch
    from torch import nn

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(3, 12, kernel, stride=8, padding=(kernel - 8) // 2)
        )


def network(kernel=8, image_size=TILE, **parameters):
    return PatchFeatures(
        convolution(kernel),
        layers=("0",),
        image_size=image_size,
        embedding="concat",
        patch_size=1,
        **parameters,
    )


def small(image_size=TILE, **parameters):
    return PatchFeatures("skad_small", image_size=image_size, **parameters)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (6, 72, 104, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def textures():
    return make_textures(n_normal=20, n_anomalous=4, size=64, random_state=0)


# -- one grid ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tile", "overlap"),
    [(32, 0), (32, 8), (32, 24), ((72, 104), 0), ((24, 104), 16), (72, 0)],
)
def test_patches_that_see_themselves_only_are_those_of_the_whole(images, tile, overlap):
    whole = network(image_size=(72, 104)).fit_transform(images)
    tiled = TiledFeatures(network(), tile=tile, overlap=overlap)
    features = tiled.fit_transform(images)
    assert features.dtype == np.float32
    assert tiled.grid_shape_ == (9, 13)
    np.testing.assert_allclose(features, whole, atol=1e-6)
    np.testing.assert_array_equal(tiled.transform(images), features)


def test_an_overlap_of_twice_what_patches_see_leaves_no_seam(images):
    whole = network(kernel=24, image_size=(72, 104)).fit_transform(images)
    features = TiledFeatures(network(kernel=24), overlap=16).fit_transform(images)
    np.testing.assert_allclose(features, whole, atol=1e-5)
    # Without it, patches beside a border between tiles see padding there.
    features = TiledFeatures(network(kernel=24)).fit_transform(images)
    differs = np.abs(features - whole).max(axis=(0, 3)) > 1e-3
    rows = [3, 4, 6, 7]  # tiles begin at patch 0, 4 and 5: the middle between is 6
    assert not differs[np.ix_(np.setdiff1d(range(9), rows), [1, 2, 5, 6])].any()
    assert differs[np.ix_([3, 4], range(13))].all()


def test_an_overlap_brings_a_deep_network_nearer_to_the_whole(textures):
    image = np.concatenate(textures.train[:3], axis=1)[None]  # 64 x 192 pixels
    whole = small((64, 192)).fit_transform(image)
    seams = [
        np.abs(TiledFeatures(small(64), overlap=overlap).fit_transform(image) - whole)
        for overlap in (0, 32)
    ]
    assert seams[1].max() < seams[0].max() / 2


def test_of_two_tiles_the_one_is_taken_in_which_a_patch_lies_further_inside():
    tiling = Tiling.of((8, 80), (8, 32), 16).with_stride((8, 8))
    assert tiling.starts == ((0,), (0, 16, 32, 48))
    columns = [tiling.inner(k)[0][1] for k in range(4)]
    assert columns == [slice(0, 3), slice(3, 5), slice(5, 7), slice(7, 10)]
    assert [tiling.inner(k)[1][1].start for k in range(4)] == [0, 1, 1, 1]


@pytest.mark.parametrize("place", [(16, 24), (16, 44), (28, 48), (28, 76)])
def test_a_defect_on_a_seam_scores_as_in_the_middle(images, place):
    normal = 100 + images // 16
    anomalous = normal[:1].copy()
    anomalous[:, place[0] : place[0] + 8, place[1] : place[1] + 8] = 255
    scores, maps = [], []
    for features in (
        network(kernel=24, image_size=(72, 104)),
        TiledFeatures(network(kernel=24), overlap=16),
    ):
        model = Pipeline([features, PatchCoreDetector(0.2)]).fit(normal[1:])
        scores.append(model.score_samples(anomalous))
        maps.append(model.anomaly_map(anomalous)[0])
    np.testing.assert_allclose(scores[1], scores[0], rtol=1e-4)
    np.testing.assert_allclose(maps[1], maps[0], atol=1e-4 * maps[0].max())
    where = np.unravel_index(maps[1].argmax(), maps[1].shape)
    assert np.abs(np.array(where) - place - 4).max() <= 8


@pytest.mark.parametrize(("batch_size", "batches"), [(4, [4] * 6), (16, [16, 8])])
def test_tiles_of_several_images_share_a_pass(images, batch_size, batches):
    tiled = TiledFeatures(network(batch_size=batch_size), 48, tile=24).fit(images)
    sizes = []
    tiled.features_.backbone.register_forward_pre_hook(
        lambda module, given: sizes.append(len(given[0]))
    )
    tiled.transform(images)  # six images of four tiles
    assert sizes == batches


# -- sizes -----------------------------------------------------------------------------


def test_images_of_many_sizes_are_resized_and_maps_have_theirs(textures):
    sizes = [(64, 64), (80, 50), (120, 64)]
    mixed = [
        np.asarray(Image.fromarray(image).resize(sizes[i % 3][::-1]))
        for i, image in enumerate(textures.train)
    ]
    model = Pipeline([TiledFeatures(small(), 64), PatchCoreDetector()]).fit(mixed)
    assert model[0].image_size_ == (64, 64)
    maps = model.anomaly_map(mixed[:3])
    assert [m.shape for m in maps] == sizes
    masks = model.predict_mask(mixed[:3])
    assert [m.shape for m in masks] == sizes
    assert [r.mask.shape for r in skad.inspect(model, mixed[:3])] == sizes


def test_resized_images_are_those_that_a_transformer_resizes(images):
    whole = network(image_size=(48, 80)).fit_transform(images)
    tiled = TiledFeatures(network(), (48, 80), tile=(24, 32)).fit_transform(images)
    np.testing.assert_allclose(tiled, whole, atol=1e-6)


def test_without_an_image_size_all_images_are_of_one(images, tmp_path):
    tiled = TiledFeatures(network()).fit(images)
    assert tiled.image_size_ == (72, 104)
    other = [images[0], images[1][:64]]
    with pytest.raises(ImageError, match=r"X\[1\].* 64 x 104 .* 72 x 104.* image_size"):
        tiled.transform(other)
    with pytest.raises(ImageError, match=r"X\[1\]: the image is 64 x 104"):
        TiledFeatures(PCANetFeatures()).set_params(tile=40).fit(other)
    tiled = TiledFeatures(network(on_error="skip")).fit(images)
    with pytest.warns(SkippedImageWarning, match="64 x 104"):
        features = tiled.transform(other)
    assert np.isnan(features[1]).all()
    assert np.isfinite(features[0]).all()
    # Another fit may be of another size.
    assert tiled.fit(images[:, :64]).image_size_ == (64, 104)


# -- every transformer -----------------------------------------------------------------


class Brightness(PatchFeatureTransformer):
    """A transformer of a user's own."""

    def __init__(self, image_size=32, batch_size=4):
        self.image_size = image_size
        self.batch_size = batch_size
        self.crop_size = self.region = self.n_jobs = None
        self.on_error, self.verbose = "raise", False

    def _fit(self, images):
        self.grid_shape_, self.n_features_out_ = (4, 4), 1

    def _extract(self, batch):
        b, h, w, _ = batch.shape
        return batch.reshape(b, 4, h // 4, 4, w // 4, -1).mean(axis=(2, 4, 5))[
            ..., None
        ]


@pytest.mark.parametrize(
    "features",
    [
        small(),
        PatchFeatures("resnet10t", "auto", weights=False, image_size=64, target_dim=32),
        PatchFeatures(
            "vit_tiny_patch16_224", "auto", weights=False, image_size=32, target_dim=16
        ),
        PatchFeatures(
            "resnet10t",
            ["layer1", "layer3"],
            weights=False,
            embedding="replicate",
            image_size=64,
            n_components=9,
        ),
        PCANetFeatures(40, n_filters=(4, 8, 8)),
        FusedFeatures(small(40), PCANetFeatures(40, n_filters=(4, 8, 8))),
        SPDPatchFeatures(
            "resnet10t",
            "auto",
            weights=False,
            image_size=32,
            target_dim=8,
            base="simsiam",
            max_steps=2,
            train_batch_size=2,
        ),
        Brightness(),
    ],
    ids=lambda features: type(features).__name__,
)
def test_every_transformer_goes_in(features, textures):
    tiled = TiledFeatures(features, (80, 96), overlap=16).fit(textures.train[:3])
    found = tiled.transform(textures.test[:2])
    assert found.shape == (2, *tiled.grid_shape_, tiled.n_features_out_)
    assert np.isfinite(found).all()
    again = pickle.loads(pickle.dumps(tiled)).transform(textures.test[:2])
    np.testing.assert_array_equal(again, found)


def cut(images):
    """The four tiles of 40 pixels of images of 80."""
    return np.concatenate(
        [
            images[:, top : top + 40, left : left + 40]
            for top in (0, 40)
            for left in (0, 40)
        ],
        axis=1,
    ).reshape(-1, 40, 40, 3)


@pytest.mark.parametrize(
    ("features", "labelled"),
    [
        (PCANetFeatures(n_filters=(4, 8, 8)), False),
        (PCANetFeatures(n_filters=(4, 8, 8)), True),
        (FusedFeatures(second=PCANetFeatures(n_filters=(4, 8, 8))), True),
    ],
)
def test_what_is_learned_is_learned_from_tiles_of_normal_images(features, labelled):
    data = make_textures(n_normal=5, n_anomalous=2, size=80, random_state=0)
    X = np.concatenate([data.train, data.test[-2:]])
    y = np.r_[data.y_train, -1, -1] if labelled else None
    tiled = TiledFeatures(features, tile=40)
    grids = tiled.fit_transform(X, y)
    by_hand = clone(tiled.features_)
    tiles = by_hand.fit_transform(cut(X), None if y is None else np.repeat(y, 4))
    tiles = np.asarray(tiles).reshape(len(X), 2, 2, 5, 5, -1)
    expected = tiles.transpose(0, 1, 3, 2, 4, 5).reshape(grids.shape)
    np.testing.assert_allclose(grids, expected, atol=1e-4)
    if labelled:
        alone = clone(tiled).fit(data.train).transform(data.test)
        np.testing.assert_allclose(tiled.transform(data.test), alone, atol=1e-4)


def test_descriptors_are_the_mean_of_those_of_the_tiles(textures):
    features = PatchFeatures(
        "resnet10t", "auto", weights=False, image_size=32, pooled=True, target_dim=8
    )
    tiled = TiledFeatures(features).fit(textures.train)
    found = tiled.transform(textures.test[:2])
    tiles = textures.test[:2].reshape(2, 2, 32, 2, 32, 3).transpose(0, 1, 3, 2, 4, 5)
    pooled = tiled.features_.fit_transform(tiles.reshape(8, 32, 32, 3)).pooled
    np.testing.assert_allclose(
        found.pooled, pooled.reshape(2, 4, -1).mean(axis=1), rtol=1e-4, atol=1e-5
    )
    model = Pipeline([tiled, SPADEDetector(3)]).fit(textures.train)
    assert model.anomaly_map(textures.test[:1]).shape == (1, 64, 64)


# -- in a pipeline ---------------------------------------------------------------------


def test_a_pipeline_does_all_that_it_does_with_whole_images(textures):
    model = Pipeline([TiledFeatures(small(), overlap=16), PatchCoreDetector()])
    model.fit(textures.train)
    features = model[0].transform(textures.test)
    np.testing.assert_allclose(
        model.score_samples(textures.test),
        model[1].score_samples(features),
        rtol=1e-5,
    )
    assert model.predict(textures.test).shape == (8,)
    assert np.isfinite(model.p_value(textures.test)).all()
    maps, masks = model.anomaly_map(textures.test), model.predict_mask(textures.test)
    assert maps.shape == masks.shape == (8, 64, 64)
    for i, found in enumerate(skad.inspect(model, textures.test)):
        np.testing.assert_allclose(found.anomaly_map, maps[i], rtol=1e-4)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(
        again.score_samples(textures.test), model.score_samples(textures.test)
    )
    frozen = Pipeline([FrozenEstimator(model[0]), SubspaceDetector()])
    assert frozen.fit(textures.train).predict(textures.test).shape == (8,)


def test_regions_are_of_whole_images(textures):
    left = np.zeros((64, 64), bool)
    left[:, :28] = True
    tiled = TiledFeatures(small(region=left)).fit(textures.train)
    np.testing.assert_array_equal(tiled.region_, left)
    features = tiled.transform(textures.test)
    assert np.isnan(features[:, :, 4:]).all()
    assert np.isfinite(features[:, :, :4]).all()
    model = Pipeline([tiled, PatchCoreDetector()]).fit(textures.train)
    assert not model.predict_mask(textures.test)[:, :, 32:].any()
    model = Pipeline([TiledFeatures(small()), PatchCoreDetector()])
    model.fit(textures.train, regions=[left] * 20)
    assert model.predict(textures.test, regions=[left] * 8).shape == (8,)


def test_a_search_tunes_tiles_and_what_they_pass(textures):
    X = np.concatenate([textures.train, textures.test])
    y = np.concatenate([textures.y_train, textures.y_test])
    masks = np.concatenate([np.zeros_like(X[:20, ..., 0], bool), textures.masks])
    search = GridSearchCV(
        Pipeline([TiledFeatures(small()), SubspaceDetector()]),
        {
            "tiledfeatures__overlap": [0, 16],
            "tiledfeatures__features__patch_size": [1, 3],
        },
        scoring=pro_scorer,
        cv=OneClassSplit(n_splits=2),
    )
    with config_context(enable_metadata_routing=True):
        search.fit(X, y, masks=masks)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.predict(X).shape == (28,)


def test_images_that_cannot_be_read(textures, tmp_path):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    X = [broken, *textures.train]
    with pytest.raises(ImageError, match=r"X\[0\].*broken.png"):
        TiledFeatures(small()).fit_transform(X)
    for features in (
        small(on_error="skip"),
        PCANetFeatures(n_filters=(4, 8, 8), on_error="skip"),
    ):
        tiled = TiledFeatures(features, 80, tile=40)
        with pytest.warns(SkippedImageWarning, match=r"1 of 21 images .*broken\.png"):
            found = tiled.fit_transform(X)
        assert [index for index, _ in tiled.skipped_] == [0]
        assert np.isnan(found[0]).all()
        assert np.isfinite(found[1:]).all()
    with pytest.raises(ImageError, match=r"none of the 2 images .*broken\.png"):
        TiledFeatures(small(on_error="skip")).fit([broken, broken])


def test_a_cache_keeps_whole_grids(textures, tmp_path):
    cached = TiledFeatures(small(cache_dir=tmp_path / "cache"))
    found = cached.fit_transform(textures.train)
    assert len(list((tmp_path / "cache").glob("*/*.npy"))) == 20
    np.testing.assert_array_equal(cached.transform(textures.train), found)
    other = clone(cached).set_params(overlap=16).fit_transform(textures.train)
    assert not np.array_equal(other, found)


def test_large_images_are_read_ahead_by_their_bytes(images, monkeypatch):
    tiled = TiledFeatures(network(n_jobs=4)).fit(images)

    def read_before_the_first_is_used():
        asked = []
        first = tiled._checked_reader(images).each(asked.append, range(6))
        next(first)
        return len(asked)

    assert read_before_the_first_is_used() == 6
    monkeypatch.setattr("skad.images._batches._WAITING_BYTES", images[0].size)
    assert read_before_the_first_is_used() <= 2


# -- what does not go together ---------------------------------------------------------


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"tile": 128}, r"tile=128 .* 72 x 104 .*at most \(72, 104\)"),
        (
            {"image_size": (24, 64)},
            r"image_size of features=32 .* 24 x 64 .*image_size",
        ),
        ({"overlap": 32}, "overlap=32 leaves nothing .* 32 x 32 .* less than 32"),
        ({"overlap": 12}, "overlap=12 is no multiple .* 8 pixels; pass 8 or 16"),
        ({"overlap": 4}, "overlap=4 is no multiple .* pass 0 or 8"),
        (
            {"tile": (32, 44)},
            r"tile=\(32, 44\): 44 .* 5 patches.* pass 40 or 48, .* 8 ",
        ),
        ({"image_size": (70, 104)}, r"70 x 104 .* 8 x 8 .*image_size=\(72, 104\)"),
        ({"overlap": -8}, "overlap"),
        ({"tile": 0}, "tile"),
        ({"tile": (32, 32, 3)}, "tile=.*two positive"),
        ({"image_size": "large"}, "image_size"),
        ({"features": network(crop_size=24)}, "crop_size=24.*region"),
    ],
)
def test_what_cannot_be_is_told(images, parameters, message):
    tiled = TiledFeatures(network()).set_params(**parameters)
    with pytest.raises(ValueError, match=message):
        tiled.fit(images)


@pytest.mark.parametrize(
    "features",
    [
        PCANetFeatures(),
        FusedFeatures(),
        SPDPatchFeatures("resnet10t", "auto", weights=False),
    ],
    ids=lambda features: type(features).__name__,
)
def test_what_cannot_be_is_told_before_anything_is_learned(features):
    tiled = TiledFeatures(features, 96, tile=48, overlap=4)
    with pytest.raises(ValueError, match="overlap=4 is no multiple"):
        tiled.fit(["there is no such image.png"])


def test_images_smaller_than_a_tile_are_told(images):
    with pytest.raises(ValueError, match=r"image_size of features=224 .* 72 x 104"):
        TiledFeatures().fit(images)


def test_a_region_of_the_whole_image_is_none_of_a_tile(textures):
    region = np.zeros((64, 96), bool)
    region[40:48, 40:48] = True
    tile = SPDPatchFeatures(
        "resnet10t",
        "auto",
        weights=False,
        image_size=32,
        n_components=4,
        reduction="pca",
        region=region,
        max_steps=1,
        train_batch_size=2,
    )
    tiled = TiledFeatures(tile, (64, 96)).fit(textures.train[:2])
    assert tiled.transform(textures.train[:1]).shape[-1] == 4

import copy
import pickle
import re
import time

import joblib
import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.decomposition import PCA

from skad import (
    FusedFeatures,
    PaDiMDetector,
    PatchFeatures,
    Pipeline,
    TiledFeatures,
)
from skad.base import patch_rows
from skad.features import SkippedImageWarning
from skad.features._principal import principal_axes
from skad.images import ImageError

TINY = {"layers": ("early", "late"), "image_size": 32}


@pytest.fixture
def features(tiny_network):
    return PatchFeatures(tiny_network, **TINY)


def test_own_network_gives_patch_grids(features, images):
    result = features.fit_transform(images)
    assert result.shape == (5, 8, 8, 1024)
    assert result.dtype == np.float32
    assert np.isfinite(result).all()
    assert features.grid_shape_ == (8, 8)
    assert features.n_features_out_ == 1024


def test_values_are_those_of_the_network(tiny_network, images):
    import torch

    features = PatchFeatures(
        tiny_network,
        layers=("early",),
        image_size=(40, 48),
        embedding="concat",
        patch_size=1,
        mean=(0, 0, 0),
        std=(1, 1, 1),
    )
    result = features.fit_transform(images)
    with torch.no_grad():
        x = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
        expected = tiny_network.early(x)  # before the ReLU that works in place
    np.testing.assert_allclose(result, expected.permute(0, 2, 3, 1), atol=1e-5)


def test_the_rest_of_the_network_does_not_run(features, images, tiny_network):
    features.fit(images)
    calls = []
    handle = tiny_network.head.register_forward_hook(lambda *_: calls.append(1))
    try:
        features.transform(images)
    finally:
        handle.remove()
    assert not calls
    assert tiny_network.training  # flags of the user's network are as they were


def test_network_runs_once_per_image(tiny_network, images):
    seen = []
    handle = tiny_network.early.register_forward_hook(
        lambda module, inputs, output: seen.append(len(output))
    )
    try:
        features = PatchFeatures(tiny_network, **TINY, batch_size=2).fit(images)
        assert sum(seen) <= 8  # probe images tell shapes and layouts
        seen.clear()
        features.transform(images)
    finally:
        handle.remove()
    assert sum(seen) == len(images)


def test_batch_size_threads_and_containers_do_not_matter(features, images, tmp_path):
    expected = features.fit_transform(images)
    for n_jobs, batch_size in ((1, 1), (3, 2), (-1, 16)):
        other = clone(features).set_params(n_jobs=n_jobs, batch_size=batch_size)
        np.testing.assert_allclose(other.fit_transform(images), expected, atol=1e-5)
    paths = []
    for i, image in enumerate(images):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(image).save(paths[-1])
    np.testing.assert_array_equal(features.transform(paths), expected)
    np.testing.assert_array_equal(features.transform(list(map(str, paths))), expected)
    pil = [Image.fromarray(image) for image in images]
    np.testing.assert_array_equal(features.transform(pil), expected)


def test_sizes_may_differ(features, images):
    mixed = [images[0], images[1][:20], np.repeat(images[2], 2, axis=0)]
    result = features.fit_transform(mixed)
    assert result.shape[0] == 3
    assert features.image_sizes(mixed) == [(40, 48), (20, 48), (80, 48)]


def test_grey_images_are_colour_images_of_equal_channels(features, images):
    grey = images[..., :1]
    np.testing.assert_array_equal(
        features.fit_transform(grey[..., 0]),
        features.transform(np.repeat(grey, 3, axis=3)),
    )


def test_crop_is_the_centre_of_the_resized_image(tiny_network, images):
    square = images[:, :40, :40]
    cropped = PatchFeatures(
        tiny_network, layers=("early",), image_size=40, crop_size=24
    )
    direct = PatchFeatures(tiny_network, layers=("early",), image_size=24)
    np.testing.assert_allclose(
        cropped.fit_transform(square),
        direct.fit_transform(square[:, 8:32, 8:32]),
        atol=1e-6,
    )
    assert cropped.window() == ((0.2, 0.8), (0.2, 0.8))


@pytest.mark.parametrize(
    ("embedding", "n_features"), [("mean1d", 1024), ("concat", 16), ("replicate", 16)]
)
def test_every_embedding(tiny_network, images, embedding, n_features):
    features = PatchFeatures(tiny_network, **TINY, embedding=embedding)
    assert features.fit_transform(images).shape == (5, 8, 8, n_features)
    assert PatchFeatures(
        tiny_network, **TINY, embedding=embedding, grid=(3, 5)
    ).fit_transform(images).shape == (5, 3, 5, n_features)


def test_random_dimensions_are_a_fixed_choice(tiny_network, images):
    parameters = {**TINY, "embedding": "replicate"}
    whole = PatchFeatures(tiny_network, **parameters).fit_transform(images)
    some = PatchFeatures(tiny_network, **parameters, n_components=4).fit(images)
    np.testing.assert_array_equal(some.transform(images), whole[..., some.components_])
    again = PatchFeatures(tiny_network, **parameters, n_components=4).fit(images)
    np.testing.assert_array_equal(again.components_, some.components_)
    other = clone(some).set_params(random_state=1).fit(images)
    assert (other.components_ != some.components_).any()


def test_strides_keep_every_so_many_patches(tiny_network, images):
    """Around the same positions, also where the number is no multiple."""
    settings = {"layers": ("early",), "image_size": (40, 48), "embedding": "concat"}
    whole = PatchFeatures(tiny_network, **settings).fit_transform(images)
    strided = PatchFeatures(tiny_network, patch_stride=3, **settings)
    found = strided.fit_transform(images)
    assert found.shape == (5, 4, 4, 6)
    assert strided.grid_shape_ == (4, 4)
    np.testing.assert_allclose(found, whole[:, ::3, ::3], atol=1e-6)


def test_mean_of_blocks_of_a_transformer(few_photographs):
    """SubspaceAD's features: the tokens of several blocks, averaged."""
    files = sorted((few_photographs / "mvtec_bottle_256/train/good").iterdir())[:3]
    settings = {"weights": False, "image_size": 64, "patch_size": 1}
    settings["backbone_kwargs"] = {"img_size": 64}
    blocks = "blocks.3", "blocks.5", "blocks.6"

    def features(layers, embedding):
        made = PatchFeatures("vit_tiny_patch16_224", layers, **settings)
        return made.set_params(embedding=embedding).fit_transform(files)

    expected = np.mean([features([block], "concat") for block in blocks], axis=0)
    np.testing.assert_allclose(features(blocks, "mean"), expected, atol=1e-5)


@pytest.mark.parametrize("region", [None, "left"])
def test_principal_axes_are_those_of_scikit_learn(few_photographs, region):
    files = sorted((few_photographs / "magnetic_tile/train/good").iterdir())[:6]
    inside = np.ones((8, 8), bool)
    if region is not None:
        inside[:, 4:] = False
    settings = {"image_size": 64, "region": None if region is None else inside}
    whole = PatchFeatures("skad_small", "auto", **settings).fit_transform(files)
    reduced = PatchFeatures(
        "skad_small", "auto", n_components=20, reduction="pca", batch_size=4, **settings
    )
    found = reduced.fit_transform(files)[:, inside]
    known = PCA(20, svd_solver="full").fit(whole[:, inside].reshape(-1, 128))
    expected = known.transform(whole[:, inside].reshape(-1, 128))
    signs = np.sign((known.components_ * reduced.components_).sum(axis=1))
    expected = (expected * signs).reshape(found.shape)
    np.testing.assert_allclose(found, expected, atol=2e-4 * abs(expected).max())
    gram = reduced.components_ @ reduced.components_.T
    np.testing.assert_allclose(gram, np.eye(20), atol=1e-5)


def test_axes_are_learned_inside_of_the_region_of_each_image(tiny_network, images):
    settings = {**TINY, "embedding": "concat"}
    reduced = PatchFeatures(tiny_network, **settings, n_components=3, reduction="pca")
    right = np.arange(48) >= 24
    masks = [np.tile(right if i % 2 else ~right, (40, 1)) for i in range(len(images))]
    plain = PatchFeatures(tiny_network, **settings).fit(images)
    rows = patch_rows(plain.transform(images, regions=masks))[0]
    y = np.array([1, 1, -1, 1, 1])
    normal = np.flatnonzero(y == 1)
    rows_of_normal = patch_rows(
        plain.transform(images[normal], regions=[masks[i] for i in normal])
    )[0]
    for labels, learned in ((None, rows), (y, rows_of_normal)):
        axes = principal_axes([learned], 3)[0]
        for fitted in (
            clone(reduced).fit(images, labels, regions=masks),
            Pipeline([clone(reduced), PaDiMDetector()]).fit(images, labels, masks)[0],
            FusedFeatures(clone(reduced), clone(reduced))
            .fit(images, labels, regions=masks)
            .second_,
        ):
            np.testing.assert_allclose(fitted.components_, axes, atol=1e-5)


def test_axes_of_tiles_are_learned_inside_of_the_region_of_the_image(tiny_network):
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 64, 3), dtype=np.uint8)
    settings = {**TINY, "embedding": "concat", "n_components": 3, "reduction": "pca"}
    left = np.tile(np.arange(64) < 32, (32, 1))  # one of two tiles
    alone = PatchFeatures(tiny_network, **settings).set_params(image_size=32)
    alone.fit(images[:, :, :32])
    for region, regions in ((left, None), (None, [left] * 5)):
        inner = PatchFeatures(tiny_network, **settings, region=region)
        tiled = TiledFeatures(inner, (32, 64), tile=32).fit(images, regions=regions)
        np.testing.assert_allclose(
            tiled.features_.components_, alone.components_, atol=1e-5
        )


def test_axes_are_in_the_signature_of_the_cache(tiny_network, images, tmp_path):
    reduced = PatchFeatures(tiny_network, **TINY, n_components=3, reduction="pca")
    first = reduced.set_params(cache_dir=tmp_path).fit(images[:3]).transform(images)
    again = clone(reduced).fit(images[:3]).transform(images)
    np.testing.assert_array_equal(again, first)
    other = clone(reduced).fit(images[2:]).transform(images)
    assert not np.allclose(other, first)


def test_own_network_travels_in_the_pickle(features, images, tmp_path):
    expected = features.fit_transform(images)
    joblib.dump(features, tmp_path / "features.joblib")
    loaded = joblib.load(tmp_path / "features.joblib")
    np.testing.assert_array_equal(loaded.transform(images), expected)
    assert clone(features).get_params()["layers"] == ("early", "late")


def test_timm_backbones_stay_out_of_the_pickle(images):
    features = PatchFeatures(
        "resnet18", weights=False, image_size=64, random_state=0
    ).fit(images)
    expected = features.transform(images)
    data = pickle.dumps(features)
    assert len(data) < 10_000
    np.testing.assert_array_equal(pickle.loads(data).transform(images), expected)
    # Loaded where the weights are other ones, it refuses to run.
    stranger = pickle.loads(data)
    stranger._seed += 1
    with pytest.raises(ValueError, match="has other weights"):
        stranger.transform(images)


@pytest.mark.parametrize(
    ("name", "image_size", "layers", "grid"),
    [
        ("resnet18", 64, ("layer2", "layer3"), (8, 8)),
        ("mobilenetv2_100", (64, 96), ("blocks.2", "blocks.4"), (8, 12)),
        ("vit_tiny_patch16_224", 64, "auto", (4, 4)),
        ("convnext_atto", 64, "auto", (8, 8)),
        ("vit_tiny_patch16_224", (64, 96), ("blocks.1", "norm"), (4, 6)),
        ("swin_tiny_patch4_window7_224", 224, "auto", (28, 28)),
    ],
)
def test_timm_families(images, name, image_size, layers, grid):
    features = PatchFeatures(
        name, layers, weights=False, image_size=image_size, embedding="concat"
    )
    result = features.fit_transform(images[:2])
    assert result.shape[1:3] == grid
    assert np.isfinite(result).all()


def test_half_precision_stays_close(images):
    parameters = {"backbone": "resnet18", "weights": False, "image_size": 64}
    full = PatchFeatures(**parameters).fit_transform(images)
    half = PatchFeatures(**parameters, precision="bfloat16").fit_transform(images)
    assert half.dtype == np.float32
    assert np.abs(half - full).max() < 0.1 * np.abs(full).max()


@pytest.mark.usefixtures("numpy_state_untouched")
def test_random_states_are_left_alone(images):
    import torch

    torch_state = torch.get_rng_state()
    threads = torch.get_num_threads()
    PatchFeatures(
        "resnet10t", weights=False, image_size=32, n_components=9, random_state=5
    ).fit_transform(images)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert torch.get_num_threads() == threads


# -- channels ------------------------------------------------------------------


def timm_features(n_channels, **parameters):
    parameters = {
        "weights": False,
        "image_size": 32,
        "embedding": "concat",
    } | parameters
    return PatchFeatures(
        "resnet10t", "auto", backbone_kwargs={"in_chans": n_channels}, **parameters
    )


def bands(n_channels, dtype=np.uint8):
    rng = np.random.default_rng(0)
    return rng.integers(0, 2 if dtype is bool else 256, (3, 20, 24, n_channels), dtype)


@pytest.mark.parametrize("n_channels", [1, 2, 4, 5, 13])
def test_images_of_any_number_of_channels(tmp_path, n_channels):
    import torch

    X = bands(n_channels)
    features = timm_features(n_channels)
    expected = features.fit_transform(X, np.ones(3))
    assert expected.shape[0] == 3
    assert np.ptp(expected, axis=0).max() > 1e-3
    assert features.image_sizes(X) == [(20, 24)] * 3
    np.testing.assert_array_equal(features.fit(X).transform(list(X)), expected)
    tensor = torch.from_numpy(X).permute(0, 3, 1, 2)
    np.testing.assert_array_equal(features.transform(tensor), expected)
    np.testing.assert_array_equal(features.transform(list(tensor)), expected)
    paths = [tmp_path / f"{i}.npy" for i in range(3)]
    for path, image in zip(paths, X, strict=True):
        np.save(path, image)
    np.testing.assert_array_equal(features.transform(paths), expected)
    assert features.image_sizes(paths) == [(20, 24)] * 3
    deep = features.transform(X * np.uint16(257))
    np.testing.assert_allclose(deep, features.transform(X / 255), atol=1e-4)


@pytest.mark.parametrize("n_channels", [2, 4, 5])
def test_every_channel_counts(n_channels):
    X = bands(n_channels)
    features = timm_features(n_channels).fit(X)
    plain = features.transform(X)
    for channel in range(n_channels):
        changed = X.copy()
        changed[..., channel] = 255 - changed[..., channel]
        assert np.abs(features.transform(changed) - plain).max() > 1e-3


def test_own_network_tells_its_channels():
    from torch import nn

    network = nn.Sequential()
    network.add_module("early", nn.Conv2d(5, 6, 3, stride=4, padding=1))
    network.add_module("late", nn.Conv2d(6, 10, 3, stride=2, padding=1))
    features = PatchFeatures(network, **TINY)
    assert features.fit_transform(bands(5)).shape == (3, 8, 8, 1024)
    with pytest.raises(
        ImageError, match=r"X\[1\]: the image has 3 channels, expected 5"
    ):
        features.transform([bands(5)[0], bands(3)[0]])


def test_a_network_without_convolution_takes_rgb(images):
    from torch import nn

    network = nn.Sequential()
    network.add_module("pool", nn.AvgPool2d(4))
    features = PatchFeatures(network, layers=("pool",), image_size=32)
    assert features.fit_transform(images[..., 0]).shape[:3] == (5, 8, 8)


def test_colour_becomes_grey_for_one_channel(images, tmp_path):
    grey = [np.asarray(Image.fromarray(image).convert("L")) for image in images]
    features = timm_features(1)
    expected = features.fit_transform(grey)
    np.testing.assert_array_equal(features.transform(images), expected)
    Image.fromarray(images[0]).save(tmp_path / "a.png")
    one = features.transform([tmp_path / "a.png"])
    np.testing.assert_allclose(one, expected[:1], atol=1e-5)


def test_an_image_of_other_channels_is_named_or_skipped():
    X = [*bands(5), bands(3)[0]]
    features = timm_features(5).fit(X)
    with pytest.raises(
        ImageError, match=r"X\[3\]: the image has 3 channels, expected 5; pass"
    ):
        features.transform(X)
    features.set_params(on_error="skip")
    with pytest.warns(SkippedImageWarning, match="expected 5"):
        assert np.isnan(features.transform(X)[3]).all()
    with pytest.raises(ValueError, match=r"X is an array .*; pass \(n, H, W, 5\)"):
        features.transform(bands(3))


def test_mean_and_std_of_other_channels():
    X = bands(5)
    average = timm_features(5).fit_transform(X)
    for mean, std in (
        ([0.449], [0.226]),
        ([0.449] * 5, np.full(5, 0.226)),
    ):
        given = timm_features(5, mean=mean, std=std).fit_transform(X)
        np.testing.assert_allclose(given, average, atol=1e-4)
    other = timm_features(5, mean=[0, 0.2, 0.4, 0.6, 0.8]).fit_transform(X)
    assert np.abs(other - average).max() > 1e-3


@pytest.mark.parametrize("name", ["mean", "std"])
def test_mean_of_another_length_is_an_error(images, features, name):
    with pytest.raises(ValueError, match=rf"{name}=\[0.5, 0.5\] .* pass 3 values"):
        features.set_params(**{name: [0.5, 0.5]}).fit(images)
    with pytest.raises(ValueError, match=rf"{name}=\(1, 1, 1\) .* pass 5 values"):
        timm_features(5, **{name: (1, 1, 1)}).fit(bands(5))


@pytest.mark.parametrize("n_channels", [0, -1, 2.0, "5", None])
def test_in_chans_must_be_a_number_of_channels(n_channels):
    with pytest.raises(ValueError, match="in_chans must be a positive integer"):
        timm_features(n_channels).fit(bands(5))


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@pytest.mark.parametrize("n_channels", [1, 2, 5])
def test_weights_files_are_adapted_to_the_channels(tmp_path, suffix, n_channels):
    import timm
    import torch
    from safetensors.torch import save_file

    path = tmp_path / f"weights.{suffix}"
    save = torch.save if suffix == "pth" else save_file
    for trained in (3, n_channels):  # the second is of these channels already
        torch.manual_seed(trained)
        state = timm.create_model("resnet10t", in_chans=trained).state_dict()
        save(state, path)
        features = timm_features(n_channels, weights=path).fit(bands(n_channels))
        first = features._backbone().module.conv1[0].weight
        filters = state["conv1.0.weight"]
        if trained == 3:
            filters = timm.models.adapt_input_conv(n_channels, filters)
        # The normalization that is folded in starts with a variance of one.
        np.testing.assert_allclose(first, filters, rtol=1e-4)
        assert "state_dict" not in features._backbone().module.pretrained_cfg


@pytest.mark.parametrize(("trained", "n_channels"), [(4, 5), (4, 1), (2, 6)])
def test_weights_files_that_cannot_be_adapted(tmp_path, trained, n_channels):
    import timm
    import torch

    path = tmp_path / "weights.pth"
    torch.save(timm.create_model("resnet10t", in_chans=trained).state_dict(), path)
    with pytest.raises(
        ValueError, match=f"has {trained} channels, which .* in_chans={n_channels}"
    ):
        timm_features(n_channels, weights=path).fit(bands(n_channels))


def test_grey_images_through_one_trained_channel(shared):
    weights = shared / "weights" / "mobilenetv2_100_imagenet.safetensors"
    grey = bands(1)
    results = []
    for n_channels in (1, 3):
        features = PatchFeatures(
            "mobilenetv2_100",
            "auto",
            weights=weights,
            backbone_kwargs={"pad_type": "same", "in_chans": n_channels},
            image_size=64,
            mean=[0.45],
            std=[0.225],
        )
        results.append(features.fit_transform(np.repeat(grey, n_channels, axis=3)))
    assert np.ptp(results[0]) > 0.1
    np.testing.assert_allclose(*results, atol=1e-5 * np.abs(results[1]).max())


def test_cache_tells_channels_apart(tmp_path):
    # A grey image has one content; what is kept depends on the network too.
    X = bands(1)
    one = timm_features(1, cache_dir=tmp_path)
    three = timm_features(3, cache_dir=tmp_path)
    expected = one.fit_transform(X), three.fit_transform(X)
    assert len(list(tmp_path.glob("*/*.npy"))) == 6
    np.testing.assert_array_equal(one.transform(X), expected[0])
    np.testing.assert_array_equal(three.transform(X), expected[1])


def test_cache_keeps_the_fourth_channel(tmp_path):
    values = bands(4)
    X = [Image.fromarray(image) for image in values]
    opaque = [image.copy() for image in X]
    for image in opaque:
        image.putalpha(255)
    features = timm_features(4, cache_dir=tmp_path)
    result = features.fit_transform(X)
    np.testing.assert_array_equal(result, timm_features(4).fit_transform(values))
    assert np.abs(features.transform(opaque) - result).max() > 1e-3


# -- cache ---------------------------------------------------------------------


def test_cache_extracts_each_image_once(tiny_network, images, tmp_path, monkeypatch):
    extracted = []
    extract = PatchFeatures._features_of

    def counting(self, backbone, batch):
        extracted.append(len(batch))
        return extract(self, backbone, batch)

    monkeypatch.setattr(PatchFeatures, "_features_of", counting)
    features = PatchFeatures(tiny_network, **TINY, cache_dir=tmp_path)
    first = features.fit_transform(images[:3])
    np.testing.assert_array_equal(features.transform(images)[:3], first)
    assert sum(extracted) == 5
    again = clone(features).fit(images).transform(images[::-1])
    np.testing.assert_array_equal(again[::-1][:3], first)
    assert sum(extracted) == 5
    assert len(list(tmp_path.glob("*/*.npy"))) == 5


def test_cache_tells_settings_and_weights_apart(tiny_network, images, tmp_path):
    features = PatchFeatures(tiny_network, **TINY, cache_dir=tmp_path).fit(images)
    plain = features.transform(images)
    wider = clone(features).set_params(patch_size=5).fit_transform(images)
    assert np.abs(wider - plain).max() > 1e-3
    changed = copy.deepcopy(tiny_network)
    changed.early.weight.data *= 2
    other = PatchFeatures(changed, **TINY, cache_dir=tmp_path).fit_transform(images)
    assert np.abs(other - plain).max() > 1e-3


def test_cache_survives_a_file_cut_short(tiny_network, images, tmp_path):
    features = PatchFeatures(tiny_network, **TINY, cache_dir=tmp_path)
    expected = features.fit_transform(images)
    for path in tmp_path.glob("*/*.npy"):
        path.write_bytes(path.read_bytes()[:200])
    np.testing.assert_array_equal(features.transform(images), expected)
    np.testing.assert_array_equal(features.transform(images), expected)


# -- errors --------------------------------------------------------------------


@pytest.fixture
def files(images, tmp_path):
    paths = [tmp_path / f"{i}.png" for i in range(5)]
    for path, image in zip(paths, images, strict=True):
        Image.fromarray(image).save(path)
    paths[3].write_bytes(paths[3].read_bytes()[:100])
    return paths


@pytest.mark.parametrize("n_jobs", [1, 4])
def test_one_bad_file_is_named_with_its_position(features, files, n_jobs):
    features.set_params(n_jobs=n_jobs).fit(files)
    with pytest.raises(ImageError, match=r"X\[3\].*3\.png"):
        features.transform(files)


@pytest.mark.parametrize("cached", [False, True])
def test_skipped_files_are_listed(features, files, images, tmp_path, cached):
    features.set_params(on_error="skip", cache_dir=tmp_path / "c" if cached else None)
    with pytest.warns(SkippedImageWarning, match=r"1 of 5 images.*X\[3\].*3\.png"):
        result = features.fit_transform(files)
    assert [i for i, _ in features.skipped_] == [3]
    assert "3.png" in features.skipped_[0][1]
    assert np.isnan(result[3]).all()
    kept = [0, 1, 2, 4]
    np.testing.assert_array_equal(result[kept], features.transform(images[kept]))
    with pytest.warns(SkippedImageWarning):
        features.transform(files)


def test_a_missing_file_is_skipped_from_the_cache_too(features, files, tmp_path):
    features.set_params(on_error="skip", cache_dir=tmp_path / "cache")
    files[0].unlink()
    with pytest.warns(SkippedImageWarning, match="2 of 5"):
        result = features.fit_transform(files)
    assert np.isnan(result[[0, 3]]).all()


def test_nothing_but_bad_files_is_an_error(features, files):
    features.set_params(on_error="skip").fit(files)
    with pytest.raises(ImageError, match="none of the 1 images"):
        features.fit_transform(files[3:4])
    with pytest.warns(SkippedImageWarning, match="1 of 1 images"):
        assert np.isnan(features.transform(files[3:4])).all()


@pytest.mark.parametrize(
    ("parameters", "error", "message"),
    [
        ({"backbone": "no_such_model"}, ValueError, "is not a model of timm"),
        ({"backbone": "resnet18", "weights": "no.pth"}, FileNotFoundError, "no.pth"),
        ({"layers": ("early", "nope")}, ValueError, "no module 'nope'. Choose from"),
        ({"layers": ()}, ValueError, "layers"),
        ({"image_size": 0}, ValueError, "image_size"),
        ({"image_size": (3, 4, 5)}, ValueError, "image_size"),
        ({"crop_size": 64}, ValueError, "exceeds image_size"),
        ({"patch_size": 2}, ValueError, "patch_size=2 is even"),
        ({"patch_stride": 0}, ValueError, "patch_stride"),
        (
            {"patch_stride": 2, "embedding": "replicate"},
            ValueError,
            "patch_stride=2.*takes no neighbourhoods",
        ),
        ({"embedding": "pca"}, ValueError, "embedding"),
        ({"embedding": "mean"}, ValueError, "have 6, 10 channels"),
        ({"reduction": "svd"}, ValueError, "reduction"),
        ({"n_components": 5000}, ValueError, "n_components=5000 exceeds"),
        ({"precision": "int8"}, ValueError, "precision"),
        ({"on_error": "ignore"}, ValueError, "on_error"),
        ({"batch_size": 0}, ValueError, "batch_size"),
        ({"weights": "some.pth"}, ValueError, "backbone given by name"),
        ({"weights": True}, ValueError, "weights=True is ambiguous"),
        ({"device": "banana"}, ValueError, "device='banana' cannot be used"),
    ],
)
def test_bad_parameters_are_named(features, images, parameters, error, message):
    if "backbone" in parameters:
        parameters = {"weights": False, "layers": "auto", **parameters}
    with pytest.raises(error, match=message):
        features.set_params(**parameters).fit(images)


def test_a_weights_file_that_is_gone_is_named(images, tmp_path):
    import timm
    import torch

    path = tmp_path / "weights.pth"
    torch.save(timm.create_model("resnet10t", pretrained=False).state_dict(), path)
    features = PatchFeatures("resnet10t", "auto", weights=path, image_size=32)
    expected = features.fit_transform(images)
    loaded = pickle.loads(pickle.dumps(features))
    np.testing.assert_array_equal(loaded.transform(images), expected)
    path.unlink()
    np.testing.assert_array_equal(loaded.transform(images), expected)
    with pytest.raises(FileNotFoundError, match=r"weights=.*weights\.pth"):
        loaded.fit(images)


def test_weights_of_another_network_are_refused(images, tmp_path):
    import torch

    torch.save({"a": torch.zeros(2)}, tmp_path / "weights.pth")
    for name in ("broken.pth", "broken.safetensors"):
        (tmp_path / name).write_bytes(b"not a checkpoint")
    for name in ("weights.pth", "broken.pth", "broken.safetensors"):
        features = PatchFeatures("resnet18", weights=tmp_path / name)
        with pytest.raises(ValueError, match=rf"could not be built with.*{name}"):
            features.fit(images)


@pytest.mark.parametrize("offline", [True, False])
def test_without_network_it_fails_at_once_and_says_what_to_do(
    images, monkeypatch, tmp_path, offline
):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
    # A port of this machine where nobody listens stands for a lost connection.
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.monotonic()
    with pytest.raises(OSError, match="cannot be downloaded") as caught:
        PatchFeatures("wide_resnet50_2").fit(images)
    assert time.monotonic() - start < 20
    for advice in ("weights=", "skad_small", str(tmp_path)):
        assert advice in str(caught.value)


def test_transform_before_fit(images):
    from sklearn.exceptions import NotFittedError

    with pytest.raises(NotFittedError):
        PatchFeatures().transform(images)


def test_progress_is_shown_on_request(features, images, capsys):
    features.fit_transform(images)
    assert capsys.readouterr().err == ""
    features.set_params(verbose=True).fit_transform(images)
    assert re.search(r"features: 100%.* 5/5 ", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("size", "n"), [(64, 4), (256, 4), ((256, 512), 2), (518, 1), (1024, 1)]
)
def test_large_images_are_taken_one_at_a_time_on_a_cpu(size, n):
    features = PatchFeatures("resnet10t", weights=False, image_size=size, device="cpu")
    assert features._images_at_once() == n

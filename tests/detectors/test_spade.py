import pickle

import numpy as np
import pytest
from sklearn.utils import _safe_indexing

from skad import SPADEDetector
from skad._maps import render
from skad.features import PatchArray


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


@pytest.fixture(scope="module")
def g(golden):
    return golden("spade")


def level_of(g, name, dtype=np.float64):
    """Features of one level with the pooled descriptor, training and test images."""
    patches = g[name].transpose(0, 2, 3, 1).astype(dtype)
    X = PatchArray(patches, g["avgpool"].astype(dtype))
    n = int(g["n_train"])
    return X[:n], X[n:]


def fitted(X, g, **parameters):
    return SPADEDetector(int(g["top_k"]), contamination=0.2, **parameters).fit(X)


def test_golden_nearest_images(g):
    train, test = level_of(g, "layer1")
    detector = fitted(train, g)
    distances, neighbors = detector._nearest_images(test)  # needs no levels
    np.testing.assert_array_equal(neighbors, g["topk_index"])
    np.testing.assert_allclose(distances, g["image_score_paper_squared"], rtol=1e-9)
    np.testing.assert_allclose(-detector.score_samples(test), distances)
    plain = -fitted(train, g, squared=False).score_samples(test)
    np.testing.assert_allclose(plain, g["image_score_reference"], rtol=0, atol=3e-6)


def raw(detector, X):
    """Maps in float64, as scores are before they become a map."""
    return detector._score(detector._check_features(X, reset=False)[0])[1]


@pytest.mark.parametrize("name", ["layer1", "layer2", "layer3"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_golden_levels(g, name, dtype):
    train, test = level_of(g, name, dtype)
    maps = raw(fitted(train, g), test)
    tolerance = 3e-6 if dtype == np.float32 else 1e-9
    np.testing.assert_allclose(maps, g[f"raw_{name}_full"], rtol=0, atol=tolerance)


def test_golden_map(g):
    size = (int(g["image_size"]),) * 2
    maps = []
    for name in ("layer1", "layer2", "layer3"):
        train, test = level_of(g, name)
        maps.append(fitted(train, g).anomaly_map(test, size))
    mean = np.mean(maps, axis=0)
    np.testing.assert_allclose(
        mean[:, ::4, ::4], g["map_full_gallery_stride4"], rtol=0, atol=1e-5
    )
    np.testing.assert_allclose(
        mean[2], g["map_full_gallery_full_test2"], rtol=0, atol=1e-5
    )


def test_golden_joint_levels(g):
    import torch
    from torch.nn.functional import interpolate

    levels = [torch.from_numpy(g[f"layer{i}"].astype(np.float64)) for i in (1, 2, 3)]
    stacked = torch.cat(
        [interpolate(x, (12, 12), mode="bilinear") for x in levels], dim=1
    )
    X = PatchArray(stacked.permute(0, 2, 3, 1).numpy(), g["avgpool"].astype(float))
    n = int(g["n_train"])
    detector = fitted(X[:n], g, levels="joint", squared_patches=True)
    np.testing.assert_allclose(
        raw(detector, X[n:]), g["paper_raw_concat_sq_k1"], rtol=1e-9
    )
    size = (int(g["image_size"]),) * 2
    np.testing.assert_allclose(
        detector.anomaly_map(X[n:], size)[:, ::4, ::4],
        g["paper_map_stride4"],
        rtol=1e-6,
        atol=1e-5,
    )


def replicated(g):
    """The three levels side by side on the finest grid, as PatchFeatures does."""
    import torch

    from skad.networks._embedding import replicate

    levels = [torch.from_numpy(g[f"layer{i}"].astype(np.float64)) for i in (1, 2, 3)]
    grid = replicate(levels, (12, 12)).permute(0, 2, 3, 1).numpy()
    own = tuple((level.shape[1], tuple(level.shape[2:])) for level in levels)
    return PatchArray(grid, g["avgpool"].astype(float), own)


def test_levels_are_searched_on_their_own_grids(g):
    X, n = replicated(g), int(g["n_train"])
    detector = fitted(X[:n], g)
    assert [gallery.shape for gallery in detector.galleries_] == [
        (n, 12, 12, 6),
        (n, 8, 8, 8),
        (n, 5, 5, 10),
    ]
    expected = np.mean(
        [render(g[f"raw_layer{i}_full"], (12, 12), sigma=0) for i in (1, 2, 3)], axis=0
    )
    np.testing.assert_allclose(detector.anomaly_map(X[n:]), expected, rtol=1e-5)


def test_levels_by_number_of_channels(g):
    plain, n = np.asarray(replicated(g)), int(g["n_train"])
    every = {"image_score": "max", "n_neighbors_image": n}
    detector = fitted(plain[:n], g, levels=(6, 8, 10)).set_params(**every)
    each = [
        raw(fitted(part[:n], g).set_params(**every), part[n:])
        for part in np.split(plain, [6, 14], axis=3)
    ]
    np.testing.assert_allclose(raw(detector, plain[n:]), np.mean(each, axis=0))
    assert [gallery.shape[3] for gallery in detector.galleries_] == [6, 8, 10]
    with pytest.raises(ValueError, match=r"levels=.*add up to the 24 channels"):
        fitted(plain, g, levels=(6, 8))


def test_features_without_descriptor_use_the_mean_patch(g):
    X = np.random.default_rng(0).normal(size=(30, 3, 3, 5))
    described = PatchArray(X, X.mean(axis=(1, 2)))
    np.testing.assert_allclose(
        SPADEDetector(5).fit(X).score_samples(X),
        SPADEDetector(5).fit(described).score_samples(described),
    )


def test_descriptors_of_another_kind_are_refused():
    X = np.random.default_rng(0).normal(size=(30, 3, 3, 5))
    detector = SPADEDetector(5).fit(PatchArray(X, np.ones((30, 7))))
    with pytest.raises(ValueError, match="5 entries, but had 7"):
        detector.predict(X)
    bad = PatchArray(X, np.full((30, 7), np.nan))
    with pytest.raises(ValueError, match="descriptors of X contain NaN"):
        detector.predict(bad)


def test_held_out_scores_equal_models_without_the_image():
    X = np.random.default_rng(0).normal(size=(12, 3, 3, 5))
    for parameters in ({}, {"image_score": "max"}, {"position_radius": 1}):
        detector = SPADEDetector(4, contamination=0.3, **parameters).fit(X)
        for i in (0, 5, 11):
            rest = np.delete(X, i, axis=0)
            without = SPADEDetector(4, **parameters, calibration="train").fit(rest)
            np.testing.assert_allclose(
                detector.calibration_scores_[i],
                without.score_samples(X[[i]])[0],
                rtol=1e-9,
            )
            np.testing.assert_allclose(
                detector.calibration_maps_[i], without.anomaly_map(X[[i]])[0]
            )


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("radius", [0, 1, 2, 9])
def test_position_window(metric, k, radius):
    rng = np.random.default_rng(0)
    X, new = rng.normal(size=(8, 4, 5, 6)), rng.normal(size=(2, 4, 5, 6))
    detector = SPADEDetector(
        8, k, metric=metric, position_radius=radius, contamination=0.3
    ).fit(X)
    maps = detector.anomaly_map(new)
    if metric == "cosine":
        X, new = unit(X), unit(new)
    for i, j in np.ndindex(4, 5):
        rows = slice(max(0, i - radius), i + radius + 1)
        columns = slice(max(0, j - radius), j + radius + 1)
        gaps = X[:, rows, columns].reshape(-1, 6) - new[:, None, i, j]
        squared = np.sort((gaps**2).sum(-1))[:, :k]
        expected = squared / 2 if metric == "cosine" else np.sqrt(squared)
        np.testing.assert_allclose(maps[:, i, j], expected.mean(1), rtol=1e-5)


def test_gate_leaves_normal_images_blank():
    rng = np.random.default_rng(0)
    X, new = rng.normal(size=(60, 3, 3, 5)), rng.normal(size=(20, 3, 3, 5))
    new[:5] += 3
    gated = SPADEDetector(10, gate=True).fit(X)
    maps, labels = gated.anomaly_map(new), gated.predict(new)
    assert (labels[:5] == -1).all()
    assert (maps[labels == 1] == 0).all()
    assert not gated.predict_mask(new)[labels == 1].any()
    plain = SPADEDetector(10).fit(X)
    np.testing.assert_array_equal(
        maps[labels == -1], plain.anomaly_map(new)[labels == -1]
    )
    assert gated.offset_ == plain.offset_
    assert gated.pixel_threshold() == plain.pixel_threshold()


def test_more_neighbors_than_images_are_clamped_with_a_warning():
    X = np.random.default_rng(0).normal(size=(30, 2, 2, 3))
    with pytest.warns(UserWarning, match="n_neighbors_image=50 exceeds the 30"):
        detector = SPADEDetector().fit(X)
    np.testing.assert_allclose(
        detector.score_samples(X), SPADEDetector(30).fit(X).score_samples(X)
    )


def test_one_training_image_warns_and_works():
    X = np.random.default_rng(0).normal(size=(3, 2, 2, 3))
    with pytest.warns(UserWarning, match="one training image leaves none to hold out"):
        detector = SPADEDetector(1).fit(X[:1])
    assert detector.score_samples(X)[0] == 0
    np.testing.assert_array_equal(detector.predict(X), [1, -1, -1])


def test_a_patch_array_carries_descriptors_through_selections():
    X = PatchArray(
        np.zeros((6, 2, 2, 3)), np.arange(12.0).reshape(6, 2), ((3, (2, 2)),)
    )
    for key in (
        slice(1, 4),
        [0, 5],
        np.arange(6) % 2 == 0,
        (slice(2), ..., slice(None)),
    ):
        part = X[key]
        first = key[0] if isinstance(key, tuple) else key
        np.testing.assert_array_equal(part.pooled, X.pooled[first])
        assert part.levels == X.levels
    np.testing.assert_array_equal(_safe_indexing(X, [1, 2]).pooled, X.pooled[1:3])
    for other in (X[0], X[..., 0], X[:, :1], X[..., ::-1], X.reshape(6, -1)):
        assert getattr(other, "pooled", None) is None
    loaded = pickle.loads(pickle.dumps(X))
    np.testing.assert_array_equal(loaded.pooled, X.pooled)
    assert type(X[..., 0]) is np.ndarray
    assert type(pickle.loads(pickle.dumps(X + 1))) is np.ndarray


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"n_neighbors_image": 0}, "n_neighbors_image"),
        ({"levels": "separate"}, "levels"),
        ({"metric": "manhattan"}, "metric"),
        ({"position_radius": -1}, "position_radius"),
        ({"image_score": "mean"}, "image_score"),
    ],
)
def test_bad_parameters_are_named(parameters, message):
    with pytest.raises(ValueError, match=message):
        SPADEDetector(**parameters).fit(np.zeros((4, 2, 2, 3)))

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone

from skad import DRAEMDetector
from skad.datasets import make_textures
from skad.detectors._draem import _sample
from skad.networks._unet import (
    discriminative,
    focal_loss,
    largest_mean,
    reconstructive,
    ssim,
)

pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings("ignore:.*cannot certify"),
]


# -- golden ----------------------------------------------------------------------


def test_golden_losses(golden):
    g = golden("synth")
    value = float(ssim(torch.from_numpy(g["ssim_a"]), torch.from_numpy(g["ssim_b"])))
    assert value == pytest.approx(float(g["ssim_value"]), abs=1e-5)
    assert 1 - value == pytest.approx(float(g["ssim_loss"]), abs=1e-5)
    logits, masks = (torch.from_numpy(g[f"focal_{k}"]) for k in ("logits", "mask"))
    found = float(focal_loss(logits.softmax(dim=1), masks[:, 0]))
    assert found == pytest.approx(float(g["focal_gamma2"]), abs=1e-6)


def test_golden_scores(golden):
    g = golden("synth")
    found = largest_mean(torch.from_numpy(g["score_map"][:, 0]))
    np.testing.assert_allclose(found, g["score_image"], atol=1e-6)


def test_networks():
    with torch.device("meta"):
        networks = reconstructive(), discriminative()
        # The published weights count 97.42 million.
        counts = [sum(p.numel() for p in n.parameters()) for n in networks]
        assert sum(counts) == pytest.approx(97.42e6, abs=5e3)
        for size in ((64, 64), (70, 101)):
            images = torch.zeros(2, 3, *size)
            assert networks[0](images).shape == (2, 3, *size)
            assert networks[1](torch.cat([images, images], 1)).shape == (2, 2, *size)


# -- behaviour -------------------------------------------------------------------


@pytest.fixture(scope="module")
def data():
    return make_textures(n_normal=30, n_anomalous=10, size=64, random_state=0)


def tiny(**options):
    defaults = {"max_epochs": 1, "image_size": 64, "learning_rate": 1e-3}
    return DRAEMDetector("tiny", **{**defaults, "train_batch_size": 4, **options})


@pytest.fixture(scope="module")
def fitted(data):
    return tiny(max_epochs=17, rotation=0).fit(data.train)


def test_losses_fall_and_maps_point_at_defects(data, fitted, with_noise):
    from skad.metrics import image_auroc, pixel_auroc

    losses = np.array(fitted.loss_curve_)
    assert len(losses) == 17 * 6  # 24 images, 4 at a time
    assert losses[-20:].mean() < 0.9 * losses[:10].mean()
    good = data.test[data.y_test == 1]
    noisy, masks = with_noise(good)
    scores = [fitted.score_samples(x) for x in (good, noisy)]
    y = np.repeat([1, -1], len(good))
    assert image_auroc(y, np.concatenate(scores)) > 0.9
    assert pixel_auroc(masks, fitted.anomaly_map(noisy)) > 0.95


def test_scores_maps_and_decisions(data, fitted):
    scores = fitted.score_samples(data.test)
    assert scores.dtype == np.float64
    decision = fitted.decision_function(data.test)
    np.testing.assert_allclose(decision, scores - fitted.offset_)
    assert set(fitted.predict(data.test)) <= {1, -1}
    maps = fitted.anomaly_map(data.test)
    assert maps.shape == (len(data.test), 64, 64)
    assert maps.dtype == np.float32
    assert 0 <= maps.min() < maps.max() <= 1
    # Maps are kept at a quarter of the resolution.
    assert fitted.calibration_maps_.shape[1:] == (16, 16)
    large = [np.asarray(data.test[0]).repeat(2, axis=0), data.test[1]]
    assert [m.shape for m in fitted.anomaly_map(large)] == [(128, 64), (64, 64)]
    one_by_one = [fitted.score_samples(data.test[i : i + 1])[0] for i in range(3)]
    np.testing.assert_allclose(one_by_one, scores[:3], rtol=1e-4)


def test_reconstructions(data, fitted, tmp_path):
    images = fitted.reconstruct(data.test)
    assert images.shape == (len(data.test), 64, 64, 3)
    assert images.dtype == np.float32
    assert 0 <= images.min() < images.max() <= 1
    (tmp_path / "bad.png").write_bytes(b"no image")
    skipping = clone(fitted).set_params(on_error="skip", max_epochs=1)
    skipping.fit(data.train[:8])
    with pytest.warns(UserWarning, match="bad.png"):
        some = skipping.reconstruct([data.test[0], tmp_path / "bad.png"])
    assert np.isfinite(some[0]).all()
    assert np.isnan(some[1]).all()
    # A hundred steps of training bring it nearer to the image than one did.
    test = data.test[0] / np.float32(255)
    assert np.abs(images[0] - test).mean() < 0.8 * np.abs(some[0] - test).mean()


@pytest.mark.parametrize(
    "options",
    [
        {"image_size": (80, 70)},
        {"image_size": 96, "crop_size": 64},
        {"train_batch_size": 1},
        {"sigma": 2.0},
        {"rotation": 180},
    ],
)
def test_options(data, options):
    detector = tiny(**options).fit(data.train[:10])
    maps = detector.anomaly_map(data.test[:2])
    assert maps.shape == (2, 64, 64)
    assert np.isfinite(maps).all()


def test_textures_from_images_and_folders(data, tmp_path):
    textures = data.test[:3]
    (tmp_path / "inner").mkdir()
    for i, image in enumerate(textures):
        Image.fromarray(np.asarray(image)).save(tmp_path / "inner" / f"{i}.png")
    curves = [
        tiny(texture_images=source).fit(data.train[:8]).loss_curve_
        for source in (textures, tmp_path, str(tmp_path), None)
    ]
    assert curves[0] == curves[1] == curves[2]
    assert curves[0] != curves[3]


def test_samples():
    """Half stay good, some are turned, and only what the mask marks is changed."""
    image = np.full((64, 64, 3), 0.5, np.float32)
    n_clean = n_turned = 0
    for seed in range(60):
        good, changed, mask = _sample(image, np.random.default_rng(seed), 90, None)
        assert good.dtype == changed.dtype == np.float32
        assert good.shape == changed.shape == image.shape
        assert 0 <= changed.min() <= changed.max() <= 1
        np.testing.assert_array_equal(good[~mask], changed[~mask])
        n_clean += not mask.any()
        n_turned += not np.array_equal(good, image)
    assert 20 <= n_clean <= 40
    assert 8 <= n_turned <= 30


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 60}, "image_size=60 leaves less than 64 pixels"),
        ({"texture_images": "none"}, "texture_images='none' is no folder"),
        ({"rotation": -1}, "rotation"),
        ({"model": "large"}, "model"),
    ],
)
def test_errors(data, options, message):
    with pytest.raises(ValueError, match=message):
        tiny().set_params(**options).fit(data.train[:4])

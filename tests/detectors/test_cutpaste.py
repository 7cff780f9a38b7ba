import numpy as np
import pytest
import timm
import torch
from sklearn.covariance import LedoitWolf

from skad import CutPasteDetector
from skad.datasets import make_textures
from skad.detectors._cutpaste import _distances, _gaussian, _shifted
from skad.metrics import image_auroc

pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings("ignore:.*cannot certify"),
]


@pytest.fixture(scope="module")
def data():
    return make_textures(n_normal=30, n_anomalous=10, size=64, random_state=0)


def tiny(**options):
    defaults = {"backbone": "resnet10t", "max_steps": 2, "image_size": 64}
    return CutPasteDetector(**{**defaults, "train_batch_size": 4, **options})


@pytest.fixture(scope="module")
def fitted(data):
    return tiny(variant="scar", max_steps=60, train_batch_size=8).fit(data.train)


def test_losses_fall_and_scores_separate(data, fitted, with_noise):
    losses = np.array(fitted.loss_curve_)
    assert len(losses) == 60
    assert losses[-20:].mean() < 0.7 * losses[:10].mean()
    good = data.test[data.y_test == 1]
    scores = [fitted.score_samples(x) for x in (good, with_noise(good)[0])]
    y = np.repeat([1, -1], len(good))
    assert image_auroc(y, np.concatenate(scores)) > 0.9


def test_scores_maps_and_decisions(data, fitted):
    scores = fitted.score_samples(data.test)
    assert scores.dtype == np.float64
    decision = fitted.decision_function(data.test)
    np.testing.assert_allclose(decision, scores - fitted.offset_)
    assert set(fitted.predict(data.test)) <= {1, -1}
    maps = fitted.anomaly_map(data.test)
    assert maps.shape == (len(data.test), 64, 64)
    assert maps.dtype == np.float32
    assert maps.min() >= 0
    large = [np.asarray(data.test[0]).repeat(2, axis=0), data.test[1]]
    assert [m.shape for m in fitted.anomaly_map(large)] == [(128, 64), (64, 64)]
    one_by_one = [fitted.score_samples(data.test[i : i + 1])[0] for i in range(3)]
    np.testing.assert_allclose(one_by_one, scores[:3], rtol=1e-4)


def test_scores_are_distances_from_the_training_images(data):
    detector = tiny(calibration="train").fit(data.train[:12])
    pooled = detector._feature_maps(np.stack(data.train[:12]) / np.float32(255))
    pooled = pooled.mean(axis=(1, 2))
    expected = LedoitWolf().fit(pooled).mahalanobis(pooled) ** 0.5
    found = detector.score_samples(data.train[:12])
    np.testing.assert_allclose(-found, expected, rtol=1e-4)


def test_gaussians():
    rng = np.random.default_rng(0)
    rows, new = rng.normal(size=(30, 4)), rng.normal(size=(2, 3, 4))
    location, precision = _gaussian(rows)
    found = _distances(new, location, precision)
    assert found.shape == (2, 3)
    centred = new[1, 2] - location
    assert found[1, 2] == pytest.approx(np.sqrt(centred @ precision @ centred))
    # Of equal rows there is no covariance.
    np.testing.assert_array_equal(_gaussian(rows[:1])[1], np.eye(4))


def test_map_gaussian_from_a_sample_of_positions(data, monkeypatch):
    from skad.detectors import _cutpaste

    everything = tiny().fit(data.train[:10])
    monkeypatch.setattr(_cutpaste, "_SAMPLE_POSITIONS", 16)
    some = tiny().fit(data.train[:10])
    np.testing.assert_array_equal(some.location_, everything.location_)
    assert not np.array_equal(some.map_location_, everything.map_location_)


@pytest.mark.parametrize(
    "options",
    [
        {"variant": "patch"},
        {"image_size": (80, 70)},
        {"image_size": 96, "crop_size": 64},
        {"train_batch_size": 1},
        {"sigma": 2.0},
        {"backbone": "mobilenetv2_050"},
    ],
)
def test_options(data, options):
    detector = tiny(**options).fit(data.train[:10])
    maps = detector.anomaly_map(data.test[:2])
    assert maps.shape == (2, 64, 64)
    assert np.isfinite(maps).all()
    n_classes = 2 if options.get("variant") == "patch" else 3
    assert detector.state_["head.6.bias"].shape == (n_classes,)


def test_weights_from_a_file(data, tmp_path):
    model = timm.create_model("resnet10t", pretrained=False)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    options = {"max_steps": 1, "learning_rate": 1e-12}
    detector = tiny(weights=tmp_path / "weights.pth", **options).fit(data.train[:5])
    np.testing.assert_allclose(
        detector.state_["backbone.layer1.0.conv1.weight"],
        model.layer1[0].conv1.weight.detach().numpy(),
        atol=1e-6,
    )


def test_statistics_of_given_weights_are_kept(data, tmp_path):
    model = timm.create_model("resnet10t", pretrained=False)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    for weights, kept in ((tmp_path / "weights.pth", True), (False, False)):
        state = tiny(weights=weights).fit(data.train[:5]).state_
        means = np.concatenate(
            [
                v
                for k, v in state.items()
                if k.endswith("running_mean") and "head" not in k
            ]
        )
        assert (means == 0).all() == kept
        assert (state["head.1.running_mean"] != 0).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "resnet"}, "backbone='resnet' is not a model of timm"),
        ({"backbone": "vit_tiny_patch16_224"}, "choose a convolutional network"),
        ({"weights": True}, "weights=True is ambiguous"),
        ({"variant": "both"}, "variant"),
    ],
)
def test_errors(data, options, message):
    if str(options.get("backbone")).startswith("vit"):
        options = {**options, "image_size": 224}
    with pytest.raises(ValueError, match=message):
        tiny(train_batch_size=2, **options).fit(data.train[:4])


def test_files_that_hold_no_weights(data, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth.*does not exist"):
        tiny(weights="none.pth").fit(data.train[:4])
    torch.save(torch.nn.Linear(3, 4).state_dict(), tmp_path / "linear.pth")
    with pytest.raises(ValueError, match="could not be built"):
        tiny(weights=tmp_path / "linear.pth").fit(data.train[:4])


def test_shifts_stay_in_the_image():
    image = np.arange(64 * 60 * 3, dtype=np.float32).reshape(64, 60, 3)
    shifted = [_shifted(image, np.random.default_rng(i)) for i in range(20)]
    assert all(s.shape == image.shape for s in shifted)
    assert len({s.tobytes() for s in shifted}) > 10
    assert {float(v) for s in shifted for v in s[::7, ::7].ravel()} <= set(
        image.ravel().tolist()
    )

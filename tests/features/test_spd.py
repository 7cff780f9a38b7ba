import pickle

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from skad import PatchCoreDetector, PatchFeatures, Pipeline, SPDPatchFeatures
from skad.datasets import make_textures
from skad.features import SkippedImageWarning
from skad.features._spd import spd_views
from skad.images import ImageError
from skad.metrics import image_auroc_scorer
from skad.model_selection import OneClassSplit
from skad.networks._spd import (
    moco_loss,
    simclr_loss,
    simsiam_loss,
    spd_loss,
    spd_per_sample,
)
from skad.synthesis import smooth_blend, strong_view, weak_view

pytestmark = pytest.mark.usefixtures("one_torch_thread")

BASES = ["simsiam", "simclr", "moco", "supervised"]


@pytest.fixture(scope="module")
def data():
    return make_textures(n_normal=30, n_anomalous=10, size=64, random_state=0)


def tiny(**options):
    defaults = {"backbone": "resnet10t", "layers": "auto", "weights": False}
    defaults |= {"max_steps": 2, "train_batch_size": 4, "image_size": 64}
    defaults |= {"learning_rate": 0.01}
    return SPDPatchFeatures(**{**defaults, "embedding": "concat", **options})


def plain(**options):
    defaults = {"backbone": "resnet10t", "layers": "auto", "weights": False}
    return PatchFeatures(
        **{**defaults, "image_size": 64, "embedding": "concat", **options}
    )


def assert_same_state(first, second):
    assert first.state_.keys() == second.state_.keys()
    for name, values in first.state_.items():
        np.testing.assert_array_equal(second.state_[name], values)


# -- losses ------------------------------------------------------------------------


def test_golden(golden):
    g = golden("spd")
    z = [torch.from_numpy(g[name]) for name in ("z", "z_pos", "z_neg")]
    np.testing.assert_allclose(spd_per_sample(*z), g["spd_per_sample"], atol=1e-12)
    assert float(spd_loss(*z)) == pytest.approx(float(g["spd_loss"]), abs=1e-12)


def test_spd_loss_of_zeros_is_zero():
    zero = torch.zeros(2, 5)
    assert float(spd_loss(zero, zero, zero)) == 0


def test_simsiam_holds_the_embeddings_fixed():
    z1, z2, p1, p2 = (torch.randn(4, 6, requires_grad=True) for _ in range(4))
    simsiam_loss(p1, p2, z1, z2).backward()
    assert z1.grad is None
    assert z2.grad is None
    assert float(p1.grad.abs().max()) > 0
    equal = simsiam_loss(z1, z2, z2, z1).detach()
    assert float(equal) == pytest.approx(-1, abs=1e-6)


def test_contrastive_losses_by_hand():
    rng = np.random.default_rng(0)
    a, b, queue = (rng.normal(size=(n, 6)) for n in (4, 4, 8))
    queue /= np.linalg.norm(queue, axis=1, keepdims=True)
    ua, ub = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    z = np.concatenate([ua, ub])
    expected = []
    for i in range(8):
        e = np.exp(z @ z[i] / 0.5)
        expected.append(-np.log(e[(i + 4) % 8] / (e.sum() - e[i])))
    a, b, queue_ = (torch.from_numpy(x) for x in (a, b, queue))
    assert float(simclr_loss(a, b, 0.5)) == pytest.approx(np.mean(expected))

    same = rng.random((4, 8)) < 0.3
    expected = []
    for i in range(4):
        positive = np.exp(ua[i] @ ub[i] / 0.5)
        others = np.exp(queue[~same[i]] @ ua[i] / 0.5)
        expected.append(-np.log(positive / (positive + others.sum())))
    found = moco_loss(a, b, queue_, torch.from_numpy(same), 0.5)
    assert float(found) == pytest.approx(np.mean(expected))


# -- views -------------------------------------------------------------------------


@pytest.mark.parametrize("view", [weak_view, strong_view])
@pytest.mark.parametrize("shape", [(40, 56, 3), (33, 20, 1), (24, 24, 5), (1, 1, 3)])
def test_views_are_images_that_a_generator_determines(view, shape):
    image = np.random.default_rng(0).random(shape).astype(np.float32)
    before = image.copy()
    views = [view(image, np.random.default_rng(seed)) for seed in range(20)]
    for seed, found in enumerate(views):
        assert found.shape == shape
        assert found.dtype == np.float32
        assert 0 <= found.min() <= found.max() <= 1
        np.testing.assert_array_equal(found, view(image, np.random.default_rng(seed)))
    np.testing.assert_array_equal(image, before)
    assert len({found.tobytes() for found in views}) == 20


def test_strong_views_are_further_from_the_image(data):
    image = data.train[0] / np.float32(255)
    weak, strong = (
        np.mean([np.abs(v(image, np.random.default_rng(s)) - image) for s in range(30)])
        for v in (weak_view, strong_view)
    )
    assert strong > 1.1 * weak > 0


def test_the_negative_is_a_weak_view_with_a_blended_part(data):
    image = data.train[0] / np.float32(255)
    anchor, positive, negative = spd_views(image, np.random.default_rng(3))
    rng = np.random.default_rng(3)
    np.testing.assert_array_equal(anchor, image)
    np.testing.assert_array_equal(positive, weak_view(image, rng))
    view = weak_view(image, rng)
    np.testing.assert_array_equal(negative, smooth_blend(view, rng)[0])
    changed = np.abs(negative - view).max(axis=2) > 0.05
    assert 0 < changed.mean() < 0.3


# -- training ----------------------------------------------------------------------


@pytest.mark.parametrize("base", BASES)
def test_every_base_trains_the_network(data, base):
    features = tiny(base=base).fit(data.train)
    start = plain().fit(data.train)
    assert len(features.loss_curve_) == 2
    assert np.isfinite(features.loss_curve_).all()
    assert features.weights_sha256_ != start.weights_sha256_
    found, before = (f.transform(data.test) for f in (features, start))
    assert found.shape == before.shape
    # Features of equal weights agree to 1e-6, however their layers are folded.
    assert np.abs(found - before).max() > 1e-4


def test_statistics_and_what_comes_later_stay(data):
    one, other = (tiny(random_state=0, max_steps=n).fit(data.train) for n in (1, 3))
    moved = {k for k, v in one.state_.items() if (other.state_[k] != v).any()}
    assert moved
    assert not any(k.startswith(("layer4", "fc")) for k in moved)
    assert not any("running" in k or "tracked" in k for k in moved)
    assert {k.split(".")[0] for k in moved} >= {"conv1", "layer1", "layer2", "layer3"}


@pytest.mark.parametrize("base", BASES)
def test_a_tiny_learning_rate_leaves_the_features(data, base):
    features = tiny(base=base, learning_rate=1e-12).fit(data.train)
    np.testing.assert_allclose(
        features.transform(data.test),
        plain().fit(data.train).transform(data.test),
        atol=1e-5,
    )


def separation(features, images):
    """Mean of cos(f, f-) - cos(f, f+) of the pooled last level."""
    n_last = features._own_levels[-1][0]
    rng = np.random.default_rng(9)
    views = [spd_views(image / np.float32(255), rng) for image in images]
    f = [
        torch.from_numpy(features.transform(list(v))[..., -n_last:].mean(axis=(1, 2)))
        for v in zip(*views, strict=True)
    ]
    return float(spd_loss(*f))


@pytest.mark.parametrize(
    "base",
    ["simsiam", *(pytest.param(b, marks=pytest.mark.slow) for b in ("simclr", "moco"))],
)
def test_training_moves_changed_images_away(data, base):
    options = {"max_steps": 30, "train_batch_size": 8, "spd_weight": 1.0}
    features = tiny(base=base, **options).fit(data.train)
    start = plain().fit(data.train)
    new = [image for image, y in zip(data.test, data.y_test, strict=True) if y == 1]
    new = [*new, *data.train]
    assert separation(features, new) < separation(start, new) - 2e-4
    losses = np.array(features.loss_curve_)
    if base != "moco":  # whose queue starts with random vectors, which are easily told
        assert losses[-10:].mean() < losses[:10].mean()


def test_spd_weight_counts(data):
    without, with_it = (tiny(spd_weight=w).fit(data.train) for w in (0.0, 1.0))
    assert without.loss_curve_ != with_it.loss_curve_
    assert without.weights_sha256_ != with_it.weights_sha256_
    # Of "supervised", nothing is left without it, as good images are one class.
    idle = tiny(base="supervised", spd_weight=0.0, weight_decay=0.0).fit(data.train)
    assert idle.loss_curve_ == [0.0, 0.0]
    assert (
        idle.weights_sha256_
        == tiny(base="supervised", spd_weight=0.0, weight_decay=0.0, max_steps=1)
        .fit(data.train)
        .weights_sha256_
    )


def test_same_seed_same_bits_with_any_number_of_threads(data):
    first, second = (tiny(random_state=3, n_jobs=n).fit(data.train) for n in (1, 3))
    assert_same_state(first, second)
    assert first.loss_curve_ == second.loss_curve_
    assert tiny(random_state=4).fit(data.train).loss_curve_ != first.loss_curve_


@pytest.mark.usefixtures("numpy_state_untouched")
def test_global_generators_are_left_alone(data):
    before = torch.random.get_rng_state()
    tiny(base="moco").fit(data.train).transform(data.test[:2])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_defective_images_are_left_out(data):
    X = [*data.train[:8], *data.test]
    y = np.r_[np.ones(8, int), -np.ones(len(data.test), int)]
    assert_same_state(tiny().fit(X, y), tiny().fit(data.train[:8]))


def test_own_network_is_left_as_it_is(tiny_network, images):
    before = {k: v.clone() for k, v in tiny_network.state_dict().items()}
    options = {"layers": ("early", "late"), "image_size": 32, "weights": None}
    features = tiny(backbone=tiny_network, **options).fit(images)
    for name, value in tiny_network.state_dict().items():
        assert torch.equal(value, before[name])
    assert tiny_network.training
    assert (features.state_["late.weight"] != before["late.weight"].numpy()).any()
    expected = features.transform(images)
    loaded = pickle.loads(pickle.dumps(features))
    np.testing.assert_array_equal(loaded.transform(images), expected)
    assert not hasattr(clone(features), "state_")


def test_images_of_other_channels():
    X = np.random.default_rng(0).integers(0, 256, (6, 40, 40, 5), dtype=np.uint8)
    features = tiny(backbone_kwargs={"in_chans": 5}, image_size=32)
    assert np.isfinite(features.fit_transform(X)).all()


# -- what a fitted transformer does ---------------------------------------------------

TRANSFORMED = """
import sys
import joblib
import numpy as np
import torch
torch.set_num_threads(1)
features = joblib.load(sys.argv[1])
np.save(sys.argv[2], features.transform(np.load(sys.argv[3])))
"""


def test_a_loaded_estimator_gives_the_same_bits_in_a_new_process(
    data, tmp_path, new_process
):
    features = tiny().fit(data.train)
    expected = features.transform(data.test)
    joblib.dump(features, tmp_path / "features.joblib")
    np.save(tmp_path / "X.npy", np.stack(data.test))
    names = [str(tmp_path / n) for n in ("features.joblib", "found.npy", "X.npy")]
    new_process(*names, code=TRANSFORMED)
    np.testing.assert_array_equal(np.load(tmp_path / "found.npy"), expected)
    loaded = joblib.load(tmp_path / "features.joblib", mmap_mode="r")
    np.testing.assert_array_equal(loaded.transform(data.test), expected)
    assert b"torch" not in pickle.dumps(features)
    assert clone(features).get_params() == features.get_params()


def test_fit_transform_is_fit_then_transform(data):
    both = tiny().fit_transform(data.train)
    np.testing.assert_array_equal(tiny().fit(data.train).transform(data.train), both)


def test_a_second_fit_starts_anew(data):
    features = tiny().fit(data.train[:10])
    assert_same_state(features.fit(data.train), tiny().fit(data.train))


def test_cached_features_belong_to_their_weights(data, tmp_path):
    options = {"cache_dir": tmp_path}
    first = tiny(**options).fit(data.train)
    expected = first.transform(data.test)
    n_files = len(list(tmp_path.rglob("*.npy")))
    # Other settings of training that end with the same weights share the cache.
    first.set_params(max_steps=7, checkpoint_dir=tmp_path / "other")
    np.testing.assert_array_equal(first.transform(data.test), expected)
    assert len(list(tmp_path.rglob("*.npy"))) == n_files
    second = tiny(max_steps=3, **options).fit(data.train)
    assert np.abs(second.transform(data.test) - expected).max() > 0
    assert len(list(tmp_path.rglob("*.npy"))) == 2 * n_files


def test_normalizations_are_folded_for_speed(data):
    from torch.nn import BatchNorm2d

    features = tiny().fit(data.train)
    module = features._backbone().module
    assert not any(isinstance(part, BatchNorm2d) for part in module.modules())


def test_pipelines_and_grid_search(data):
    model = Pipeline([tiny(), PatchCoreDetector()]).fit(data.train)
    assert model.anomaly_map(data.test).shape[1:] == (64, 64)
    assert set(model.predict(data.test)) <= {1, -1}
    X = [*data.train, *data.test]
    y = np.r_[np.ones(len(data.train), int), data.y_test]
    search = GridSearchCV(
        model,
        {"spdpatchfeatures__spd_weight": [0.0, 0.5]},
        scoring=image_auroc_scorer,
        cv=OneClassSplit(2),
    ).fit(X, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_padim_learns_block_by_block(data):
    from skad import PaDiMDetector

    model = Pipeline([tiny(n_components=10), PaDiMDetector()]).fit(data.train)
    assert len(model[0].loss_curve_) == 2
    assert np.isfinite(model.score_samples(data.test)).all()


# -- interrupted -------------------------------------------------------------------


def test_interrupted_training_keeps_a_network(data, interrupt_training):
    features = tiny(max_steps=100_000)
    interrupt_training(after=3)
    with pytest.warns(UserWarning, match=r"after 3 of .* steps.*checkpoint_dir"):
        features.fit(data.train)
    assert 0 < len(features.loss_curve_) < 100_000
    assert np.isfinite(features.transform(data.test)).all()


@pytest.mark.parametrize("base", ["simsiam", "moco"])
def test_killed_training_resumes_to_the_same_bits(data, base, assert_survives_a_kill):
    assert_survives_a_kill(tiny(base=base, max_steps=6), data.train, after=3)


# -- bad input ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": "byol"}, "base"),
        ({"spd_weight": -1.0}, "spd_weight"),
        ({"max_steps": 0}, "max_steps"),
        ({"learning_rate": 0.0}, "learning_rate"),
        ({"train_batch_size": 0}, "train_batch_size"),
        ({"temperature": 0.0}, "temperature"),
        ({"projection_dim": 0}, "projection_dim"),
        ({"backbone": "resnet"}, "backbone='resnet' is not a model of timm"),
        ({"layers": ("absent",)}, "has no module 'absent'"),
        ({"base": "simclr", "train_batch_size": 1}, "tells images from each other"),
        ({"base": "moco", "train_batch_size": 1}, "tells images from each other"),
        ({"learning_rate": 1e30, "max_steps": 9}, "training diverged"),
    ],
)
def test_errors(data, options, message):
    with pytest.raises(ValueError, match=message):
        tiny(**options).fit(data.train[:4])


def test_no_good_image(data):
    with pytest.raises(ValueError, match="every label is -1"):
        tiny().fit(data.test[:2], [-1, -1])


@pytest.mark.parametrize("base", ["simsiam", "supervised"])
def test_one_image(data, base):
    features = tiny(base=base).fit(data.train[:1])
    assert np.isfinite(features.transform(data.test)).all()


def test_images_that_cannot_be_read(data):
    X = [*data.train[:6], "absent.png"]
    with pytest.raises(ImageError, match=r"X\[6\]"):
        tiny().fit(X)
    with pytest.warns(SkippedImageWarning, match="absent"):
        features = tiny(on_error="skip").fit(X)
    assert len(features.loss_curve_) == 2

import numpy as np
import pytest
import sklearn
import timm
import torch
from PIL import Image
from sklearn.model_selection import GridSearchCV

from skad import PRNDetector
from skad.datasets import load_mvtec, make_textures
from skad.detectors._prn_samples import Samples, composition, resized_mask
from skad.images import read_image, read_mask, resize_image, to_float
from skad.metrics import image_auroc, pixel_auroc
from skad.model_selection import OneClassSplit
from skad.networks._prn import (
    Attention,
    Fusion,
    ResidualNetwork,
    cluster_means,
    focal_loss,
    image_scores,
    nearest,
    segmentation_loss,
)
from skad.networks._prn_encoder import digest

pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings("ignore:.*cannot certify"),
]


def loaded(module, g, prefix):
    """The module with the weights of a golden file."""
    state = {
        name.removeprefix(prefix): torch.from_numpy(np.asarray(value))
        for name, value in g.items()
        if name.startswith(prefix)
    }
    module.load_state_dict(state)
    return module.eval()


# -- golden ----------------------------------------------------------------------


def test_golden_prototypes_and_fusion(golden):
    g = golden("prn_prototypes")
    features, residuals = [], []
    for i in (1, 2, 3):
        f = torch.from_numpy(g[f"features_layer{i}"])
        prototypes = torch.from_numpy(g[f"prototypes_layer{i}"])
        found = nearest(f, prototypes)
        np.testing.assert_array_equal(found, g[f"assignment_layer{i}"])
        residual = (f - prototypes[found]).square()
        np.testing.assert_allclose(
            residual, g[f"residual_layer{i}"], atol=1e-5, rtol=1e-6
        )
        np.testing.assert_allclose(
            torch.cat([f, residual], dim=1),
            g[f"concat_layer{i}"],
            atol=1e-5,
            rtol=1e-6,
        )
        features.append(f)
        residuals.append(residual)
    fuse = loaded(Fusion((4, 8, 16)), g, "msf.")
    with torch.no_grad():
        fused = fuse(features), fuse(residuals)
    for i in (1, 2, 3):
        np.testing.assert_allclose(
            fused[0][i - 1], g[f"msf_features_out{i}"], atol=5e-6
        )
        np.testing.assert_allclose(
            fused[1][i - 1], g[f"msf_residual_out{i}"], atol=5e-5, rtol=1e-5
        )


def test_golden_attention(golden):
    g = golden("prn_attention")
    layer = loaded(Attention(int(g["channels"]), (8, 8)), g, "msa.")
    x = torch.from_numpy(g["x"])
    with torch.no_grad():
        np.testing.assert_allclose(layer.attend(x), g["attention_concat"], atol=1e-5)
        np.testing.assert_allclose(layer(x), g["out_eval"], atol=2e-5)
        np.testing.assert_allclose(layer.train()(x), g["out_train"], atol=5e-5)


def test_golden_losses_and_scores(golden):
    g = golden("prn_loss")
    logits, mask = (torch.from_numpy(g[n]).double() for n in ("logits", "mask"))
    assert float(focal_loss(logits, mask)) == pytest.approx(
        float(g["focal_f64"]), abs=1e-12
    )
    total = float(g["smooth_l1_f64"]) + 5 * float(g["focal_f64"])
    assert float(segmentation_loss(logits, mask)) == pytest.approx(total, abs=1e-11)
    assert float(segmentation_loss(logits, mask)) == pytest.approx(
        float(g["total"]), abs=1e-6
    )
    maps = torch.sigmoid(torch.from_numpy(g["val_logits"]))
    np.testing.assert_allclose(image_scores(maps), g["image_score_top100"], atol=1e-6)
    few = maps[:, :, :5, :5]
    np.testing.assert_allclose(image_scores(few), few.mean(dim=(1, 2, 3)), atol=1e-6)


def test_golden_clusters(golden):
    g = golden("prn_loss")
    points = g["kmeans_X"].astype(np.float32)
    found = cluster_means(points.reshape(40, 16, 2, 2), 3, seed=0).reshape(3, 64)
    found = found[np.argsort(found[:, 0])]
    np.testing.assert_allclose(found, g["kmeans_centers_sorted"], atol=1e-5)


# -- networks --------------------------------------------------------------------


def test_equal_maps_make_one_cluster():
    image = np.random.default_rng(0).normal(size=(1, 3, 4, 4)).astype(np.float32)
    for n in (1, 5):
        found = cluster_means(image.repeat(n, axis=0), min(n, 3), seed=0)
        np.testing.assert_allclose(found, image, rtol=1e-6)


@pytest.mark.parametrize("grid", [(4, 4), (8, 16), (10, 6), (5, 3)])
@pytest.mark.parametrize("per_element", [True, False])
def test_attention_takes_any_grid(grid, per_element):
    layer = Attention(4, grid, per_element=per_element).eval()
    x = torch.randn(2, 4, *grid, generator=torch.Generator().manual_seed(0))
    assert layer(x).shape == x.shape
    # One patch attends to itself alone: its values are what comes out.
    v = layer.get_submodule("v_proj1")
    np.testing.assert_allclose(
        layer.attend(x)[:, :4].detach().numpy(),
        v(x.reshape(2, 1, -1)).reshape(x.shape).detach().numpy(),
        rtol=1e-6,
    )


def test_what_depends_on_the_image_size():
    def counts(per_element, side):
        with torch.device("meta"):
            network = ResidualNetwork(
                [64, 128, 256, 512],
                [(side // s, side // s) for s in (4, 8, 16, 32)],
                n_attentions=3,
                per_element=per_element,
            )
        parts = network.named_parameters()
        sizes = {name: p.numel() for name, p in parts}
        return [
            sum(n for name, n in sizes.items() if word in name)
            for word in ("", "attentions", "_proj")
        ]

    whole, attentions, projections = counts(True, 256)
    # The numbers that the documentation names.
    assert whole == pytest.approx(77.5e6, rel=1e-3)
    assert attentions == pytest.approx(72.5e6, rel=1e-3)
    assert projections == pytest.approx(21.9e6, rel=2e-3)
    assert counts(False, 256) == counts(False, 512)
    assert counts(False, 256)[2] == pytest.approx(65e3, rel=1e-2)


# -- behaviour -------------------------------------------------------------------


@pytest.fixture(scope="module")
def data():
    return make_textures(n_normal=30, n_anomalous=16, size=64, random_state=0)


@pytest.fixture(scope="module")
def known_defects(data):
    """Good images, eight defects and their masks; and what is left for a test."""
    X = [*data.train, *data.test[-8:]]
    y = np.r_[np.ones(30, int), -np.ones(8, int)]
    return X, y, [None] * 30 + list(data.masks[-8:])


def tiny(**options):
    options = {
        "backbone": "resnet10t",
        "weights": False,
        "model": "tiny",
        "image_size": 64,
        "train_batch_size": 8,
        "learning_rate": 2e-3,
        "max_steps": 3,
        **options,
    }
    return PRNDetector(**options)


@pytest.fixture(scope="module")
def fitted(known_defects):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a fixture of this scope comes before that of the module
    detector = tiny(max_steps=60, random_state=0).fit(*known_defects)
    torch.set_num_threads(threads)
    return detector


def test_losses_fall(fitted):
    losses = np.array(fitted.loss_curve_)
    assert len(losses) == 60
    assert losses[-20:].mean() < 0.7 * losses[:20].mean()
    assert fitted.n_defects_seen_ == 8
    assert fitted.n_samples_seen_ == 24  # the others gave the threshold
    assert len(fitted.calibration_scores_) == 6


@pytest.mark.slow
def test_defects_are_found(data, known_defects, shared):
    file = shared / "weights" / "mobilenetv2_100_imagenet.safetensors"
    detector = tiny(backbone="mobilenetv2_100", weights=file, max_steps=150).fit(
        *known_defects
    )
    losses = np.array(detector.loss_curve_)
    assert losses[-20:].mean() < 0.6 * losses[:20].mean()
    scores = detector.score_samples(
        data.test[:-8]
    )  # those that it has not learned from
    assert image_auroc(data.y_test[:-8], scores) > 0.7
    maps = detector.anomaly_map(data.test[16:-8])
    masks = data.masks[16:-8]
    assert pixel_auroc(masks, maps) > 0.8


def test_scores_maps_and_decisions(data, fitted):
    scores = fitted.score_samples(data.test)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(
        fitted.decision_function(data.test), scores - fitted.offset_
    )
    maps = fitted.anomaly_map(data.test)
    assert maps.shape == (len(data.test), 64, 64)
    assert fitted.calibration_maps_.shape == (6, 16, 16)
    large = [np.asarray(data.test[0]).repeat(2, axis=0), data.test[1]]
    assert [m.shape for m in fitted.anomaly_map(large)] == [(128, 64), (64, 64)]
    one_by_one = [fitted.score_samples(data.test[i : i + 1])[0] for i in range(3)]
    np.testing.assert_allclose(one_by_one, scores[:3], rtol=1e-4)


def test_without_defects_it_learns_from_synthetic_ones(data, known_defects):
    detector = tiny().fit(data.train)
    assert detector.n_defects_seen_ == 0
    labelled = tiny().fit(data.train, np.ones(30, int), [None] * 30)
    assert labelled.loss_curve_ == detector.loss_curve_
    assert tiny().fit(*known_defects).loss_curve_ != detector.loss_curve_


@pytest.mark.parametrize(
    ("with_known", "expected"), [(True, (8, 4, 4)), (False, (8, 8))]
)
def test_every_batch_is_composed_alike(
    data, known_defects, monkeypatch, with_known, expected
):
    made = []

    def counting(name):
        method = getattr(Samples, name)

        def wrapped(self, rng):
            made.append(name)
            return method(self, rng)

        return wrapped

    for name in ("known", "synthetic"):
        monkeypatch.setattr(Samples, name, counting(name))
    tiny(train_batch_size=16, max_steps=2).fit(
        *(known_defects if with_known else (data.train,))
    )
    counts = [made.count(name) // 2 for name in ("known", "synthetic")]
    assert (16 - sum(counts), *(n for n in counts if n)) == expected
    assert composition(64, True) == (32, 16, 16)
    assert composition(64, False) == (32, 0, 32)
    assert composition(3, True) == (1, 1, 1)


@pytest.mark.slow
def test_labels_without_masks_raise_scores(data, known_defects):
    """An unmarked defect adds to the loss, and training on it makes it stand out."""
    X, y, _ = known_defects
    options = {"max_steps": 30}
    with_labels = tiny(**options).fit(X, y)
    assert with_labels.n_defects_seen_ == 8
    assert np.isfinite(with_labels.loss_curve_).all()
    without = tiny(**options).fit(X[:30])
    margins = [
        d.score_samples(X[:30]).mean() - d.score_samples(X[30:]).mean()
        for d in (with_labels, without)
    ]
    assert margins[0] > margins[1]


def test_defects_have_no_part_in_the_threshold(known_defects, monkeypatch):
    scored = []
    score = PRNDetector._score_batch

    def spy(self, batch):
        scored.extend(batch)
        return score(self, batch)

    monkeypatch.setattr(PRNDetector, "_score_batch", spy)
    for calibration in ("split", "train", "kfold"):
        scored.clear()
        tiny(max_steps=1, calibration=calibration).fit(*known_defects)
        good = [image.astype(np.float32) / 255 for image in known_defects[0][:30]]
        assert len(scored) == {"split": 6, "train": 30, "kfold": 30}[calibration]
        for image in scored:
            assert any(np.allclose(image, g, atol=1e-6) for g in good)


def test_masks_are_flipped_with_their_images(data):
    """Good images are black, defects white: a mask tells what is white."""
    good, bad = np.zeros((32, 64, 3), np.float32), np.zeros((32, 64, 3), np.float32)
    mask = np.zeros((32, 64), bool)
    mask[3:7, 5:20] = True
    bad[mask] = 1
    defects = [(lambda: bad, mask)]
    make = Samples(lambda i: good, 1, defects, (32, 64), 8, 0, None, None, True, 0.5)
    as_they_are = 0
    corners = set()
    for step in range(40):
        for k in (4, 5):
            image, found = make(step, k)
            if found.sum() == mask.sum() and (image[found] == 1).all():
                np.testing.assert_array_equal(found, image[..., 0] > 0)
                as_they_are += 1
                corners.add(tuple(np.argwhere(found)[0]))
    assert as_they_are > 20
    assert corners >= {(3, 5), (3, 44), (25, 5), (25, 44)}


@pytest.mark.parametrize(("ratio", "n_as_they_are"), [(0, 16), (1, 0)])
def test_known_defects_of_a_step_are_extended(few_photographs, ratio, n_as_they_are):
    """All 16 of the paper: pasted into a normal bottle, and the mask says where."""
    bottles = load_mvtec(few_photographs, "mvtec_bottle_256")
    size = (64, 64)

    def read(path):
        return resize_image(to_float(read_image(path)), size)

    normal = [read(path) for path in bottles.train[:4]]
    k = int(np.flatnonzero(bottles.y_test == -1)[0])
    defective = read(bottles.test[k])
    mask = resized_mask(read_mask(bottles.masks[k]), size, None)
    samples = Samples(
        normal.__getitem__,
        4,
        [(lambda: defective, mask)],
        size,
        64,
        0,
        None,
        None,
        False,
        ratio,
    )
    assert (samples.n_normal, samples.n_known) == (32, 16)
    made = [samples(0, position) for position in range(32, 48)]
    assert sum(np.array_equal(image, defective) for image, _ in made) == n_as_they_are
    for image, found in made[n_as_they_are:]:
        assert found.any()
        assert sum(np.array_equal(image[~found], n[~found]) for n in normal) == 1


@pytest.mark.parametrize(("name", "expected"), [("adam", 0.9), ("adamw", 0.95)])
def test_where_the_weight_decay_goes(name, expected):
    """Adam scales it like a gradient; AdamW takes its share of the learning rate."""
    network = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(network.weight)
    detector = PRNDetector(optimizer=name, learning_rate=0.1, weight_decay=0.5)
    optimizer = detector._optimizer(network)
    network.weight.grad = torch.zeros(1, 1)
    optimizer.step()
    assert float(network.weight.detach()) == pytest.approx(expected, rel=1e-5)


def test_the_learning_rate_falls_along_a_cosine(known_defects, monkeypatch):
    rates = []
    step = torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        rates.append(self.param_groups[0]["lr"])
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    detector = tiny(max_steps=4, schedule="cosine", learning_rate=1.0, warm_start=True)
    detector.fit(*known_defects)
    expected = [1.0, 0.5 + 0.5**1.5, 0.5, 0.5 - 0.5**1.5]
    np.testing.assert_allclose(rates, expected)
    detector.fit(*known_defects)  # goes on with a cycle of its own
    np.testing.assert_allclose(rates[4:], expected)


def test_nearest_by_a_product_is_nearest():
    rng = np.random.default_rng(0)
    features = torch.from_numpy(100 + rng.normal(size=(20, 8, 4, 4)))
    prototypes = torch.from_numpy(100 + rng.normal(size=(7, 8, 4, 4)))
    apart = (features[:, None] - prototypes).square().flatten(2).sum(dim=2)
    for dtype in (torch.float64, torch.float32):
        found = nearest(features.to(dtype), prototypes.to(dtype))
        assert torch.equal(found, apart.argmin(dim=1))
    alone = prototypes[:1]
    assert torch.equal(nearest(features, alone), torch.zeros(20, dtype=torch.int64))


def test_masks_are_resized_with_their_images(data, tmp_path):
    mask = data.masks[-1]
    large = mask.repeat(3, axis=0).repeat(3, axis=1)
    Image.fromarray(large.astype(np.uint8) * 255).save(tmp_path / "mask.png")
    expected = tiny().fit(
        [*data.train, data.test[-1]], [1] * 30 + [-1], [None] * 30 + [mask]
    )
    for other in (large, tmp_path / "mask.png", str(tmp_path / "mask.png")):
        found = tiny().fit(
            [*data.train, data.test[-1]], [1] * 30 + [-1], [None] * 30 + [other]
        )
        assert found.loss_curve_ == expected.loss_curve_
    size, crop = (96, 96), (32, 32)
    thin = np.zeros((960, 960), bool)
    thin[480, 480] = True
    assert resized_mask(thin, size, crop).sum() == 1
    thin = np.roll(thin, 400, axis=0)
    assert resized_mask(thin, size, crop).sum() == 0


def test_the_frozen_network_stays_as_it_is(known_defects):
    detector = tiny(max_steps=2).fit(*known_defects)
    encoder = detector._encoder(torch.device("cpu"))
    assert not any(part.training for part in encoder.module.modules())
    assert digest(encoder.module) == detector.weights_sha256_
    fresh = timm.create_model("resnet10t").state_dict()["bn1.running_mean"]
    assert torch.equal(encoder.module.state_dict()["bn1.running_mean"], fresh)


@pytest.mark.parametrize(
    "options",
    [
        {"model": "full", "backbone": "resnet18"},
        {"model": "full", "attention": "size_independent"},
        {"attention": "per_element"},
        {"image_size": (96, 64)},
        {"image_size": 96, "crop_size": 64},
        {"foreground": "auto"},
        {"flips": True, "schedule": "cosine"},
        {"optimizer": "adam", "extended_ratio": 1.0},
        {"backbone_kwargs": {"drop_path_rate": 0.1}},
        {"backbone": "mobilenetv3_small_050", "layers": "auto"},
        {"layers": ("layer1", "layer2", "layer3", "layer4")},
        {"train_batch_size": 3, "sigma": 2.0},
        {"texture_images": True},
    ],
)
def test_options(data, known_defects, options):
    if "texture_images" in options:
        options = {"texture_images": list(data.test[:3])}
    some = [given[-20:] for given in known_defects]  # twelve normal images
    detector = tiny(**{"max_steps": 1, **options}).fit(*some)
    maps = detector.anomaly_map(data.test[:2])
    assert maps.shape == (2, 64, 64)
    assert np.isfinite(maps).all()


def test_weights_from_a_file(data, known_defects, tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(7)
        network = timm.create_model("resnet10t")
    file = tmp_path / "weights.pth"
    torch.save(network.state_dict(), file)
    detector = tiny(weights=file, max_steps=1).fit(*known_defects)
    level = detector._encoder(torch.device("cpu")).feature_maps(
        np.ones((1, 64, 64, 3), "f4")
    )
    assert [tuple(x.shape[1:]) for x in level] == [
        (64, 16, 16),
        (128, 8, 8),
        (256, 4, 4),
        (512, 2, 2),
    ]
    scores = detector.score_samples(data.test[:2])
    torch.save(timm.create_model("resnet10t").state_dict(), tmp_path / "other.pth")
    detector.set_params(weights=tmp_path / "other.pth")
    np.testing.assert_array_equal(detector.score_samples(data.test[:2]), scores)
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "linear.pth")
    with pytest.raises(ValueError, match="could not be built with weights"):
        tiny(weights=tmp_path / "linear.pth").fit(*known_defects)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 48}, "image_size=48 must be a multiple of 32"),
        ({"image_size": 96, "crop_size": 40}, "crop_size=40 must be"),
        ({"train_batch_size": 2}, "train_batch_size"),
        ({"model": "large"}, "model"),
        ({"schedule": "step"}, "schedule"),
        ({"optimizer": "sgd"}, "optimizer"),
        ({"extended_ratio": 1.5}, "extended_ratio"),
        ({"weights": True}, "weights=True is ambiguous"),
        ({"backbone": "resnet1"}, "backbone='resnet1' is not a model of timm"),
        ({"backbone": "vit_tiny_patch16_224"}, "layers='auto'"),
        ({"layers": ("layer1", "layer2")}, "must be four of"),
        ({"layers": ("layer1", "layer1", "layer3", "layer4")}, "have the strides"),
        ({"texture_images": []}, "texture_images|X"),
    ],
)
def test_errors_of_parameters(known_defects, options, message):
    with pytest.raises(ValueError, match=message):
        tiny(**{"max_steps": 1, **options}).fit(*known_defects)


def test_a_missing_file_of_weights_is_an_error(known_defects):
    with pytest.raises(FileNotFoundError, match=r"none\.pth.*does not exist"):
        tiny(weights="none.pth").fit(*known_defects)


def test_errors_of_labels_and_masks(data, known_defects):
    X, y, masks = known_defects
    detector = tiny(max_steps=1)
    with pytest.raises(ValueError, match="masks has 3 entries, but X 38"):
        detector.fit(X, y, masks[:3])
    with pytest.raises(ValueError, match=r"\+1 for normal and -1"):
        detector.fit(X, (y == -1).astype(int), masks)
    with pytest.raises(ValueError, match="masks without y"):
        detector.fit(X, masks=masks)
    with pytest.raises(ValueError, match=r"masks\[30\] is empty, but y\[30\] is -1"):
        detector.fit(X, y, [None] * 30 + [np.zeros((64, 64))] * 8)
    with pytest.raises(ValueError, match=r"masks\[0\] marks a defect, but y\[0\]"):
        detector.fit(X, y, [masks[-1], *masks[1:]])
    with pytest.raises(ValueError, match="no normal image to learn from"):
        detector.fit(X[30:], y[30:], masks[30:])
    with pytest.raises(ValueError, match=r"masks\[37\].*float values"):
        detector.fit(X, y, [None] * 37 + [np.full((64, 64), 0.5)])
    assert not hasattr(detector, "_defects")


def test_unreadable_images_are_skipped(data, known_defects, tmp_path):
    X, y, masks = known_defects
    with pytest.warns(UserWarning, match="skipped"):
        detector = tiny(max_steps=1, on_error="skip").fit(
            [tmp_path / "good.png", *X, tmp_path / "bad.png"],
            [1, *y, -1],
            [None, *masks, None],
        )
    assert detector.n_defects_seen_ == 8


# -- model selection -------------------------------------------------------------


def test_searches_split_masks_and_never_test_on_seen_defects(
    known_defects, monkeypatch
):
    X, y, masks = known_defects
    key = {image.tobytes(): i for i, image in enumerate(X)}
    folds: list[tuple[list, list]] = []
    fit, decide = PRNDetector.fit, PRNDetector.decision_function

    def spy_fit(self, X, y=None, masks=None):
        rows = [key[image.tobytes()] for image in X]
        for i, mask in zip(rows, masks, strict=True):
            assert mask is known_defects[2][i]
        folds.append((rows, []))
        return fit(self, X, y, masks)

    def decision_function(self, X):  # scikit-learn looks at the name
        folds[-1][1].extend(key[image.tobytes()] for image in X)
        return decide(self, X)

    monkeypatch.setattr(PRNDetector, "fit", spy_fit)
    monkeypatch.setattr(PRNDetector, "decision_function", decision_function)
    with sklearn.config_context(enable_metadata_routing=True):
        search = GridSearchCV(
            tiny(max_steps=1),
            {"learning_rate": [1e-3, 2e-3]},
            scoring="roc_auc",
            cv=OneClassSplit(2, supervised=True),
            error_score="raise",
        )
        search.fit(X, y, masks=masks)
    assert len(folds) == 2 * 2 + 1
    for trained, tested in folds[:-1]:
        assert not set(trained) & set(tested)
        assert sum(y[trained] == -1) == sum(y[tested] == -1) == 4
        assert sorted(trained + tested) == list(range(38))
    assert search.best_estimator_.n_defects_seen_ == 8

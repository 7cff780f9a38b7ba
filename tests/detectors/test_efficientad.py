import numpy as np
import pytest
import torch

from skad import EfficientADDetector, PCANetFeatures
from skad._maps import render
from skad.datasets import make_textures
from skad.detectors import Teacher, distill_teacher
from skad.detectors._efficientad import _augmented
from skad.networks._input import normalized
from skad.networks._modules import arrays
from skad.networks._pdn import autoencoder, hard_loss, pdn, pdn_grid

pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings("ignore:.*cannot certify"),
]


def seeded_weights(module, seed, gain):
    """The weights of the golden files, by their rule."""
    for i, (_, parameter) in enumerate(module.named_parameters()):
        draw = np.random.RandomState(seed + i).standard_normal(parameter.shape)
        if parameter.ndim > 1:
            draw *= gain / np.sqrt(np.prod(parameter.shape[1:]))
        else:
            draw *= 0.1
        parameter.data = torch.from_numpy(draw.astype(np.float32))
    return module.eval()


# -- golden ----------------------------------------------------------------------


@pytest.mark.parametrize("model", ["small", "medium"])
def test_golden_networks(golden, model):
    g = golden("efficientad_pdn")
    image = g["image_u8"][None].astype(np.float32) / 255
    seed, gain = int(g[f"seed_{model}"]), float(g["gain"])
    with torch.inference_mode():
        plain = seeded_weights(pdn(model, 384), seed, gain)(normalized(image))[0]
        padded = pdn(model, 384, padding=True)
        padded = seeded_weights(padded, seed, gain)(normalized(image))[0]
    np.testing.assert_allclose(plain, g[f"out_{model}_nopad"], atol=3e-5)
    np.testing.assert_allclose(padded[::16], g[f"out_{model}_pad_ch16"], atol=3e-5)
    mean = padded.mean(dim=(1, 2))
    np.testing.assert_allclose(mean, g[f"chan_mean_{model}_pad"], atol=2e-5)
    for size in ((64, 64), (256, 256), (90, 131)):
        batch = torch.zeros(1, 3, *size)
        for padding in (False, True):
            network = pdn("tiny", 2, padding=padding)
            found = tuple(network(batch).shape[2:])
            assert found == pdn_grid(size, padding=padding)


def test_golden_parameter_counts(golden):
    g = golden("efficientad_pdn")
    networks = [
        autoencoder(384, (256, 256), (56, 56)),
        *(pdn(model, c) for model in ("medium", "small") for c in (384, 768)),
    ]
    counts = [sum(p.numel() for p in n.parameters()) for n in networks]
    assert counts == g["param_counts"].tolist()


def test_golden_losses(golden):
    g = golden("efficientad_loss")
    teacher, student = (torch.from_numpy(g[f"{n}_out"]) for n in ("teacher", "student"))
    assert float(hard_loss(teacher, student)) == pytest.approx(
        float(g["loss_hard"]), abs=2e-5
    )
    plain = float(hard_loss(teacher, student, share=0.0))
    assert plain == pytest.approx(float(g["loss_hard_p0"]), abs=2e-6)


def test_hard_loss_is_that_of_the_quantile():
    rng = np.random.default_rng(0)
    for n in (1, 2, 999, 1000, 5000):
        target, output = rng.normal(size=(2, n))
        squares = (target - output) ** 2
        expected = squares[squares >= np.quantile(squares, 0.999)].mean()
        found = hard_loss(torch.from_numpy(target), torch.from_numpy(output))
        assert float(found) == pytest.approx(expected)


@pytest.fixture(scope="module")
def pipeline(golden):
    """A detector with the weights of the golden file, its images and arrays."""
    g = golden("efficientad_pipeline")
    c, gain = int(g["out_channels"]), float(g["gain"])
    teacher = seeded_weights(pdn("small", c), int(g["seed_teacher"]), gain)
    detector = EfficientADDetector("small", teacher)
    detector.teacher_ = teacher
    train = [g[f"image_train{i}"][None].astype(np.float32) / 255 for i in range(3)]
    detector._set_statistics(train, torch.device("cpu"))
    networks = detector._networks()
    seeded_weights(networks["student"], int(g["seed_student"]), gain)
    seeded_weights(networks["autoencoder"], int(g["seed_ae"]), gain)
    detector.state_ = arrays(networks)
    validation = [g[f"image_val{i}"][None].astype(np.float32) / 255 for i in range(2)]
    detector._set_quantiles([detector._raw_maps(image) for image in validation])
    return g, detector


def test_golden_statistics_and_quantiles(pipeline):
    g, detector = pipeline
    np.testing.assert_allclose(detector.teacher_mean_, g["teacher_mean"], atol=2e-6)
    np.testing.assert_allclose(detector.teacher_std_, g["teacher_std"], atol=2e-6)
    np.testing.assert_allclose(
        detector.quantiles_.ravel(), g["quantiles_reference"], atol=2e-4, rtol=1e-4
    )


def test_golden_maps_and_scores(pipeline):
    g, detector = pipeline
    image = g["image_test"][None].astype(np.float32) / 255
    by_teacher, by_auto = detector._raw_maps(image)
    np.testing.assert_allclose(by_teacher[0], g["map_st_test"], atol=2e-4, rtol=1e-4)
    np.testing.assert_allclose(by_auto[0], g["map_ae_test"], atol=1e-5, rtol=1e-4)
    scores, maps = detector._score_batch(image)
    np.testing.assert_allclose(maps[0], g["map_combined_test"], atol=1e-4, rtol=1e-3)
    assert scores[0] == pytest.approx(float(g["image_score_56"]), abs=1e-4)


def test_golden_map_in_the_geometry_of_the_image(pipeline):
    from PIL import Image

    g, detector = pipeline
    original = Image.fromarray(g["image_orig_120x90"])
    small = np.asarray(original.resize((256, 256), Image.Resampling.BILINEAR))
    maps = detector._score_batch(small[None].astype(np.float32) / 255)[1]
    # The reference puts zeros around the map before it draws it.
    framed = render(np.pad(maps, ((0, 0), (4, 4), (4, 4))), (120, 90), sigma=0)
    np.testing.assert_allclose(framed[0], g["map_final_orig_120x90"], atol=1e-4)
    # Ours is the same but at the margin, where it has no say.
    drawn = detector._render(maps, (120, 90))[0]
    inner = (slice(10, -10), slice(8, -8))
    np.testing.assert_allclose(
        drawn[inner], g["map_final_orig_120x90"][inner], atol=1e-4
    )
    assert drawn[0, 0] == maps.min()


# -- behaviour -------------------------------------------------------------------


@pytest.fixture(scope="module")
def data():
    return make_textures(n_normal=30, n_anomalous=10, size=64, random_state=0)


@pytest.fixture(scope="module")
def teacher(data):
    return distill_teacher(
        PCANetFeatures(image_size=64, kernel_sizes=(5, 3), n_filters=(8, 8)),
        data.train,
        model="tiny",
        max_steps=60,
        image_size=64,
        learning_rate=2e-3,
        train_batch_size=8,
    )


def tiny(teacher, penalty, **options):
    options = {"max_steps": 60, "image_size": 64, "learning_rate": 2e-3, **options}
    return EfficientADDetector("tiny", teacher, penalty, **options)


@pytest.fixture(scope="module")
def fitted(data, teacher):
    return tiny(teacher, data.train[:5], max_steps=400).fit(data.train)


def test_losses_fall_and_scores_separate(data, fitted, with_noise):
    from skad.metrics import image_auroc

    losses = np.array(fitted.loss_curve_)
    assert len(losses) == 400
    assert losses[-100:].mean() < losses[:100].mean()
    # Losses jump with the image: what the student has learned shows on new good ones.
    good = np.stack([x for x, y in zip(data.test, data.y_test, strict=True) if y == 1])
    beginner = tiny(fitted.teacher, data.train[:5], max_steps=1).fit(data.train)
    before, after = (
        detector._raw_maps(good.astype(np.float32) / 255)[0].mean()
        for detector in (beginner, fitted)
    )
    assert after < 0.85 * before
    scores = [fitted.score_samples(x) for x in (good, with_noise(good)[0])]
    y = np.repeat([1, -1], len(good))
    assert image_auroc(y, np.concatenate(scores)) > 0.65


def test_scores_maps_and_decisions(data, fitted):
    scores = fitted.score_samples(data.test)
    assert scores.dtype == np.float64
    decision = fitted.decision_function(data.test)
    np.testing.assert_allclose(decision, scores - fitted.offset_)
    assert set(fitted.predict(data.test)) <= {1, -1}
    maps = fitted.anomaly_map(data.test)
    assert maps.shape == (len(data.test), 64, 64)
    assert maps.dtype == np.float32
    # The score is taken before the map is drawn, which can only lower it.
    assert np.all(-scores >= maps.max(axis=(1, 2)) - 1e-6)
    large = [np.asarray(data.test[0]).repeat(2, axis=0), data.test[1]]
    assert [m.shape for m in fitted.anomaly_map(large)] == [(128, 64), (64, 64)]
    one_by_one = [fitted.score_samples(data.test[i : i + 1])[0] for i in range(3)]
    np.testing.assert_allclose(one_by_one, scores[:3], rtol=1e-4)


@pytest.mark.parametrize(
    "options",
    [
        {"padding": True},
        {"image_size": (80, 70)},
        {"image_size": 96, "crop_size": 64},
        {"train_batch_size": 3},
        {"sigma": 2.0},
    ],
)
def test_options(data, teacher, options):
    detector = tiny(teacher, data.train[:3], **{"max_steps": 3, **options})
    detector.fit(data.train[:12])
    maps = detector.anomaly_map(data.test[:2])
    assert maps.shape == (2, 64, 64)
    assert np.isfinite(maps).all()


def test_no_penalty_is_warned_of(data, teacher):
    with pytest.warns(UserWarning, match="penalty_images=None"):
        tiny(teacher, None, max_steps=1).fit(data.train[:4])


def test_teachers_of_all_kinds(data, teacher, tmp_path):
    teacher.save(tmp_path / "teacher.safetensors")
    module = teacher.network()
    scores = [
        tiny(kind, data.train[:3], max_steps=3).fit(data.train).score_samples(data.test)
        for kind in (teacher, tmp_path / "teacher.safetensors", module)
    ]
    np.testing.assert_array_equal(scores[1], scores[0])
    np.testing.assert_allclose(scores[2], scores[0], rtol=1e-5)
    made = tiny(
        "distill",
        data.train[:3],
        max_steps=3,
        features=PCANetFeatures(image_size=64, kernel_sizes=(5, 3), n_filters=(8, 8)),
    ).fit(data.train[:8])
    assert made.teacher_.provenance["n_images"] == 7 + 3  # one is held out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"teacher": None}, "teacher=None"),
        ({"teacher": "distill"}, "needs features="),
        ({"teacher": torch.nn.Conv2d(3, 4, 3)}, "its stride must be 4"),
        ({"image_size": 60}, "less than 64 pixels"),
        ({"model": "large"}, "model"),
    ],
)
def test_errors(data, teacher, options, message):
    detector = tiny(teacher, data.train[:2], max_steps=1).set_params(**options)
    with pytest.raises(ValueError, match=message):
        detector.fit(data.train[:4])


def test_a_missing_teacher_file_is_an_error(data):
    with pytest.raises(FileNotFoundError, match=r"none\.pth.*distill_teacher"):
        tiny("none.pth", data.train[:2]).fit(data.train[:4])


def test_augmentation_keeps_the_range():
    rng = np.random.default_rng(0)
    image = rng.random((8, 8, 3)).astype(np.float32)
    changed = np.stack([_augmented(image, rng) for _ in range(50)])
    assert changed.dtype == np.float32
    assert 0 <= changed.min() < changed.max() <= 1
    assert np.abs(changed - image).max(axis=(1, 2, 3)).min() > 0


# -- teachers --------------------------------------------------------------------


def test_a_teacher_learns_its_features(teacher):
    losses = np.array(teacher.loss_curve)
    assert losses[-10:].mean() < 0.9 * losses[:10].mean()
    assert teacher.n_channels == len(teacher.feature_mean) == len(teacher.feature_std)
    assert np.all(teacher.feature_std > 0)
    known = teacher.provenance
    assert known["n_steps"] == 60
    assert "PCANetFeatures" in known["features"]


def test_teachers_survive_files(teacher, tmp_path):
    teacher.save(tmp_path / "t.safetensors")
    loaded = Teacher.load(tmp_path / "t.safetensors")
    assert loaded.model == "tiny"
    assert loaded.provenance == teacher.provenance
    np.testing.assert_array_equal(loaded.feature_mean, teacher.feature_mean)
    for name, values in teacher.state.items():
        np.testing.assert_array_equal(loaded.state[name], values)


@pytest.mark.parametrize("model", ["small", "medium"])
@pytest.mark.parametrize("names", ["sequential", "conv"])
def test_published_layouts(tmp_path, model, names):
    """A Sequential's names, and those of a module with conv1, conv2 and so on."""
    state = pdn(model, 384).state_dict()
    expected = {k: v.numpy() for k, v in state.items()}
    if names == "conv":
        order = sorted({k.split(".")[0] for k in state}, key=int)
        state = {
            f"conv{1 + order.index(k.split('.')[0])}.{k.split('.')[1]}": v
            for k, v in state.items()
        }
    torch.save(state, tmp_path / "teacher.pth")
    loaded = Teacher.load(tmp_path / "teacher.pth")
    assert (loaded.model, loaded.n_channels) == (model, 384)
    for name, values in expected.items():
        np.testing.assert_array_equal(loaded.state[name], values)


def test_files_that_hold_no_teacher(tmp_path):
    (tmp_path / "broken.pth").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"broken\.pth.* not a file of weights"):
        Teacher.load(tmp_path / "broken.pth")
    torch.save(torch.nn.Linear(3, 4).state_dict(), tmp_path / "linear.pth")
    with pytest.raises(ValueError, match="no patch description network"):
        Teacher.load(tmp_path / "linear.pth")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "huge"}, "model='huge'"),
        ({"max_steps": 0}, "max_steps=0"),
        ({"image_size": 16}, "image_size=16"),
        ({"features": "resnet"}, "features='resnet'"),
        ({"features": PCANetFeatures(image_size=64, crop_size=32)}, "crop_size=32"),
    ],
)
def test_errors_of_distillation(data, options, message):
    filters = PCANetFeatures(image_size=64, n_filters=(8, 12, 12))
    arguments = {"features": filters, "X": data.train[:3]}
    arguments |= {"model": "tiny", "max_steps": 1, **options}
    with pytest.raises(ValueError, match=message):
        distill_teacher(**arguments)


def test_features_that_do_not_fit_into_memory(data, teacher, monkeypatch):
    """They are extracted again whenever they are asked for, with the same result."""
    from skad.detectors import _teacher

    arguments = {
        "features": PCANetFeatures(64, n_filters=(8, 12, 12)).fit(data.train[:6]),
        "X": data.train[:6],
        "model": "tiny",
        "max_steps": 3,
        "image_size": 64,
        "train_batch_size": 2,
    }
    kept = distill_teacher(**arguments)
    monkeypatch.setattr(_teacher, "_KEPT_FEATURE_BYTES", 10**5)
    again = distill_teacher(**arguments)
    np.testing.assert_allclose(again.loss_curve, kept.loss_curve, rtol=0.2)

from functools import partial

import numpy as np
import pytest
import torch
from sklearn.base import clone

from skad import SimpleNetDetector
from skad._maps import render
from skad.metrics import image_auroc
from skad.networks._embedding import mean1d
from skad.networks._modules import arrays, with_arrays
from skad.networks._simplenet import SimpleNet, training_loss, truncated_l1

pytestmark = pytest.mark.usefixtures("one_torch_thread")

NAMES = {
    "discriminator.0.weight": "disc.body.block1.0.weight",
    "discriminator.0.bias": "disc.body.block1.0.bias",
    "discriminator.1.weight": "disc.body.block1.1.weight",
    "discriminator.1.bias": "disc.body.block1.1.bias",
    "discriminator.1.running_mean": "disc.body.block1.1.running_mean",
    "discriminator.1.running_var": "disc.body.block1.1.running_var",
    "discriminator.1.num_batches_tracked": "disc.body.block1.1.num_batches_tracked",
    "discriminator.3.weight": "disc.tail.weight",
    "adaptor.weight": "proj.layers.0fc.weight",
}


@pytest.fixture(scope="module")
def g(golden):
    return golden("simplenet")


@pytest.fixture(scope="module")
def embedded(g):
    levels = [torch.from_numpy(g[name]) for name in ("layer2", "layer3")]
    return mean1d(levels, (6, 6), 3, 24, 24).permute(0, 2, 3, 1).numpy()


def test_golden_features(g, embedded):
    expected = np.concatenate([g["embedding"], g["embedding_test"]])
    np.testing.assert_allclose(embedded.reshape(-1, 24), expected, atol=2e-6)


def golden_step(g, embedded):
    """Module and loss of the step of the golden file, before the optimizer moves."""
    state = {own: g[f"before.{name}"] for own, name in NAMES.items()}
    module = with_arrays(SimpleNet(24, (16,)), state).double().train()
    grids = embedded[:2].astype(np.float64)
    everywhere = np.ones(grids.shape[:3], bool)
    batch = grids, everywhere, torch.from_numpy(g["noise"]).double(), everywhere
    loss = training_loss(module, partial(truncated_l1, margins=(0.5, -0.5)), batch)
    return module, loss


def test_golden_loss_and_gradients(g, embedded):
    module, loss = golden_step(g, embedded)
    # The loss and its gradients hold with the adaptor's bias, which nothing sees.
    assert float(loss.detach()) == pytest.approx(float(g["loss_f64"]), abs=1e-6)
    loss.backward()
    for own, name in NAMES.items():
        if f"grad.{name}" not in g or own == "discriminator.0.bias":
            continue
        np.testing.assert_allclose(
            module.get_parameter(own).grad, g[f"grad.{name}"], atol=8e-7, rtol=1e-4
        )


def test_golden_step_of_the_paper(g, embedded):
    module, loss = golden_step(g, embedded)
    optimizer = SimpleNetDetector()._optimizer(module)
    loss.backward()
    optimizer.step()
    after = arrays(module)
    for own, name in (("adaptor", "proj"), ("discriminator.3", "tail")):
        expected = g[f"paper_{name}_weight_after"]
        np.testing.assert_allclose(after[f"{own}.weight"], expected, atol=1e-6)
    for name in ("running_mean", "running_var"):
        # What the reference keeps of the mean has its adaptor's bias in it.
        if name == "running_var":
            np.testing.assert_allclose(
                after[f"discriminator.1.{name}"],
                g[f"after.disc.body.block1.1.{name}"],
                atol=1e-6,
            )


def test_golden_scores_and_maps(g, embedded):
    state = {own: g[f"after.{name}"] for own, name in NAMES.items()}
    bias = state["discriminator.0.weight"] @ g["after.proj.layers.0fc.bias"]
    state["discriminator.0.bias"] = state["discriminator.0.bias"] + bias
    detector = SimpleNetDetector(hidden_dim=16)
    detector.state_, new = state, embedded[2:]
    scores, maps = detector._score(new)
    np.testing.assert_allclose(maps.ravel(), g["patch_score_eval"], atol=3e-6)
    np.testing.assert_allclose(scores, g["image_score_eval"], atol=3e-6)
    size = (int(g["image_size"]),) * 2
    drawn = render(maps, size, sigma=float(g["sigma"]))
    np.testing.assert_allclose(drawn, g["map_eval"], atol=3e-6)


def grids(n, seed=0, shape=(12, 12, 16)):
    """Features that vary in a few directions only, as those of networks do."""
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(9).normal(size=(4, shape[-1]))
    good = rng.normal(size=(n, *shape[:2], 4)) @ mixing
    return (good + 0.05 * rng.normal(size=good.shape)).astype(np.float32)


def defective(n, seed=1):
    X = grids(n, seed)
    X[:, 4:8, 6:10] += np.random.default_rng(5).normal(size=X.shape[-1]).astype("f")
    return X


QUICK = {
    "max_epochs": 30,
    "hidden_dim": 64,
    "noise_std": 0.1,
    "learning_rate": 3e-3,
    "adaptor_learning_rate": 1e-3,
}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"loss": "cross_entropy"},
        {"relative_noise": False, "noise_std": 0.5},
        {"upscale": 2},
        {"noise_mask": "perlin"},
        {"n_hidden_layers": 2, "schedule": "cosine"},
        {"whiten": True, "noise_std": 0.2},
        {"adaptor": "mlp"},
        {"adaptor": None, "margin": (0.8, -0.2)},
        {"noise_mask": "perlin", "classification_head": True, "upscale": 2},
    ],
)
def test_every_variant_learns_and_tells_defects(options):
    detector = SimpleNetDetector(**{**QUICK, **options}).fit(grids(40))
    curve = detector.loss_curve_
    assert len(curve) == 30
    assert curve[-1] < 0.8 * curve[0]
    good, bad = grids(20, seed=2), defective(20)
    labels = np.repeat([1, -1], 20)
    scores = detector.score_samples(np.concatenate([good, bad]))
    assert image_auroc(labels, scores) > 0.95
    maps = detector.anomaly_map(bad)
    side = 12 * options.get("upscale", 1)
    assert maps.shape == (20, side, side)
    inside = maps[:, side // 3 : 2 * side // 3, side // 2 : 5 * side // 6]
    assert inside.mean() > maps.mean()
    if not options.get("classification_head"):
        np.testing.assert_allclose(
            detector.score_samples(bad), -maps.max(axis=(1, 2)), rtol=1e-6
        )


@pytest.mark.parametrize(
    "options", [{"whiten": True}, {"adaptor": "mlp"}, {"adaptor": None}]
)
def test_scores_are_what_the_network_says(options):
    X = grids(40)
    quick = {**QUICK, "max_epochs": 5}
    detector = SimpleNetDetector(**quick, n_hidden_layers=3, **options).fit(X)
    module = with_arrays(SimpleNet(16, (64,) * 3, **options), detector.state_)
    module.eval()
    with torch.inference_mode():
        rows = module.adaptor(torch.from_numpy(X[:5].reshape(-1, 16)))
        said = module.discriminator(rows).numpy()
    _, maps = detector._score(X[:5])
    np.testing.assert_allclose(maps.ravel(), -said[:, 0], rtol=1e-4, atol=1e-4)


def test_what_adapts_the_features():
    X = torch.from_numpy(grids(2).reshape(-1, 16))
    assert torch.equal(SimpleNet(16, (8,), adaptor=None).adaptor(X), X)
    adaptor = SimpleNet(16, (8,), adaptor="mlp").adaptor
    first, second = adaptor[0], adaptor[2]
    hidden = X @ first.weight.T + first.bias
    expected = torch.where(hidden > 0, hidden, 0.2 * hidden) @ second.weight.T
    assert torch.allclose(adaptor(X), expected, atol=1e-5)


def test_margins_of_equation_8():
    """Each side has its own; the loss is the mean over patches of both."""
    outputs = torch.tensor([1.0, 0.3, -0.4, 0.9, -0.5, -0.1])
    normal = torch.tensor([True, True, True, False, False, False])
    high, low = 0.7, -0.2
    expected = np.mean([max(0, high - d) for d in (1.0, 0.3, -0.4)])
    expected += np.mean([max(0, -low + d) for d in (0.9, -0.5, -0.1)])
    loss = truncated_l1(outputs, normal, (high, low))
    assert float(loss) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    "margin", [0, (0.5,), (0.1, 0.1), (np.inf, 0), ("a", 0), (np.nan, 0)]
)
def test_margins_that_are_none(margin):
    with pytest.raises(ValueError, match="margin"):
        SimpleNetDetector(margin=margin).fit(grids(10))


def test_whitening_is_an_adaptor_itself():
    with pytest.raises(ValueError, match="leave adaptor='mlp' out"):
        SimpleNetDetector(adaptor="mlp", whiten=True).fit(grids(10))


def test_whitening_makes_directions_alike_and_stays():
    X = grids(40)
    detector = SimpleNetDetector(**QUICK, whiten=True, calibration="train").fit(X)
    rows = X.reshape(-1, 16)
    adapted = rows @ detector.state_["adaptor.weight"].T
    adapted += detector.state_["adaptor.bias"]
    np.testing.assert_allclose(adapted.mean(axis=0), 0, atol=1e-3)
    adapted = np.cov(adapted.T)
    np.testing.assert_allclose(adapted, np.diag(np.diag(adapted)), atol=1e-3)
    variances = np.linalg.eigvalsh(np.cov(rows.T))
    expected = variances / (variances + 0.01 * variances.mean())
    np.testing.assert_allclose(np.sort(np.diag(adapted)), expected, atol=1e-3)
    assert detector.noise_std_ == pytest.approx(0.1 * np.sqrt(expected.sum()), rel=1e-3)


@pytest.mark.parametrize("value", [np.float32(1), 0.1])
def test_whitening_of_constant_patches_changes_nothing(value):
    detector = SimpleNetDetector(max_epochs=1, whiten=True)
    detector.fit(np.full((10, 4, 4, 8), value))
    np.testing.assert_array_equal(detector.state_["adaptor.weight"], np.eye(8))


def test_scale_is_not_that_of_some_columns_only():
    X = np.ones((300, 14, 14, 3), np.float32)
    X[:, :, 3] = 5  # every second patch is never of this column
    detector = SimpleNetDetector(1, hidden_dim=8, calibration="train")
    expected = 0.015 * np.sqrt(X.reshape(-1, 3).var(axis=0).sum())
    assert detector.fit(X).noise_std_ == pytest.approx(expected, rel=0.05)


def test_head_scores_the_same_one_by_one():
    options = {**QUICK, "noise_mask": "perlin", "classification_head": True}
    detector = SimpleNetDetector(**options).fit(grids(30))
    new = defective(3)
    new[1, 0] = np.nan
    scores = detector.score_samples(new)
    assert np.isfinite(scores).all()
    one_by_one = [detector.score_samples(new[[i]])[0] for i in range(3)]
    np.testing.assert_allclose(one_by_one, scores, rtol=1e-5)


def test_head_needs_copies_without_noise():
    with pytest.raises(ValueError, match="noise_mask='perlin'"):
        SimpleNetDetector(classification_head=True).fit(grids(10))


def test_noise_follows_the_scale_of_the_features():
    small = SimpleNetDetector(max_epochs=1).fit(grids(10))
    large = SimpleNetDetector(max_epochs=1).fit(100 * grids(10))
    assert large.noise_std_ == pytest.approx(100 * small.noise_std_, rel=1e-5)
    fixed = SimpleNetDetector(max_epochs=1, relative_noise=False).fit(grids(10))
    assert fixed.noise_std_ == 0.015


def test_learning_rate_falls_to_nothing_and_starts_anew():
    X = grids(40)
    detector = SimpleNetDetector(
        **{**QUICK, "max_epochs": 3}, schedule="cosine", warm_start=True
    )
    seen = []
    grow = detector._optimizer

    def watched(module):
        optimizer = grow(module)
        optimizer.register_step_pre_hook(
            lambda o, *_: seen.append([group["lr"] for group in o.param_groups])
        )
        return optimizer

    detector._optimizer = watched
    detector.fit(X)
    n = len(seen)
    falling = 0.5 + 0.5 * np.cos(np.pi * np.arange(n) / n)
    np.testing.assert_allclose(seen, np.outer(falling, [1e-3, 3e-3]))
    detector.fit(X)
    np.testing.assert_allclose(seen[n:], seen[:n])


def test_warm_start_goes_on():
    X = grids(40)
    whole = SimpleNetDetector(**QUICK).fit(X)
    parts = SimpleNetDetector(**{**QUICK, "max_epochs": 15}, warm_start=True)
    parts.fit(X).fit(X)
    assert len(parts.loss_curve_) == 30
    for name, values in whole.state_.items():
        np.testing.assert_array_equal(parts.state_[name], values)
    with pytest.raises(ValueError, match="8 channels"):
        parts.fit(grids(10, shape=(6, 6, 8)))
    for other in ({"hidden_dim": 7}, {"adaptor": "mlp"}, {"whiten": True}):
        with pytest.raises(ValueError, match="a fit with other layers"):
            clone(parts).set_params(**QUICK).fit(X).set_params(**other).fit(X)

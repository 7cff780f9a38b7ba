"""Accuracy floors and the false-alarm rate, on photographs of real parts."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GroupKFold

from skad import (
    CutPasteDetector,
    DRAEMDetector,
    EfficientADDetector,
    PaDiMDetector,
    PatchCoreDetector,
    PatchFeatures,
    Pipeline,
    PRNDetector,
    SimpleNetDetector,
    SPADEDetector,
    SPDPatchFeatures,
    SubspaceDetector,
)
from skad.datasets import load_mvtec
from skad.detectors import distill_teacher
from skad.metrics import image_auroc, pixel_metrics
from skad.neighbors import nearest

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def mobilenet(shared, tmp_path_factory):
    """Features of an ImageNet network, kept on disk for all tests of this module."""
    return PatchFeatures(
        "mobilenetv2_100",
        layers="auto",
        weights=shared / "weights" / "mobilenetv2_100_imagenet.safetensors",
        backbone_kwargs={"pad_type": "same"},
        embedding="concat",
        cache_dir=tmp_path_factory.mktemp("features"),
    )


def part(data, train, test):
    """Every so many images of a set."""
    kept = np.arange(len(data.test))[::test]
    return SimpleNamespace(
        train=data.train[::train],
        test=[data.test[i] for i in kept],
        y_test=data.y_test[kept],
        masks=[data.masks[i] for i in kept],
    )


@pytest.fixture(scope="module")
def bottles(shared):
    """A third of the good bottles to learn from, and all to test on."""
    return part(load_mvtec(shared / "data", "mvtec_bottle_256"), 3, 1)


@pytest.fixture(scope="module")
def tiles(shared):
    """A third of the magnetic tiles."""
    return part(load_mvtec(shared / "data", "magnetic_tile"), 3, 3)


def evaluate(model, data):
    decision = model.decision_function(data.test)
    size = None if isinstance(model, Pipeline) else (256, 256)
    metrics = pixel_metrics(data.masks, model.anomaly_map(data.test, size))
    good = data.y_test == 1
    return SimpleNamespace(
        image_auroc=image_auroc(data.y_test, decision),
        pixel_auroc=metrics["pixel_auroc"],
        pro=metrics["pro_score"],
        false_alarms=np.mean(decision[good] < 0),
        recall=np.mean(decision[~good] < 0),
    )


@pytest.fixture(scope="module")
def patchcore_on_bottles(bottles, mobilenet):
    model = Pipeline([mobilenet, PatchCoreDetector()]).fit(bottles.train)
    return evaluate(model, bottles)


@pytest.fixture(scope="module")
def patchcore_on_tiles(tiles, mobilenet):
    model = Pipeline([mobilenet, PatchCoreDetector(0.02)]).fit(tiles.train)
    return evaluate(model, tiles)


def test_patchcore_on_bottles(patchcore_on_bottles):
    result = patchcore_on_bottles
    assert result.image_auroc >= 0.995
    assert result.pixel_auroc >= 0.97
    assert result.pro >= 0.88
    assert result.recall >= 0.95
    assert result.false_alarms <= 0.2


def test_patchcore_on_magnetic_tiles(patchcore_on_tiles):
    result = patchcore_on_tiles  # of all tiles: 0.977, 0.831, 0.87 and 0.04
    assert result.image_auroc >= 0.91
    assert result.pixel_auroc >= 0.76
    assert result.recall >= 0.6
    assert result.false_alarms <= 0.08


def test_the_network_that_ships_on_bottles(bottles, patchcore_on_bottles):
    assert_keeps_97_percent(bottles, PatchCoreDetector(), patchcore_on_bottles)


def test_the_network_that_ships_on_magnetic_tiles(tiles, patchcore_on_tiles):
    assert_keeps_97_percent(tiles, PatchCoreDetector(0.02), patchcore_on_tiles)


def assert_keeps_97_percent(data, detector, expected):
    """As good as with the network that it imitates, but for 3 %."""
    features = PatchFeatures("skad_small", embedding="concat")
    result = evaluate(Pipeline([features, detector]).fit(data.train), data)
    assert result.image_auroc >= 0.97 * expected.image_auroc
    assert result.pro >= 0.97 * expected.pro


def test_padim_on_bottles(bottles, mobilenet):
    features = clone(mobilenet).set_params(
        layers=("blocks.1", "blocks.2", "blocks.4"),
        embedding="replicate",
        n_components=100,
    )
    result = evaluate(Pipeline([features, PaDiMDetector()]).fit(bottles.train), bottles)
    assert result.image_auroc >= 0.98
    assert result.pixel_auroc >= 0.965
    assert result.pro >= 0.88
    assert result.recall >= 0.9
    assert result.false_alarms <= 0.2


def test_subspace_on_bottles(shared, bottles, mobilenet):
    """On all good bottles, which cost little: a third of them finds fewer defects."""
    train = load_mvtec(shared / "data", "mvtec_bottle_256").train
    model = Pipeline([mobilenet, SubspaceDetector()]).fit(train)
    result = evaluate(model, bottles)
    assert result.image_auroc >= 0.99
    assert result.pixel_auroc >= 0.96
    assert result.pro >= 0.85
    assert result.recall >= 0.95
    assert result.false_alarms <= 0.15


def test_spade_on_bottles(bottles, mobilenet):
    features = clone(mobilenet).set_params(embedding="replicate", pooled=True)
    X, new = features.fit_transform(bottles.train), features.transform(bottles.test)
    seen = SimpleNamespace(**vars(bottles) | {"test": new})
    result = evaluate(SPADEDetector().fit(X), seen)
    assert result.image_auroc >= 0.97
    assert result.pro >= 0.92
    retrieval = SPADEDetector(metric="cosine", position_radius=1, image_score="max")
    result = evaluate(retrieval.fit(X), seen)
    assert result.image_auroc >= 0.99
    assert result.pixel_auroc >= 0.975
    assert result.pro >= 0.93
    assert result.recall >= 0.95


def test_simplenet_on_bottles(bottles, mobilenet):
    detector = SimpleNetDetector(max_epochs=15)
    model = Pipeline([mobilenet, detector]).fit(bottles.train)
    losses = model[-1].loss_curve_
    assert losses[-1] < 0.3 * losses[0]
    result = evaluate(model, bottles)
    assert result.image_auroc >= 0.97
    assert result.pixel_auroc >= 0.95
    assert result.pro >= 0.85
    assert result.recall >= 0.95
    assert result.false_alarms <= 0.25


def test_draem_on_bottles(bottles):
    model = DRAEMDetector("tiny", max_epochs=24, learning_rate=1e-3, image_size=64).fit(
        bottles.train
    )
    losses = np.array(model.loss_curve_)
    assert losses[-25:].mean() < 0.5 * losses[:25].mean()
    result = evaluate(model, bottles)
    assert result.image_auroc >= 0.65  # 0.85 when written
    assert result.pixel_auroc >= 0.65


def test_cutpaste_on_bottles(shared, bottles):
    model = CutPasteDetector(
        backbone="mobilenetv2_100",
        weights=shared / "weights" / "mobilenetv2_100_imagenet.safetensors",
        max_steps=60,
        learning_rate=3e-3,
        train_batch_size=16,
        image_size=96,
    ).fit(load_mvtec(shared / "data", "mvtec_bottle_256").train)
    losses = np.array(model.loss_curve_)
    assert losses[-10:].mean() < 0.95 * losses[:10].mean()
    assert image_auroc(bottles.y_test, model.score_samples(bottles.test)) >= 0.9


def test_efficientad_on_bottles(shared, bottles, mobilenet):
    """By a teacher of fifty photographs, which trains for seconds."""
    photographs = sorted((shared / "data" / "natural").glob("*.jpg"))[:50]
    features = clone(mobilenet).set_params(n_components=64, image_size=256)
    teacher = distill_teacher(
        features,
        photographs,
        model="tiny",
        max_steps=40,
        image_size=128,
        learning_rate=1e-3,
        train_batch_size=8,
    )
    model = EfficientADDetector(
        "tiny",
        teacher,
        photographs,
        max_steps=150,
        image_size=128,
        learning_rate=1e-3,
    ).fit(bottles.train)
    losses = np.array(model.loss_curve_)
    assert losses[-25:].mean() < 0.7 * losses[:25].mean()
    result = evaluate(model, bottles)
    assert result.image_auroc >= 0.75
    assert result.pixel_auroc >= 0.7
    assert result.pro >= 0.35


def test_prn_on_bottles(shared, bottles):
    """Without a defect to learn from: prototypes, and synthetic anomalies."""
    model = PRNDetector(
        "mobilenetv2_100",
        weights=shared / "weights" / "mobilenetv2_100_imagenet.safetensors",
        backbone_kwargs={"pad_type": "same"},
        model="tiny",
        schedule="cosine",
        max_steps=25,
        train_batch_size=8,
        learning_rate=1e-3,
        image_size=128,
    ).fit(bottles.train)
    result = evaluate(model, bottles)
    assert result.image_auroc >= 0.95
    assert result.pixel_auroc >= 0.85
    assert result.pro >= 0.7
    assert result.recall >= 0.85
    assert result.false_alarms <= 0.3


def test_spd_on_bottles(shared, bottles):
    """A few steps of its training spoil nothing that the weights knew."""
    features = SPDPatchFeatures(
        "mobilenetv2_100",
        layers="auto",
        weights=shared / "weights" / "mobilenetv2_100_imagenet.safetensors",
        backbone_kwargs={"pad_type": "same"},
        embedding="concat",
        max_steps=8,
        train_batch_size=8,
        learning_rate=1e-3,
        image_size=128,
    )
    model = Pipeline([features, PatchCoreDetector(0.02)]).fit(bottles.train)
    losses = model[0].loss_curve_
    assert np.mean(losses[-3:]) < 0.8 * np.mean(losses[:3])
    result = evaluate(model, bottles)
    assert result.image_auroc >= 0.98
    assert result.pixel_auroc >= 0.95
    assert result.pro >= 0.8
    assert result.recall >= 0.9


def test_a_network_of_ones_own(shared, bottles, tmp_path):
    import torchvision
    from safetensors.torch import load_file

    network = torchvision.models.squeezenet1_0(weights=None)
    weights = shared / "weights" / "squeezenet1_0_imagenet.safetensors"
    network.load_state_dict(load_file(weights))
    features = PatchFeatures(
        network,
        layers=("features.5", "features.8"),
        embedding="concat",
        grid=28,
        cache_dir=tmp_path,
    )
    model = Pipeline([features, PatchCoreDetector(coreset_ratio=0.02)])
    result = evaluate(model.fit(bottles.train), bottles)
    assert result.image_auroc >= 0.98
    assert result.pro >= 0.88


def test_same_bits_again(bottles, mobilenet):
    scores = []
    for _ in range(2):
        features = clone(mobilenet).set_params(cache_dir=None)
        model = Pipeline([features, PatchCoreDetector(random_state=1)])
        scores.append(model.fit(bottles.train[:30]).score_samples(bottles.test[::8]))
    np.testing.assert_array_equal(scores[0], scores[1])


@pytest.fixture(scope="module")
def coarse_tiles(shared, mobilenet):
    """Features of a third of the tiles, and of all good test images, on a coarse grid.

    In this order: good ones to learn from, good ones to test on, defective ones.
    """
    data = load_mvtec(shared / "data", "magnetic_tile")
    test = np.asarray(data.test, object)
    good, bad = test[data.y_test == 1], test[data.y_test == -1][::3]
    features = clone(mobilenet).set_params(grid=14, pooled=True)
    X = features.fit_transform([*data.train[::3], *good, *bad])
    n_train, n_good = len(data.train[::3]), len(data.train[::3]) + len(good)
    return SimpleNamespace(
        train=X[:n_train],
        test=X[n_train:n_good],
        good=X[:n_good],
        defective=X[n_good:],
        paths=[*data.train[::3], *good],
    )


@pytest.mark.parametrize(
    "detector",
    [PatchCoreDetector(), PaDiMDetector(), SPADEDetector(), SubspaceDetector()],
    ids=lambda detector: type(detector).__name__,
)
def test_false_alarm_rate_on_real_parts(coarse_tiles, detector):
    tiles, rng = coarse_tiles.good, np.random.default_rng(0)
    rates, fires = [], []
    for _ in range(10):
        order = rng.permutation(len(tiles))
        detector.fit(tiles[order[:50]])
        new = tiles[order[50:250]]
        rates.append(np.mean(detector.predict(new) == -1))
        masks = detector.predict_mask(new[:100], size=(56, 56))
        fires.append(masks.any(axis=(1, 2)).mean())
    assert 0.01 <= np.mean(rates) <= 0.08
    assert 0.01 <= np.mean(fires) <= 0.08
    if isinstance(detector, PatchCoreDetector):  # why scores are held out
        trained = detector.set_params(calibration="train").fit(tiles[order[:50]])
        assert np.mean(trained.predict(new) == -1) > 0.9


@pytest.mark.parametrize("n_parts", [2, 15])
@pytest.mark.parametrize("coreset_ratio", [0.01, 0.1])
def test_banks_in_parts_cover_as_well(coarse_tiles, n_parts, coreset_ratio):
    X = coarse_tiles.good[:150]
    rows = np.asarray(X).reshape(-1, X.shape[-1])

    def radius(detector):
        return nearest(rows, detector.bank_)[0].max()

    detector = PatchCoreDetector(coreset_ratio, calibration="train")
    parts = [X[some] for some in np.array_split(np.arange(150), n_parts)]
    one_pass = clone(detector).fit(X)
    updated, merged = clone(detector), clone(detector).fit(parts[0])
    for part in parts:
        updated.partial_fit(part)
    for part in parts[1:]:
        merged.merge(clone(detector).fit(part))
    for other in (updated, merged):
        assert len(other.bank_) <= len(one_pass.bank_)
        assert radius(other) <= 1.5 * radius(one_pass)  # 1.25 at most when written


def test_simplenet_on_magnetic_tiles(coarse_tiles, monkeypatch):
    """Whitened, it does as PatchCore does where that remembers the places.

    Of every eighth tile, which trains in seconds.
    """
    test, defective = coarse_tiles.test, coarse_tiles.defective
    y = np.repeat([1, -1], [len(test), len(defective)])

    def auroc(detector):
        detector.fit(coarse_tiles.train[::8])
        scores = [detector.score_samples(X) for X in (test, defective)]
        return image_auroc(y, np.concatenate(scores))

    monkeypatch.syspath_prepend(BENCHMARKS)
    from places import DETECTORS

    remembered = auroc(PatchCoreDetector(calibration="train"))
    assert remembered >= 0.82  # 0.86 when written, and whitened 0.84
    whitened = auroc(clone(DETECTORS["SimpleNet, whitened"]))
    assert whitened >= remembered - 0.03


def test_simplenet_on_tiles_of_new_places(coarse_tiles, monkeypatch):
    """Where PatchCore cannot remember the place, it is not much ahead."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    from places import places

    good, defective = coarse_tiles.good, coarse_tiles.defective
    groups = places(coarse_tiles.paths)
    detectors = {
        "PatchCore": PatchCoreDetector(0.01, calibration="train"),
        "SimpleNet": SimpleNetDetector(
            4,
            hidden_dim=512,
            loss="cross_entropy",
            learning_rate=1e-3,
            noise_std=0.04,
            calibration="train",
        ),
    }
    found = {name: [] for name in detectors}
    folds = GroupKFold(3, shuffle=True, random_state=0)
    for learned, new in folds.split(good, groups=groups):
        y = np.repeat([1, -1], [len(new), len(defective)])
        for name, values in found.items():
            detector = detectors[name].fit(good[learned])
            scores = [detector.score_samples(X) for X in (good[new], defective)]
            values.append(image_auroc(y, np.concatenate(scores)))
    means = {name: np.mean(values) for name, values in found.items()}
    assert means["PatchCore"] >= 0.83
    assert means["SimpleNet"] >= means["PatchCore"] - 0.05  # + 0.02 when written

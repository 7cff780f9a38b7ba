"""A loaded model scores as the saved one, in a process that knows only its file."""

import json
import os
import pickle
import stat
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import BaseEstimator
from sklearn.covariance import EllipticEnvelope
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import make_scorer, roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import LocalOutlierFactor
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM

import skad
from skad.calibration import ThresholdPerGroup
from skad.detectors import Teacher, distill_teacher
from skad.metrics import image_auroc_scorer, pro_scorer
from skad.model_selection import OneClassSplit
from skad.persistence import _trusted
from skad.synthesis import AugmentedViews, SyntheticAnomalies

pytest.importorskip("skops", reason='needs pip install "skad[line]"')
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*cannot certify"),
    pytest.mark.usefixtures("one_torch_thread"),
]
NEW = {"novelty": True}
STEPS = {"max_steps": 2, "image_size": 64, "calibration": "train"}
TINY = {"backbone": "resnet10t", "weights": False, "train_batch_size": 2}


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (10, 64, 64, 3), dtype=np.uint8)


def small(**parameters):
    return skad.PatchFeatures("skad_small", image_size=64, **parameters)


def resnet(**parameters):
    return skad.PatchFeatures(
        "resnet10t", layers="auto", weights=False, image_size=64, **parameters
    )


def pcanet():
    return skad.PCANetFeatures(64, n_filters=(8, 12, 12))


def by_patch(estimator, *before):
    return skad.make_pipeline(small(), *before, skad.PatchwiseDetector(estimator))


def reduced():
    return skad.Patchwise(PCA(3, random_state=0))


def search(scoring, **parameters):
    return GridSearchCV(
        skad.make_pipeline(small(), skad.PatchCoreDetector(calibration="train")),
        {"patchcoredetector__n_neighbors": [1, 2], **parameters},
        scoring=scoring,
        cv=OneClassSplit(2),
    )


def quick():
    """Models that are fitted in a moment, by a name."""
    bank = skad.PatchCoreDetector
    return {
        "PatchCore": skad.make_pipeline(small(), bank()),
        "PatchCore, bounded": skad.make_pipeline(small(), bank(bank_size=50)),
        "PatchCore, region": skad.make_pipeline(
            small(region=np.arange(64 * 64).reshape(64, 64) > 900), bank()
        ),
        "PatchCore, random state": skad.make_pipeline(
            small(), bank(random_state=np.random.RandomState(3))
        ),
        "PaDiM": skad.make_pipeline(resnet(n_components=20), skad.PaDiMDetector()),
        "PaDiM, principal axes": skad.make_pipeline(
            small(n_components=20, reduction="pca", patch_stride=2),
            skad.PaDiMDetector(),
        ),
        "Subspace": skad.make_pipeline(small(), skad.SubspaceDetector()),
        "Fusion": skad.make_pipeline(
            skad.FusedFeatures(small(), pcanet()), skad.FusionDetector()
        ),
        "CutPaste": skad.CutPasteDetector(**TINY, **STEPS),
        "forest, few features": by_patch(
            IsolationForest(n_estimators=5, max_features=0.3, random_state=0)
        ),
        "reduced": by_patch(LocalOutlierFactor(algorithm="brute", **NEW), reduced()),
        "search by skad": search(image_auroc_scorer, patchcoredetector__sigma=[1, 4]),
    }


def others(images):
    """The other estimators, by a name."""
    tuned = skad.SPDPatchFeatures(
        **TINY, layers="auto", image_size=64, max_steps=1, random_state=0
    )
    teacher = distill_teacher(
        pcanet(), images, model="tiny", max_steps=1, image_size=64
    )
    efficientad = skad.EfficientADDetector("tiny", teacher, images[:2], **STEPS)
    bank = skad.PatchCoreDetector
    return {
        "SPADE": skad.make_pipeline(resnet(pooled=True), skad.SPADEDetector(3)),
        "SimpleNet": skad.make_pipeline(
            small(), skad.SimpleNetDetector(1, adaptor="mlp", margin=(0.5, -0.4))
        ),
        "PUAD": skad.make_pipeline(small(), skad.PUADDetector(bank())),
        "SPD": skad.make_pipeline(tuned, bank()),
        "Tiled": skad.make_pipeline(skad.TiledFeatures(small(), 128), bank()),
        "DRAEM": skad.DRAEMDetector("tiny", None, 1, train_batch_size=2, image_size=64),
        "PRN": skad.PRNDetector("resnet10t", "auto", False, model="tiny", **STEPS),
        "EfficientAD": efficientad,
        "ImagePUAD": skad.ImagePUADDetector(efficientad, small()),
        "forest": by_patch(IsolationForest(n_estimators=5, random_state=0)),
        "envelope": by_patch(EllipticEnvelope(random_state=0), reduced()),
        "outlier factor": by_patch(LocalOutlierFactor(**NEW)),
        "vectors": by_patch(OneClassSVM(), skad.Patchwise(StandardScaler())),
        "frozen": skad.make_pipeline(FrozenEstimator(small().fit(images)), bank()),
        "search": search("roc_auc"),
        "search by a metric": search(make_scorer(roc_auc_score)),
    }


def fit_all(models, images):
    labels = np.where(np.arange(10) < 8, 1, -1)
    for name, model in models.items():
        model.fit(images, labels if name.startswith(("search", "PRN")) else None)
    return models


@pytest.fixture(scope="module")
def fitted(images):
    return fit_all(quick(), images)


@pytest.fixture(scope="module")
def fitted_others(images):
    return fit_all(others(images), images)


def answers(model, X):
    """All that a model says of images."""
    found = list(skad.inspect(model, list(X)))
    return {
        "scores": np.asarray(model.score_samples(X)),
        "decisions": np.asarray(model.decision_function(X)),
        "labels": np.asarray(model.predict(X)),
        "p": np.array([one.p_value for one in found]),
        "maps": np.array([one.anomaly_map for one in found]),
    }


def public():
    """Full names of all estimators that skad exports."""
    exported = (getattr(skad, name) for name in skad.__all__)
    return {
        f"{cls.__module__}.{cls.__name__}"
        for cls in exported
        if isinstance(cls, type) and issubclass(cls, BaseEstimator)
    }


def test_every_public_estimator_is_trusted():
    assert public() <= _trusted.SKAD_OBJECTS


# Where a model is loaded, nothing that torch has kept of other networks may help.
ANSWER = """
import sys, warnings, torch
from pathlib import Path
warnings.simplefilter("error")
torch.set_num_threads(1)
import numpy as np, skad
sys.path.insert(0, sys.argv[2])
from test_round_trip import answers
X = np.load(sys.argv[1] + "/X.npy")
for path in sorted(Path(sys.argv[1]).glob("*.skad")):
    np.savez(str(path) + ".npz", **answers(skad.load(path), X))
"""


@pytest.mark.parametrize(
    "which", ["fitted", pytest.param("fitted_others", marks=pytest.mark.slow)]
)
def test_every_model_answers_the_same_in_a_new_process(
    which, images, tmp_path, new_process, request
):
    models = request.getfixturevalue(which)
    np.save(tmp_path / "X.npy", images[-4:])
    for name, model in models.items():
        skad.save(model, tmp_path / f"{name}.skad")
    new_process(tmp_path, Path(__file__).parent, code=ANSWER)
    for name, model in models.items():
        expected = answers(model, images[-4:])
        with np.load(tmp_path / f"{name}.skad.npz") as found:
            for kind, values in expected.items():
                np.testing.assert_array_equal(found[kind], values, f"{name}: {kind}")


@pytest.mark.slow
def test_a_teacher_is_in_its_detector(fitted_others, tmp_path):
    skad.save(fitted_others["EfficientAD"], tmp_path / "part.skad")
    assert isinstance(skad.load(tmp_path / "part.skad").teacher, Teacher)


@pytest.mark.slow
def test_no_more_is_trusted_than_models_hold(fitted, fitted_others, images, tmp_path):
    models = {
        **fitted,
        **fitted_others,
        "scorer": search(pro_scorer),
        "SyntheticAnomalies": SyntheticAnomalies("homologous").fit(images),
        "views": skad.Pipeline(
            [small(), skad.PatchCoreDetector()], augmentation=AugmentedViews(n_views=1)
        ).fit(images),
        "groups": ThresholdPerGroup(
            skad.make_pipeline(small(), skad.PatchCoreDetector())
        ).fit(images, groups=np.arange(len(images)) % 2),
    }
    seen = public()
    for name, model in models.items():
        path = tmp_path / f"{name}.skad"
        skad.save(model, path)
        with ZipFile(path) as archive:
            schema = json.loads(archive.read("schema.json"))
        seen |= {_trusted.name_of(node) for node, _ in _trusted.nodes(schema)}
    seen = {name for name in seen if name.startswith("skad.")}
    assert seen - _trusted.functions() == _trusted.SKAD_OBJECTS | _trusted.NAMED_TUPLES


def test_everything_comes_back(fitted, images, tmp_path):
    """Parameters, attributes and what a loaded model can still do."""
    model = fitted["PatchCore, random state"]
    skad.save(model, tmp_path / "part.skad")
    loaded = skad.load(tmp_path / "part.skad")
    assert type(loaded) is skad.Pipeline
    for step, other in zip(model, loaded, strict=True):
        assert vars(step).keys() == vars(other).keys()
        for name, value in vars(step).items():
            if name == "_searched":  # made from the bank
                continue
            found = getattr(other, name)
            assert type(found) is type(value), name
            if isinstance(value, np.ndarray):
                assert (found.dtype, found.flags.c_contiguous) == (
                    (value.dtype, value.flags.c_contiguous)
                )
                np.testing.assert_array_equal(found, value)
            elif not isinstance(value, np.random.RandomState):
                assert found == value, name
    for one in (model := pickle.loads(pickle.dumps(model)), loaded):
        one[-1].set_contamination(0.2)
        one.partial_fit(images[:2])
    np.testing.assert_array_equal(
        loaded.score_samples(images), model.score_samples(images)
    )


def test_the_same_model_gives_the_same_file(fitted, tmp_path, monkeypatch):
    from skad.persistence import _save

    monkeypatch.setattr(_save, "described", lambda model: {"format": 1})
    paths = [tmp_path / "1.skad", tmp_path / "2.skad"]
    for path in paths:
        skad.save(fitted["Fusion"], path)
    assert paths[0].read_bytes() == paths[1].read_bytes()


def test_arrays_on_a_disk_become_arrays(fitted, images, tmp_path):
    import joblib

    joblib.dump(fitted["PatchCore"], tmp_path / "part.joblib")
    mapped = joblib.load(tmp_path / "part.joblib", mmap_mode="r")
    skad.save(mapped, tmp_path / "part.skad")
    bank = skad.load(tmp_path / "part.skad")[-1].bank_
    assert type(bank) is np.ndarray
    assert bank.flags.writeable


# -- what is not written ---------------------------------------------------------------


def test_no_path_of_this_machine(images, tmp_path):
    folder = tmp_path / "somebody"
    folder.mkdir()
    import timm

    torch.save(timm.create_model("resnet10t").state_dict(), folder / "weights.pth")
    Image.fromarray(np.full((64, 64), 255, np.uint8)).save(folder / "region.png")
    features = skad.PatchFeatures(
        "resnet10t",
        layers="auto",
        weights=folder / "weights.pth",
        region=str(folder / "region.png"),
        cache_dir=folder / "cache",
        image_size=64,
    )
    detector = skad.SimpleNetDetector(1, checkpoint_dir=folder / "checkpoints")
    model = skad.Pipeline(
        [("features", features), ("detector", detector)], memory=str(folder)
    )
    model.fit(images)
    skad.save(model, tmp_path / "part.skad")
    assert b"somebody" not in (tmp_path / "part.skad").read_bytes()
    assert features.cache_dir == folder / "cache"  # the model itself stays
    expected = model.score_samples(images)
    for file in ("weights.pth", "region.png"):
        (folder / file).unlink()
    loaded = skad.load(tmp_path / "part.skad")
    assert loaded.memory is None
    assert loaded[0].cache_dir is None
    assert loaded[0].weights == "weights.pth"
    np.testing.assert_array_equal(loaded.score_samples(images), expected)


class Own(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, stride=8)

    def forward(self, x):
        return self.conv(x)


class OwnEstimator(BaseEstimator):
    def fit(self, X, y=None):
        return self


def own_network(images):
    return skad.PatchFeatures(Own(), layers=("conv",), image_size=64).fit(images)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (own_network, r"PatchFeatures\.backbone is a network of your own \(Own\)"),
        (lambda X: skad.Pipeline([("a", own_network(X))]), r"steps.*backbone is a"),
        (lambda X: OwnEstimator(), r"test_round_trip\.OwnEstimator .*no model of skad"),
        (lambda X: skad.PatchwiseDetector(OwnEstimator()), r"estimator is .*Own"),
        (lambda X: search(lambda *_: 0.0), r"scoring is .*<lambda>"),
        (
            lambda X: by_patch(LocalOutlierFactor(**NEW), reduced()).fit(X),
            r"KDTree",
        ),
    ],
)
def test_what_a_file_cannot_hold(make, message, images, tmp_path):
    model = make(images)
    with pytest.raises(TypeError, match=message) as caught:
        skad.save(model, tmp_path / "part.skad")
    assert "joblib.dump" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("model", [3, {"a": 1}, "part.skad", skad.PatchFeatures])
def test_only_estimators_are_saved(model, tmp_path):
    with pytest.raises(TypeError, match=r"model is of type .* takes an estimator"):
        skad.save(model, tmp_path / "part.skad")


# -- the file on the disk --------------------------------------------------------------


def test_a_file_appears_when_it_is_whole(fitted, tmp_path, monkeypatch):
    path = tmp_path / "part.skad"
    skad.save(fitted["Subspace"], path)
    before = path.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        skad.save(fitted["PatchCore"], path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_rights_are_those_of_any_new_file(fitted, tmp_path):
    plain = tmp_path / "plain"
    plain.touch()
    skad.save(fitted["Subspace"], tmp_path / "part.skad")
    rights = [stat.S_IMODE(p.stat().st_mode) for p in (plain, tmp_path / "part.skad")]
    assert rights[0] == rights[1]


def test_places_that_cannot_be(fitted, tmp_path):
    with pytest.raises(IsADirectoryError, match="is a folder; name a file"):
        skad.save(fitted["Subspace"], tmp_path)
    with pytest.raises(FileNotFoundError, match=r"there is no folder .*gone"):
        skad.save(fitted["Subspace"], tmp_path / "gone" / "part.skad")


# -- what it says of itself ------------------------------------------------------------


def test_info(fitted, tmp_path):
    skad.save(fitted["Fusion"], tmp_path / "part.skad")
    info = skad.model_info(tmp_path / "part.skad")
    assert info["model"] == "Pipeline(FusedFeatures, FusionDetector)"
    assert info["versions"]["skad"] == skad.__version__
    assert info["versions"]["numpy"] == np.__version__
    assert (info["n_training_images"], info["contamination"]) == (10, 0.05)
    detector = fitted["Fusion"][-1]
    assert info["n_calibration_images"] == len(detector.calibration_scores_)
    features = fitted["Fusion"][0].first_
    assert info["networks"] == [
        {
            "used_by": "PatchFeatures",
            "backbone": "skad_small",
            "weights": "pretrained",
            "sha256": features.weights_sha256_,
            "licence": "bsd-3-clause",
        }
    ]


@pytest.mark.parametrize(
    ("backbone", "weights", "licence"),
    [
        ("wide_resnet50_2.tv_in1k", None, "bsd-3-clause"),
        ("efficientnet_lite0", None, "apache-2.0"),
        ("efficientnet_lite0", "file.pth", None),
        ("hf-hub:somebody/network", None, None),
        ("skad_small", False, None),
    ],
)
def test_licences(backbone, weights, licence):
    from skad.persistence._info import licence_of

    assert licence_of(backbone, weights) == licence


def test_info_of_other_models(fitted, tmp_path):
    for name, text in (
        ("search by skad", "GridSearchCV(Pipeline(PatchFeatures, PatchCoreDetector))"),
        ("CutPaste", "CutPasteDetector"),
    ):
        skad.save(fitted[name], tmp_path / "part.skad")
        info = skad.model_info(tmp_path / "part.skad")
        assert info["model"] == text
        assert info["n_training_images"] in (8, 10)
    skad.save(skad.PatchFeatures(), tmp_path / "part.skad")
    info = skad.model_info(tmp_path / "part.skad")
    assert (info["model"], info["contamination"]) == ("PatchFeatures", None)
    assert info["networks"][0]["sha256"] is None

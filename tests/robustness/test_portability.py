"""A fitted model is complete, and can be loaded on another machine."""

import pickle
from pathlib import Path

import joblib
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.base import clone

from skad import (
    CutPasteDetector,
    DRAEMDetector,
    EfficientADDetector,
    FusedFeatures,
    FusionDetector,
    ImagePUADDetector,
    PaDiMDetector,
    PatchCoreDetector,
    PatchFeatures,
    PCANetFeatures,
    Pipeline,
    PRNDetector,
    PUADDetector,
    SimpleNetDetector,
    SPADEDetector,
    SPDPatchFeatures,
    SubspaceDetector,
    TiledFeatures,
)
from skad._portable import portable
from skad.detectors import distill_teacher
from skad.networks import _frozen
from skad.synthesis import SyntheticAnomalies

pytestmark = pytest.mark.filterwarnings("ignore:.*cannot certify")

STEPS = {"max_steps": 2, "image_size": 64, "calibration": "train"}


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)


def filters(**parameters):
    return PCANetFeatures(64, n_filters=(8, 12, 12), **parameters)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, images):
    """Weights, a mask and photographs, as files."""
    import timm

    folder = tmp_path_factory.mktemp("files")
    torch.manual_seed(3)
    network = timm.create_model("resnet10t")
    torch.save(network.state_dict(), folder / "weights.pth")
    Image.fromarray(np.full((64, 64), 255, np.uint8)).save(folder / "region.png")
    for i in range(2):
        Image.fromarray(images[i]).save(folder / f"{i}.png")
    distill_teacher(
        filters(),
        images,
        model="tiny",
        max_steps=1,
        image_size=64,
        path=folder / "teacher.safetensors",
    )
    return folder


ON_THE_SHELF = {"backbone": "resnet10t", "layers": "auto", "image_size": 64}


SCORE = """
import sys, joblib, numpy as np
models, X = joblib.load(sys.argv[1])
np.savez(sys.argv[2], *[np.asarray(m.score_samples(X)) for m in models])
"""


@pytest.fixture(scope="module")
def with_files(folder, images):
    """Models fitted with a file of weights, which is then deleted."""
    weights = folder / "deleted.pth"
    weights.write_bytes((folder / "weights.pth").read_bytes())
    features = PatchFeatures(**ON_THE_SHELF, weights=weights)
    tuned = SPDPatchFeatures(
        **ON_THE_SHELF, weights=weights, max_steps=1, train_batch_size=2
    )
    models = [
        Pipeline([features, PatchCoreDetector()]),
        Pipeline([clone(features).set_params(pooled=True), SPADEDetector(3)]),
        Pipeline([clone(features).set_params(layers=("layer1",)), PaDiMDetector()]),
        Pipeline([tuned, PatchCoreDetector()]),
        PRNDetector("resnet10t", "auto", weights, model="tiny", **STEPS),
        CutPasteDetector(
            backbone="resnet10t", weights=weights, train_batch_size=2, **STEPS
        ),
        EfficientADDetector(
            "tiny", folder / "teacher.safetensors", images[:2], **STEPS
        ),
    ]
    for model in models:
        model.fit(images)
    expected = [np.asarray(model.score_samples(images)) for model in models]
    weights.unlink()
    return models, expected


def test_a_fitted_model_needs_no_file(with_files, images, tmp_path):
    models, expected = with_files
    _frozen._backbones.clear()
    for model, scores in zip(models, expected, strict=True):
        np.testing.assert_array_equal(model.score_samples(images), scores)


def test_a_loaded_model_needs_no_file(with_files, images, tmp_path, new_process):
    models, expected = with_files
    joblib.dump((models, images), tmp_path / "models.joblib")
    new_process(tmp_path / "models.joblib", tmp_path / "scores.npz", code=SCORE)
    with np.load(tmp_path / "scores.npz") as found:
        for one, other in zip(found.values(), expected, strict=True):
            np.testing.assert_array_equal(one, other)


def test_the_part_that_runs_travels_once(with_files):
    models, _ = with_files
    features = models[0][0]
    arrays = features._weights["arrays"]
    assert not [name for name in arrays if name.startswith(("layer4", "fc"))]
    assert [name for name in arrays if name.startswith("layer3")]
    size = sum(array.nbytes for array in arrays.values())
    assert len(pickle.dumps(features)) < size + 20_000
    shallow = models[2][0]._weights["arrays"]
    assert not [name for name in shallow if name.startswith(("layer2", "layer3"))]
    assert features.weights_sha256_ == models[2][0].weights_sha256_


def test_other_weights_after_fit_change_nothing(with_files, images, folder):
    models, expected = with_files
    model = pickle.loads(pickle.dumps(models[0]))
    for weights in (False, folder / "none.pth", None):
        model.set_params(patchfeatures__weights=weights)
        np.testing.assert_array_equal(model.score_samples(images), expected[0])


def test_models_of_one_network_share_its_memory(folder, images):
    one, other = (
        PatchFeatures(**ON_THE_SHELF, weights=folder / "weights.pth").fit(images[:2])
        for _ in range(2)
    )
    for name, array in one._weights["arrays"].items():
        assert np.shares_memory(array, other._weights["arrays"][name])


def test_scoring_writes_nothing_to_the_estimator(with_files, images):
    for model in with_files[0]:
        steps = [s for _, s in model.steps] if hasattr(model, "steps") else [model]
        before = [dict(vars(step)) for step in steps]
        model.score_samples(images)
        model.anomaly_map(images)
        for step, state in zip(steps, before, strict=True):
            assert vars(step).keys() == state.keys()
            assert all(vars(step)[name] is state[name] for name in state)


def test_a_fitted_model_of_a_folder_of_timm(folder, images, tmp_path):
    """As `hf-hub:` names, which timm asks a hub for."""
    import json
    import shutil

    import timm

    try:
        timm.models.parse_model_name(f"local-dir:{tmp_path}")
    except AssertionError:
        pytest.skip("this version of timm takes no folders")
    source = tmp_path / "model"
    source.mkdir()
    shutil.copy(folder / "weights.pth", source / "pytorch_model.bin")
    config = timm.get_pretrained_cfg("resnet10t").to_dict()
    config = {"architecture": "resnet10t", "pretrained_cfg": config}
    (source / "config.json").write_text(json.dumps(config))
    parameters = {**ON_THE_SHELF, "backbone": f"local-dir:{source}"}
    features = PatchFeatures(**parameters)
    expected = np.asarray(features.fit_transform(images))
    data = pickle.dumps(features)
    shutil.rmtree(source)
    _frozen._backbones.clear()
    np.testing.assert_array_equal(pickle.loads(data).transform(images), expected)


# -- paths -----------------------------------------------------------------------------


def with_paths(folder):
    """An estimator of every kind, with paths wherever it takes them."""
    features = {
        **ON_THE_SHELF,
        "weights": folder / "weights.pth",
        "cache_dir": folder / "cache",
        "region": folder / "region.png",
    }
    checkpoints = {"checkpoint_dir": folder / "checkpoints"}
    pictures = [folder / "0.png", folder / "1.png"]
    patch = PatchFeatures(**features)
    image = {**STEPS, **checkpoints}
    efficientad = EfficientADDetector(
        "tiny", folder / "teacher.safetensors", pictures, **image
    )
    return {
        "PatchFeatures": patch,
        "PCANetFeatures": filters(region=folder / "region.png"),
        "FusedFeatures": FusedFeatures(
            PatchFeatures(**features), filters(region=folder / "region.png")
        ),
        "TiledFeatures": TiledFeatures(PatchFeatures(**features)),
        "SPD": SPDPatchFeatures(
            **features, **checkpoints, max_steps=1, train_batch_size=2
        ),
        "SimpleNet": Pipeline([patch, SimpleNetDetector(1, **checkpoints)]),
        "Subspace": Pipeline([patch, SubspaceDetector()]),
        "PUAD": Pipeline([patch, PUADDetector(PatchCoreDetector())]),
        "Fusion": Pipeline([patch, FusionDetector()]),
        "CutPaste": CutPasteDetector(
            backbone="resnet10t",
            weights=folder / "weights.pth",
            train_batch_size=2,
            **image,
        ),
        "DRAEM": DRAEMDetector(
            "tiny", pictures, 1, train_batch_size=2, image_size=64, **checkpoints
        ),
        "PRN": PRNDetector(
            "resnet10t",
            weights=folder / "weights.pth",
            model="tiny",
            texture_images=pictures,
            **image,
        ),
        "EfficientAD": efficientad,
        "ImagePUAD": ImagePUADDetector(efficientad, PatchFeatures(**features)),
        "SyntheticAnomalies": SyntheticAnomalies("draem", texture_images=pictures),
    }


NAMES = [
    *("PatchFeatures", "PCANetFeatures", "FusedFeatures", "SPD", "SimpleNet"),
    *("Subspace", "PUAD", "Fusion", "CutPaste", "DRAEM", "PRN", "EfficientAD"),
    *("ImagePUAD", "SyntheticAnomalies", "TiledFeatures"),
]


@pytest.mark.parametrize("name", NAMES)
def test_no_pickle_holds_a_path(name, folder, images):
    estimator = with_paths(folder)[name]
    unfitted = pickle.dumps(estimator)
    assert b"pathlib" not in unfitted
    if name in ("PatchFeatures", "PCANetFeatures", "CutPaste", "DRAEM", "EfficientAD"):
        estimator.fit(images)
        assert b"pathlib" not in pickle.dumps(estimator)
    assert b"pathlib" not in joblib.hash(estimator).encode()
    for value in estimator.get_params().values():
        assert not isinstance(value, str) or str(folder) not in value  # as passed
    loaded = pickle.loads(unfitted)
    assert type(loaded) is type(estimator)


def test_the_estimator_itself_keeps_its_paths(folder):
    features = with_paths(folder)["PatchFeatures"]
    pickle.dumps(features)
    assert features.weights == folder / "weights.pth"
    assert isinstance(features.cache_dir, Path)
    assert clone(features).region is not None
    assert isinstance(clone(features).region, Path)


def test_portable_finds_paths_wherever_they_are():
    deep = {"a": [Path("x"), (Path("y"), {Path("k"): {Path("z")}})], "b": 1}
    assert portable(deep) == {"a": ["x", ("y", {"k": {"z"}})], "b": 1}
    boxed = np.empty(2, object)
    boxed[:] = [Path("x"), None]
    assert portable(boxed).tolist() == ["x", None]
    plain = {"a": [1, (2,)], "b": np.arange(3)}
    assert portable(plain) is plain  # nothing is copied without need


# -- devices ---------------------------------------------------------------------------


class Elsewhere(torch.nn.Module):
    """A network that says its tensors are on a GPU, as far as that goes without one."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 4, 3, stride=8)
        self.moved_to = []

    def forward(self, x):
        return self.conv(x)

    def state_dict(self, *args, keep_vars=False, **kwargs):
        state = super().state_dict(*args, keep_vars=keep_vars, **kwargs)
        if keep_vars and not self.moved_to:
            return {k: v.to("meta") for k, v in state.items()}
        return state

    def to(self, device):
        self.moved_to.append(str(device))
        return self


def test_a_network_elsewhere_travels_as_a_copy_on_the_processor():
    network = Elsewhere()
    features = PatchFeatures(network, layers=("conv",), image_size=64)
    state = features.__getstate__()
    assert state["backbone"].moved_to == ["cpu"]
    assert network.moved_to == []
    assert features.backbone is network
    both = portable({"teacher": network, "teacher_": network})
    assert both["teacher"] is both["teacher_"]


def test_a_network_on_the_processor_is_not_copied(images):
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, stride=8))
    features = PatchFeatures(network, layers=("0",), image_size=64).fit(images)
    assert features.__getstate__()["backbone"] is network


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_network_fitted_on_a_gpu_loads_without_one(images, tmp_path, new_process):
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, stride=8))
    features = PatchFeatures(network, layers=("0",), image_size=64, device="cuda")
    model = Pipeline([features, PatchCoreDetector()]).fit(images)
    expected = model.score_samples(images)
    joblib.dump(
        ([model.set_params(patchfeatures__device="auto")], images), tmp_path / "m"
    )
    hidden = "import os; os.environ['CUDA_VISIBLE_DEVICES'] = ''\n" + SCORE
    new_process(tmp_path / "m", tmp_path / "scores.npz", code=hidden)
    with np.load(tmp_path / "scores.npz") as found:
        np.testing.assert_allclose(found["arr_0"], expected, rtol=1e-3)


# -- caches ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["a file in the way", "no rights", "no such drive"])
def test_a_cache_that_cannot_be_written_does_not_stop(kind, images, tmp_path):
    gone = {
        "a file in the way": tmp_path / "file",
        "no rights": Path("/proc/skad"),
        "no such drive": Path("/dev/null/cache"),
    }[kind]
    if kind == "a file in the way":
        gone.write_text("")
    features = PatchFeatures("skad_small", image_size=64, cache_dir=tmp_path / "ok")
    expected = features.fit_transform(images)
    features.set_params(cache_dir=gone)
    with pytest.warns(UserWarning, match="cache_dir=.* cannot be written") as caught:
        np.testing.assert_array_equal(features.transform(images), expected)
    assert len([w for w in caught if "cache_dir" in str(w.message)]) == 1

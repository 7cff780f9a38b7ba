"""A graph answers as its model does, or is not written."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import skad
from skad.datasets import load_mvtec, make_textures

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
torch = pytest.importorskip("torch", minversion="2.9")

from skad.export import ExportMismatch, OnnxDetector, _gate, _to_onnx, to_onnx  # noqa: E402

ROOT = Path(__file__).parents[2]
SIZE = (90, 72)  # of raw images, neither square nor the network's size


@pytest.fixture(scope="module")
def data():
    images = make_textures(n_normal=24, n_anomalous=6, size=96, random_state=0)
    cut = {name: images[name][:, : SIZE[0], : SIZE[1]] for name in ("train", "test")}
    return cut


@pytest.fixture(scope="module")
def model(data):
    features = skad.PatchFeatures("skad_small", layers="auto", image_size=64)
    return skad.make_pipeline(features, skad.PatchCoreDetector()).fit(data["train"])


@pytest.fixture(scope="module")
def file(model, data, tmp_path_factory):
    path = tmp_path_factory.mktemp("graph") / "part.onnx"
    to_onnx(model, path, check=data["test"])
    return path


def new_python(*arguments):
    """What a new process prints, in which nothing was imported."""
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def assert_same(path, model, images, **kwargs):
    detector = OnnxDetector(path, n_threads=1, **kwargs)
    scores = model.score_samples(images)
    np.testing.assert_allclose(detector.score_samples(images), scores, rtol=1e-5)
    np.testing.assert_array_equal(detector.predict(images), model.predict(images))
    np.testing.assert_array_equal(detector.p_value(images), model.p_value(images))
    decision = model.decision_function(images)
    np.testing.assert_allclose(
        detector.decision_function(images), decision, atol=1e-5 * abs(scores).max()
    )
    maps = skad.anomaly_map(model, images)
    np.testing.assert_allclose(
        detector.anomaly_map(images), maps, atol=1e-5 * maps.max(), rtol=0
    )
    masks = np.asarray(model.predict_mask(images))
    np.testing.assert_array_equal(detector.predict_mask(images), masks)
    return detector


@pytest.mark.parametrize("batch_size", [1, 3, 7])
def test_answers_are_those_of_the_model(file, model, data, batch_size):
    images = data["test"]
    assert len(images) % 7
    assert len(set(model.predict(images))) == 2
    assert np.asarray(model.predict_mask(images)).any()
    assert_same(file, model, images, batch_size=batch_size)


def test_grey_images_files_and_lists(file, model, data, tmp_path):
    image = data["test"][-1]
    grey = np.asarray(Image.fromarray(image).convert("L"))
    paths = [tmp_path / "0.png", tmp_path / "1.png"]
    for path, pixels in zip(paths, (image, grey), strict=True):
        Image.fromarray(pixels).save(path)
    for images in (paths, [image, grey], [Image.open(path) for path in paths]):
        found = OnnxDetector(file, n_threads=1).score_samples(images)
        np.testing.assert_allclose(found, model.score_samples(images), rtol=1e-5)


def test_metadata_and_names(file, model):
    graph = onnx.load(file)
    onnx.checker.check_model(graph)
    assert [node.name for node in graph.graph.input] == ["image"]
    outputs = [node.name for node in graph.graph.output]
    assert outputs == ["score", "decision", "label", "p_value", "map", "mask"]
    known = {entry.key: entry.value for entry in graph.metadata_props}
    info = {name: value for name, value in known.items() if name != "skad_saved"}
    info = {name.removeprefix("skad_"): value for name, value in info.items()}
    assert info.pop("model") == "Pipeline(PatchFeatures, PatchCoreDetector)"
    assert info.pop("resize") == "exact"
    info = {name: json.loads(value) for name, value in info.items()}
    assert info["versions"]["skad"] == skad.__version__
    assert {"torch", "timm"} <= set(info["versions"])
    assert (info["contamination"], info["n_calibration_images"]) == (0.05, 24)
    assert (info["size"], info["image_size"]) == (list(SIZE), [64, 64])
    assert info["offset"] == model[-1].offset_
    (network,) = info["networks"]
    assert network["backbone"] == "skad_small"
    assert network["sha256"] == model[0].weights_sha256_
    assert network["licence"] == "bsd-3-clause"


def test_other_sizes_and_types_are_refused(file, data):
    detector = OnnxDetector(file)
    with pytest.raises(ValueError, match=r"X\[0\] has 72 x 90 pixels.*90 x 72"):
        detector.predict([data["test"][0].transpose(1, 0, 2)])
    with pytest.raises(ValueError, match="dtype float64"):
        detector.predict(data["test"] / 255)
    with pytest.raises(ValueError, match="5 channels"):
        detector.predict([np.zeros((*SIZE, 5), np.uint8)])
    with pytest.raises(ValueError, match="pass a sequence"):
        detector.predict("image.png")
    with pytest.raises(ValueError, match=r"X\[0\].*cannot be read"):
        detector.predict(["lost.png"])
    with pytest.raises(ValueError, match="X is empty"):
        detector.predict([])
    with pytest.raises(ValueError, match="names="):
        detector.answers(data["test"], ["labels"])


def test_the_camera_loop_of_the_documentation(file, model, data, tmp_path):
    labels = model.predict(data["test"])
    for i, image in enumerate(data["test"]):
        Image.fromarray(image).save(tmp_path / f"{i:02}.png")
    script = ROOT / "docs/_static/camera_loop.py"
    printed = new_python(script, file, tmp_path)
    rejected = ["reject" in line for line in printed.splitlines()]
    np.testing.assert_array_equal(rejected, labels == -1)


def test_files_that_are_no_graphs_are_refused(tmp_path, data):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        OnnxDetector(tmp_path / "lost.onnx")
    (tmp_path / "text.onnx").write_text("no graph")
    with pytest.raises(ValueError, match="no graph that onnxruntime can run"):
        OnnxDetector(tmp_path / "text.onnx")
    with pytest.raises(ValueError, match="batch_size=0"):
        OnnxDetector(tmp_path / "lost.onnx", batch_size=0)


def test_the_detector_loads_neither_torch_nor_scikit_learn(file):
    code = (
        "import sys, numpy as np; from skad.export import OnnxDetector; "
        f"OnnxDetector({str(file)!r}).predict(np.zeros((1, {SIZE[0]}, {SIZE[1]}, 3), "
        "np.uint8)); print(*{name.split('.')[0] for name in sys.modules})"
    )
    printed = new_python("-c", code).split()
    assert "onnxruntime" in printed
    assert not {"torch", "timm", "sklearn", "scipy", "onnx"} & set(printed)


@pytest.fixture(scope="module")
def known_and_found(file, model, data):
    chain = skad.pipeline.Chain(model)
    known = _gate.answers(chain, data["test"])
    return known, OnnxDetector(file, n_threads=1).answers(data["test"])


@pytest.fixture
def answers(known_and_found, model):
    """Answers of a model and of its graph, equal but for rounding."""
    known, found = known_and_found
    _gate.compare(known, found, model[-1])
    return known, {name: value.copy() for name, value in found.items()}, model[-1]


@pytest.mark.parametrize("name", ["score", "decision", "p_value", "map", "mask"])
def test_the_gate_sees_one_value_that_differs(answers, name):
    known, found, detector = answers
    place = np.unravel_index(np.abs(found[name] * 1.0).argmax(), found[name].shape)
    found[name][place] = found[name][place] * 0.999 if name != "mask" else False
    with pytest.raises(ExportMismatch, match=rf"^{name} .*check\[{place[0]}\]"):
        _gate.compare(known, found, detector)


def test_the_gate_sees_a_label_a_shape_and_nan(answers):
    known, found, detector = answers
    for name, value in (
        ("label", -found["label"]),
        ("map", found["map"][:, 1:]),
        ("score", found["score"] * np.nan),
    ):
        with pytest.raises(ExportMismatch, match=name):
            _gate.compare(known, {**found, name: value}, detector)


@pytest.mark.parametrize("name", ["offset", "pixel threshold"])
def test_a_graph_with_another_threshold_is_not_written(
    name, file, model, data, tmp_path, monkeypatch
):
    """The model has moved on since the graph was traced."""
    monkeypatch.setattr(_to_onnx, "_traced", lambda *args: file.read_bytes())
    path = tmp_path / "part.onnx"
    to_onnx(model, path, check=data["test"])  # the thresholds of the graph
    path.write_text("the graph of last week")
    changed = copy.deepcopy(model)
    if name == "offset":
        changed[-1].offset_ = float(np.median(model.score_samples(data["test"])))
    else:
        changed[-1].calibration_maps_ = model[-1].calibration_maps_ / 2
    with pytest.raises(ExportMismatch, match="No file was written"):
        to_onnx(changed, path, check=data["test"])
    assert [p.name for p in tmp_path.iterdir()] == ["part.onnx"]
    assert path.read_text() == "the graph of last week"


@pytest.mark.slow
def test_bottles(shared, tmp_path):
    """On photographs that the gate did not see, every answer is the model's."""
    data = load_mvtec(shared / "data", "mvtec_bottle_256")
    features = skad.PatchFeatures("skad_small", layers="auto", image_size=224)
    detector = skad.PatchCoreDetector(bank_size=1000)
    model = skad.make_pipeline(features, detector).fit(data.train[::4])
    path = tmp_path / "bottle.onnx"
    to_onnx(model, path, check=data.test[::8])
    others = [image for i, image in enumerate(data.test) if i % 8]
    found = assert_same(path, model, others, batch_size=8).predict(others)
    y_test = [y for i, y in enumerate(data.y_test) if i % 8]
    assert set(found) == {1, -1}
    assert np.mean(found == y_test) > 0.9


def test_wrong_arguments(model, data, tmp_path):
    path = tmp_path / "part.onnx"
    for arguments, message in (
        ({}, "size=None and check=None"),
        ({"size": (1, 2), "check": data["test"]}, r"check\[0\] has 90 x 72.*1 x 2"),
        ({"check": data["test"] / 300}, "more than 8 bits"),
        ({"size": (0, 5)}, "size"),
    ):
        with pytest.raises(ValueError, match=message):
            to_onnx(model, path, **arguments)
    with pytest.raises(FileNotFoundError, match="folder"):
        to_onnx(model, tmp_path / "no" / "part.onnx", check=data["test"])
    with pytest.raises(ValueError, match="no step of the model reads images"):
        to_onnx(model[-1], path, size=64)
    with pytest.raises(ValueError, match="PatchFeatures"):
        to_onnx(model[0], path, size=64)
    assert not list(tmp_path.iterdir())


def test_older_torch_is_named(model, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "__version__", "2.8.1")
    with pytest.raises(ImportError, match=r"torch 2\.9 or later, found 2\.8\.1"):
        to_onnx(model, tmp_path / "part.onnx", size=64)


def test_what_has_no_graph_is_named(model, data, tmp_path):
    features = model[0]
    bank = skad.PatchCoreDetector(algorithm="nndescent")
    bank.__dict__.update(model[-1].__dict__, algorithm="nndescent", _index=object())
    pipeline = skad.make_pipeline(features, bank)
    with pytest.raises(NotImplementedError, match=r"algorithm='nndescent'.*exact"):
        to_onnx(pipeline, tmp_path / "part.onnx", size=64)
    half = skad.PatchFeatures()
    half.__dict__.update(features.__dict__, precision="bfloat16")
    pipeline = skad.make_pipeline(half, model[-1])
    with pytest.raises(NotImplementedError, match=r"precision='bfloat16'.*float32"):
        to_onnx(pipeline, tmp_path / "part.onnx", size=64)

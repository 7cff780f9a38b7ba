"""Every kind of features and of detectors that has a graph passes the gate."""

import numpy as np
import pytest

import skad
from skad.datasets import make_textures
from skad.detectors import distill_teacher

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pytest.importorskip("torch", minversion="2.9")

from skad.export import OnnxDetector, to_onnx

SIZE = (72, 80)  # of raw images


@pytest.fixture(scope="module")
def data():
    images = make_textures(n_normal=16, n_anomalous=4, size=96, random_state=0)
    return {name: images[name][:, : SIZE[0], : SIZE[1]] for name in ("train", "test")}


def small(**kwargs):
    return skad.PatchFeatures("skad_small", layers="auto", image_size=64, **kwargs)


def region():
    mask = np.zeros((20, 20), bool)
    mask[4:, :15] = True
    return mask


def other(name, **kwargs):
    settings = {"layers": "auto", "weights": False, "image_size": 64, **kwargs}
    return skad.PatchFeatures(name, **settings)


def pcanet():
    return skad.PCANetFeatures(image_size=64, n_components=24)


def teacher():
    images = make_textures(n_normal=8, n_anomalous=1, size=64, random_state=1).train
    return distill_teacher(small(), images, max_steps=2, random_state=0)


MODELS = {
    "PaDiM, fewer images than channels": lambda: [
        small(n_components=50),
        skad.PaDiMDetector(),
    ],
    "PaDiM, a region, a crop": lambda: [
        small(n_components=8, region=region(), crop_size=(48, 40)),
        skad.PaDiMDetector(interpolation="bicubic"),
    ],
    "PatchCore, neighbours, cosine, a region": lambda: [
        small(region=region()),
        skad.PatchCoreDetector(n_neighbors=3, metric="cosine", top_ratio=0.1),
    ],
    "a convnet, mean1d": lambda: [
        other("resnet10t", target_dim=96),
        skad.PatchCoreDetector(reweight=3),
    ],
    "grey": lambda: [
        other("resnet10t", backbone_kwargs={"in_chans": 1}, embedding="concat"),
        skad.SubspaceDetector(top_ratio=None),
    ],
    "a transformer": lambda: [
        other("vit_tiny_patch16_224", backbone_kwargs={"img_size": 64}),
        skad.PatchCoreDetector(),
    ],
    "Fused and Fusion, a region": lambda: [
        skad.FusedFeatures(small(region=region()), pcanet()),
        skad.FusionDetector(skad.PatchCoreDetector()),
    ],
    "Tiled": lambda: [
        skad.TiledFeatures(small(), SIZE, overlap=16),
        skad.SubspaceDetector(),
    ],
    "SimpleNet, both heads, a region": lambda: [
        small(region=region()),
        skad.SimpleNetDetector(
            max_epochs=1, upscale=2, noise_mask="perlin", classification_head=True
        ),
    ],
    "EfficientAD": lambda: [
        skad.EfficientADDetector(
            teacher=teacher(), image_size=64, max_steps=3, random_state=0
        )
    ],
    "DRAEM": lambda: [
        skad.DRAEMDetector("tiny", image_size=64, max_epochs=2, learning_rate=0.01)
    ],
    "CutPaste": lambda: [
        skad.CutPasteDetector(backbone="resnet10t", image_size=64, max_steps=2)
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_graph(name, data, tmp_path):
    steps = MODELS[name]()
    model = skad.make_pipeline(*steps) if len(steps) > 1 else steps[0]
    model.fit(data["train"])
    path = tmp_path / "part.onnx"
    to_onnx(model, path, check=data["test"])
    detector = OnnxDetector(path, batch_size=3, n_threads=1)
    found, known = (
        detector.score_samples(data["test"]),
        model.score_samples(data["test"]),
    )
    np.testing.assert_allclose(found, known, rtol=1e-5, atol=1e-5 * abs(known).max())
    assert len(np.unique(known)) == len(known)


@pytest.mark.parametrize("detector", [skad.SPADEDetector, skad.PUADDetector])
def test_a_detector_without_a_graph_is_named(detector, data, tmp_path):
    model = skad.make_pipeline(small(), skad.SubspaceDetector()).fit(data["train"])
    other = detector()
    other.__dict__.update(model[-1].__dict__)
    with pytest.raises(NotImplementedError, match=detector.__name__):
        to_onnx(skad.make_pipeline(model[0], other), tmp_path / "part.onnx", size=64)

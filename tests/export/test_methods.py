"""Every kind of features and of detectors that has a graph passes the gate."""

import numpy as np
import pytest

import skad
from skad.datasets import make_textures
from skad.detectors import distill_teacher

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
torch = pytest.importorskip("torch", minversion="2.9")

from skad.export import OnnxDetector, _graph, to_onnx  # noqa: E402, F401
from skad.export._registry import scores_module  # noqa: E402

SIZE = (72, 80)  # of raw images


@pytest.fixture(scope="module")
def data():
    images = make_textures(n_normal=16, n_anomalous=4, size=96, random_state=0)
    return {name: images[name][:, : SIZE[0], : SIZE[1]] for name in ("train", "test")}


def region():
    mask = np.zeros((20, 20), bool)
    mask[4:, :15] = True
    return mask


def other(name, **kwargs):
    settings = {"layers": "auto", "weights": False, "image_size": 64, **kwargs}
    return skad.PatchFeatures(name, **settings)


def own(**kwargs):
    """A network of two layers, which is traced in a second."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = torch.nn.Sequential(
            torch.nn.Conv2d(3, 12, 8, stride=8),
            torch.nn.ReLU(),
            torch.nn.Conv2d(12, 20, 2, stride=2),
        )
    settings = {"layers": ("1", "2"), "embedding": "concat", "image_size": 64}
    return skad.PatchFeatures(network, **{**settings, **kwargs})


def pcanet():
    return skad.PCANetFeatures(64, n_filters=(8, 12, 12), n_components=24)


def teacher():
    images = make_textures(n_normal=8, n_anomalous=1, size=64, random_state=1).train
    return distill_teacher(
        skad.PatchFeatures("skad_small", layers="auto", image_size=64),
        images,
        max_steps=2,
        random_state=0,
    )


MODELS = {
    "PaDiM, fewer images than channels": lambda: [
        own(),
        skad.PaDiMDetector(),
    ],
    "PaDiM, a region, a crop": lambda: [
        own(n_components=8, region=region(), crop_size=(48, 40)),
        skad.PaDiMDetector(interpolation="bicubic"),
    ],
    "strided, principal axes": lambda: [
        own(patch_stride=2, n_components=9, reduction="pca"),
        skad.PatchCoreDetector(projection_dim=4),
    ],
    "PatchCore, neighbours, cosine, a region": lambda: [
        own(region=region()),
        skad.PatchCoreDetector(n_neighbors=3, metric="cosine", top_ratio=0.1),
    ],
    "a convnet, mean1d, grey": lambda: [
        other("resnet10t", backbone_kwargs={"in_chans": 1}, target_dim=96),
        skad.PatchCoreDetector(reweight=3),
    ],
    "a transformer": lambda: [
        other(
            "vit_tiny_patch16_224",
            backbone_kwargs={"img_size": 64},
            embedding="mean",
            patch_size=1,
        ),
        skad.PatchCoreDetector(),
    ],
    "Fused and Fusion, a region": lambda: [
        skad.FusedFeatures(own(region=region()), pcanet()),
        skad.FusionDetector(skad.PatchCoreDetector()),
    ],
    "Tiled": lambda: [
        skad.TiledFeatures(own(), SIZE, overlap=16),
        skad.SubspaceDetector(top_ratio=None),
    ],
    "SimpleNet, both heads, a region": lambda: [
        own(region=region()),
        skad.SimpleNetDetector(
            max_epochs=1,
            adaptor="mlp",
            upscale=2,
            noise_mask="perlin",
            classification_head=True,
        ),
    ],
    "DRAEM": lambda: [
        skad.DRAEMDetector("tiny", image_size=64, max_epochs=2, learning_rate=0.01)
    ],
    "SPADE, levels, few images, a region": lambda: [
        own(region=region(), embedding="replicate"),
        skad.SPADEDetector(5, n_neighbors=2, squared=False),
    ],
    "SPADE as RAD": lambda: [
        own(),
        skad.SPADEDetector(metric="cosine", position_radius=1, image_score="max"),
    ],
    "SPADE, a gate, descriptors": lambda: [
        other("resnet10t", pooled=True, image_size=32),
        skad.SPADEDetector(4, gate=True, levels="joint", squared_patches=True),
    ],
    "PUAD, a region": lambda: [
        own(region=region()),
        skad.PUADDetector(skad.PaDiMDetector()),
    ],
    "EfficientAD": lambda: [
        skad.EfficientADDetector(
            teacher=teacher(), image_size=64, max_steps=3, random_state=0
        )
    ],
    "PUAD of images, CutPaste": lambda: [
        skad.ImagePUADDetector(
            skad.CutPasteDetector(backbone="resnet10t", image_size=64, max_steps=2),
            own(),
        )
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


REFUSED = {
    "PRNDetector.*PatchCoreDetector": lambda: skad.PRNDetector(),
    "PatchwiseDetector.*PatchCoreDetector": lambda: skad.PatchwiseDetector(),
    "SPADEDetector with n_neighbors=200.*16 or less": lambda: skad.SPADEDetector(
        4, n_neighbors=200, position_radius=1
    ),
    "ImagePUADDetector.*image_size": lambda: skad.ImagePUADDetector(
        skad.DRAEMDetector("tiny", image_size=64), own(image_size=32)
    ),
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_model_without_a_graph_is_named(message):
    """And what to use; a graph is refused before anything is traced."""
    detector = REFUSED[message]()
    rng = np.random.default_rng(0)
    if isinstance(detector, skad.SPADEDetector):
        detector.fit(rng.normal(size=(20, 4, 4, 3)).astype(np.float32))
    if isinstance(detector, skad.ImagePUADDetector):
        images = rng.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
        detector.features_ = detector.features.fit(images)
    with pytest.raises(NotImplementedError, match=message):
        scores_module(detector, np.ones((4, 4), bool))

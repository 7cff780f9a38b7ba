"""Networks give the same bits whatever the process has set in torch."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext

import numpy as np
import pytest
import torch

from skad import (
    CutPasteDetector,
    DRAEMDetector,
    EfficientADDetector,
    FusedFeatures,
    PaDiMDetector,
    PatchCoreDetector,
    PatchFeatures,
    PCANetFeatures,
    Pipeline,
    PRNDetector,
    SimpleNetDetector,
    SPADEDetector,
    SPDPatchFeatures,
    TiledFeatures,
)
from skad.detectors import distill_teacher
from skad.networks import _frozen
from skad.networks._torch_state import _autocasts, own_torch_state

pytestmark = pytest.mark.filterwarnings("ignore:.*cannot certify", "ignore:penalty")

ENCODER = {"backbone": "resnet10t", "weights": False}
STEPS = {"max_steps": 2, "image_size": 64, "calibration": "train"}


@contextmanager
def default_dtype(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def default_device(name):
    torch.set_default_device(name)
    try:
        yield
    finally:
        torch.set_default_device(None)


@contextmanager
def deterministic():
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


STATES = {
    "float64": lambda: default_dtype(torch.float64),
    "float16": lambda: default_dtype(torch.float16),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "meta": lambda: default_device("meta"),
    "within a device": lambda: torch.device("meta"),
    "inference": torch.inference_mode,
    "no gradients": torch.no_grad,
    "gradients disabled": lambda: torch.set_grad_enabled(False),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "deterministic": deterministic,
}


def settings():
    return (
        torch.get_default_dtype(),
        torch.empty(0).device,
        torch.is_inference_mode_enabled(),
        torch.is_grad_enabled(),
        _autocasts(torch, "cpu"),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_num_threads(),
        torch.random.get_rng_state().tolist(),
    )


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)


def small(**changes):
    return PatchFeatures("skad_small", embedding="concat", image_size=64, **changes)


def filters():
    return PCANetFeatures(64, n_filters=(8, 12, 12))


def on_features(detector):
    def run(X):
        model = Pipeline([small(), detector()]).fit(X)
        return model.score_samples(X), model.anomaly_map(X)

    return run


def transformed(make):
    def run(X):
        fitted = make().fit(X)
        return (np.asarray(fitted.transform(X)),)

    return run


def on_images(make):
    def run(X):
        fitted = make().fit(X)
        return fitted.score_samples(X), fitted.anomaly_map(X)

    return run


def transformer():
    """A network with tokens and tables of positions, which fills them by itself."""
    return PatchFeatures(
        "vit_tiny_patch16_224", layers="auto", weights=False, image_size=64
    )


def simplenet():
    return SimpleNetDetector(2, noise_mask="perlin", classification_head=True)


def efficientad():
    taught = PCANetFeatures(image_size=64, kernel_sizes=(5, 3), n_filters=(8, 8))
    return EfficientADDetector("tiny", "distill", features=taught, **STEPS)


def draem():
    return DRAEMDetector(
        "tiny", max_epochs=1, train_batch_size=5, image_size=64, calibration="train"
    )


def prn():
    return PRNDetector(**ENCODER, model="tiny", train_batch_size=4, **STEPS)


def spd():
    return SPDPatchFeatures(
        **ENCODER, layers="auto", max_steps=2, train_batch_size=2, image_size=64
    )


RUNS = {
    "PatchCore": on_features(PatchCoreDetector),
    "PaDiM": on_features(PaDiMDetector),
    "SimpleNet": on_features(simplenet),
    "PatchFeatures of a transformer": transformed(transformer),
    "FusedFeatures": transformed(lambda: FusedFeatures(small(), filters())),
    "TiledFeatures": transformed(lambda: TiledFeatures(small(), 128)),
    "SPD": transformed(spd),
    "CutPaste": on_images(
        lambda: CutPasteDetector(backbone="resnet10t", train_batch_size=2, **STEPS)
    ),
    "DRAEM": on_images(lambda: draem()),
    "PRN": on_images(prn),
    "EfficientAD": on_images(efficientad),
}


@pytest.fixture(scope="module")
def expected(images):
    known = {}

    def of(name):
        if name not in known:
            known[name] = RUNS[name](images)
        return known[name]

    return of


def check(name, state, images, expected):
    wanted = expected(name)
    _frozen._backbones.clear()  # networks are built in the foreign state, too
    with state:
        before = settings()
        found = RUNS[name](images)
        assert settings() == before
    _check_equal(found, wanted)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("name", ["PatchCore", "CutPaste"])
def test_same_bits_in_any_state(name, state, images, expected, one_torch_thread):
    check(name, STATES[state](), images, expected)


@pytest.mark.parametrize("name", RUNS)
def test_same_bits_in_all_states_at_once(name, images, expected, one_torch_thread):
    with ExitStack() as states:
        for state in ("float64", "deterministic", "autocast", "inference", "meta"):
            states.enter_context(STATES[state]())
        check(name, nullcontext(), images, expected)


@pytest.mark.parametrize("state", STATES)
def test_network_built_in_a_foreign_state_serves_others(state, images):
    wanted = small().fit(images).transform(images)
    _frozen._backbones.clear()
    with STATES[state]():
        fitted = small().fit(images)
    np.testing.assert_array_equal(fitted.transform(images), wanted)
    SPDPatchFeatures("skad_small", max_steps=1, image_size=64).fit(images)  # trains it


def _check_equal(found, wanted):
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_array_equal(one, other)


def test_default_dtype_of_other_threads_stays(images):
    """While a network runs, the rest of the process sees what it has set."""
    seen = []

    class Watching(torch.nn.Sequential):
        def forward(self, x):
            other = threading.Thread(target=lambda: seen.append(torch.zeros(1).dtype))
            other.start()
            other.join()
            seen.append(torch.zeros(1).dtype)
            return super().forward(x)

    own = Watching(torch.nn.Conv2d(3, 4, 3, stride=8))
    with default_dtype(torch.float64):
        PatchFeatures(own, layers=("0",), image_size=64).fit(images)
    assert set(seen[::2]) == {torch.float64}
    assert set(seen[1::2]) == {torch.float32}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_own_state_has_a_default_dtype_of_float32(dtype):
    def made():
        return [
            torch.zeros(2),
            torch.full((2,), 0.1),
            torch.arange(0, 1, 0.1),
            torch.arange(7) / 3,
            torch.arange(1, 7).sqrt(),
            torch.tensor([0.1, 0.2]),
            torch.linspace(0, 1, 7),
            torch.rand(5, generator=torch.Generator().manual_seed(0)),
            torch.where(torch.arange(4) > 1, 0.1, 0.2),
            torch.nn.Linear(2, 2).weight.detach().zero_(),
        ]

    expected = made()
    with default_dtype(dtype), own_torch_state():
        found = made()
        kept = [
            torch.zeros(2, dtype=torch.float64),
            torch.arange(3).double(),
            torch.tensor(np.zeros(2)),
            torch.zeros(2, dtype=torch.float64) / 3,
        ]
        half = torch.arange(3).half() / 2
    assert {t.dtype for t in kept} == {torch.float64}
    assert half.dtype == torch.float16
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


def test_own_state_ends_with_an_error():
    with torch.inference_mode():
        with pytest.raises(KeyError), own_torch_state():
            raise KeyError
        assert torch.is_inference_mode_enabled()


def test_teacher_in_a_foreign_state(images):
    def taught():
        features = filters()
        teacher = distill_teacher(
            features, images, model="tiny", max_steps=2, image_size=64
        )
        return list(teacher.state.values())

    wanted = taught()
    with default_dtype(torch.float64), torch.inference_mode():
        _check_equal(taught(), wanted)


# -- devices ---------------------------------------------------------------------------

GONE = ["cuda", "cuda:3", "mps", "meta", "nonsense"]


def absent(device):
    return device == "meta" or device == "nonsense" or not torch.cuda.is_available()


@pytest.fixture(scope="module")
def fitted(images):
    models = {
        "PatchFeatures": Pipeline([small(), PatchCoreDetector()]),
        "SPADE": Pipeline([small(pooled=True), SPADEDetector(3)]),
        "Fused": Pipeline([FusedFeatures(small(), filters()), PatchCoreDetector()]),
        "SPD": Pipeline([spd(), PatchCoreDetector()]),
        "CutPaste": CutPasteDetector(backbone="resnet10t", train_batch_size=2, **STEPS),
        "DRAEM": draem(),
        "PRN": prn(),
        "EfficientAD": efficientad(),
    }
    return {name: model.fit(images) for name, model in models.items()}


DEVICES = {
    "PatchFeatures": "patchfeatures__device",
    "SPADE": "patchfeatures__device",
    "Fused": "fusedfeatures__first___device",
    "SPD": "spdpatchfeatures__device",
}


@pytest.mark.parametrize("device", GONE)
@pytest.mark.parametrize(
    "name", ["PatchFeatures", "SPADE", "SPD", "CutPaste", "DRAEM", "PRN", "EfficientAD"]
)
def test_device_that_is_gone_is_named_by_every_method(name, device, fitted, images):
    if not absent(device):
        pytest.skip("the device is there")
    model = fitted[name].set_params(**{DEVICES.get(name, "device"): device})
    try:
        for method in ("predict", "score_samples", "anomaly_map", "predict_mask"):
            with pytest.raises(ValueError, match=f"device='{device}' cannot be used"):
                getattr(model, method)(images)
        for method in ("fit", "calibrate"):
            with pytest.raises(ValueError, match=f"device='{device}' cannot be used"):
                getattr(model, method)(images)
    finally:
        model.set_params(**{DEVICES.get(name, "device"): "auto"})


def test_device_of_fused_features_that_is_gone(fitted, images):
    model = fitted["Fused"]
    model[0].first_.set_params(device="meta")
    try:
        with pytest.raises(ValueError, match="device='meta' cannot be used"):
            model.predict(images)
    finally:
        model[0].first_.set_params(device="auto")


# -- services --------------------------------------------------------------------------


def test_eight_threads_share_a_model(fitted, images):
    for name in ("PatchFeatures", "SPD", "PRN", "EfficientAD"):
        model = fitted[name]
        with ThreadPoolExecutor(8) as pool:
            each = list(pool.map(model.score_samples, [images[:3]] * 16))
        for scores in each:
            np.testing.assert_array_equal(scores, each[0])


FORK = """
import os, signal
import numpy as np
import torch
torch.set_num_threads(2)
from skad import PatchCoreDetector, PatchFeatures, Pipeline
X = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
features = PatchFeatures("skad_small", embedding="concat", image_size=64)
model = Pipeline([features, PatchCoreDetector()]).fit(X)
expected = model.score_samples(X)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_fork_after_a_prediction_with_two_threads(new_process):
    """As of a server that loads the model, then forks its workers."""
    new_process(
        code=FORK
        + """
child = os.fork()
if child == 0:
    signal.alarm(30)
    close = np.allclose(model.score_samples(X), expected, rtol=1e-4)
    os._exit(0 if close and torch.get_num_threads() == 1 else 1)
_, status = os.waitpid(child, 0)
assert status == 0, status
assert torch.get_num_threads() == 2
assert np.array_equal(model.score_samples(X), expected)
"""
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.parametrize(
    "call",
    [
        "greedy_coreset(rows, 200)",
        "nearest(rows, rows[::5])",
        "model.pixel_threshold((300, 500))",
    ],
)
def test_fork_before_a_product_of_matrices(call, new_process):
    """Without a network, which would find out that it was forked."""
    new_process(
        code=FORK
        + f"""
from skad.neighbors import greedy_coreset, nearest
rows = np.random.default_rng(0).normal(size=(20_000, 64)).astype(np.float32)
rows[:5000] @ rows[:64].T
torch.ones(2000, 2000) @ torch.ones(2000, 2000)
child = os.fork()
if child == 0:
    signal.alarm(60)
    {call}
    os._exit(0)
_, status = os.waitpid(child, 0)
assert status == 0, status
"""
    )

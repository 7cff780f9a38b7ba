"""Too large for the memory is said before the work starts, with what to change."""

import math
import re
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.mixture import GaussianMixture

from skad import (
    CutPasteDetector,
    FusionDetector,
    PaDiMDetector,
    PatchCoreDetector,
    PatchwiseDetector,
    PCANetFeatures,
    Pipeline,
    PUADDetector,
    SimpleNetDetector,
    SPADEDetector,
    SPDPatchFeatures,
    SubspaceDetector,
    _memory,
)
from skad._memory import available_memory, explained_shortage, require_memory
from skad.base._memory_of_fit import learning_bytes
from skad.datasets import make_textures

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*cannot certify"),
    pytest.mark.filterwarnings("ignore:n_neighbors_image"),
    pytest.mark.filterwarnings("ignore:the discriminator"),
    pytest.mark.filterwarnings("ignore:training was interrupted"),
]


@pytest.fixture
def left(monkeypatch):
    """Set the memory that is left."""

    def leave(n_bytes):
        monkeypatch.setattr(_memory, "available_memory", lambda: n_bytes)

    return leave


# -- what there is -----------------------------------------------------------------


def test_some_memory_is_left():
    assert 2**20 < available_memory() < 2**50


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of 4 MB in files, to which a test adds others."""
    for name in ("_CGROUPS", "_PROCESS"):
        monkeypatch.setattr(_memory, name, tmp_path / name)
    (tmp_path / "_PROCESS").mkdir()
    free = tmp_path / "meminfo"
    free.write_text(
        "MemTotal: 9000 kB\nMemAvailable:    3000 kB\nSwapFree:   1000 kB\n"
    )
    monkeypatch.setattr(_memory, "_MACHINE", free)

    def write(name, **files):
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        for file, text in files.items():
            (folder / file.replace("__", ".")).write_text(text)

    return write


def test_the_machine_and_its_swap_space_count(machine):
    assert available_memory() == 4000 * 1024


def test_a_container_counts(machine):
    machine("_CGROUPS", memory__max="max\n")
    assert available_memory() == 4000 * 1024
    machine("_CGROUPS", memory__max="1000000\n", memory__current="300000")
    assert available_memory() == 700_000
    machine(
        "_CGROUPS", memory__stat="anon 5\ninactive_file 150000\nactive_file 50000\n"
    )
    assert available_memory() == 900_000  # files that the kernel can drop
    # A group inside of it, and of the first version, under the names of these.
    machine("_PROCESS", cgroup="5:cpu,memory:/job\n0::/a/b\n")
    machine("_CGROUPS/a", memory__max="500000")
    assert available_memory() == 500_000
    machine("_CGROUPS/memory/job", **{"memory__limit_in_bytes": "100000"})
    assert available_memory() == 100_000


def test_limits_of_the_process_count(machine, monkeypatch):
    resource = pytest.importorskip("resource")
    page = resource.getpagesize()
    machine("_PROCESS", statm="100 50 10 5 0 30 0\n")
    limits = {resource.RLIMIT_AS: 300 * page, resource.RLIMIT_DATA: -1}
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (limits[kind], -1))
    assert available_memory() == 200 * page
    limits[resource.RLIMIT_DATA] = 50 * page
    assert available_memory() == 20 * page
    limits[resource.RLIMIT_DATA] = 10 * page  # set below what there was
    assert available_memory() == 0


def test_a_system_that_does_not_tell_refuses_nothing(tmp_path, monkeypatch):
    for name in ("_CGROUPS", "_PROCESS", "_MACHINE"):
        monkeypatch.setattr(_memory, name, tmp_path / "none")
    monkeypatch.delattr("os.sysconf")
    assert available_memory() == math.inf
    require_memory(1e30, "all", "")


# -- what is said ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(1.5e3, "1.5 kB"), (2.34e8, "234 MB"), (6.4e10, "64 GB"), (2e14, "200 TB")],
)
def test_sizes_are_for_people(left, n_bytes, text):
    left(1000)
    with pytest.raises(MemoryError, match=f"^a fit needs {text} .* leave 1 kB. Stop.$"):
        require_memory(n_bytes, "a fit", "Stop.")
    left(0)
    with pytest.raises(MemoryError, match=f"{text} .* leave 0 bytes"):
        require_memory(n_bytes, "a fit", "Stop.")


def test_a_failed_allocation_names_what_to_change():
    import torch

    for allocate in (lambda: np.ones(2**50), lambda: torch.ones(2**50)):
        with (
            pytest.raises(MemoryError, match=r"a fit needs more .*\(.*allocat.*Stop."),
            explained_shortage("a fit", "Stop."),
        ):
            allocate()
    with (
        pytest.raises(RuntimeError, match="another"),
        explained_shortage("a fit", "Stop."),
    ):
        raise RuntimeError("another")


# -- what is needed ----------------------------------------------------------------


def test_features_name_what_to_change(left):
    images = make_textures(12, 0, size=64, random_state=0).train
    small = PCANetFeatures(64, kernel_sizes=(3, 3), n_filters=(4, 4))
    n_bytes = small.fit_transform(images).nbytes
    left(n_bytes - 1)
    expected = "the features of 12 images .*bank_size.*partial_fit.*image_size"
    with pytest.raises(MemoryError, match=expected):
        small.fit_transform(images)
    with pytest.raises(MemoryError, match=expected):
        Pipeline([small, PatchCoreDetector()]).fit(images)
    left(n_bytes)
    small.fit_transform(images)


def test_a_detector_refuses_before_features_are_extracted(left, monkeypatch):
    images = make_textures(12, 0, size=64, random_state=0).train
    small = PCANetFeatures(64, kernel_sizes=(3, 3), n_filters=(4, 4))
    X = small.fit_transform(images)
    detector = PaDiMDetector(calibration="kfold")
    need = X.nbytes + learning_bytes(detector, X.shape, 4, "kfold")
    left(need)
    Pipeline([small, detector]).fit(images)
    streaming = PaDiMDetector()
    need_of_stream = sum(streaming._fit_bytes(X.shape, 4, first=True))
    left(need_of_stream - 1)
    extracted = []
    check = PCANetFeatures._check_features
    monkeypatch.setattr(
        PCANetFeatures,
        "_check_features",
        lambda self, features, n: extracted.append(n) or check(self, features, n),
    )
    with pytest.raises(MemoryError, match=r"PaDiMDetector on 12 images .*calibration_"):
        Pipeline([small.set_params(batch_size=4), streaming]).fit(images)
    assert extracted == [4]
    monkeypatch.setattr(PCANetFeatures, "_feature_batches", None)
    left(need - 1)
    expected = "PaDiMDetector on 12 images .* with their features, needs .*calibration_"
    with pytest.raises(MemoryError, match=expected):
        Pipeline([small, detector]).fit(images)


def test_maps_that_do_not_fit_point_to_one_at_a_time(left):
    images = make_textures(12, 0, size=64, random_state=0).train
    model = PCANetFeatures(64, kernel_sizes=(3, 3), n_filters=(4, 4))
    model = Pipeline([model, SubspaceDetector()]).fit(images)
    left(4 * 12 * 90 * 100)
    assert model.anomaly_map(images, (90, 100)).shape == (12, 90, 100)
    left(4 * 12 * 64 * 64 - 1)
    for size in (None, (64, 64)):
        with pytest.raises(MemoryError, match=r"12 anomaly maps needs .*skad\.inspect"):
            model.anomaly_map(images, size)


CASES = [
    (PatchCoreDetector(0.1), r"bank_size, .*coreset_ratio=0.1.*image_size"),
    (PatchCoreDetector(1.0, metric="cosine"), "coreset_ratio=1.0"),
    (PatchCoreDetector(0.01, calibration="kfold"), "calibration='loo' needs no copies"),
    (SPADEDetector(), r"image_size.*PatchCoreDetector\(bank_size=...\)"),
    (PaDiMDetector(), "n_components=100.*image_size.*calibration_size=128"),
    (SubspaceDetector(), "n_components.*image_size"),
    (SubspaceDetector(calibration="split"), "n_components.*image_size"),
    (PatchwiseDetector(GaussianMixture(1), None), "max_patches=None"),
    (FusionDetector(n_channels=(64, 32)), r"partial_fit.*bank_size.*image_size"),
    (PUADDetector(PaDiMDetector()), "calibration_size=128"),
    (SimpleNetDetector(1, hidden_dim=32, upscale=2), "train_batch_size=.*upscale=2"),
]


@pytest.mark.parametrize(("detector", "names"), CASES)
def test_the_estimate_is_near_and_names_what_to_change(detector, names, left):
    X = np.random.default_rng(0).normal(size=(60, 10, 10, 96)).astype(np.float32)
    detector = clone(detector)
    detector.fit(X[:3])  # imports what it needs
    tracemalloc.start()
    detector.fit(X)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    way = detector._resolved_calibration()
    need = learning_bytes(detector, X.shape, X.itemsize, way)
    assert 0.5 * peak < need < 2 * peak
    left(need)
    detector.fit(X)
    left(need - 1)
    with pytest.raises(MemoryError, match=f"{type(detector).__name__} on 60.*{names}"):
        detector.fit(X)


def test_the_projected_rows_of_a_selection_count():
    X = np.random.default_rng(0).normal(size=(16, 50, 50, 192)).astype(np.float32)
    detector = PatchCoreDetector(0.0005, projection_dim=160, calibration="train")
    detector.fit(X[:3])  # imports what it needs
    tracemalloc.start()
    detector.fit(X)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    need = learning_bytes(detector, X.shape, X.itemsize, "train")
    assert 0.5 * peak < need < 2 * peak


@pytest.mark.parametrize("detector", [PatchCoreDetector(0.1), PaDiMDetector()])
def test_an_update_counts_what_is_there_already(detector, left):
    X = np.random.default_rng(0).normal(size=(20, 4, 4, 8)).astype(np.float32)
    need = learning_bytes(detector, X.shape, 4, "loo")
    detector = clone(detector).fit(X)
    left(need)
    with pytest.raises(MemoryError, match=f"{type(detector).__name__} on 20 images"):
        detector.partial_fit(X)


def test_images_of_a_batch_count(left):
    images = make_textures(12, 0, size=64, random_state=0).train
    detector = CutPasteDetector(
        backbone="resnet10t", max_steps=1, train_batch_size=64, image_size=64
    )
    n_bytes = 2 * 64 * 64 * 64 * 3 * 4
    left(n_bytes - 1)
    expected = "CutPasteDetector on 12 images of 64 x 64 .*train_batch_size=64 or image"
    with pytest.raises(MemoryError, match=expected):
        detector.fit(images)


# -- training ----------------------------------------------------------------------


def test_the_first_step_of_a_training_stops_in_time(left):
    images = make_textures(12, 0, size=64, random_state=0).train
    detector = CutPasteDetector(
        backbone="resnet10t", max_steps=1, train_batch_size=8, image_size=64
    )
    left(40e6)  # 90 MB are needed
    names = "a step of training CutPasteDetector needs .*train_batch_size=8 or image"
    with pytest.raises(MemoryError, match=names):
        detector.fit(images)
    left(180e6)
    detector.fit(images)
    features = SPDPatchFeatures(
        "resnet10t", layers="auto", max_steps=1, weights=False, image_size=64
    )
    left(40e6)
    with pytest.raises(MemoryError, match=r"SPDPatchFeatures .*train_batch_size=16"):
        features.fit(images)


UNDER_A_LIMIT = """
import resource
import sys

import numpy as np
import torch

import skad
from skad._memory import _process_memory

torch.set_num_threads(1)
rng = np.random.default_rng(0)
photos = rng.integers(0, 256, (4, 128, 128, 3), np.uint8)
patches = rng.normal(size=(16, 16, 16, 64)).astype(np.float32)
wide = rng.random((120, 32, 32, 300), np.float32)
training = dict(backbone="resnet10t", weights=False, max_steps=1, image_size=128)
features = skad.PatchFeatures("resnet10t", weights=False, layers="auto", image_size=128)
skad.PaDiMDetector().fit(patches)  # loads what it needs
skad.CutPasteDetector(train_batch_size=2, **training).fit(photos)
features.fit_transform(photos[:1])


def refused(work):
    try:
        work()
    except MemoryError as error:
        print(error)
    else:
        sys.exit("not refused")


pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + 300_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
skad.PaDiMDetector().fit(patches)  # 50 MB
skad.CutPasteDetector(train_batch_size=2, **training).fit(photos)
refused(lambda: skad.PaDiMDetector().fit(wide))
refused(lambda: skad.CutPasteDetector(train_batch_size=128, **training).fit(photos))
refused(lambda: features.set_params(image_size=2048).fit_transform(photos))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the limit is that of Linux")
def test_under_a_limit_of_the_process():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", UNDER_A_LIMIT],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    padim, training, features = done.stdout.splitlines()
    assert re.match(r"PaDiMDetector on 120 images .*n_components.*image_size", padim)
    assert re.match(
        "a step of training CutPasteDetector .*train_batch_size=128", training
    )
    assert re.match(
        "PatchFeatures on a batch .*image_size=2048 or batch_size", features
    )

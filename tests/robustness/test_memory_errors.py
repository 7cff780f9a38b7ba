"""Too large for the machine is said before the work starts, with what to change."""

import math

import numpy as np
import pytest

from skad import (
    FusionDetector,
    PatchCoreDetector,
    PCANetFeatures,
    Pipeline,
    SPADEDetector,
    _memory,
)
from skad._memory import memory_limit, require_memory
from skad.datasets import make_textures

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*cannot certify"),
    pytest.mark.filterwarnings("ignore:n_neighbors_image"),
]


def features(n=40):
    return np.random.default_rng(0).normal(size=(n, 4, 4, 8)).astype(np.float32)


@pytest.fixture
def machine(monkeypatch):
    """Set the memory of the machine."""
    return lambda n_bytes: monkeypatch.setattr(_memory, "memory_limit", lambda: n_bytes)


def test_the_limit_is_positive_and_above_what_this_process_has():
    assert memory_limit() > 2**27


def test_the_limit_of_a_container_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(_memory, "_CGROUPS", tmp_path)
    machine = memory_limit()
    (tmp_path / "memory.max").write_text("max\n")
    assert memory_limit() == machine
    (tmp_path / "memory.max").write_text("123456789\n")
    assert memory_limit() == 123456789
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text("1234567")
    assert memory_limit() == 1234567


def test_a_system_that_does_not_tell_refuses_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(_memory, "_CGROUPS", tmp_path)
    monkeypatch.delattr("os.sysconf")
    assert memory_limit() == math.inf
    require_memory(1e30, "all", "")


@pytest.mark.parametrize(
    ("n_bytes", "text"),
    [(1.5e3, "1.5 kB"), (2.34e8, "234 MB"), (6.4e10, "64 GB"), (2e14, "200 TB")],
)
def test_sizes_are_for_people(machine, n_bytes, text):
    machine(1000)
    with pytest.raises(MemoryError, match=f"the features take {text}, .* 1 kB"):
        require_memory(n_bytes, "the features", "")


def test_features_name_what_to_change(machine):
    images = make_textures(12, 0, size=64, random_state=0).train
    small = PCANetFeatures(64, kernel_sizes=(3, 3), n_filters=(4, 4))
    n_bytes = small.fit_transform(images).nbytes
    machine(n_bytes - 1)
    expected = "the features of 12 images .*bank_size.*partial_fit.*image_size"
    with pytest.raises(MemoryError, match=expected):
        small.fit_transform(images)
    with pytest.raises(MemoryError, match=expected):
        Pipeline([small, PatchCoreDetector()]).fit(images)
    Pipeline([small, PatchCoreDetector(bank_size=50)]).fit(images)  # holds less
    machine(n_bytes)
    small.fit_transform(images)


@pytest.mark.parametrize(
    ("detector", "share", "names"),
    [
        (
            PatchCoreDetector(0.5),
            0.5,
            r"bank_size, .*coreset_ratio=0.5.*image_size",
        ),
        (SPADEDetector(), 1, r"image_size.*PatchCoreDetector\(bank_size=...\)"),
        (FusionDetector(), 1, r"partial_fit.*bank_size.*image_size"),
    ],
)
def test_detectors_name_what_to_change(machine, detector, share, names):
    X = features()
    machine(X.nbytes * share)
    detector.fit(X)
    machine(X.nbytes * share - 1)
    with pytest.raises(MemoryError, match=names):
        detector.fit(X)

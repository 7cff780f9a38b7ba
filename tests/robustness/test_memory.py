"""What is kept between calls: bounded by bytes, made once, outside of estimators."""

import copy
import gc
import os
import pickle
import threading

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import clone

from skad import (
    CutPasteDetector,
    DRAEMDetector,
    EfficientADDetector,
    ImagePUADDetector,
    PatchFeatures,
    PRNDetector,
    SimpleNetDetector,
)
from skad import _kept as kept
from skad._kept import ByteBounded, byte_bounded, prepared, size_in_bytes
from skad._maps import _axis_operator, render
from skad._training_images import LeftBehind
from skad.datasets import make_textures
from skad.detectors import Teacher
from skad.networks._embedding import _pooling
from skad.networks._modules import arrays, seeded
from skad.networks._pdn import pdn

pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings("ignore:.*cannot certify"),
    pytest.mark.filterwarnings("ignore:penalty_images=None"),
    pytest.mark.filterwarnings("ignore:maps of good images are constant"),
]

# -- caches ----------------------------------------------------------------------


def test_a_cache_drops_what_was_used_longest_ago():
    cache = ByteBounded(300)
    for key in "abc":
        cache.get(key, lambda: np.zeros(100, np.uint8))
    first = cache.get("a", lambda: pytest.fail("it was kept"))
    cache.get("d", lambda: np.zeros(100, np.uint8))
    assert cache.get("a", lambda: None) is first
    assert cache.n_bytes == 300
    assert cache.get("b", lambda: np.ones(1, np.uint8)).sum() == 1  # made again


def test_a_value_above_the_limit_is_given_but_not_kept():
    cache = ByteBounded(50)
    cache.get("small", lambda: np.zeros(10, np.uint8))
    assert cache.get("large", lambda: np.zeros(100, np.uint8)).size == 100
    assert cache.n_bytes == 10


def test_the_value_used_last_stays_where_it_is_asked_for():
    cache = ByteBounded(50, keep_last=True)
    cache.get("small", lambda: np.zeros(10, np.uint8))
    large = cache.get("large", lambda: np.zeros(100, np.uint8))
    assert cache.get("large", lambda: None) is large
    assert cache.n_bytes == 100
    cache.get("small", lambda: np.zeros(10, np.uint8))
    assert cache.n_bytes == 10


def test_bytes_of_arrays_tensors_and_modules_are_counted():
    module = torch.nn.BatchNorm1d(4)  # two parameters, two buffers and a counter
    values = [np.zeros(3), (torch.zeros(5), {"a": np.zeros(2, np.uint8)}), module, "x"]
    assert size_in_bytes(values) == 24 + 20 + 2 + 4 * 16 + 8


def test_threads_make_a_value_once():
    calls = []

    @byte_bounded(1000)
    def slow(n):
        calls.append(n)
        return np.zeros(n, np.uint8)

    barrier = threading.Barrier(4)

    def ask():
        barrier.wait()
        slow(10)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert calls == [10]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:.*multi-threaded:DeprecationWarning")
def test_a_forked_child_does_not_wait_for_a_lock_of_the_parent():
    cache = ByteBounded(1000)
    held, done = threading.Event(), threading.Event()

    def hold():
        with cache._lock:
            held.set()
            done.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    pid = os.fork()
    if pid == 0:
        cache.get("a", lambda: np.zeros(1))
        os._exit(7)
    done.set()
    thread.join()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_maps_of_many_sizes_keep_bounded_memory():
    grids = np.random.default_rng(0).random((1, 128, 128))
    for height in range(1000, 1240, 2):  # 120 matrices of half a megabyte
        render(grids, (height, 64))
    cache = _axis_operator.cache
    assert 2**22 < cache.n_bytes <= cache.limit
    assert cache.limit <= 2**27
    render(np.zeros((1, 600, 1), np.float32), (40_000, 1), sigma=0)  # 96 MB alone
    assert cache.n_bytes <= cache.limit


def test_a_rendered_map_has_the_same_bits_when_its_matrices_were_dropped():
    grids = np.random.default_rng(0).random((2, 7, 5))
    before = render(grids, (90, 71))
    _axis_operator.cache._entries.clear()
    np.testing.assert_array_equal(render(grids, (90, 71)), before)


def test_pooling_weights_keep_bounded_memory():
    for n_out in range(200, 230):
        _pooling(97, 3, n_out)
    assert 0 < _pooling.cache.n_bytes <= _pooling.cache.limit


# -- networks --------------------------------------------------------------------


@pytest.fixture(scope="module")
def images():
    return make_textures(n_normal=10, n_anomalous=1, size=64, random_state=0).train


@pytest.fixture(scope="module")
def teacher():
    network = seeded(lambda: pdn("tiny", 8, padding=True), 0)
    return Teacher("tiny", arrays(network))


def small_features(images):
    pixels = images[:, ::8, ::8].astype(np.float32) / 255
    return np.repeat(pixels, 2, axis=3)


MAKE = {
    "EfficientAD": lambda teacher, **given: EfficientADDetector(
        "tiny", teacher, max_steps=2, image_size=64, **given
    ),
    "DRAEM": lambda teacher, **given: DRAEMDetector(
        "tiny", max_epochs=1, train_batch_size=2, image_size=64, **given
    ),
    "CutPaste": lambda teacher, **given: CutPasteDetector(
        backbone="resnet10t", max_steps=1, train_batch_size=2, image_size=64, **given
    ),
    "PRN": lambda teacher, **given: PRNDetector(
        "resnet10t",
        weights=False,
        model="tiny",
        max_steps=1,
        train_batch_size=3,
        image_size=64,
        **given,
    ),
    "SimpleNet": lambda teacher, **given: SimpleNetDetector(1, hidden_dim=8, **given),
    "SimpleNet with a head": lambda teacher, **given: SimpleNetDetector(
        1, hidden_dim=8, noise_mask="perlin", classification_head=True, **given
    ),
}


@pytest.fixture(scope="module", params=list(MAKE))
def fitted(request, images, teacher):
    X = small_features(images) if "SimpleNet" in request.param else images
    return MAKE[request.param](teacher).fit(X), X


@pytest.fixture
def count(monkeypatch):
    """Numbers of results that were prepared for scoring."""
    made = []
    original = kept._Prepared

    def counting(owner, known, value):
        made.append(value)
        return original(owner, known, value)

    monkeypatch.setattr(kept, "_Prepared", counting)
    return made


def test_networks_are_made_once_for_all_calls(fitted, count):
    detector, X = fitted
    detector = copy.deepcopy(detector)
    for _ in range(3):
        detector.predict(X[:2])
    detector.anomaly_map(X[:1])
    assert len(count) == 1


def test_scoring_writes_nothing_and_pickles_no_network(fitted):
    detector, X = fitted
    fresh = copy.deepcopy(detector)
    before, size = joblib.hash(vars(fresh)), len(pickle.dumps(fresh))
    first = fresh.score_samples(X)
    np.testing.assert_array_equal(fresh.score_samples(X), first)
    assert joblib.hash(vars(fresh)) == before
    assert len(pickle.dumps(fresh)) == size
    loaded = pickle.loads(pickle.dumps(fresh))
    np.testing.assert_array_equal(loaded.score_samples(X), first)


def test_another_state_is_seen_at_once(fitted):
    detector, X = fitted
    before = detector.score_samples(X)
    other = copy.copy(detector)
    other.state_ = {
        name: v * v.dtype.type(1.1) if v.dtype.kind == "f" else v
        for name, v in detector.state_.items()
    }
    changed = other.score_samples(X)
    assert not np.array_equal(changed, before)
    np.testing.assert_array_equal(detector.score_samples(X), before)
    written = copy.deepcopy(detector)
    np.testing.assert_array_equal(written.score_samples(X), before)
    for values in written.state_.values():
        if values.dtype.kind == "f":
            values *= values.dtype.type(1.1)  # in place
    np.testing.assert_array_equal(written.score_samples(X), changed)


def test_a_second_fit_is_seen_at_once(fitted):
    detector, X = fitted
    other = copy.deepcopy(detector).set_params(random_state=1)
    before = other.score_samples(X)
    after = other.fit(X).score_samples(X)
    assert not np.array_equal(after, before)
    same = clone(other).fit(X)
    np.testing.assert_array_equal(same.score_samples(X), after)


def test_a_deleted_model_frees_its_networks(fitted):
    detector, X = copy.deepcopy(fitted[0]), fitted[1]
    detector.score_samples(X[:1])
    key = id(detector)
    assert key in kept._PREPARED._entries
    del detector
    gc.collect()
    assert key not in kept._PREPARED._entries


def test_an_array_read_only_or_mapped_from_a_file_scores_alike(fitted, tmp_path, count):
    detector, X = fitted
    joblib.dump(detector, tmp_path / "model.joblib")
    mapped = joblib.load(tmp_path / "model.joblib", mmap_mode="r")
    expected = detector.score_samples(X)
    count.clear()
    for _ in range(2):
        np.testing.assert_array_equal(mapped.score_samples(X), expected)
    assert len(count) == 1


def test_threads_share_one_network(fitted, count):
    detector, X = copy.deepcopy(fitted[0]), fitted[1]
    expected = fitted[0].score_samples(X)
    count.clear()
    found = [None] * 3

    def score(k):
        found[k] = detector.score_samples(X)

    threads = [threading.Thread(target=score, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for scores in found:
        np.testing.assert_array_equal(scores, expected)
    assert len(count) == 1


def test_a_setting_of_the_networks_is_seen_at_once(images, teacher):
    detector = MAKE["EfficientAD"](teacher).fit(images)
    before = detector.score_samples(images)
    detector.set_params(padding=True)
    after = detector.score_samples(images)
    assert not np.array_equal(after, before)
    detector.set_params(padding=False)
    np.testing.assert_array_equal(detector.score_samples(images), before)


def test_a_module_as_teacher_stays_as_it_was_and_is_not_kept_stale(images, teacher):
    module = teacher.network().requires_grad_(True).train()
    module[1].eval()
    detector = MAKE["EfficientAD"](module).fit(images)
    before = detector.score_samples(images)
    assert module.training
    assert not module[1].training
    with torch.no_grad():
        module[0].weight.mul_(2)
    assert not np.array_equal(detector.score_samples(images), before)


class Owner:
    """Something that owns a state."""


def test_what_differs_in_order_or_in_a_single_bit_is_told_apart():
    owner, state = Owner(), {"a": np.arange(5000.0), "b": np.arange(3)}
    made = []

    def ask():
        return prepared(owner, lambda: made.append(0) or np.zeros(1), state)

    ask()
    ask()
    assert len(made) == 1
    state["a"][4999] = np.nextafter(4999.0, 0)
    ask()
    state["a"][:] = state["a"][::-1].copy()
    ask()
    state["b"] = state["b"].astype(np.int32)
    ask()
    assert len(made) == 4


# -- images for training only ----------------------------------------------------


def with_images(kind, photos, teacher):
    if kind == "EfficientAD":
        return MAKE[kind](teacher, penalty_images=photos)
    return MAKE[kind](teacher, texture_images=photos)


PARAMETER = {
    "EfficientAD": "penalty_images",
    "DRAEM": "texture_images",
    "PRN": "texture_images",
}


@pytest.fixture(scope="module")
def photos():
    return list(np.random.default_rng(0).integers(0, 256, (20, 96, 96, 3), np.uint8))


@pytest.mark.parametrize("kind", list(PARAMETER))
def test_training_images_are_neither_pickled_nor_copied(kind, images, photos, teacher):
    name = PARAMETER[kind]
    detector = with_images(kind, photos, teacher).fit(images)
    assert clone(detector).get_params()[name] is photos
    assert copy.deepcopy(detector).get_params()[name] is photos
    assert copy.copy(detector).get_params()[name] is photos
    without = clone(detector).set_params(**{name: None}).fit(images)
    size = len(pickle.dumps(without))
    assert len(pickle.dumps(detector)) < size + 1000
    assert getattr(detector, name) is photos
    loaded = pickle.loads(pickle.dumps(detector))
    left = getattr(loaded, name)
    assert isinstance(left, LeftBehind)
    assert "20 images" in repr(left)
    np.testing.assert_array_equal(
        loaded.score_samples(images), detector.score_samples(images)
    )
    for model in (loaded, clone(loaded)):
        with pytest.raises(ValueError, match=rf"set_params\({name}=...\)"):
            model.fit(images)
    refitted = loaded.set_params(**{name: photos}).fit(images)
    np.testing.assert_array_equal(
        refitted.score_samples(images), detector.score_samples(images)
    )


@pytest.mark.parametrize("calibration", ["kfold", "train"])
def test_a_second_fit_still_has_its_training_images(calibration, images, photos):
    detector = DRAEMDetector(
        "tiny", photos, max_epochs=1, train_batch_size=2, image_size=64
    ).set_params(calibration=calibration)
    first = detector.fit(images[:2]).score_samples(images[:2])
    again = detector.fit(images[:2]).score_samples(images[:2])
    np.testing.assert_array_equal(again, first)


def test_an_unfitted_detector_travels_with_its_training_images(photos, teacher):
    detector = with_images("EfficientAD", np.stack(photos), teacher)
    loaded = pickle.loads(pickle.dumps(detector))
    np.testing.assert_array_equal(loaded.penalty_images, photos)


def test_paths_of_training_images_travel_as_text(tmp_path, images, teacher):
    from PIL import Image

    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, image in zip(paths, images, strict=False):
        Image.fromarray(image).save(path)
    detector = with_images("EfficientAD", paths, teacher).fit(images)
    loaded = pickle.loads(pickle.dumps(detector))
    assert loaded.penalty_images == [str(path) for path in paths]
    assert b"PosixPath" not in pickle.dumps(detector)


def test_a_combination_leaves_the_images_of_its_detector_behind(
    images, photos, teacher
):
    inner = with_images("EfficientAD", photos, teacher)
    features = PatchFeatures("skad_small", embedding="concat", image_size=64)
    both = ImagePUADDetector(inner, features).fit(images)
    assert clone(both).detector.penalty_images is photos
    assert both.detector_.penalty_images is photos
    pickled = pickle.dumps(both)
    assert photos[0].tobytes() not in pickled
    loaded = pickle.loads(pickled)
    assert isinstance(loaded.detector.penalty_images, LeftBehind)
    np.testing.assert_array_equal(
        loaded.score_samples(images), both.score_samples(images)
    )


def test_clones_share_a_teacher(teacher):
    detector = with_images("EfficientAD", None, teacher)
    assert clone(detector).teacher is teacher

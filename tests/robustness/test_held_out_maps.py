"""Held-out maps are of a random sample where those of all images would be too many."""

import copy
import pickle

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.base import clone

from skad import (
    FusionDetector,
    PaDiMDetector,
    PatchCoreDetector,
    PUADDetector,
    SPADEDetector,
    SubspaceDetector,
)
from skad.base import ImageDetector, _calibrated
from skad.parallel import fit_parts

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*cannot certify"),
    pytest.mark.filterwarnings("ignore:n_neighbors_image"),
    pytest.mark.filterwarnings("ignore:X.*scores far"),
]

LIMIT = 20
DETECTORS = [
    PatchCoreDetector(),
    PatchCoreDetector(bank_size=60),
    SubspaceDetector(n_components=3),
    PaDiMDetector(),
]


def pieces(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 4, 4, 6)).astype(np.float32)


def in_batches(detector, X):
    starts = range(0, len(X), 8)
    batches = [(np.arange(lo, min(lo + 8, len(X))), X[lo : lo + 8]) for lo in starts]
    return detector._fit_batches(batches)


@pytest.fixture
def few_maps(monkeypatch):
    monkeypatch.setattr(_calibrated, "_MAP_BYTES", 4 * 16 * LIMIT)
    monkeypatch.setattr(_calibrated, "_MIN_MAPS", 0)


def check_is_sample(bounded, whole):
    """The maps are some of those without a limit, and everything else is the same."""
    assert_array_equal(bounded.calibration_scores_, whole.calibration_scores_)
    assert bounded.offset_ == whole.offset_
    assert len(bounded.calibration_maps_) == LIMIT
    assert_array_equal(
        bounded.calibration_maps_, whole.calibration_maps_[bounded._map_rows]
    )
    assert len(set(bounded._map_rows)) == LIMIT


def with_and_without_limit(make, monkeypatch):
    whole = make()
    with monkeypatch.context() as patch:
        patch.setattr(_calibrated, "_MAP_BYTES", 4 * 16 * LIMIT)
        patch.setattr(_calibrated, "_MIN_MAPS", 0)
        check_is_sample(make(), whole)


@pytest.mark.parametrize("calibration", ["auto", "kfold", "split", "train"])
@pytest.mark.parametrize("detector", [*DETECTORS, SPADEDetector()])
def test_fit(detector, calibration, monkeypatch):
    detector = clone(detector).set_params(calibration=calibration)
    with_and_without_limit(lambda: clone(detector).fit(pieces(110)), monkeypatch)


@pytest.mark.parametrize("detector", DETECTORS)
def test_updates_merges_and_calibrations(detector, monkeypatch):
    def merged():
        other = clone(detector).fit(pieces(50, 1))
        return clone(detector).fit(pieces(40)).merge(other)

    with_and_without_limit(merged, monkeypatch)
    with_and_without_limit(
        lambda: clone(detector).fit(pieces(40)).partial_fit(pieces(30, 1)), monkeypatch
    )
    with_and_without_limit(
        lambda: clone(detector).fit(pieces(40)).calibrate(pieces(30, 1), add=True),
        monkeypatch,
    )


@pytest.mark.parametrize("given", [{}, {"top_ratio": 0.2}, {"n_neighbors": 2}])
def test_streams_and_parts(given, monkeypatch):
    def make():
        return PatchCoreDetector(0.5, bank_size=60, **given)

    with_and_without_limit(lambda: in_batches(make(), pieces(70)), monkeypatch)
    with_and_without_limit(
        lambda: fit_parts(make(), pieces(70), part_size=20), monkeypatch
    )

    def updated():
        detector = in_batches(make(), pieces(70))
        more = [(np.arange(60), pieces(60, 1))]
        return detector._fit_batches(more, update=True)

    with_and_without_limit(updated, monkeypatch)


@pytest.mark.usefixtures("few_maps")
def test_every_image_is_as_likely_as_another():
    detector = SubspaceDetector(n_components=3).fit(pieces(30))
    for seed in range(1, 20):
        detector.calibrate(pieces(30, seed), add=True)
    counts = np.bincount(detector._map_rows // 300, minlength=2)
    assert counts.sum() == LIMIT
    assert counts.min() >= 4  # of either half


@pytest.mark.usefixtures("few_maps")
def test_threshold_of_pixels_is_that_of_the_sample():
    X, new = pieces(400), pieces(2000, 1)
    detector = SubspaceDetector(n_components=3, contamination=0.1).fit(X)
    peaks = detector.calibration_maps_.max((1, 2))
    assert peaks.min() < detector.pixel_threshold() <= 2 * peaks.max()
    assert np.mean(detector.predict_mask(new).any((1, 2))) < 0.25
    assert np.mean(detector.predict(new) == -1) == pytest.approx(0.1, abs=0.04)
    again = pickle.loads(pickle.dumps(copy.deepcopy(detector)))
    assert again.pixel_threshold((9, 9)) == detector.pixel_threshold((9, 9))


@pytest.mark.parametrize(
    "detector", [SubspaceDetector(n_components=3), PaDiMDetector(calibration_size=90)]
)
def test_detectors_in_a_fusion_keep_the_maps_of_the_same_sample(detector, monkeypatch):
    def make():
        fusion = FusionDetector(detector, n_channels=(4, 2)).fit(pieces(40))
        other = FusionDetector(detector, n_channels=(4, 2)).fit(pieces(30, 1))
        return fusion.partial_fit(pieces(20, 2)).merge(other)

    whole = make()
    with monkeypatch.context() as patch:
        patch.setattr(_calibrated, "_MAP_BYTES", 4 * 16 * LIMIT)
        patch.setattr(_calibrated, "_MIN_MAPS", 0)
        bounded = make()
    assert_array_equal(bounded.calibration_scores_, whole.calibration_scores_)
    assert len(whole.calibration_maps_) == len(whole.calibration_scores_) == 90
    one, two = bounded.detectors_
    assert_array_equal(one._map_rows, two._map_rows)
    assert_array_equal(bounded._map_rows, one._map_rows)
    assert len(bounded.calibration_maps_) == len(one.calibration_maps_) == LIMIT
    np.testing.assert_allclose(bounded.map_means_, whole.map_means_, rtol=0.1)
    np.testing.assert_allclose(
        bounded.calibration_maps_,
        whole.calibration_maps_[bounded._map_rows],
        atol=0.5,  # standard deviations, which are those of the sample
    )


@pytest.mark.usefixtures("few_maps")
def test_the_detector_in_puad_keeps_a_sample():
    detector = PUADDetector(SubspaceDetector(n_components=3)).fit(pieces(90))
    assert len(detector.detector_.calibration_maps_) == LIMIT


class Brightness(ImageDetector):
    def __init__(self, calibration="kfold"):
        self.calibration = calibration
        self.image_size, self.crop_size, self.batch_size = 4, None, 8
        self.on_error, self.n_jobs, self.verbose = "raise", None, False
        self.contamination, self.sigma, self.random_state = 0.1, 0.0, 0

    def _fit(self, reader):
        self.mean_ = np.concatenate(list(reader.batches(8))).mean()

    def _score_batch(self, batch):
        maps = np.abs(batch.mean(axis=3) - self.mean_)
        return maps.max(axis=(1, 2)), maps


@pytest.mark.parametrize("calibration", ["kfold", "split", "train"])
def test_of_images(calibration, monkeypatch):
    images = np.random.default_rng(0).integers(0, 256, (110, 4, 4, 3), np.uint8)

    def make():
        return Brightness(calibration).fit(images[:100]).calibrate(images, add=True)

    with_and_without_limit(make, monkeypatch)


def test_small_sets_keep_all_maps():
    assert _calibrated.max_maps((28, 28)) > 80_000
    assert _calibrated.max_maps((512, 1024)) == 1000
    detector = SubspaceDetector(n_components=3).fit(pieces(1200))
    assert len(detector.calibration_maps_) == 1200

"""Fitting features computes nothing twice that it could have kept."""

import numpy as np
import pytest

from skad import FusedFeatures, PCANetFeatures, networks
from skad.datasets import make_textures
from skad.features import _fused, _passes
from skad.images._batches import ImageReader

pytestmark = pytest.mark.usefixtures("one_torch_thread")


@pytest.fixture(scope="module")
def images():
    return make_textures(n_normal=9, n_anomalous=1, size=64, random_state=0).train


def small(**given):
    return PCANetFeatures(64, **{"kernel_sizes": (3, 3), "n_filters": (4, 4), **given})


def fused():
    return FusedFeatures(small(), small(kernel_sizes=(5, 3)))


@pytest.mark.parametrize("y", [None, [1, 1, -1, 1, 1, 1, 1, -1, 1]])
def test_features_have_the_same_bits_when_nothing_is_kept(images, y, monkeypatch):
    features = fused()
    found = features.fit_transform(images, y)
    monkeypatch.setattr(_fused, "_KEPT_BYTES", -1)
    monkeypatch.setattr(_passes, "_KEPT_BYTES", -1)
    again = fused()
    np.testing.assert_array_equal(again.fit_transform(images, y), found)
    np.testing.assert_array_equal(again.transform(images), features.transform(images))
    monkeypatch.setattr(_passes, "_KEPT_BYTES", 2**19)  # room for a part
    np.testing.assert_array_equal(fused().fit_transform(images, y), found)


def test_features_have_the_same_bits_in_any_batches(images):
    # An image in the middle cannot be read.
    images = [*images[:4], np.full((64, 64, 3), np.nan), *images[4:]]
    found = []
    for size in (16, 4, 1):
        settings = {"batch_size": size, "on_error": "skip"}
        features = FusedFeatures(
            small(**settings), small(kernel_sizes=(5, 3), **settings)
        )
        with pytest.warns(UserWarning, match="1 of 10 images"):
            found.append(features.fit_transform(images))
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])


def test_nothing_is_filtered_or_read_again_that_was_kept(images, monkeypatch):
    filtered, read = [], []
    advance, reading = networks.pcanet.Stages.advance, ImageReader._reading

    def counting_advance(self, filters):
        filtered.append(len(self.x))
        return advance(self, filters)

    def counting_reading(self, index):
        read.append(index)
        return reading(self, index)

    monkeypatch.setattr(networks.pcanet.Stages, "advance", counting_advance)
    monkeypatch.setattr(ImageReader, "_reading", counting_reading)
    n_stages = 2
    small().fit(images)
    assert (sum(filtered), len(read)) == (n_stages * len(images), len(images))
    filtered.clear()
    fused().fit_transform(images)
    assert sum(filtered) == 2 * n_stages * len(images)  # of two, to fit and extract

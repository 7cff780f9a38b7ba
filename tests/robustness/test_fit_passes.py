"""Fitting features computes nothing twice that it could have kept."""

import numpy as np
import pytest

from skad import FusedFeatures, PCANetFeatures
from skad.datasets import make_textures
from skad.features import _fused, _pcanet

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
    monkeypatch.setattr(_pcanet, "_KEPT_BYTES", -1)
    again = fused()
    np.testing.assert_array_equal(again.fit_transform(images, y), found)
    np.testing.assert_array_equal(again.transform(images), features.transform(images))
    monkeypatch.setattr(_pcanet, "_KEPT_BYTES", 2**19)  # room for a part
    np.testing.assert_array_equal(fused().fit_transform(images, y), found)


def test_every_image_goes_through_the_filters_as_seldom_as_can_be(images, monkeypatch):
    seen = []
    original = PCANetFeatures._responses

    def counting(self, batch):
        seen.append(len(batch))
        return original(self, batch)

    monkeypatch.setattr(PCANetFeatures, "_responses", counting)
    small().fit(images)
    assert sum(seen) == len(images)
    seen.clear()
    fused().fit_transform(images)
    assert sum(seen) == 2 * len(images)  # of each of the two, to fit and to extract

import sys

import numpy as np
import pytest
from PIL import Image

from skad import PatchCoreDetector, PatchFeatures, Pipeline
from skad.datasets import make_textures
from skad.metrics import AnomalyMapDisplay


@pytest.fixture(scope="module")
def data():
    return make_textures(n_normal=24, n_anomalous=2, size=64, random_state=0)


@pytest.fixture(scope="module")
def model(data):
    features = PatchFeatures("resnet10t", "auto", weights=False, image_size=64)
    return Pipeline([features, PatchCoreDetector()]).fit(data.train)


def test_from_estimator(model, data):
    display = AnomalyMapDisplay.from_estimator(model, data.test, masks=data.masks)
    assert display.axes_.shape == (len(data.test), 3)
    low, high = display.colorbar_.mappable.get_clim()
    assert low == pytest.approx(-high)  # the zero in the middle is the threshold
    drawn = display.axes_[0, 1].images[1].get_array()
    expected = model.anomaly_map(data.test)[0] - model.pixel_threshold((64, 64))
    np.testing.assert_allclose(drawn, expected, rtol=1e-6)
    words = {1: "good", -1: "defective"}
    labels = [ax.get_ylabel() for ax in display.axes_[:, 0]]
    assert labels == [words[p] for p in model.predict(data.test)]


def test_without_masks_and_with_images_of_several_sizes(model, data, tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(data.test[0][:40]).save(path)
    display = AnomalyMapDisplay.from_estimator(model, [path, data.test[1]])
    assert display.axes_.shape == (2, 2)
    display.figure_.savefig(tmp_path / "display.png")
    assert (tmp_path / "display.png").stat().st_size > 10_000


def test_from_predictions_in_a_given_figure(data):
    import matplotlib.pyplot as plt

    figure = plt.figure()
    maps = np.random.default_rng(0).random((4, 64, 64))
    display = AnomalyMapDisplay.from_predictions(
        data.test, maps, thresholds=0.5, figure=figure, titles=list("abcd")
    )
    assert display.figure_ is figure
    assert display.axes_[1, 1].collections  # the contour of the threshold
    plain = AnomalyMapDisplay.from_predictions(data.test, maps)
    assert not plain.axes_[1, 1].collections


def test_a_skipped_image_is_drawn_without_a_map(data):
    maps = np.full((1, 64, 64), np.nan)
    AnomalyMapDisplay.from_predictions(data.test[:1], maps, thresholds=1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"maps": np.zeros((3, 64, 64))}, "maps has 3 entries but there are 4"),
        ({"maps": np.zeros((4, 32, 64))}, r"maps\[0\] has shape \(32, 64\)"),
        ({"masks": [None]}, "masks has 1 entries"),
        ({"masks": [None, None, None, np.zeros((9, 9), bool)]}, r"masks\[3\]"),
        ({"thresholds": [1.0]}, "thresholds has 1 entries"),
    ],
)
def test_bad_input_is_named(data, arguments, message):
    arguments = {"maps": np.zeros((4, 64, 64)), **arguments}
    with pytest.raises(ValueError, match=message):
        AnomalyMapDisplay.from_predictions(data.test, **arguments)


def test_matplotlib_is_an_extra(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"skad\[plot\]"):
        AnomalyMapDisplay.from_predictions(data.test, np.zeros((4, 64, 64)))

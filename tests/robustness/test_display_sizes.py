"""AnomalyMapDisplay renders no more than a figure shows, in the figure's place."""

import tracemalloc

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from skad import PatchCoreDetector, PatchFeatures, Pipeline
from skad.metrics import AnomalyMapDisplay


def images_of(ax):
    return [image.get_array() for image in ax.images]


@pytest.mark.parametrize("shape", [(2000, 500), (500, 2000), (1500, 1501)])
def test_a_large_image_is_shown_at_the_size_of_its_place(shape):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (*shape, 3), np.uint8)
    heat = np.zeros(shape, np.float32)
    heat[shape[0] // 2, shape[1] // 2] = 9  # a single pixel
    mask = heat > 0
    display = AnomalyMapDisplay.from_predictions(
        [image], [heat], masks=[mask], thresholds=1.0
    )
    for ax in display.axes_[0]:
        for array in images_of(ax):
            assert max(array.shape[:2]) == 460  # twice 2.3 inches of 100 dots
            ratio = array.shape[0] / array.shape[1] / (shape[0] / shape[1])
            assert ratio == pytest.approx(1, rel=0.01)
        assert ax.get_xlim() == (-0.5, shape[1] - 0.5)
        assert ax.get_ylim() == (shape[0] - 0.5, -0.5)
    picture, shown = images_of(display.axes_[0, 0])[0], display.axes_[0, 1].images[1]
    assert picture.mean() == pytest.approx(image.mean() / 255, abs=1e-3)
    assert shown.get_array().max() == 8  # no peak is lost
    assert images_of(display.axes_[0, 2])[0].sum() == 1
    at = np.array(np.unravel_index(shown.get_array().argmax(), shown.get_array().shape))
    cells = (at + 0.5) / shown.get_array().shape
    np.testing.assert_allclose(cells, 0.5, atol=0.01)


def test_a_small_image_is_shown_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    heat = np.random.default_rng(1).random((40, 60))
    display = AnomalyMapDisplay.from_predictions([image], [heat])
    np.testing.assert_allclose(images_of(display.axes_[0, 0])[0], image / 255.0)
    np.testing.assert_array_equal(images_of(display.axes_[0, 1])[1], heat)


def test_sixteen_bits_grey_and_nan_are_shrunk():
    grey = np.full((1000, 300), 30_000, np.uint16)
    heat = np.ones((1000, 300))
    heat[:500] = np.nan
    display = AnomalyMapDisplay.from_predictions([grey], [heat], thresholds=0.5)
    picture = images_of(display.axes_[0, 0])[0]
    np.testing.assert_allclose(picture, 30_000 / 65_535, atol=1e-4)
    shown = images_of(display.axes_[0, 1])[1]
    assert np.ma.getmaskarray(np.ma.masked_invalid(shown))[:229].all()
    assert (shown[231:] == 0.5).all()


def test_memory_is_that_of_one_image(tmp_path):
    paths = []
    for i in range(4):
        paths.append(tmp_path / f"{i}.png")
        Image.new("RGB", (1500, 1500), (i, i, i)).save(paths[-1])
    maps = [np.zeros((1500, 1500), np.float32)] * 4
    AnomalyMapDisplay.from_predictions(paths[:1], [maps[0]])  # loads what it needs
    tracemalloc.start()
    AnomalyMapDisplay.from_predictions(paths, maps)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 60e6  # float64 copies of all took 54 MB each


def test_a_given_figure_tells_the_size_and_serves_again():
    image = np.zeros((900, 900, 3), np.uint8)
    figure = plt.figure(figsize=(4, 2), dpi=50)
    for _ in range(30):
        display = AnomalyMapDisplay.from_predictions(
            [image], [image[..., 0] + 0.0], figure=figure
        )
    assert plt.get_fignums() == [figure.number]
    assert len(figure.axes) == 3  # two pictures and the colour bar
    assert max(images_of(display.axes_[0, 0])[0].shape) == 200


def test_a_closed_figure_is_gone():
    image = np.zeros((9, 9, 3), np.uint8)
    display = AnomalyMapDisplay.from_predictions([image], [np.eye(9)])
    plt.close(display.figure_)
    assert plt.get_fignums() == []


def test_an_image_that_cannot_be_read_leaves_no_figure(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"images\[1\]"):
        AnomalyMapDisplay.from_predictions(
            [np.zeros((9, 9, 3), np.uint8), tmp_path / "bad.png"], [np.eye(9)] * 2
        )
    assert plt.get_fignums() == []


def test_outside_of_regions_is_shaded():
    image = np.zeros((20, 30, 3), np.uint8)
    region = np.zeros((20, 30), bool)
    region[5:15, 10:20] = True
    display = AnomalyMapDisplay.from_predictions(
        [image, image], [np.zeros((20, 30))] * 2, regions=[region, None]
    )
    for ax in display.axes_[0]:
        np.testing.assert_array_equal(images_of(ax)[-1][..., 3] == 0, region)
    assert len(display.axes_[1, 0].images) == 1
    with pytest.raises(ValueError, match="regions has 1 entries"):
        AnomalyMapDisplay.from_predictions([image] * 2, [region] * 2, regions=[region])


@pytest.fixture(scope="module")
def model():
    rng = np.random.default_rng(0)
    images = rng.integers(100, 156, (21, 64, 64, 3), np.uint8)
    features = PatchFeatures("skad_small", embedding="concat", image_size=64)
    return Pipeline([features, PatchCoreDetector()]).fit(images), images


def test_regions_reach_the_estimator(model):
    detector, images = model
    region = np.zeros((64, 64), bool)
    region[:, :32] = True
    anomalous = images[0].copy()
    anomalous[20:44, 40:60] = 255  # outside of the region
    regions = [region, None]
    display = AnomalyMapDisplay.from_estimator(
        detector, [anomalous] * 2, regions=regions
    )
    maps = detector.anomaly_map([anomalous] * 2, regions=regions)
    for row, heat in zip(display.axes_, maps, strict=True):
        expected = heat - detector.pixel_threshold((64, 64))
        np.testing.assert_allclose(images_of(row[1])[1], expected, rtol=1e-6)
    words = {1: "good", -1: "defective"}
    labels = detector.predict([anomalous] * 2, regions=regions)
    shown = [ax.get_ylabel() for ax in display.axes_[:, 0]]
    assert shown == [words[label] for label in labels]


def test_maps_are_made_some_at_a_time(model, monkeypatch):
    from skad.metrics import _display

    detector, images = model
    sizes = [(64, 64), (90, 80), (64, 64)]
    X = [np.resize(images[i], (*size, 3)) for i, size in enumerate(sizes)]
    expected = detector.anomaly_map(X)
    monkeypatch.setattr(_display, "_PIXELS_AT_ONCE", 8000)
    display = AnomalyMapDisplay.from_estimator(detector, X)
    for row, heat in zip(display.axes_, expected, strict=True):
        threshold = detector.pixel_threshold(heat.shape)
        shown = images_of(row[1])[1]
        np.testing.assert_allclose(shown, heat - threshold, rtol=1e-3, atol=1e-4)

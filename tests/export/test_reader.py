"""The reader of a graph gives what skad reads, pixel by pixel."""

import numpy as np
import pytest
from PIL import Image

torch = pytest.importorskip("torch")

from skad._frame import Frame  # noqa: E402
from skad.export._reader import Reader, pillow_weights  # noqa: E402
from skad.images._read import model_input, read_image  # noqa: E402


@pytest.mark.parametrize(
    ("raw", "size", "crop"),
    [
        ((64, 64), (64, 64), None),
        ((100, 37), (64, 64), None),
        ((31, 200), (64, 48), (33, 20)),
        ((7, 1), (64, 64), None),
        ((500, 333), (1, 2), None),
        ((64, 90), (64, 40), (64, 31)),
        ((70, 101), 48, (48, 40)),
        ((101, 70), 48, (32, 47)),
    ],
)
@pytest.mark.parametrize("n_channels", [1, 3, 5])
def test_it_reads_as_skad_does(raw, size, crop, n_channels):
    rng = np.random.default_rng(0)
    n_raw = 3 if n_channels == 1 else n_channels
    images = rng.integers(0, 256, (2, *raw, n_raw), dtype=np.uint8)
    images[1] = images[1] // 128 * 255  # sharp edges
    frame = Frame(size, crop)
    found = Reader(raw, frame, n_channels)(torch.from_numpy(images)).numpy()
    known = [
        model_input(read_image(i, n_channels=n_channels), frame, n_channels)
        for i in images
    ]
    np.testing.assert_array_equal(found, np.stack(known))


def test_a_grey_image_stays_as_it_is():
    grey = np.arange(256, dtype=np.uint8).reshape(16, 16)
    images = torch.from_numpy(np.repeat(grey[None, ..., None], 3, axis=3))
    frame = Frame((16, 16), None)
    found = Reader((16, 16), frame, 1)(images).numpy()[0, ..., 0]
    np.testing.assert_array_equal(np.round(found * 255), grey)


def test_weights_of_any_sizes_are_those_of_pillow():
    rng = np.random.default_rng(1)
    for n_old, n_new in rng.integers(1, 400, (40, 2)):
        row = rng.integers(0, 256, (1, n_old), dtype=np.uint8)
        known = Image.fromarray(row).resize((n_new, 1), Image.Resampling.BILINEAR)
        first, weights = pillow_weights(n_old, n_new)
        places = np.minimum(first[:, None] + np.arange(weights.shape[1]), n_old - 1)
        total = (row[0][places] * weights).sum(axis=1)
        found = np.floor(total / 2**22 + 0.5)
        np.testing.assert_array_equal(found, np.asarray(known)[0])

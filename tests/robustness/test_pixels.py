"""The same pixels give the same score, whatever dtype or container they come in."""

import numpy as np
import pytest
from PIL import Image, ImageOps

from skad import PatchCoreDetector, PatchFeatures, PCANetFeatures, Pipeline
from skad.images import read_image

SIDE = 64


def textured(n, shape=(50, 40), channels=3, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (n, *(-(-s // 5) for s in shape), channels))
    fine = rng.integers(-20, 20, (n, *shape, channels))
    smooth = np.repeat(np.repeat(coarse, 5, axis=1), 5, axis=2)
    smooth = smooth[:, : shape[0], : shape[1]]
    return np.clip(smooth + fine, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def model():
    features = PatchFeatures("skad_small", embedding="concat", image_size=SIDE)
    return Pipeline([features, PatchCoreDetector()]).fit(textured(12))


COLOUR = textured(1, seed=1)[0]
GREY = COLOUR[..., 0]


def saved(image, path, **options):
    image.save(path, **options)
    return path


def memory_mapped(array, path):
    np.save(path, array)
    return np.load(path, mmap_mode="r")


def tensor(array):
    import torch

    return torch.from_numpy(np.array(array).transpose(2, 0, 1))


CONTAINERS = {
    "uint16": lambda p: COLOUR.astype(np.uint16) * 257,
    "big-endian uint16": lambda p: (COLOUR.astype(np.uint16) * 257).astype(">u2"),
    "float16": lambda p: (COLOUR / 255).astype(np.float16),
    "float32": lambda p: COLOUR / np.float32(255),
    "float32 by the reciprocal": lambda p: COLOUR * np.float32(1 / 255),
    "float64": lambda p: COLOUR / 255,
    "big-endian float64": lambda p: (COLOUR / 255).astype(">f8"),
    "float32 in float64": lambda p: (COLOUR / np.float32(255)).astype(np.float64),
    "normalised and back": lambda p: (
        (COLOUR / np.float32(255) - np.float32(0.485))
        / np.float32(0.229)
        * np.float32(0.229)
        + np.float32(0.485)
    ),
    "Fortran order": lambda p: np.asfortranarray(COLOUR / 255),
    "negative strides": lambda p: (COLOUR / 255)[::-1, ::-1].copy()[::-1, ::-1],
    "read-only map": lambda p: memory_mapped(COLOUR / np.float32(255), p / "m.npy"),
    "opaque RGBA": lambda p: np.dstack([COLOUR, np.full_like(GREY, 255)]) / 255,
    "PIL": lambda p: Image.fromarray(COLOUR),
    "PIL RGBA": lambda p: Image.fromarray(COLOUR).convert("RGBA"),
    "png": lambda p: saved(Image.fromarray(COLOUR), p / "a.PNG"),
    "tiff": lambda p: str(saved(Image.fromarray(COLOUR), p / "a.tif")),
    "npy of floats": lambda p: (np.save(p / "a.npy", COLOUR / 255), p / "a.npy")[1],
    "tensor": lambda p: tensor(COLOUR),
    "float tensor": lambda p: tensor(COLOUR / np.float32(255)),
    "half tensor": lambda p: tensor((COLOUR / 255).astype(np.float16)),
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_one_score_whatever_holds_the_pixels(model, tmp_path, kind):
    expected = model.score_samples([COLOUR])
    np.testing.assert_array_equal(
        model.score_samples([CONTAINERS[kind](tmp_path)]), expected
    )


GREYS = {
    "(H, W, 1)": lambda p: GREY[..., np.newaxis],
    "equal channels": lambda p: np.dstack([GREY] * 3),
    "equal float channels": lambda p: np.dstack([GREY] * 3) / 255,
    "uint16": lambda p: GREY.astype(np.uint16) * 257,
    "PIL L": lambda p: Image.fromarray(GREY),
    "PIL RGB": lambda p: Image.fromarray(GREY).convert("RGB"),
    "PIL palette": lambda p: Image.fromarray(GREY).convert("P"),
    "PIL I;16": lambda p: Image.fromarray(GREY.astype(np.uint16) * 257),
    "PIL I": lambda p: Image.fromarray(GREY.astype(np.int32) * 257),
    "PIL F": lambda p: Image.fromarray(GREY / np.float32(255)),
    "16-bit png": lambda p: saved(
        Image.fromarray(GREY.astype(np.uint16) * 257), p / "deep.png"
    ),
    "float tiff": lambda p: saved(Image.fromarray(GREY / np.float32(255)), p / "f.tif"),
    "tensor (H, W)": lambda p: tensor(GREY[..., np.newaxis])[0],
}


@pytest.mark.parametrize("kind", GREYS)
def test_one_score_of_grey_pixels(model, tmp_path, kind):
    expected = model.score_samples([GREY])
    np.testing.assert_array_equal(
        model.score_samples([GREYS[kind](tmp_path)]), expected
    )


def test_black_and_white(model):
    mask = GREY > 127
    expected = model.score_samples([mask])
    for other in (
        mask.astype(np.uint8) * 255,
        mask.astype(np.float16),
        Image.fromarray(mask),
        mask.astype(np.uint16) * 65535,
    ):
        np.testing.assert_array_equal(model.score_samples([other]), expected)


def test_a_jpeg_is_what_pillow_decodes(model, tmp_path):
    path = saved(Image.fromarray(COLOUR), tmp_path / "a.JPG", quality=70)
    decoded = np.asarray(Image.open(path))
    np.testing.assert_array_equal(
        model.score_samples([path]), model.score_samples([decoded / 255])
    )


@pytest.mark.parametrize("shape", [(64, 64), (20, 160), (300, 200)])
def test_one_map_at_any_size(model, shape):
    image = textured(1, shape, seed=2)
    expected = model.anomaly_map(image)
    np.testing.assert_array_equal(model.anomaly_map(image / 255), expected)
    np.testing.assert_array_equal(
        model.anomaly_map(image.astype(np.uint16) * 257), expected
    )


def test_one_fit_whatever_holds_the_pixels():
    X = textured(12)
    features = PCANetFeatures(SIDE, n_filters=(8, 12, 12))
    expected = features.fit_transform(X)
    for other in (X / 255, X.astype(np.uint16) * 257, [tensor(x) for x in X]):
        np.testing.assert_array_equal(features.fit_transform(other), expected)


@pytest.mark.parametrize("n_channels", [1, 2, 4, 5])
def test_other_numbers_of_channels(n_channels, tmp_path):
    torch = pytest.importorskip("torch")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Conv2d(n_channels, 8, 8, stride=8))
    features = PatchFeatures(
        network, layers=("0",), image_size=SIDE, embedding="concat"
    )
    X = textured(2, channels=n_channels)
    expected = features.fit_transform(X)
    np.save(tmp_path / "a.npy", X[0] / np.float32(255))
    for other in (
        X / 255,
        X.astype(np.uint16) * 257,
        torch.from_numpy(X.transpose(0, 3, 1, 2).copy()) / 255,
        [tmp_path / "a.npy", X[1].astype(np.uint16) * 257],
    ):
        np.testing.assert_array_equal(features.transform(other), expected)


def test_one_channel_of_colour_and_of_grey():
    deep = np.random.default_rng(0).integers(0, 65536, (9, 7), dtype=np.uint16)
    colour = np.dstack([deep] * 3)
    np.testing.assert_array_equal(
        read_image(colour, n_channels=1), read_image(deep, n_channels=1)
    )
    np.testing.assert_array_equal(
        read_image(COLOUR / 255, n_channels=1), read_image(COLOUR, n_channels=1)
    )


def test_other_values_keep_their_range():
    deep = np.array([[0, 257, 258, 65535]], dtype=np.uint16)
    twelve = np.array([[0, 4095, 100]], dtype=np.uint16)
    for image, top in ((deep, 65535), (twelve, 65535), (np.array([[0, 0.1]]), 1)):
        result = read_image(image)
        assert result.dtype == np.float32
        np.testing.assert_allclose(result[..., 0], image / top, rtol=1e-6)


def test_every_sixteen_bit_level_is_told_from_its_neighbours():
    levels = np.arange(65536, dtype=np.uint16)
    for values in (levels, levels / 65535, levels / np.float32(65535)):
        eight_bit = [read_image(values[[i]][None]).dtype == np.uint8 for i in LOOKED_AT]
        assert eight_bit == [i % 257 == 0 for i in LOOKED_AT]


LOOKED_AT = [*range(255, 260), *range(32763, 32772), *range(65276, 65281), 65535]


def test_the_pixels_of_the_user_stay_as_they_are():
    image = COLOUR / 255
    before = image.copy()
    read_image(image)
    np.testing.assert_array_equal(image, before)


def test_an_upright_image_is_not_turned_again(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(COLOUR).save(tmp_path / "turned.png", exif=exif)
    expected = np.rot90(COLOUR, -1)
    with Image.open(tmp_path / "turned.png") as image:
        upright = ImageOps.exif_transpose(image)
        for item in (tmp_path / "turned.png", image, upright, np.asarray(upright)):
            np.testing.assert_array_equal(read_image(item), expected)
        # The tag that these leave in place still asks for a turn.
        for turned in (image.rotate(-90, expand=True), image.transpose(ROTATE)):
            assert turned.getexif()[0x0112] == 6
            np.testing.assert_array_equal(read_image(turned), np.rot90(expected, -1))


ROTATE = Image.Transpose.ROTATE_270

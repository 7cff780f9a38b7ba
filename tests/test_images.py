"""Every kind of image and mask that can be read."""

import io
import itertools
import pickle
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skad.images import (
    ImageError,
    check_images,
    content_key,
    image_size,
    read_image,
    read_mask,
    resize_image,
    to_float,
)

ORIENTATION = 0x0112


@pytest.fixture
def rgb():
    return np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


@pytest.fixture
def grey(rgb):
    return rgb[..., 0].copy()


# Every kind of array ----------------------------------------------------------


def test_arrays_of_every_shape(rgb, grey):
    rgba = np.dstack([rgb, grey])
    assert read_image(grey).shape == (5, 7, 1)
    np.testing.assert_array_equal(read_image(grey[..., np.newaxis])[..., 0], grey)
    np.testing.assert_array_equal(read_image(rgb), rgb)
    np.testing.assert_array_equal(read_image(rgba), rgb)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4", ">f8"])
def test_float_arrays(dtype):
    image = np.linspace(0, 1, 24).reshape(4, 6).astype(dtype)
    result = read_image(image)
    assert result.dtype == np.dtype("=f4")
    np.testing.assert_array_equal(result[..., 0], image.astype(np.float32))


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
def test_uint16_keeps_its_range(dtype):
    image = np.array([[0, 1, 257, 65535]], dtype=dtype)
    result = read_image(image)
    assert result.dtype == np.dtype("=f4")
    np.testing.assert_allclose(result[0, :, 0] * 65535, [0, 1, 257, 65535], rtol=1e-6)


def test_bool_becomes_black_and_white():
    result = read_image(np.array([[True, False]]))
    assert result.dtype == np.uint8
    assert result[0, :, 0].tolist() == [255, 0]


def test_rounding_beside_the_range_is_clipped():
    result = read_image(np.array([[-1e-7, 1 + 1e-7]]))
    assert (result.min(), result.max()) == (0, 255)  # black and white
    result = read_image(np.array([[-1e-7, 0.3, 1 + 1e-7]]))
    assert (result.min(), result.max()) == (0, 1)


@pytest.mark.parametrize(
    "layout",
    [
        np.asfortranarray,
        lambda a: np.repeat(np.repeat(a, 2, axis=0), 3, axis=1)[::2, ::3],
        lambda a: a[::-1, ::-1].copy()[::-1, ::-1],
        lambda a: np.ascontiguousarray(a.transpose(2, 0, 1)).transpose(1, 2, 0),
    ],
)
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_memory_layout_does_not_matter(rgb, layout, dtype):
    image = rgb if dtype == np.uint8 else rgb / np.float32(300)
    view = layout(image)
    view.flags.writeable = False
    assert read_image(view).flags.c_contiguous
    np.testing.assert_array_equal(read_image(view), image)
    small = resize_image(view, (3, 4))
    np.testing.assert_array_equal(small, resize_image(image, (3, 4)))
    assert content_key(view) == content_key(image)


def test_tensors(rgb, grey):
    torch = pytest.importorskip("torch")
    channels_first = torch.from_numpy(rgb.transpose(2, 0, 1).copy())
    np.testing.assert_array_equal(read_image(channels_first), rgb)
    np.testing.assert_array_equal(read_image(torch.from_numpy(grey))[..., 0], grey)
    assert image_size(channels_first) == (5, 7)
    learned = torch.nn.Parameter(channels_first / 255)
    np.testing.assert_array_equal(read_image(learned), rgb)
    coarse = read_image((channels_first / 255).to(torch.bfloat16))
    np.testing.assert_allclose(coarse, rgb / 255, atol=4e-3)


# Any number of channels --------------------------------------------------------


@pytest.fixture
def bands():
    return np.random.default_rng(1).integers(0, 256, (5, 7, 5), dtype=np.uint8)


def test_as_many_channels_as_asked_for(bands, rgb, grey):
    torch = pytest.importorskip("torch")
    rgba = np.dstack([rgb, grey])
    for image in (bands, bands[..., :2], rgba, bands.repeat(40, axis=2)):
        n = image.shape[2]
        np.testing.assert_array_equal(read_image(image, n_channels=n), image)
        tensor = torch.from_numpy(image.transpose(2, 0, 1).copy())
        np.testing.assert_array_equal(read_image(tensor, n_channels=n), image)
        assert image_size(image) == image_size(tensor) == (5, 7)
        assert content_key(image) == content_key(image.copy())
        floats = to_float(read_image(image, n_channels=n), n)
        np.testing.assert_allclose(floats, image / 255, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.uint16, bool, np.float32, np.float64])
def test_channels_of_every_dtype(bands, dtype):
    scale = {np.uint16: 257.0, bool: 1.0}.get(dtype, 1 / 255)
    image = (bands * scale).astype(dtype)
    result = to_float(read_image(image, n_channels=5), 5)
    expected = image / (65535 if dtype is np.uint16 else 1)
    np.testing.assert_allclose(result, expected, atol=1e-6)


def test_colour_becomes_grey_as_pillow_does_it(tmp_path, rgb, grey):
    torch = pytest.importorskip("torch")
    expected = np.asarray(Image.fromarray(rgb).convert("L"))[..., np.newaxis]
    path = tmp_path / "image.png"
    Image.fromarray(rgb).save(path)
    tensor = torch.from_numpy(rgb.transpose(2, 0, 1).copy())
    rgba = np.dstack([rgb, grey])
    for item in (rgb, rgba, tensor, Image.fromarray(rgb), Image.fromarray(rgba), path):
        np.testing.assert_array_equal(read_image(item, n_channels=1), expected)
    np.testing.assert_array_equal(read_image(rgb / 255, n_channels=1), expected)
    floats = read_image(rgb / 256, n_channels=1)
    np.testing.assert_allclose(floats, expected / 256, atol=0.6 / 256)
    bright = np.full((9, 9, 3), [1, 1, 0.9999])
    assert read_image(bright, n_channels=1).max() <= 1


def test_grey_stays_one_channel(tmp_path, grey):
    deep = Image.frombytes("I;16", (7, 5), (grey * np.uint16(257)).tobytes())
    path = tmp_path / "deep.png"
    deep.save(path)
    for item in (grey, grey[..., np.newaxis], Image.fromarray(grey), deep, path):
        image = to_float(read_image(item, n_channels=1), 1)
        np.testing.assert_allclose(image[..., 0], grey / 255, atol=1e-6)


@pytest.mark.parametrize(
    ("mode", "n_channels"), [("RGBA", 4), ("RGBX", 4), ("CMYK", 4), ("LA", 2)]
)
def test_bands_of_pillow_images(tmp_path, mode, n_channels):
    values = np.random.default_rng(2).integers(0, 256, (5, 7, n_channels), np.uint8)
    image = Image.frombytes(mode, (7, 5), values.tobytes())
    np.testing.assert_array_equal(read_image(image, n_channels=n_channels), values)
    other = values.copy()
    other[0, 0, -1] ^= 1  # alpha, say, counts as it does in arrays
    assert content_key(Image.frombytes(mode, (7, 5), other.tobytes())) != content_key(
        image
    )
    if mode in ("RGBA", "LA"):
        path = tmp_path / "image.png"
        image.save(path)
        np.testing.assert_array_equal(read_image(path, n_channels=n_channels), values)


@pytest.mark.parametrize("n_channels", [2, 4, 5])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_channels_are_resized_one_by_one(bands, n_channels, dtype):
    image = bands[..., :n_channels]
    image = image if dtype == np.uint8 else image / np.float32(255)
    result = resize_image(image, (3, 11))
    assert result.dtype == dtype
    for channel in range(n_channels):
        plane = resize_image(image[..., channel : channel + 1].copy(), (3, 11))
        np.testing.assert_array_equal(result[..., channel], plane[..., 0])


@pytest.mark.parametrize("dtype", ["u1", "<u2", ">u2", "?", "f4", "f8"])
@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 1), (5, 7, 3), (5, 7, 4), (5, 7, 6)])
def test_array_files(tmp_path, shape, dtype):
    image = (np.random.default_rng(3).random(shape) * 1).round().astype(dtype)
    path = tmp_path / "image.NPY"
    for order in "CF":
        with path.open("wb") as file:
            np.save(file, np.asarray(image, order=order))
        n = shape[-1] if shape[-1] == 6 else 3
        for item in (path, str(path)):
            np.testing.assert_array_equal(
                read_image(item, n_channels=n), read_image(image, n_channels=n)
            )
            assert image_size(item) == (5, 7)
    path.unlink()  # not held open


def test_image_of_an_array_file_outlives_the_file(tmp_path, bands):
    np.save(tmp_path / "a.npy", bands)
    image = read_image(tmp_path / "a.npy", n_channels=5)
    assert type(image) is np.ndarray
    np.save(tmp_path / "a.npy", bands[:1])
    np.testing.assert_array_equal(image, bands)
    assert content_key(tmp_path / "a.npy") != content_key(bands)


def test_size_of_an_array_file_needs_only_the_header(tmp_path, monkeypatch):
    np.save(tmp_path / "a.npy", np.full((5, 7, 9), np.nan))
    assert image_size(tmp_path / "a.npy") == (5, 7)  # NaN is not looked at


# Every kind of Pillow image and file ------------------------------------------


@pytest.mark.parametrize("mode", ["RGBA", "RGBX", "CMYK", "YCbCr", "LAB", "HSV", "P"])
def test_modes_that_become_rgb(mode):
    flat = Image.new("RGB", (3, 2), (200, 40, 90))
    if mode == "LAB":
        cms = pytest.importorskip("PIL.ImageCms")
        to_lab = cms.buildTransform(
            cms.createProfile("sRGB"), cms.createProfile("LAB"), "RGB", "LAB"
        )
        image = cms.applyTransform(flat, to_lab)
    else:
        image = flat.convert(mode)
    result = read_image(image)
    assert image.mode == mode
    assert result.shape == (2, 3, 3)
    assert result.dtype == np.uint8
    tolerance = 30 if mode == "P" else 4
    np.testing.assert_allclose(result[0, 0], [200, 40, 90], atol=tolerance)


@pytest.mark.parametrize("mode", ["LA", "RGBA", "PA", "La", "RGBa"])
def test_alpha_is_dropped_not_blended(mode):
    clear = Image.new("LA", (3, 2), (90, 128))
    image = clear.convert("RGBA").convert(mode) if mode == "RGBa" else clear
    image = image.convert(mode) if image.mode != mode else image
    result = read_image(image)
    assert result.shape[2] == (3 if mode in ("RGBA", "PA", "RGBa") else 1)
    np.testing.assert_allclose(result, 90, atol=1)


def test_palette_with_transparency(tmp_path):
    image = Image.new("P", (3, 2), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    path = tmp_path / "palette.png"
    image.save(path, transparency=1)
    assert read_image(path)[0, 0].tolist() == [10, 20, 30]


def test_one_bit(tmp_path):
    path = tmp_path / "bits.png"
    Image.fromarray(np.array([[True, False]])).save(path)
    assert read_image(path)[0, :, 0].tolist() == [255, 0]


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bit_files(tmp_path, suffix):
    values = np.array([[0, 300, 65535], [1, 2, 3]], dtype=np.uint16)
    stored = Image.frombytes("I;16", (3, 2), values.astype("<u2").tobytes())
    path = tmp_path / f"deep.{suffix}"
    stored.save(path)
    expected = values.astype(np.float32) / np.float32(65535)
    np.testing.assert_array_equal(read_image(path)[..., 0], expected)
    np.testing.assert_array_equal(read_image(stored)[..., 0], expected)


def test_sixteen_bit_modes():
    values = np.array([[0, 300, 65535]], dtype=np.uint16)
    expected = values.astype(np.float32) / np.float32(65535)
    big = Image.frombytes("I;16B", (3, 1), values.astype(">u2").tobytes())
    wide = Image.frombytes("I", (3, 1), values.astype(np.int32).tobytes())
    np.testing.assert_array_equal(read_image(big)[..., 0], expected)
    np.testing.assert_array_equal(read_image(wide)[..., 0], expected)


def test_float_tiff(tmp_path):
    values = np.array([[0, 0.25, 1]], dtype=np.float32)
    path = tmp_path / "floats.tiff"
    Image.fromarray(values).save(path)
    np.testing.assert_array_equal(read_image(path)[..., 0], values)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "ppm"])
def test_lossless_files(tmp_path, rgb, suffix):
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(rgb).save(path)
    for item in (path, str(path), np.str_(path), Image.open(path)):
        np.testing.assert_array_equal(read_image(item), rgb)
        assert image_size(item) == (5, 7)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_jpeg(tmp_path, mode):
    path = tmp_path / "image.jpg"
    Image.new("RGB", (16, 8), (120, 120, 120)).convert(mode).save(path)
    result = read_image(path)
    assert result.shape == (8, 16, 1 if mode == "L" else 3)
    np.testing.assert_allclose(result, 120, atol=3)


def test_two_pictures_of_one_phone_file(tmp_path, rgb):
    path = tmp_path / "phone.jpg"
    first = Image.fromarray(rgb)
    first.save(path, "MPO", save_all=True, append_images=[first.resize((3, 2))])
    assert read_image(path).shape == rgb.shape


# Orientation ------------------------------------------------------------------

# What a viewer shows of the stored pixels [[1, 2, 3], [4, 5, 6]].
UPRIGHT = {
    1: [[1, 2, 3], [4, 5, 6]],
    2: [[3, 2, 1], [6, 5, 4]],
    3: [[6, 5, 4], [3, 2, 1]],
    4: [[4, 5, 6], [1, 2, 3]],
    5: [[1, 4], [2, 5], [3, 6]],
    6: [[4, 1], [5, 2], [6, 3]],
    7: [[6, 3], [5, 2], [4, 1]],
    8: [[3, 6], [2, 5], [1, 4]],
}
STORED = np.array([[1, 2, 3], [4, 5, 6]], dtype=np.uint8)


def exif(turn):
    tags = Image.Exif()
    tags[ORIENTATION] = turn
    return tags


@pytest.mark.parametrize("turn", UPRIGHT)
@pytest.mark.parametrize(
    ("suffix", "mode"),
    [
        *itertools.product(["png", "tiff"], ["L", "RGB", "I;16"]),
        ("webp", "RGB"),
    ],
)
def test_orientation_of_files(tmp_path, turn, suffix, mode):
    if mode == "I;16":
        stored = Image.frombytes(mode, (3, 2), STORED.astype("<u2").tobytes())
    else:
        stored = Image.fromarray(STORED * 40).convert(mode)
    path = tmp_path / f"turned.{suffix}"
    options = {"lossless": True} if suffix == "webp" else {}
    stored.save(path, exif=exif(turn), **options)
    expected = np.array(UPRIGHT[turn])
    assert image_size(path) == expected.shape
    opened = Image.open(io.BytesIO(path.read_bytes()))
    assert image_size(opened) == expected.shape
    for item in (path, opened):
        result = read_image(item)[..., 0]
        scale = 65535 if mode == "I;16" else 1 / 40
        np.testing.assert_allclose(result * scale, expected, rtol=1e-5)
    assert image_size(opened) == expected.shape  # also once it is loaded


@pytest.mark.parametrize("turn", UPRIGHT)
def test_orientation_of_jpeg_and_of_masks(tmp_path, turn):
    blocks = np.kron(STORED * 40, np.ones((16, 16), dtype=np.uint8))
    path = tmp_path / "turned.jpg"
    Image.fromarray(blocks).save(path, exif=exif(turn), quality=95)
    expected = np.array(UPRIGHT[turn])
    result = read_image(path)
    assert result.shape[:2] == image_size(path)
    np.testing.assert_allclose(result[8::16, 8::16, 0], expected * 40, atol=4)
    mask = tmp_path / "mask.png"
    Image.fromarray(STORED // 6).save(mask, exif=exif(turn))
    np.testing.assert_array_equal(read_mask(mask), expected == 6)


def test_orientation_behind_the_pixels_of_a_png(tmp_path):
    path = tmp_path / "late.png"
    Image.fromarray(STORED).save(path)
    body = b"eXIf" + exif(6).tobytes()[6:]
    chunk = struct.pack(">I", len(body) - 4) + body
    chunk += struct.pack(">I", zlib.crc32(body))
    data = path.read_bytes()
    path.write_bytes(data[:-12] + chunk + data[-12:])
    assert image_size(path) == (3, 2)
    np.testing.assert_array_equal(read_image(path)[..., 0], UPRIGHT[6])


def test_damaged_exif_does_not_hide_the_pixels(tmp_path, rgb):
    path = tmp_path / "image.png"
    Image.fromarray(rgb).save(path, exif=b"Exif\x00\x00nonsense")
    np.testing.assert_array_equal(read_image(path), rgb)
    assert image_size(path) == (5, 7)


def test_size_needs_only_the_header(tmp_path, rgb):
    path = tmp_path / "cut.png"
    Image.fromarray(np.tile(rgb, (20, 20, 1))).save(path, compress_level=0)
    path.write_bytes(path.read_bytes()[:500])
    assert image_size(path) == (100, 140)
    with pytest.raises(ImageError):
        read_image(path)


# Containers -------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        list,
        tuple,
        np.array,
        lambda paths: np.array(paths, dtype=object),
        lambda paths: pytest.importorskip("pandas").Series(paths, index=[5, 7]),
        lambda paths: pytest.importorskip("pandas").Index(paths),
    ],
)
def test_sequences_of_paths(make):
    images = check_images(make(["no-such-a.png", "no-such-b.png"]))
    assert len(images) == 2
    assert images[1] == "no-such-b.png"


@pytest.mark.parametrize("shape", [(2, 5, 7), (2, 5, 7, 1), (2, 5, 7, 3), (2, 5, 7, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, bool, np.float64])
def test_one_array(shape, dtype):
    X = np.zeros(shape, dtype=dtype)
    assert check_images(X) is X
    assert read_image(X[0]).shape == (5, 7, 3 if shape[-1] in (3, 4) else 1)


def test_one_array_or_tensor_of_many_channels():
    torch = pytest.importorskip("torch")
    for n in (2, 4, 5):
        X = np.zeros((3, 9, 8, n), np.uint8)
        assert check_images(X, n_channels=n) is X
        tensor = torch.from_numpy(X).permute(0, 3, 1, 2)
        assert check_images(tensor, n_channels=n).shape == X.shape
    for shape in ((2, 9, 8), (2, 9, 8, 1), (2, 9, 8, 3), (2, 9, 8, 4)):
        check_images(np.zeros(shape), n_channels=1)


def test_one_tensor(rgb):
    torch = pytest.importorskip("torch")
    X = torch.from_numpy(np.stack([rgb, 255 - rgb]).transpose(0, 3, 1, 2).copy())
    images = check_images(X)
    assert images.shape == (2, 5, 7, 3)
    np.testing.assert_array_equal(read_image(images[1]), 255 - rgb)


def test_mixed_items(rgb, grey):
    images = check_images(["a.png", Path("b.png"), rgb, Image.fromarray(grey)])
    assert len(images) == 4


def test_one_lazy_image_in_many_threads(tmp_path, rgb):
    path = tmp_path / "image.png"
    Image.fromarray(np.tile(rgb, (40, 40, 1))).save(path)
    for item in (path, Image.open(path)):
        with ThreadPoolExecutor(8) as pool:
            results = list(pool.map(read_image, [item] * 32))
        assert all(np.array_equal(r, results[0]) for r in results)


def test_error_survives_a_process_border():
    with pytest.raises(ImageError) as caught:
        read_image("no-such.png", where="X[7]")
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.where, copy.path) == ("X[7]", "no-such.png")
    assert str(copy) == str(caught.value)


# Keys and masks ---------------------------------------------------------------


def test_content_key(tmp_path, rgb):
    a, b = tmp_path / "a.png", tmp_path / "b.png"
    Image.fromarray(rgb).save(a)
    b.write_bytes(a.read_bytes())
    assert content_key(a) == content_key(str(b))
    assert content_key(rgb) == content_key(rgb.copy())
    assert content_key(rgb) != content_key(rgb.reshape(7, 5, 3))
    assert content_key(np.zeros((2, 2), bool)) != content_key(np.zeros((2, 2), "u1"))
    image = Image.fromarray(rgb)
    assert content_key(image) == content_key(image.copy())
    assert content_key(image) != content_key(Image.fromarray(255 - rgb))
    assert len(content_key(a)) == 32


@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16, int, float, np.float32])
def test_mask_arrays(dtype):
    mask = np.array([[0, 1], [0, 0]])
    for values in (mask, mask[..., np.newaxis], np.dstack([mask] * 3)):
        result = read_mask(values.astype(dtype), size=(2, 2))
        assert result.dtype == bool
        np.testing.assert_array_equal(result, mask == 1)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "I", "I;16", "F"])
@pytest.mark.parametrize("value", [1, 255])
def test_mask_files(tmp_path, mode, value):
    mask = np.zeros((4, 5), dtype=np.uint8)
    mask[1, 2:4] = value
    if mode == "I;16":
        image = Image.frombytes(mode, (5, 4), mask.astype("<u2").tobytes())
    else:
        dtype = {"F": np.float32, "I": np.int32, "1": bool}.get(mode, np.uint8)
        image = Image.fromarray((mask > 0).astype(dtype) if mode == "F" else mask)
        image = Image.fromarray(mask > 0) if mode == "1" else image.convert(mode)
    path = tmp_path / ("mask.tiff" if mode in ("F", "I") else "mask.png")
    image.save(path)
    for item in (path, image):
        np.testing.assert_array_equal(read_mask(item), mask > 0)


def test_mask_tensor_and_palette():
    torch = pytest.importorskip("torch")
    mask = np.array([[0, 1], [0, 0]], dtype=bool)
    np.testing.assert_array_equal(read_mask(torch.from_numpy(mask)), mask)
    np.testing.assert_array_equal(read_mask(torch.from_numpy(mask)[None]), mask)
    coloured = Image.fromarray(mask.astype(np.uint8)).convert("L")
    coloured = Image.frombytes("P", (2, 2), coloured.tobytes())
    coloured.putpalette([0, 0, 0, 128, 0, 0])
    np.testing.assert_array_equal(read_mask(coloured), mask)

"""What cannot be an image or a mask, and how the error says so."""

import io
import os
import re
import stat
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skad.images import (
    ImageError,
    center_crop_box,
    check_images,
    content_key,
    image_size,
    read_image,
    read_mask,
    resize_image,
    resize_short_side,
    to_float,
)


def torch():
    return pytest.importorskip("torch")


def sparse():
    return pytest.importorskip("scipy.sparse")


def pandas():
    return pytest.importorskip("pandas")


U8 = np.zeros((4, 5), dtype=np.uint8)

# kind: (maker of X, error, part of the message beside the name)
CONTAINERS = {
    "path text": (lambda: "parts/a.png", TypeError, "wrap it in a list"),
    "Path": (lambda: Path("parts"), TypeError, r"list_images\(folder\)"),
    "bytes": (lambda: b"abc", TypeError, "pass a list of images"),
    "None": (lambda: None, TypeError, "None; pass a list of images"),
    "int": (lambda: 3, TypeError, "int; pass a list of images"),
    "dict": (lambda: {"a": U8}, TypeError, "pass one of its values"),
    "set": (lambda: {"a.png"}, TypeError, "has no order"),
    "generator": (lambda: (p for p in ["a"]), TypeError, "read only once"),
    "PIL image": (lambda: Image.new("L", (2, 2)), TypeError, "wrap it in a list"),
    "sparse": (lambda: sparse().eye(3).tocsr(), TypeError, "sparse matrix"),
    "sparse array": (lambda: sparse().coo_array(U8), TypeError, "sparse matrix"),
    "DataFrame": (
        lambda: pandas().DataFrame({"path": ["a.png"]}),
        TypeError,
        "pass its column",
    ),
    "masked array": (lambda: np.ma.zeros((2, 4, 5)), TypeError, "filled"),
    "empty list": (list, ValueError, "found 0 images"),
    "empty array": (lambda: np.empty((0, 4, 5, 3)), ValueError, "found 0 images"),
    "no pixels": (lambda: np.empty((2, 0, 5, 3)), ValueError, "empty"),
    "empty Series": (
        lambda: pandas().Series([], dtype=object),
        ValueError,
        "found 0 images",
    ),
    "empty tensor": (lambda: torch().zeros(0, 3, 4, 5), ValueError, "found 0 images"),
    "2-D array": (lambda: U8, ValueError, "one grey image"),
    "1-D array": (lambda: U8[0], ValueError, r"pass \(n, H, W\)"),
    "0-D array": (lambda: np.array(1.0), ValueError, r"pass \(n, H, W\)"),
    "5-D array": (lambda: U8[None, None, None], ValueError, r"pass \(n, H, W\)"),
    "one colour image": (
        lambda: np.zeros((4, 5, 3), np.uint8),
        ValueError,
        "looks like one image",
    ),
    "NCHW array": (
        lambda: np.zeros((2, 3, 40, 50), np.uint8),
        ValueError,
        r"transpose\(0, 2, 3, 1\)",
    ),
    "two channels": (lambda: np.zeros((2, 9, 9, 2)), ValueError, r"\(2, 9, 9, 2\)"),
    "int32": (lambda: np.zeros((2, 4, 5), np.int32), ValueError, "int32.*uint8"),
    "int64": (lambda: np.zeros((2, 4, 5), np.int64), ValueError, "int64.*uint8"),
    "complex": (lambda: np.zeros((2, 4, 5), complex), ValueError, "complex.*magnitude"),
    "datetime": (lambda: np.zeros((2, 4, 5), "M8[s]"), ValueError, "pass numbers"),
    "bytes array": (lambda: np.array([b"a.png"]), ValueError, "pass numbers"),
    "4-D objects": (lambda: np.zeros((2, 4, 5, 3), object), ValueError, "np.stack"),
    "2-D paths": (lambda: np.array([["a.png"]]), ValueError, "1-D array"),
    "mixed objects": (
        lambda: np.array(["a.png", 3.5], dtype=object),
        ImageError,
        r"X\[1\]: a float is no image",
    ),
    "None among paths": (
        lambda: ["a.png", "b.png", None],
        ImageError,
        r"X\[2\]: None is no image; an image is a path",
    ),
    "NaN in a Series": (
        lambda: pandas().Series(["a.png", float("nan")]),
        ImageError,
        r"X\[1\]: a float is no image",
    ),
    "numbers": (lambda: [1, 2], ImageError, r"X\[0\]: an int is no image"),
    "nested lists": (lambda: [["a.png"]], ImageError, r"X\[0\]: a list.*nested"),
    "tensor NHWC": (
        lambda: torch().zeros(2, 40, 50, 3),
        ValueError,
        r"permute\(0, 3, 1, 2\)",
    ),
    "3-D tensor": (lambda: torch().zeros(3, 4, 5), ValueError, r"X\[None\]"),
    "int tensor": (
        lambda: torch().zeros(2, 3, 4, 5, dtype=torch().int64),
        ValueError,
        "int64.*uint8",
    ),
}


@pytest.mark.parametrize(
    ("shape", "part"),
    [
        ((2, 9, 8), r"shape \(2, 9, 8\); pass \(n, H, W, 5\)"),
        ((2, 9, 8, 3), r"shape \(2, 9, 8, 3\); pass \(n, H, W, 5\)"),
        ((9, 8, 5), "looks like one image"),
        ((9, 8), r"pass \(n, H, W, 5\)"),
        ((2, 5, 9, 8), r"channels come last: use X.transpose\(0, 2, 3, 1\)"),
    ],
)
def test_container_of_other_channels(shape, part):
    with pytest.raises(ValueError, match=part):
        check_images(np.zeros(shape), n_channels=5)


@pytest.mark.parametrize(
    ("shape", "part"),
    [
        ((2, 3, 9, 8), r"\(2, 3, 9, 8\); pass \(n, C, H, W\) with C 5"),
        ((2, 9, 8, 5), r"permute\(0, 3, 1, 2\)"),
        ((5, 9, 8), r"X\[None\]"),
    ],
)
def test_tensor_of_other_channels(shape, part):
    with pytest.raises(ValueError, match=part):
        check_images(tensor(*shape), n_channels=5)


@pytest.mark.parametrize("kind", CONTAINERS)
def test_bad_container(kind):
    make, error, part = CONTAINERS[kind]
    with pytest.raises(error, match=part) as caught:
        check_images(make())
    assert type(caught.value) is error
    assert str(caught.value).startswith("X")
    with pytest.raises(error, match=r"^photos"):
        check_images(make(), name="photos")


def floats(*values):
    return np.array([values], dtype=float)


def tensor(*shape, **options):
    return torch().zeros(*shape, **options)


ARRAYS = {
    "1-D": (lambda: U8[0], "1 dimensions.*one image is"),
    "4-D": (lambda: U8[None, ..., None], "4 dimensions.*one image is"),
    "no rows": (lambda: U8[:0], "empty.*at least one pixel"),
    "no channels": (lambda: np.zeros((4, 5, 0)), "empty.*at least one pixel"),
    "two channels": (lambda: np.zeros((4, 5, 2)), r"\(4, 5, 2\); one image is"),
    "CHW": (lambda: np.zeros((3, 40, 50)), r"transpose\(1, 2, 0\)"),
    "int64": (lambda: U8.astype(np.int64), "int64.*astype"),
    "int8": (lambda: U8.astype(np.int8), "int8.*astype"),
    "complex": (lambda: U8.astype(complex), "complex.*magnitude"),
    "objects": (lambda: U8.astype(object), "object.*pass numbers"),
    "masked": (lambda: np.ma.masked_equal(U8, 0), "masked.*filled"),
    "NaN": (lambda: floats(0, np.nan), "1 values are NaN.*nan_to_num"),
    "infinity": (lambda: floats(0, np.inf, -np.inf), "2 values are NaN"),
    "0..255 floats": (lambda: floats(0, 254), "from 0 to 254.*divide by 255"),
    "16-bit floats": (lambda: floats(0, 60000), "to 60000.*divide by 65535"),
    "huge floats": (lambda: floats(0, 1e9), "to 1e.09.*largest value"),
    "standardised": (lambda: floats(-2.1, 2.6), "from -2.1 to 2.6.*undo"),
    "2-channel tensor": (lambda: tensor(2, 40, 50), r"\(2, 40, 50\).*C 1, 3 or 4"),
    "HWC tensor": (lambda: tensor(40, 50, 3), r"permute\(2, 0, 1\)"),
    "4-D tensor": (lambda: tensor(1, 3, 4, 5), "4 dimensions.*C 1, 3 or 4"),
    "sparse tensor": (lambda: tensor(4, 5).to_sparse(), "dense tensor"),
    "meta tensor": (lambda: tensor(3, 4, 5, device="meta"), "dense tensor"),
    "bytes": (lambda: b"\x89PNG", "a bytes is no image.*BytesIO"),
    "stream": (lambda: io.BytesIO(b"x"), "pass its path"),
    "list of rows": (lambda: [[0, 1]], "np.asarray"),
    "None": (lambda: None, "None is no image; an image is a path"),
    "number": (lambda: 7, "an int is no image; an image is a path"),
    "empty PIL image": (lambda: Image.new("L", (0, 3)), "empty.*at least one pixel"),
    "negative mode I": (
        lambda: Image.frombytes("I", (1, 1), np.int32(-5).tobytes()),
        "from -5 to -5, outside 16 bits; rescale",
    ),
    "mode F 0..255": (
        lambda: Image.fromarray(floats(0, 200).astype(np.float32)),
        "to 200.*divide by 255",
    ),
}


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.filterwarnings("error")
def test_bad_item_in_memory(kind):
    make, part = ARRAYS[kind]
    with pytest.raises(ImageError, match=part) as caught:
        read_image(make(), where="X[12]")
    assert str(caught.value).startswith("X[12]: ")
    assert (caught.value.where, caught.value.path) == ("X[12]", None)


@pytest.mark.parametrize(
    ("make", "n_channels", "part"),
    [
        (lambda: U8, 5, "1 channel, expected 5; pass an array .H, W, 5. or a .npy"),
        (lambda: np.zeros((9, 8, 3)), 5, "3 channels, expected 5;.*in_chans=3"),
        (lambda: np.zeros((9, 8, 3)), 2, "3 channels, expected 2"),
        (lambda: np.zeros((9, 8, 3)), 4, "3 channels, expected 4"),
        (lambda: np.zeros((9, 8, 6)), 5, "6 channels, expected 5"),
        (lambda: np.zeros((5, 9, 8)), 5, r"channels come last: use .transpose"),
        (lambda: np.zeros((1, 9, 8, 5)), 5, r"4 dimensions.*one image is \(H, W, 5\)"),
        (lambda: np.zeros((9, 8, 5)), 1, r"\(9, 8, 5\); one image is \(H, W\)"),
        (lambda: tensor(3, 9, 8), 5, "3 channels, expected 5"),
        (lambda: tensor(9, 8, 5), 5, "channels come first"),
        (lambda: tensor(5, 9, 8), 1, r"\(5, 9, 8\).*C 1, 3 or 4"),
        (lambda: tensor(1, 5, 9, 8), 5, "4 dimensions.*with C 5"),
        (lambda: Image.new("RGB", (8, 9)), 4, "3 channels, expected 4"),
        (lambda: Image.new("LA", (8, 9)), 4, "1 channel, expected 4"),
        (lambda: Image.new("RGBA", (8, 9)), 5, "channels, expected 5"),
        (lambda: Image.new("I;16", (8, 9)), 2, "1 channel, expected 2"),
        (lambda: np.full((9, 8, 5), 2.0), 5, "from 2 to 2, outside"),
        (lambda: np.zeros((9, 8, 5), int), 5, "int64.*astype"),
    ],
)
def test_other_channels_than_asked_for(make, n_channels, part):
    with pytest.raises(ImageError, match=part) as caught:
        read_image(make(), where="X[12]", n_channels=n_channels)
    assert str(caught.value).startswith("X[12]: ")


def noise(side=64):
    rng = np.random.default_rng(0)
    return Image.fromarray(rng.integers(0, 256, (side, side, 3), dtype=np.uint8))


def cut(path, share, **options):
    noise().save(path, **options)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def save_cut(path, share):
    np.save(path, np.asarray(noise()))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def frames(path, **options):
    noise().save(path, save_all=True, append_images=[noise().rotate(90)], **options)


# kind: (file name, writer, part of the message)
FILES = {
    "missing": ("a.png", lambda p: None, "no such file; check the spelling"),
    "folder": ("a.png", Path.mkdir, "is a folder; list its files"),
    "pipe": ("a.png", os.mkfifo if hasattr(os, "mkfifo") else None, "regular file"),
    "zero bytes": ("a.png", Path.touch, r"0 bytes.*replace the file"),
    "text as PNG": ("a.png", lambda p: p.write_text("hello you"), "b'hello yo'.*type"),
    "random bytes": ("a.jpg", lambda p: p.write_bytes(b"\x93ab" * 40), "of another"),
    "PNG start only": ("a.png", lambda p: cut(p, 0.001), "truncated, damaged"),
    "cut PNG": ("a.png", lambda p: cut(p, 0.5), "truncated or damaged: replace"),
    "cut JPEG": ("a.jpg", lambda p: cut(p, 0.5), "truncated or damaged: replace"),
    "nearly whole JPEG": ("a.jpg", lambda p: cut(p, 0.999), "truncated or damaged"),
    "cut progressive": (
        "a.jpg",
        lambda p: cut(p, 0.6, progressive=True),
        "truncated or damaged",
    ),
    "cut BMP": ("a.bmp", lambda p: cut(p, 0.5), "truncated or damaged"),
    "cut TIFF": ("a.tif", lambda p: cut(p, 0.5), "truncated"),
    "cut GIF": ("a.gif", lambda p: cut(p, 0.5), "truncated or damaged"),
    "cut WebP": ("a.webp", lambda p: cut(p, 0.5), "truncated or damaged"),
    "animated GIF": ("a.gif", frames, "GIF image has 2 frames; save the frame"),
    "animated PNG": ("a.png", frames, "PNG image has 2 frames; save the frame"),
    "TIFF pages": ("a.tif", frames, "TIFF image has 2 frames; save the frame"),
    "float TIFF": (
        "a.tif",
        lambda p: Image.fromarray(np.full((2, 2), 99, np.float32)).save(p),
        "to 99.*divide by 255",
    ),
    "NaN TIFF": (
        "a.tif",
        lambda p: Image.fromarray(np.full((2, 2), np.nan, np.float32)).save(p),
        "4 values are NaN",
    ),
    "text as array": ("a.npy", lambda p: p.write_text("hello you"), "decoded.*damaged"),
    "PNG as array": ("a.npy", lambda p: noise().save(p, "PNG"), "decoded.*damaged"),
    "empty array file": ("a.npy", Path.touch, r"0 bytes.*replace the file"),
    "missing array file": ("a.npy", lambda p: None, "no such file; check"),
    "cut array": ("a.npy", lambda p: save_cut(p, 0.5), "truncated or damaged"),
    "cut array header": ("a.npy", lambda p: save_cut(p, 0.01), "truncated or damaged"),
    "several arrays": ("a.npy", lambda p: np.savez(p.open("wb"), U8), "damaged"),
    "array of objects": (
        "a.npy",
        lambda p: np.save(p, np.array([{}]), allow_pickle=True),
        "Python objects.*damaged",
    ),
    "array without pixels": ("a.npy", lambda p: np.save(p, U8[:0]), "empty|damaged"),
    "array of text": ("a.npy", lambda p: np.save(p, [["a"]]), "pass numbers"),
    "1-D array file": ("a.npy", lambda p: np.save(p, U8[0]), "1 dimensions"),
    "array file 0..254": ("a.npy", lambda p: np.save(p, floats(0, 254)), "divide by"),
    "array file of 5 channels": (
        "a.npy",
        lambda p: np.save(p, np.zeros((6, 5, 5))),
        r"\(6, 5, 5\); one image is",
    ),
    "name too long": ("a" * 5000, lambda p: None, "cannot be opened.*check the path"),
    "null in the name": ("a\0.png", lambda p: None, "cannot be opened.*check the path"),
}


@pytest.mark.parametrize("kind", FILES)
def test_bad_file(tmp_path, kind):
    name, write, part = FILES[kind]
    if write is None:
        pytest.skip("this system has no named pipes")
    path = tmp_path / name
    write(path)
    for item in (path, str(path)):
        with pytest.raises(ImageError, match=part) as caught:
            read_image(item, where="X[31]")
        assert str(caught.value).startswith(f"X[31] ({str(path)!r}): ")
        assert (caught.value.where, caught.value.path) == ("X[31]", str(path))


@pytest.mark.parametrize("kind", ["missing", "folder", "pipe", "zero bytes"])
@pytest.mark.parametrize("function", [image_size, content_key, read_mask])
def test_bad_file_for_the_other_readers(tmp_path, kind, function):
    name, write, part = FILES[kind]
    if write is None:
        pytest.skip("this system has no named pipes")
    write(tmp_path / name)
    with pytest.raises(ImageError, match=part):
        function(tmp_path / name, where="Z[5]")


def test_missing_relative_path_names_the_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ImageError, match=re.escape(repr(str(tmp_path)))):
        read_image("no-such.png")


def test_file_without_permission(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    noise().save(path)

    def deny(*args, **kwargs):
        raise PermissionError(13, "Permission denied")

    # A mode without read permission would not stop a test that runs as root.
    monkeypatch.setattr(Path, "open", deny)
    with pytest.raises(ImageError, match=r"permission .* denied; change its access"):
        read_image(path)


@pytest.mark.parametrize("limit", [4095, 2000])
@pytest.mark.parametrize("action", ["ignore", "error"])
def test_decompression_bomb(tmp_path, monkeypatch, limit, action):
    # Pillow decodes with a warning up to twice its limit, and raises beyond that.
    path = tmp_path / "a.png"
    noise(64).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with warnings.catch_warnings():
        warnings.simplefilter(action, Image.DecompressionBombWarning)
        for function in (read_image, image_size):
            with pytest.raises(ImageError, match=r"4096 pixels.*MAX_IMAGE_PIXELS"):
                function(path)


def test_no_limit_when_the_user_lifts_it(tmp_path, monkeypatch):
    noise().save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert read_image(tmp_path / "a.png").shape == (64, 64, 3)


def test_pil_image_of_several_frames(tmp_path):
    path = tmp_path / "a.gif"
    frames(path)
    image = Image.open(path)
    with pytest.raises(ImageError, match=r"2 frames.*image.copy\(\)"):
        read_image(image)
    image.seek(1)
    assert read_image(image.copy()).shape == (64, 64, 3)


def test_pil_image_of_a_closed_file(tmp_path):
    noise().save(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as image:
        pass
    with pytest.raises(ImageError, match="must still be open"):
        read_image(image)


def test_reading_leaves_the_file_alone(tmp_path):
    path = tmp_path / "a.png"
    noise().save(path)
    path.chmod(stat.S_IRUSR)
    read_image(path)
    path.unlink()  # not held open, which some systems would refuse


MASKS = {
    "float": (lambda: np.full((4, 5), 0.5), "choose a threshold"),
    "NaN": (lambda: np.full((4, 5), np.nan), "choose a threshold"),
    "negative": (lambda: np.full((4, 5), -1), "negative values, down to -1; use 0"),
    "colours": (
        lambda: np.random.default_rng(0).integers(0, 9, (4, 5, 3)),
        "channels differ.*pass one channel",
    ),
    "1-D": (lambda: np.zeros(5), r"shape \(5,\); a mask is"),
    "4-D": (lambda: np.zeros((1, 4, 5, 1)), r"shape .*; a mask is"),
    "empty": (lambda: np.zeros((0, 5)), r"shape \(0, 5\)"),
    "strings": (lambda: np.full((4, 5), "a"), "dtype.*use bool"),
    "complex": (lambda: np.zeros((4, 5), complex), "dtype.*use bool"),
    "None": (lambda: None, "None is no mask; a mask is a path"),
    "list": (lambda: [0, 1], r"shape \(2,\); a mask is"),
    "ragged list": (lambda: [[0, 1], [0]], "list is no mask"),
    "other size": (
        lambda: np.zeros((5, 4), bool),
        r"\(5, 4\), its image \(4, 5\); pass the mask in the size",
    ),
}


@pytest.mark.parametrize("kind", MASKS)
def test_bad_mask(kind):
    make, part = MASKS[kind]
    with pytest.raises(ImageError, match=part) as caught:
        read_mask(make(), where="masks[4]", size=(4, 5))
    assert str(caught.value).startswith("masks[4]: ")


def test_jpeg_mask(tmp_path):
    path = tmp_path / "mask.jpg"
    blot = np.zeros((32, 32), dtype=np.uint8)
    blot[5:17, 9:21] = 255
    Image.fromarray(blot).save(path)
    with pytest.raises(ImageError, match=r"JPEG mask .*; save masks as PNG"):
        read_mask(path)


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (lambda: resize_image(U8, (2, 2)), r"image must be .*read_image first"),
        (lambda: resize_image([1], (2, 2)), "image must be an array, got list"),
        (lambda: resize_image(U8[..., None], 2), "size=2 must be two"),
        (lambda: resize_image(U8[..., None], (0, 2)), r"size=\(0, 2\) must be two"),
        (lambda: resize_image(U8[..., None], (2.5, 2)), r"size=\(2.5, 2\) must be two"),
        (
            lambda: resize_image(U8[..., None], (2, 2), resample="box"),
            "resample must be one of .* got 'box'",
        ),
        (lambda: to_float(np.zeros((4, 5, 3))), "image must be .*float64"),
        (
            lambda: to_float(U8[..., None].repeat(2, axis=2)),
            "n_channels=3 .*read_image",
        ),
        (lambda: resize_short_side((4, 5), 0), "short must be .* got 0"),
        (lambda: resize_short_side((4,), 3), r"size=\(4,\) must be two"),
        (lambda: center_crop_box((4, 5), 5), r"crop \(5, 5\) is larger"),
        (lambda: center_crop_box((4, 5), (1, 0)), r"crop=\(1, 0\) must be .* two"),
    ],
)
def test_bad_geometry(call, part):
    with pytest.raises(ValueError, match=part):
        call()

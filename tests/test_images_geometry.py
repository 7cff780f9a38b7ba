"""Sizes, crops, resizing and the float form of images."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from skad.images import (
    center_crop_box,
    image_size,
    read_image,
    resize_image,
    resize_short_side,
    to_float,
)

MEAN = np.array([0.485, 0.456, 0.406], dtype=np.float32)
STD = np.array([0.229, 0.224, 0.225], dtype=np.float32)


@pytest.fixture
def reference(golden):
    return golden("preprocess")


def normalised(image):
    return ((to_float(image) - MEAN) / STD).transpose(2, 0, 1)


def cropped(image, crop):
    top, left = center_crop_box(image.shape[:2], crop)
    return image[top : top + crop, left : left + crop]


@pytest.mark.parametrize(
    ("resample", "resized", "final"),
    [
        ("bilinear", "resized_bilinear_u8", "patchcore_input"),
        ("lanczos", "resized_lanczos_u8", "lanczos_input"),
    ],
)
def test_golden_short_side_and_crop(reference, resample, resized, final):
    image, crop = reference["image_u8"], int(reference["crop"])
    size = resize_short_side(image.shape[:2], int(reference["resize"]))
    small = resize_image(image, size, resample=resample)
    expected = reference[resized]
    assert small.dtype == np.uint8
    assert np.abs(small.astype(int) - expected.astype(int)).max() <= 1
    assert center_crop_box(size, crop) == tuple(reference["crop_top_left"])
    np.testing.assert_allclose(
        normalised(cropped(expected, crop)), reference[final], atol=1e-6
    )


def test_golden_exact_size(reference):
    image = reference["image_u8"]
    one_level = 1 / 255 / STD.min() + 1e-6
    square = normalised(resize_image(image, (64, 64)))
    np.testing.assert_allclose(square, reference["efficientad_input"], atol=one_level)
    middle = normalised(cropped(resize_image(image, (128, 128)), 64))
    np.testing.assert_allclose(
        middle, reference["efficientad_penalty_input"], atol=one_level
    )


def test_golden_mask(reference):
    mask = reference["mask_u8"][..., np.newaxis]
    size, crop = resize_short_side(mask.shape[:2], 64), 56
    nearest = cropped(resize_image(mask, size, resample="nearest"), crop)[..., 0]
    np.testing.assert_array_equal(nearest / 255, reference["mask_nearest"])
    smooth = cropped(resize_image(mask, size), crop)[..., 0] / 255
    np.testing.assert_allclose(smooth, reference["mask_bilinear"], atol=1 / 255)


# Properties ------------------------------------------------------------------

sides = st.integers(1, 12)
images_u8 = arrays(np.uint8, st.tuples(sides, sides, st.sampled_from([1, 3])))
images_f32 = arrays(
    np.float32,
    st.tuples(sides, sides, st.sampled_from([1, 3])),
    elements=st.floats(0, 1, width=32),
)
filters = st.sampled_from(["nearest", "bilinear", "bicubic", "lanczos"])


@given(images_u8 | images_f32, sides, sides, filters)
def test_resize_keeps_kind_and_range(image, height, width, resample):
    before = image.copy()
    result = resize_image(image, (height, width), resample=resample)
    assert result.shape == (height, width, image.shape[2])
    assert result.dtype == image.dtype
    top = 255 if image.dtype == np.uint8 else 1
    assert result.min() >= 0
    assert result.max() <= top
    if resample in ("nearest", "bilinear"):
        assert result.min() >= image.min() - 1e-6
        assert result.max() <= image.max() + 1e-6
    np.testing.assert_array_equal(image, before)


@given(images_u8 | images_f32, filters)
def test_resize_to_its_own_size_is_the_image(image, resample):
    assert resize_image(image, image.shape[:2], resample=resample) is image


@given(images_u8 | images_f32)
def test_reading_twice_changes_nothing(image):
    result = read_image(image)
    np.testing.assert_array_equal(read_image(result), result)
    expected = to_float(image)
    np.testing.assert_allclose(to_float(result), expected, rtol=0, atol=1e-6)
    assert image_size(image) == result.shape[:2]
    unit = to_float(result)
    assert unit.shape == (*result.shape[:2], 3)
    assert unit.dtype == np.float32
    assert 0 <= unit.min() <= unit.max() <= 1


@given(sides, sides, st.integers(1, 40))
def test_short_side(height, width, short):
    result = resize_short_side((height, width), short)
    assert min(result) == short
    assert (result[0] <= result[1]) == (height <= width) or result[0] == result[1]


@given(st.integers(1, 50), st.integers(1, 50), st.data())
def test_crop_lies_inside(height, width, data):
    crop = data.draw(st.integers(1, min(height, width)))
    top, left = center_crop_box((height, width), crop)
    assert 0 <= top <= height - crop
    assert 0 <= left <= width - crop
    assert abs(top - (height - crop) / 2) <= 0.5

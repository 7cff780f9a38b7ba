import numpy as np
import pytest

from skad.synthesis import (
    changed_texture,
    cutpaste,
    cutpaste_scar,
    draem,
    extended_anomaly,
    foreground_mask,
    perlin_mask,
    perlin_noise,
    procedural_texture,
    smooth_blend,
)
from skad.synthesis._cutpaste import turned
from skad.synthesis._smoothblend import blended


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.fixture
def image():
    return rng(1).random((60, 44, 3)).astype(np.float32)


def of_defect(image, generator):
    mask = np.zeros(image.shape[:2], bool)
    mask[5:15, 8:20] = True
    return extended_anomaly(image, 1 - image, mask, generator)


SYNTHESES = {
    "cutpaste": cutpaste,
    "cutpaste_scar": cutpaste_scar,
    "smooth_blend": smooth_blend,
    "draem": draem,
    "extended_anomaly": of_defect,
}


# -- golden ----------------------------------------------------------------------


def test_golden_perlin_noise(golden):
    g = golden("synth")
    for i in range(4):
        expected = g[f"perlin{i}_noise"]
        cells = tuple(g[f"perlin{i}_res"])
        noise = perlin_noise(expected.shape, cells, g[f"perlin{i}_angles"])
        np.testing.assert_allclose(noise, expected, atol=1e-12)


def test_golden_draem_blend(golden):
    g = golden("synth")
    beta = float(g["draem_beta"])
    changed, mask = draem(
        g["draem_image"],
        rng(),
        texture=g["draem_source_u8"],
        mask=g["draem_mask"][..., 0] > 0,
        opacity=(1 - beta, 1 - beta),
    )
    np.testing.assert_allclose(changed, g["draem_augmented"], atol=1e-6)
    np.testing.assert_array_equal(mask, g["draem_mask"][..., 0] > 0)


def test_golden_cutpaste(golden, monkeypatch):
    g = golden("synth")
    (x0, y0, x1, y1), (to_x, to_y, *_) = g["cutpaste_from_box"], g["cutpaste_to_box"]
    corners = iter([(y0, x0), (to_y, to_x)])
    from skad.synthesis import _cutpaste

    box = (int(y1 - y0), int(x1 - x0))
    monkeypatch.setattr(_cutpaste, "random_box", lambda *_: box)
    monkeypatch.setattr(_cutpaste, "random_corner", lambda *_: next(corners))
    changed, mask = cutpaste(g["cutpaste_image"], rng(), jitter=0.0)
    np.testing.assert_array_equal(np.rint(changed * 255), g["cutpaste_result"])
    assert mask.sum() == box[0] * box[1]


def test_golden_scar(golden):
    """The crop is PIL's of a box of floats; from there on the scar is ours."""
    from PIL import Image

    g = golden("synth")
    image = Image.fromarray(g["cutpaste_image"])
    crop = np.asarray(image.crop(tuple(g["scar_crop_box"]))).astype(np.float32)
    patch, shown = turned(crop, float(g["scar_angle"]))
    left, top = (int(v) for v in g["scar_position"])
    result = g["cutpaste_image"].astype(np.float32)
    region = result[top : top + len(shown), left : left + shown.shape[1]]
    # PIL cuts off what sticks out of the image.
    shown = shown[: region.shape[0], : region.shape[1]]
    region[shown] = patch[: shown.shape[0], : shown.shape[1]][shown]
    np.testing.assert_array_equal(result, g["scar_result"])


@pytest.mark.parametrize("halo", [False, True])
def test_golden_smooth_blend(golden, halo):
    g = golden("spd")
    found, alpha = blended(
        g["image"],
        g["jittered_patch"],
        tuple(int(v) for v in g["to_yx"]),
        float(g["blur_sigma"]),
        halo,
    )
    np.testing.assert_allclose(alpha, g["alpha"], atol=1e-12)
    expected = g["smoothblend_literal" if halo else "smoothblend_no_halo"]
    np.testing.assert_allclose(found, expected, atol=1e-12)


# -- of every synthesis ------------------------------------------------------------


@pytest.mark.parametrize("name", SYNTHESES)
@pytest.mark.parametrize("shape", [(60, 44, 3), (33, 90, 1), (128, 128, 4)])
def test_results_are_images_and_masks(name, shape):
    for seed in range(20):
        image = rng(seed).random(shape).astype(np.float32)
        before = image.copy()
        changed, mask = SYNTHESES[name](image, rng(seed))
        assert changed.shape == shape
        assert changed.dtype == np.float32
        assert 0 <= changed.min() <= changed.max() <= 1
        assert mask.shape == shape[:2]
        assert mask.dtype == bool
        assert mask.any()
        np.testing.assert_array_equal(image, before)
        if name != "smooth_blend":  # whose edges are soft
            np.testing.assert_array_equal(changed[~mask], image[~mask])


@pytest.mark.parametrize("name", SYNTHESES)
def test_same_generator_same_result(name, image):
    first, second = (SYNTHESES[name](image, rng(3)) for _ in range(2))
    other = SYNTHESES[name](image, rng(4))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("name", SYNTHESES)
def test_uint8_is_the_same_as_floats(name):
    image = rng(2).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    of_bytes = SYNTHESES[name](image, rng()) if name != "extended_anomaly" else None
    if of_bytes is not None:
        of_floats = SYNTHESES[name](image.astype(np.float32) / 255, rng())
        np.testing.assert_allclose(of_bytes[0], of_floats[0], atol=1e-6)


@pytest.mark.parametrize("name", ["cutpaste", "cutpaste_scar", "smooth_blend", "draem"])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (np.zeros((4, 8, 8, 3)), "expected one image"),
        (np.full((8, 8, 3), 2.0), r"not in \[0, 1\]"),
        (np.full((8, 8, 3), np.nan), r"not in \[0, 1\]"),
        (np.zeros((8, 8, 3), np.int64), "int64"),
        (np.zeros((0, 8, 3)), "expected one image"),
    ],
)
def test_bad_images_are_errors(name, bad, message):
    with pytest.raises(ValueError, match=message):
        SYNTHESES[name](bad, rng())


# -- of each -----------------------------------------------------------------------


def test_cutpaste_covers_the_area_that_it_says():
    shares = [cutpaste(np.zeros((200, 150, 3)), rng(s))[1].mean() for s in range(200)]
    assert 0.018 < min(shares) < 0.03
    assert 0.13 < max(shares) < 0.155


def test_smooth_blend_has_no_seam():
    """On an image of one colour nothing is seen, but for the literal formula's halo."""
    image = np.full((64, 64, 3), 0.5, np.float32)
    smooth, _ = smooth_blend(image, rng(), jitter=0.0)
    np.testing.assert_allclose(smooth, image, atol=1e-6)
    literal, _ = smooth_blend(image, rng(), jitter=0.0, halo=True)
    assert literal.min() < 0.45


def test_draem_takes_textures_and_masks(image):
    texture = rng(5).random(image.shape).astype(np.float32)
    mask = np.zeros(image.shape[:2], bool)
    mask[10:20, 5:30] = True
    changed, where = draem(image, rng(), texture=texture, mask=mask, opacity=(1.0, 1.0))
    np.testing.assert_array_equal(where, mask)
    np.testing.assert_allclose(changed[mask], texture[mask], atol=1e-6)
    with pytest.raises(ValueError, match="texture has shape"):
        draem(image, rng(), texture=texture[:10])


def test_draem_stays_in_the_foreground(image):
    allowed = np.zeros(image.shape[:2], bool)
    allowed[20:50, 10:30] = True
    for seed in range(10):
        everywhere, where = draem(image, rng(seed))
        changed, inside = draem(image, rng(seed), foreground=allowed)
        assert inside.any()
        assert not inside[~allowed].any()
        np.testing.assert_array_equal(changed[~inside], image[~inside])
        if (where & allowed).any():  # the first blobs will do: the same draw
            np.testing.assert_array_equal(inside, where & allowed)
            np.testing.assert_array_equal(changed[inside], everywhere[inside])


def test_every_change_of_a_texture_is_an_image():
    from skad.synthesis._draem import _CHANGES

    texture = procedural_texture((40, 30, 3), rng(7))
    for change in _CHANGES:
        for seed in range(5):
            changed = np.asarray(change(texture, rng(seed)))
            assert changed.shape == texture.shape
            assert np.isfinite(changed).all()
    changed = changed_texture(texture, rng(1))
    assert np.abs(changed - texture).mean() > 0.01


def test_textures_differ():
    first, second = (procedural_texture((32, 48, 3), rng(s)) for s in (0, 1))
    assert first.std() > 0.05
    assert np.abs(first - second).mean() > 0.05


def test_extended_anomalies_stay_in_the_foreground(image):
    mask = np.zeros((30, 30), bool)
    mask[3:9, 3:9] = True
    mask[20:24, 20:28] = True
    allowed = np.zeros(image.shape[:2], bool)
    allowed[20:40, 10:30] = True
    sizes = set()
    for seed in range(30):
        _, where = extended_anomaly(
            image, np.zeros((30, 30, 3)), mask, rng(seed), foreground=allowed
        )
        centre = np.argwhere(where).mean(axis=0)
        assert np.all(centre >= [17, 7])
        assert np.all(centre <= [43, 33])
        sizes.add(int(where.sum()))
    assert min(sizes) > 5
    assert max(sizes) < 90  # one part at a time


def test_extended_anomaly_needs_a_defect_and_a_place(image):
    none = np.zeros(image.shape[:2], bool)
    with pytest.raises(ValueError, match="no defect"):
        extended_anomaly(image, image, none, rng())
    with pytest.raises(ValueError, match="no place"):
        extended_anomaly(image, image, ~none, rng(), foreground=none)
    with pytest.raises(ValueError, match="defect_mask has shape"):
        extended_anomaly(image, image, none[:5], rng())


def test_foreground_of_parts_and_of_textures(image):
    part = np.full((50, 50, 3), 0.8, np.float32)
    part[10:40, 15:35] = 0.3
    part[20:25, 20:25] = 0.8  # a hole
    expected = np.zeros((50, 50), bool)
    expected[10:40, 15:35] = True
    np.testing.assert_array_equal(foreground_mask(part), expected)
    assert foreground_mask(np.full((20, 20, 3), 0.4)).all()


def test_perlin_noise_and_masks():
    noise = perlin_noise((50, 70), (3, 5), rng())
    assert np.abs(noise).max() <= 1
    assert perlin_noise((50, 70), (1, 1), rng()).shape == (50, 70)
    shares = [perlin_mask((64, 64), rng(s)).mean() for s in range(50)]
    assert 0 < np.mean(shares) < 0.3
    fewer = [perlin_mask((64, 64), rng(s), threshold=0.7).mean() for s in range(50)]
    assert np.mean(fewer) < np.mean(shares)
    for bad in ((0, 4), (4,), (4.5, 4)):
        with pytest.raises(ValueError, match="two positive integers"):
            perlin_noise(bad, (1, 1), rng())
    with pytest.raises(ValueError, match="one angle for each"):
        perlin_noise((8, 8), (2, 2), np.zeros((2, 2)))

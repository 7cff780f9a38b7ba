import pickle

import numpy as np
import pytest
from PIL import Image
from sklearn.base import clone
from sklearn.pipeline import make_pipeline
from sklearn.utils import estimator_checks

from skad import PCANetFeatures
from skad.datasets import load_mvtec, make_textures
from skad.images import ImageError
from skad.synthesis import (
    SyntheticAnomalies,
    changed_texture,
    cutpaste,
    draem,
    extended_anomaly,
    foreground_mask,
    procedural_texture,
)
from skad.synthesis._transformer import _SYNTHESES

SHAPES = [(60, 44, 3), (33, 90, 3), (128, 100, 3)]


def textured(shape, seed):
    return procedural_texture(shape, np.random.default_rng(seed))


@pytest.fixture
def images():
    return [textured(shape, seed) for seed, shape in enumerate(SHAPES)]


@pytest.fixture
def known():
    """Two defects with their masks."""
    masks = np.zeros((2, 40, 50), bool)
    masks[0, 5:15, 10:30], masks[1, 20:35, 25:33] = True, True
    return {"defects": [textured((40, 50, 3), s) for s in (8, 9)], "masks": list(masks)}


@pytest.fixture(params=_SYNTHESES)
def maker(request, known):
    return SyntheticAnomalies(
        request.param, **(known if request.param == "extended" else {})
    )


# -- of every method ---------------------------------------------------------------


def test_changes_lie_in_the_masks(maker, images):
    changed, masks = maker.fit(images).make(images)
    for before, after, mask in zip(images, changed, masks, strict=True):
        assert after.shape == before.shape
        assert after.dtype == np.float32
        assert 0 <= after.min() <= after.max() <= 1
        assert mask.shape == before.shape[:2]
        assert mask.dtype == bool
        assert mask.any()
        differs = np.abs(after - before).max(axis=2)
        assert differs[mask].max() > 0.02
        if maker.method != "smooth_blend":  # whose edges are soft
            assert differs[~mask].max(initial=0) == 0


def test_one_array_where_sizes_agree(maker, images):
    stack = np.stack([image[:33, :44] for image in images])
    changed, masks = maker.fit(stack).make(stack)
    assert isinstance(changed, np.ndarray)
    assert changed.shape == (3, 33, 44, 3)
    assert masks.shape == (3, 33, 44)
    np.testing.assert_array_equal(changed, maker.transform(stack))
    assert isinstance(maker.transform(images), list)


def test_depends_on_position_and_seed_alone(maker, images):
    changed = maker.fit(images).transform(images)
    again, _ = clone(maker).fit(images).make(images)
    loaded = pickle.loads(pickle.dumps(maker)).transform(images[:2])
    for i in range(3):
        np.testing.assert_array_equal(changed[i], again[i])
        if i < 2:  # a shorter batch
            np.testing.assert_array_equal(changed[i], loaded[i])
    other = clone(maker).set_params(random_state=1).fit(images).transform(images)
    assert all(not np.array_equal(a, b) for a, b in zip(changed, other, strict=True))
    same = [images[0], images[0]]  # one image twice: two anomalies
    first, second = maker.transform(same)
    assert not np.array_equal(first, second)


@pytest.mark.usefixtures("numpy_state_untouched")
def test_a_generator_draws_once_for_each_fit(maker, images):
    maker.set_params(random_state=np.random.RandomState(3))
    first = maker.fit(images).transform(images)
    np.testing.assert_array_equal(first[0], maker.transform(images)[0])
    assert not np.array_equal(first[0], maker.fit(images).transform(images)[0])


def test_takes_images_of_every_kind(maker, images, tmp_path):
    levels = np.rint(255 * images[0]).astype(np.uint8)
    Image.fromarray(levels).save(tmp_path / "a.png")
    kinds = levels, Image.fromarray(levels), tmp_path / "a.png", str(tmp_path / "a.png")
    maker.fit([levels])
    expected = maker.transform([levels])[0]
    for item in kinds:
        np.testing.assert_array_equal(maker.fit([item]).transform([item])[0], expected)
    grey = maker.transform([levels[..., 0]])[0]
    assert grey.shape == (60, 44, 1)


def test_arguments_are_left_alone(maker, images):
    before = [image.copy() for image in images]
    maker.fit(images).make(images)
    for image, kept in zip(images, before, strict=True):
        np.testing.assert_array_equal(image, kept)


def test_pipelines_take_what_comes_out(maker, images):
    stack = np.stack([image[:33, :44] for image in images])
    model = make_pipeline(maker, PCANetFeatures(64, n_filters=(8, 12, 12)))
    assert model.fit(stack).transform(stack).shape[0] == 3


def test_what_it_draws_from_stays_in_the_foreground(maker):
    part = np.full((80, 80, 3), 0.9, np.float32)
    part[20:60, 20:60] = textured((40, 40, 3), 5) * 0.5
    allowed = foreground_mask(part)
    assert allowed.mean() < 0.5
    parts = [part] * 30
    _, masks = maker.set_params(foreground="auto").fit(parts).make(parts)
    assert all(mask[allowed].sum() * 2 >= mask.sum() for mask in masks)
    if maker.method in ("perlin", "homologous"):
        assert not any(mask[~allowed].any() for mask in masks)


@pytest.mark.parametrize(
    "check",
    [
        estimator_checks.check_estimator_cloneable,
        estimator_checks.check_estimator_repr,
        estimator_checks.check_no_attributes_set_in_init,
        estimator_checks.check_parameters_default_constructible,
        estimator_checks.check_do_not_raise_errors_in_init_or_set_params,
        estimator_checks.check_valid_tag_types,
        estimator_checks.check_mixin_order,
    ],
)
def test_scikit_learns_checks_without_data(check):
    check("SyntheticAnomalies", SyntheticAnomalies())


# -- of each -----------------------------------------------------------------------


def generator(maker, i=0):
    return np.random.default_rng((maker.seed_, i))


def test_methods_are_the_functions(images, known):
    image, rng = images[0], generator
    maker = SyntheticAnomalies(options={"jitter": 0.5}).fit(images)
    expected = cutpaste(image, rng(maker), jitter=0.5)
    np.testing.assert_array_equal(maker.transform(images)[0], expected[0])
    maker = SyntheticAnomalies("perlin", options={"opacity": (1, 1)}).fit(images)
    expected = draem(image, rng(maker), opacity=(1, 1))
    np.testing.assert_array_equal(maker.transform(images)[0], expected[0])
    maker = SyntheticAnomalies("extended", **known).fit(images)
    draw = rng(maker)
    k = draw.integers(2)
    expected = extended_anomaly(image, known["defects"][k], known["masks"][k], draw)
    np.testing.assert_array_equal(maker.transform(images)[0], expected[0])


def test_textures_and_good_images_show_through(images):
    texture = textured((60, 44, 3), 20)
    opaque = {"opacity": (1.0, 1.0)}
    for maker, source in (
        (SyntheticAnomalies("perlin", texture_images=[texture]), texture),
        (SyntheticAnomalies("homologous"), images[0]),
    ):
        maker.set_params(options=opaque).fit(images[:1])
        (changed,), (mask,) = maker.make(images[:1])
        draw = generator(maker)
        draw.integers(1)
        shown = changed_texture(source, draw)
        np.testing.assert_allclose(changed[mask], shown[mask], atol=1e-6)


def test_homologous_takes_good_images_only(images):
    maker = SyntheticAnomalies("homologous").fit(images, [1, -1, 1])
    assert [image.shape for image in maker.sources_] == [SHAPES[0], SHAPES[2]]
    with pytest.raises(ValueError, match="every label is -1"):
        maker.fit(images, [-1, -1, -1])
    with pytest.raises(ValueError, match="holds 0, 1"):
        maker.fit(images, [0, 1, 1])


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"method": "cutmix"}, "cutmix"),
        ({"options": [1]}, "options"),
        ({"options": {"widht": (1, 2)}}, "'widht'.*it takes 'area', 'aspect'"),
        ({"method": "perlin", "options": {"mask": 1}}, "it takes 'opacity'"),
        ({"texture_images": [np.zeros((9, 9, 3))]}, "texture_images is of no use"),
        ({"method": "extended"}, "defects=None"),
        ({"method": "perlin", "masks": [np.ones((9, 9))]}, "masks is of no use"),
        ({"method": "perlin", "texture_images": []}, "texture_images is empty"),
        ({"foreground": "sky"}, "foreground"),
    ],
)
def test_bad_settings_are_errors(parameters, message, images):
    with pytest.raises(ValueError, match=message):
        SyntheticAnomalies(**parameters).fit(images)


def test_bad_defects_are_errors(images, known):
    defects, masks = known["defects"], known["masks"]
    for bad, message in (
        (masks[:1], "masks has 1 entries, but defects 2"),
        ([masks[0], np.zeros((40, 50), bool)], r"masks\[1\] is empty"),
        ([masks[0], masks[1][:5]], r"masks\[1\].*its image \(40, 50\)"),
    ):
        maker = SyntheticAnomalies("extended", defects=defects, masks=bad)
        with pytest.raises(ValueError, match=message):
            maker.fit(images)
    with pytest.raises(ValueError, match="masks=None"):
        SyntheticAnomalies("extended", defects=defects).fit(images)


def test_bad_images_are_errors(images):
    maker = SyntheticAnomalies("perlin").fit(images)
    with pytest.raises(ImageError, match=r"X\[1\]"):
        maker.transform([images[0], "missing.png"])
    with pytest.raises(TypeError, match="single path"):
        maker.fit("a.png")
    with pytest.raises(ValueError, match=r"X\[0\], 1 x 1 pixels, has no room"):
        maker.transform([np.zeros((1, 1, 3), np.float32)])


def test_on_photographs(shared, maker):
    """Every method on real parts, whose sizes differ on the tiles."""
    for name, foreground in (("mvtec_bottle_256", "auto"), ("magnetic_tile", None)):
        data = load_mvtec(shared / "data", name)
        good = data.train[:6]
        if maker.method == "extended":
            bad = np.flatnonzero(data.y_test == -1)[:3]
            maker.set_params(
                defects=[data.test[i] for i in bad], masks=[data.masks[i] for i in bad]
            )
        changed, masks = maker.set_params(foreground=foreground).fit(good).make(good)
        assert len(changed) == 6
        assert all(0 < mask.mean() < 0.9 for mask in masks)


def test_makes_a_test_set():
    data = make_textures(8, 0, n_test_normal=4, size=64, random_state=0)
    changed, masks = SyntheticAnomalies("perlin").fit(data.train).make(data.test)
    assert np.array_equal(
        np.abs(changed - data.test / np.float32(255)).max(axis=3) > 0, masks
    )
